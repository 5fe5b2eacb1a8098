"""Target and draft, with the tokenizer they share: what everything else takes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax

from kljudge_jax.core.protocols import check_methods, check_structure
from kljudge_jax.errors import InputError
from kljudge_jax.models.compiled import keep_compiled
from kljudge_jax.models.config import TransformerConfig
from kljudge_jax.models.draft_heads import HeadConfig, HeadSource
from kljudge_jax.models.draft_vocab import DraftVocab, cut_head, read_draft_vocab, with_ends
from kljudge_jax.models.leaves import head_kind, is_head, precision
from kljudge_jax.models.linear import FILE
from kljudge_jax.models.shapes import check_weights_fit
from kljudge_jax.models.shipped import shipped_draft, shipped_folder
from kljudge_jax.models.sources import Checkpoint, open_checkpoint, open_draft, open_tokenizer
from kljudge_jax.models.tokenizer import check_fits, compare, tokenizer_eos
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.models.weights import load, resolve_dtype, storage_of
from kljudge_jax.parallel.placement import Placement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DraftConfig = TransformerConfig | HeadConfig
"""Of a draft: a model's, or a head's."""


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class ModelPair:
    """A target model and the draft that proposes for it. A pytree whose leaves are the parameters of both.

    Attributes:
      target: the model whose tokens are wanted.
      draft: the small model; None for plain decoding, prompt lookup and self-draft.
      tokenizer: of both; None if prompts are token ids.
      eos: every id that ends a text; by default the tokenizer's.
      target_name: for reports.
      draft_name: for reports.

    Raises:
      InputError: the target is no model, or the two vocabularies differ in size.
    """

    target: Transformer
    draft: Transformer | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    # Typed as what it is once `__post_init__` has run: until then None stands for the tokenizer's.
    eos: tuple[int, ...] = cast(tuple[int, ...], None)
    target_name: str = "target"
    draft_name: str = "draft"

    def __post_init__(self):
        if self.eos is None:
            object.__setattr__(self, "eos", tokenizer_eos(self.tokenizer))
        check_methods(self.target, "target")
        if is_head(self.target):
            raise InputError(
                f"the target is an {head_kind(self.target)} head, which is no model of its own: give it as the draft"
            )
        if inspect.isroutine(self.draft) or inspect.isclass(self.draft) or isinstance(self.draft, str):
            raise InputError(
                f"the draft is a {type(self.draft).__name__}: give a kljudge_jax.Model, or the arrays that a drafter "
                "of your own keeps"
            )
        if hasattr(self.draft, "init_cache"):
            check_structure(self.draft, "draft")
        ours, theirs = self.target.vocab_size, getattr(self.draft, "vocab_size", None)
        if theirs is not None and ours != theirs:
            raise InputError(
                f"the target has {ours} tokens and the draft {theirs}: load them with ModelPair.from_pretrained, "
                "which aligns the two"
            )

    # By hand, since to unflatten may put anything in place of the models, which the constructor refuses.
    def tree_flatten_with_keys(self):
        children, static = self.tree_flatten()
        return tuple(zip(map(jax.tree_util.GetAttrKey, ("target", "draft")), children, strict=True)), static

    def tree_flatten(self):
        return (self.target, self.draft), (self.tokenizer, self.eos, self.target_name, self.draft_name)

    @classmethod
    def tree_unflatten(cls, static, children):
        pair = object.__new__(cls)
        for field, value in zip(dataclasses.fields(cls), (*children, *static), strict=True):
            object.__setattr__(pair, field.name, value)
        return pair

    @property
    def precision(self) -> str:
        """What the matrices are kept as, for reports: "bfloat16", or "int8 (bfloat16), draft int4 (bfloat16)", and of a
        draft whose head is cut "bfloat16, draft bfloat16, 8,192 of 151,936 tokens"."""
        target, draft = precision(self.target), None if self.draft is None else precision(self.draft)
        return target if draft in (None, target) else f"{target}, draft {draft}"

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path | None = None,
        *,
        draft_vocab: DraftVocab | None = None,
        dtype: str = "auto",
        mesh: str | None = None,
        axes: str | None = None,
        draft_axes: str | None = None,
        bits: int | str | None = None,
        draft_bits: int | str | None = None,
        cache_bits: int | None = None,
        revision: str | None = None,
        draft_revision: str | None = None,
        tokenizer: Any = None,
        check: Callable[[Placement, TransformerConfig, DraftConfig | None, Any], None] | None = None,
    ) -> ModelPair:
        """Loads a pair.

        Vocabularies that differ only by padding are cut to the common part. What JAX compiles from now on is kept in
        `~/.cache/kljudge_jax`, unless it was told where to keep it, or KLJUDGE_COMPILATION_CACHE is 0.

        Args:
          target: hub id, local folder (safetensors, or ours) or .gguf file.
          draft: the same, or a head of the target in the public format of EAGLE-3 or DFlash; None for plain decoding,
            prompt lookup and self-draft.
          draft_vocab: the tokens that the draft's head is cut to, a text file with one id a line or the ids: see
            `with_draft_vocab`.
          dtype: "float32", "bfloat16", "float16", or "auto": bfloat16; on a CPU without a C++ compiler whichever of
            bfloat16 and float32 is measured to be faster.
          mesh: devices to spread the models over, such as "data=2,tensor=4"; None is one device.
          axes: what of the target is split over which axis of the mesh, as changes to the table of `parallel.axes`
            ("vocab=none,batch=data+fsdp"); None is that table.
          draft_axes: the same of the draft, such as "replicated", or "target" for `axes`; None is `axes` on a CPU, and
            elsewhere that or "replicated", whichever takes less time by estimate.
          bits: 8 or 4, to round the target's matrices to as they are loaded; "file" to leave them quantized as a .gguf
            file has them; None keeps them in `dtype`. Fewer bytes are read for a token, and something of
            the model is lost: with "file" only what rows are rounded by, and those on one CPU alone; TPU and GPU
            round again, to 8 bits, what they would be slow with, and a warning says so.
          draft_bits: the same of the draft.
          cache_bits: 8, for quantized keys and values of both models, a scale a head and position: half the bytes
            of a cache in bfloat16. None keeps them in `dtype`.
          revision: branch, tag or commit of the target on the hub.
          draft_revision: the same of the draft.
          tokenizer: in place of the target's: a tokenizer, or where to find one (hub id, folder or .gguf file).
          check: called before any weight is read, with where the models will lie, the configurations of target and
            draft (of a head such as `Eagle3Config`), and the dtype: may raise to refuse them.

        Raises:
          InputError: a model cannot be found, read or run, or does not fit, or the two do not share a tokenizer.
        """
        for name, asked in (("bits", bits), ("draft_bits", draft_bits)):
            if asked not in (None, 8, 4, FILE):
                raise InputError(f"{name} is 8, 4, {FILE!r} or None, not {asked!r}")
        if cache_bits not in (None, 8):
            raise InputError(f"cache_bits is 8 or None, not {cache_bits!r}")
        if draft_vocab is not None and draft is None:
            raise InputError("draft_vocab is of a draft, and there is none: name it")
        keep_compiled()
        wanted = resolve_dtype(dtype)
        placement = Placement.parse(mesh, axes, draft_axes)
        target_source = open_checkpoint(target, revision)
        drafting = None if draft is None else open_draft(draft, draft_revision)
        # A head has the target's tokens, and its vocabulary.
        head = None if drafting is None or not hasattr(drafting, "fitted") else cast(HeadSource, drafting)
        draft_source = None if drafting is None or head is not None else cast(Checkpoint, drafting)
        if head is not None and draft_vocab is not None:
            raise InputError(f"{head.where} is a head with a vocabulary of its own: leave draft_vocab out")

        if isinstance(tokenizer, str | Path):
            tokenizer = open_tokenizer(tokenizer)
        names = {target_source: str(target)} | ({} if draft_source is None else {draft_source: str(draft)})
        tokenizer = _shared_tokenizer(names, tokenizer)
        vocab_size = min(source.config.vocab_size for source in names)
        eos = tuple(i for i in target_source.eos or tokenizer_eos(tokenizer) if i < vocab_size)
        known = None if draft_vocab is None else with_ends(read_draft_vocab(draft_vocab, vocab_size), eos)
        target_config = _cut(target_source, vocab_size)
        draft_config = None if draft_source is None else _cut(draft_source, vocab_size)
        head_config = None if head is None else head.fitted(target_config)
        if check is not None:
            check(placement, target_config, draft_config if head is None else head_config, wanted)
        kept = storage_of(target_source, wanted, bits, placement.target(target_config), cache_bits)
        draft_kept = None
        if draft_source is not None and draft_config is not None:
            draft_kept = storage_of(draft_source, wanted, draft_bits, placement.draft(draft_config), cache_bits)
        if head is not None:
            draft_kept = storage_of(head, wanted, draft_bits, placement.draft(head_config), cache_bits)
        drafts = [(config, draft_kept) for config in (draft_config, head_config) if config is not None and draft_kept]
        check_weights_fit([(target_config, kept), *drafts])

        def loaded_draft():
            if draft_kept is None:
                return None
            if head is not None:
                return head.load(head_config, draft_kept)
            whole = load(draft_source, draft_kept, vocab_size)
            return whole if known is None else cut_head(whole, known)

        return cls(
            load(target_source, kept, vocab_size),
            loaded_draft(),
            tokenizer,
            eos,
            str(target),
            "none" if draft is None else str(draft),
        )

    def with_draft_vocab(self, draft_vocab: DraftVocab) -> ModelPair:
        """The pair with the draft's head cut to some tokens, of which alone a draft token reads the rows.

        The draft never proposes another; rules see logits of -inf there. Lossless rules stay lossless, and those that
        compare distributions do so on these tokens (`KLJudge`). What ends a text is added where it is missing.

        Args:
          draft_vocab: a text file with one token id a line, in any order, or the ids.

        Raises:
          InputError: there is no draft or it is none of ours, no such file, or what is wrong with the ids.
        """
        if self.draft is None:
            raise InputError("draft_vocab is of a draft, and there is none: name it")
        known = with_ends(read_draft_vocab(draft_vocab, self.target.vocab_size), self.eos)
        return dataclasses.replace(self, draft=cut_head(self.draft, known))

    @classmethod
    def embedded(
        cls,
        *,
        draft: str | Path | None = "embedded",
        draft_vocab: DraftVocab | None = None,
        dtype: str = "float32",
        mesh: str | None = None,
        axes: str | None = None,
        draft_axes: str | None = None,
        bits: int | str | None = None,
        draft_bits: int | str | None = None,
        cache_bits: int | None = None,
    ) -> ModelPair:
        """Loads the small pair that comes with the package; arguments as in `from_pretrained`.

        Args:
          draft: "embedded", the small model of the pair; "embedded:head", an EAGLE-3 head of its target, which comes
            with it; or another, such as a head of one's own.

        Raises:
          InputError: this installation has none, or its files are not what was shipped; or as `from_pretrained`.
        """
        drafting, title = shipped_draft(draft)
        pair = cls.from_pretrained(
            shipped_folder() / "target",
            drafting,
            draft_vocab=draft_vocab,
            dtype=dtype,
            mesh=mesh,
            axes=axes,
            draft_axes=draft_axes,
            bits=bits,
            draft_bits=draft_bits,
            cache_bits=cache_bits,
        )
        return dataclasses.replace(pair, target_name="embedded target", draft_name=title)


def _cut(source: Checkpoint, vocab_size: int) -> TransformerConfig:
    return dataclasses.replace(source.config, vocab_size=vocab_size)


def _shared_tokenizer(names: dict[Checkpoint, str], given: Any) -> PreTrainedTokenizerBase | None:
    """The one tokenizer of target and draft, in this order; `given` stands in for one that has none."""
    shared, shared_name = given, "the given tokenizer"
    bare = []
    for source, name in names.items():
        own = source.tokenizer()
        if own is None:
            bare.append(name)
            continue
        check_fits(own, source.config.vocab_size, name)
        if shared is None:
            shared, shared_name = own, name
        else:
            compare(shared, own, shared_name, name)
    if shared is not None and bare:
        if given is None:
            raise InputError(f"{bare[0]} has no tokenizer to compare with the other's: add one, or pass tokenizer=")
        for source, name in names.items():
            check_fits(given, source.config.vocab_size, name)
    return shared
