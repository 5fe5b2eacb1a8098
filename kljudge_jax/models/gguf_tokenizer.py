"""The tokenizer that a GGUF file carries in its metadata, rebuilt with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from kljudge_jax.errors import InputError
from kljudge_jax.models.quiet_transformers import PreTrainedTokenizerFast

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# How a text is cut into words before merging, by `tokenizer.ggml.pre`: every pattern cuts the pieces of the one before.
# The names are llama.cpp's (`src/llama-vocab.cpp`), the patterns those of the models' own tokenizers; "default" is what
# llama.cpp does with a model that it does not know.
_WORDS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
}
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_QWEN2_NAMES = ("qwen2", "deepseek-r1-qwen")

# Tokens that end a turn of a chat, whether or not the metadata says so; a part of llama.cpp's list.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")

_SPACE = "\u2581"  # what SentencePiece writes for a space


def end_of_text(metadata: dict[str, Any]) -> tuple[int, ...]:
    """Ids of the tokens that end a text: the metadata's, and of a chat model the ends of a turn by name."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    named = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    ends = [number for number in named if _is_token(number, tokens)]
    if "tokenizer.chat_template" in metadata:
        ends += [tokens.index(token) for token in _TURN_ENDS if token in tokens]
    return tuple(dict.fromkeys(ends))


def _is_token(number: Any, tokens: list[str]) -> TypeGuard[int]:
    """Whether it is the id of a token; files write -1 or 2^32 - 1 for none."""
    return isinstance(number, int) and 0 <= number < len(tokens)


def build_tokenizer(where: str, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file.

    Control tokens are special ones; user-defined ones are matched whole, too, but decoded as text.

    Args:
      where: the file, for messages.
      metadata: the file's, by key.

    Raises:
      InputError: the tokenizer is of a kind that is not supported, or contradicts itself.
    """
    return _Vocabulary(where, metadata).build()


class _Vocabulary:
    """The tokenizer part of a file's metadata."""

    def __init__(self, where: str, metadata: dict[str, Any]):
        self.where = where
        self.metadata = metadata
        self.kind = str(self.get("model"))
        if self.kind not in ("gpt2", "llama"):
            raise InputError(f"{where} has tokenizer {self.kind!r}, which is not supported: choose gpt2 or llama")
        self.tokens = self.strings("tokens")
        self.types = self.numbers("token_type", TokenType.NORMAL)
        # A token that appears twice is encoded as its first id.
        self.index = {token: number for number, token in reversed(list(enumerate(self.tokens)))}

    def get(self, name: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}", default)

    def strings(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list):
            raise InputError(f"{self.where} has no list tokenizer.ggml.{name}: get a file that holds its tokenizer")
        return value

    def numbers(self, name: str, default: float) -> np.ndarray:
        """One number a token."""
        value = self.get(name)
        if value is None:
            return np.full(len(self.tokens), default)
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise InputError(f"{self.where}: tokenizer.ggml.{name} has not one number for each token: convert it again")
        return value

    def named(self, role: str) -> str | None:
        """The token that the metadata names for a role."""
        number = self.get(f"{role}_token_id")
        return self.tokens[number] if _is_token(number, self.tokens) else None

    def build(self) -> PreTrainedTokenizerFast:
        tokenizer = self.byte_level() if self.kind == "gpt2" else self.sentencepiece()
        for kind, special in ((TokenType.CONTROL, True), (TokenType.UNKNOWN, True), (TokenType.USER_DEFINED, False)):
            whole = [self.tokens[number] for number in np.flatnonzero(self.types == kind)]
            # On the raw text: a normalizer would change the token that is looked for.
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in whole])
        roles = {
            "bos_token": self.named("bos"),
            "eos_token": self.named("eos"),
            "unk_token": self.named("unknown"),
            "pad_token": self.named("padding") or self.named("eos"),
        }
        self.set_ends(tokenizer)
        template = self.metadata.get("tokenizer.chat_template")
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            chat_template=template if isinstance(template, str) else None,
            clean_up_tokenization_spaces=False,
            **{role: token for role, token in roles.items() if token is not None},
        )

    def set_ends(self, tokenizer: Tokenizer) -> None:
        """Puts the first and the last token around a text, where the file asks for it."""
        # What llama.cpp assumes of a file that does not say.
        first = self.get("add_bos_token", self.kind == "llama" or str(self.get("pre")) in _LLAMA3_NAMES)
        last = self.get("add_eos_token", False)
        around = [self.named("bos") if first is True else None, "$A", self.named("eos") if last is True else None]
        pieces = [piece for piece in around if piece is not None]
        if len(pieces) > 1:
            special = [(piece, self.index[piece]) for piece in pieces if piece != "$A"]
            tokenizer.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=special)

    def byte_level(self) -> Tokenizer:
        """Byte-level BPE, as GPT-2 has it."""
        words = str(self.get("pre"))
        if words not in _WORDS:
            raise InputError(
                f"{self.where} has pre-tokenizer {words!r}, which is not supported: choose one of {', '.join(_WORDS)}"
            )
        # Of two parts each, which `backend` makes sure of.
        merges: list[Any] = [tuple(merge.split(" ")) for merge in self.strings("merges")]
        # Llama 3 looks a whole word up before it merges.
        tokenizer = self.backend(merges, ignore_merges=words in _LLAMA3_NAMES)
        if words in _QWEN2_NAMES:
            tokenizer.normalizer = normalizers.NFC()
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _WORDS[words]]
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, letters])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def sentencepiece(self) -> Tokenizer:
        """SentencePiece's BPE: no words, spaces are letters, unknown letters fall back to bytes."""
        unknown = self.named("unknown")
        tokenizer = self.backend(self.merges_by_score(), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        prefix = self.get("add_space_prefix", True) is True
        spaces = [normalizers.Prepend(_SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if prefix:
            steps.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer

    def backend(self, merges: Sequence[tuple[str, str]], **options: Any) -> Tokenizer:
        try:
            return Tokenizer(models.BPE(self.index, merges, **options))
        except Exception as error:  # `tokenizers` raises bare exceptions, and TypeError for a merge of three
            raise InputError(f"{self.where} has merges that its tokens do not fit ({error}): get it again") from error

    def merges_by_score(self) -> list[tuple[str, str]]:
        """Every way to join two tokens into a third, the third's highest score first.

        SentencePiece joins the neighbours that give the token with the highest score, and knows no merges.
        """
        scores = self.numbers("scores", 0.0)
        normal = self.types == TokenType.NORMAL
        parts = {self.tokens[number] for number in np.flatnonzero(normal)}
        merges = []
        # Of equal scores the lower id comes first: the order in which the tokens were learned. Of the ways to one token
        # the longer left part comes first, as in Transformers.
        for number in np.lexsort((np.arange(len(scores)), -scores)):
            if normal[number]:
                token = self.tokens[number]
                cuts = ((token[:at], token[at:]) for at in range(len(token) - 1, 0, -1))
                merges += [(left, right) for left, right in cuts if left in parts and right in parts]
        return merges
