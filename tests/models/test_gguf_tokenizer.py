"""Tokenizers out of GGUF files against the ones they were written from, and against SentencePiece's algorithm."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from gguf import TokenType
from tiny_gguf import write_llama
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kljudge_jax.errors import InputError
from kljudge_jax.models.gguf import GGUFFile
from kljudge_jax.models.gguf_tokenizer import build_tokenizer, end_of_text

CORPUS = [
    "The capital of France is Paris, and the answer to 12 + 345 is 357. I've said they'll DON'T stop.",
    "def answer(x):\n    return x ** 2  # the answer\n\n\nclass Capital:\n\tpass\n",
    "héllo wörld, naïve café 日本語のテキスト привет мир",
] * 3
TEXTS = [
    *CORPUS[:3],
    "",
    " ",
    "   two  spaces   and\ttabs\t\t\n\n\r\n  end  ",
    "3 33 333 3333 33333 3.14 ½ ٣٤ \uff12",
    "🚀 😶\u200d🌫\ufe0f ok 🦙🦙!!! ???...===",
    "e\u0301 and é",
    "\x00\x7f\u200b\u00a0",
    "<|im_start|>user\nhi<|im_end|>\n",
    "x<tool>y <|im_end|>",
]
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def llama3_words(digits):
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def split(pattern):
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), letters])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# As the tokenizer.json of these models has them: pre-tokenizer, normalizer, whether whole words are looked up first.
SOURCES = {
    "gpt-2": (GPT2, None, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), None, False),
    "qwen2": (split(llama3_words(r"\p{N}")), normalizers.NFC(), False),
    "llama-bpe": (split(llama3_words(r"\p{N}{1,3}")), None, True),
}


def byte_level_source(words):
    """A trained tokenizer, and the metadata that describes it."""
    cut, normalizer, ignore_merges = SOURCES[words]
    source = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    source.pre_tokenizer, source.decoder = cut, decoders.ByteLevel()
    if normalizer is not None:
        source.normalizer = normalizer
    control, plain = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source.train_from_iterator(CORPUS, trainer)
    source.add_tokens(plain)
    tokens = [source.id_to_token(i) for i in range(source.get_vocab_size())]
    kinds = {**dict.fromkeys(control, TokenType.CONTROL), **dict.fromkeys(plain, TokenType.USER_DEFINED)}
    merges = [" ".join(pair) for pair in json.loads(source.to_str())["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kinds.get(token, TokenType.NORMAL)) for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT,
    }
    return source, metadata


def as_read(metadata):
    """Metadata with number lists as arrays, as the header's reader gives them."""
    numbers = ("tokenizer.ggml.token_type", "tokenizer.ggml.scores")
    return metadata | {key: np.asarray(metadata[key]) for key in numbers if key in metadata}


def build(metadata, **changes):
    changes = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return build_tokenizer("tiny.gguf", as_read(metadata | changes))


@pytest.mark.parametrize("words", SOURCES)
def test_byte_level_ids_are_the_source_tokenizer_s(words, tmp_path):
    source, metadata = byte_level_source(words)
    tokenizer = GGUFFile(write_llama(tmp_path / "tiny.gguf", keys=metadata)).tokenizer()
    assert len(tokenizer) == source.get_vocab_size()
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == source.encode(text).ids, text
        normal = source.normalizer.normalize_str(text) if source.normalizer else text
        assert tokenizer.decode(ids) == normal


def test_the_texts_tell_the_pre_tokenizers_apart():
    ids = [tuple(tuple(byte_level_source(words)[0].encode(text).tokens) for text in TEXTS) for words in SOURCES]
    assert len(set(ids)) == len(ids)


def cuts(tokenizer, text):
    return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def test_how_digits_are_cut():
    cut = {words: cuts(build(byte_level_source(words)[1]), "12345") for words in SOURCES}
    assert cut["gpt-2"] == ["12345"]
    assert cut["qwen2"] == cut["smollm"] == ["1", "2", "3", "4", "5"]
    assert cut["llama-bpe"] == ["123", "45"]


def test_default_words_are_llama_cpp_s():
    tokenizer = build(byte_level_source("gpt-2")[1], pre="default")
    want = ["I", "'", "ve", "\u0120", "123", "45", "\u0120f", "(", "x", ")!"]
    assert cuts(tokenizer, "I've 12345 f(x)!") == want


def test_only_llama3_looks_whole_words_up():
    for words in SOURCES:
        metadata = byte_level_source(words)[1]
        number = len(metadata["tokenizer.ggml.tokens"])
        metadata["tokenizer.ggml.tokens"].append("qzqz")  # no merge leads to it
        metadata["tokenizer.ggml.token_type"].append(int(TokenType.NORMAL))
        assert (build(metadata).encode("qzqz", add_special_tokens=False) == [number]) == (words == "llama-bpe")


def test_special_tokens_and_chats():
    tokenizer = build(byte_level_source("qwen2")[1])
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "the answer"}], return_dict=False)
    assert ids[0] == 1 and ids.count(2) == 1
    assert tokenizer.decode(ids) == "<|im_start|>user\nthe answer<|im_end|>\n"
    # Special tokens are left out of a text, tokens that the user defined are part of it.
    ids = tokenizer.encode("a <tool>b<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a <tool>b"
    assert tokenizer.convert_tokens_to_ids("<tool>") in ids


def test_first_and_last_tokens():
    metadata = byte_level_source("qwen2")[1]
    plain = build(metadata).encode("the")
    assert build(metadata, add_bos_token=True).encode("the") == [1, *plain]
    both = build(metadata, add_bos_token=True, add_eos_token=True)
    assert both.encode("the") == [1, *plain, 2]
    assert both.encode("the", add_special_tokens=False) == plain
    del metadata["tokenizer.ggml.add_bos_token"]
    assert build(metadata).encode("the") == plain
    assert build(metadata, pre="llama-bpe").encode("the")[0] == 1  # unless the file says otherwise


def test_end_of_text():
    metadata = {"tokenizer.ggml.tokens": ["<|endoftext|>", "a", "<|eot_id|>", "</s>", "<|im_end|>"]}
    metadata["tokenizer.ggml.eos_token_id"] = 3
    assert end_of_text(metadata) == (3,)
    assert end_of_text(metadata | {"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 3}) == (3, 1)
    assert end_of_text(metadata | {"tokenizer.chat_template": CHAT}) == (3, 4, 2, 0)
    assert end_of_text(metadata | {"tokenizer.ggml.eos_token_id": -1}) == ()
    assert end_of_text({}) == ()


def test_the_file_s_ends_and_a_file_without_a_tokenizer(tmp_path):
    assert GGUFFile(write_llama(tmp_path / "a.gguf", keys=byte_level_source("gpt-2")[1])).eos == (2, 0)
    bare = GGUFFile(write_llama(tmp_path / "b.gguf"))
    assert bare.eos == () and bare.tokenizer() is None


# SentencePiece: <unk> <s> </s>, bytes, then pieces by falling score, letters last.
_WORDS = "_t er _a in _the on _c _an ap it al _f _is _cap ital _capital ans wer _answ _answer __ ___ _and"
PIECES = _WORDS.replace("_", "\u2581").split(" ")
LETTERS = sorted(set("\u2581Theacpitlofnsrwd,.xyzgu\n\u00e9"))


def sentencepiece_metadata(prefix=True, shuffled=True):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n\n", *PIECES, *LETTERS]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    kinds += [TokenType.USER_DEFINED] + [TokenType.NORMAL] * (len(PIECES) + len(LETTERS))
    scores = [0.0] * 259 + [-1000.0] + [-float(i) for i in range(len(PIECES) + len(LETTERS))]
    if shuffled:  # so that ids say nothing of the scores
        order = [*range(260), *(260 + np.random.default_rng(8).permutation(len(PIECES) + len(LETTERS)))]
        tokens, scores = [tokens[i] for i in order], [scores[i] for i in order]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def sentencepiece_ids(metadata, text, prefix):
    """SentencePiece's BPE as it is defined: join the neighbours that make the best piece, the leftmost of equals."""
    columns = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores"))
    known = {}
    for number, (token, kind, score) in enumerate(zip(*columns, strict=True)):
        if kind == TokenType.NORMAL:
            known[token] = score, number
    pieces = list((" " + text if prefix and text else text).replace(" ", "\u2581"))
    while True:
        joined = [left + right for left, right in itertools.pairwise(pieces)]
        scores = [(known[piece][0], -at) for at, piece in enumerate(joined) if piece in known]
        if not scores:
            break
        at = -max(scores)[1]
        pieces[at : at + 2] = [joined[at]]
    ids = []
    for piece in pieces:
        ids += [known[piece][1]] if piece in known else [3 + byte for byte in piece.encode()]
    return ids


SPM_TEXTS = [
    "The capital of France is, and the answer",
    "the  the   the    the",
    " leading and trailing ",
    "xyz in an on it\ncaf\u00e9 \U0001f680 \u65e5\u672c",
    "",
    "capitalcapital answeransw terer",
]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_those_of_its_algorithm(prefix, tmp_path):
    metadata = sentencepiece_metadata(prefix)
    tokenizer = GGUFFile(write_llama(tmp_path / "tiny.gguf", keys=metadata)).tokenizer()
    rng = np.random.default_rng(7)
    letters = [*LETTERS, " ", " ", "the", " answer", " capital"]
    random = ["".join(rng.choice(letters, 30)).replace("\u2581", " ").replace("\n\n", "\n") for _ in range(100)]
    for text in SPM_TEXTS + random:
        ids = tokenizer.encode(text)
        assert ids == [1, *sentencepiece_ids(metadata, text, prefix)], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_matches_user_defined_tokens_whole():
    tokenizer = build(sentencepiece_metadata(prefix=False))
    ids = tokenizer.encode("the\n\nthe", add_special_tokens=False)
    number = tokenizer.convert_tokens_to_ids("\n\n")
    assert ids.count(number) == 1 and tokenizer.decode(ids) == "the\n\nthe"


def test_of_equal_scores_the_lower_id_is_joined_first():
    metadata = sentencepiece_metadata(prefix=False, shuffled=False)
    flat = build(metadata, scores=[0.0] * len(metadata["tokenizer.ggml.scores"]))
    ordered = build(metadata)
    for text in SPM_TEXTS:
        assert flat.encode(text) == ordered.encode(text)


REFUSALS = {
    "kind": (dict(model="bert"), "tokenizer 'bert', which is not supported"),
    "words": (dict(pre="tekken"), "pre-tokenizer 'tekken', which is not supported: choose one of gpt-2, default"),
    "no words": (dict(pre=None), "pre-tokenizer 'None'"),
    "no tokens": (dict(tokens=None), "no list tokenizer.ggml.tokens"),
    "no merges": (dict(merges=None), "no list tokenizer.ggml.merges"),
    "types": (dict(token_type=np.ones(3)), "token_type has not one number for each token"),
    "strange merges": (dict(merges=["q zzz"]), "merges that its tokens do not fit"),
    "broken merges": (dict(merges=["abc"]), "merges that its tokens do not fit"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_tokenizers_that_cannot_be_rebuilt_are_refused_by_name(case):
    changes, message = REFUSALS[case]
    with pytest.raises(InputError, match=rf"tiny\.gguf.*{message}"):
        build(byte_level_source("gpt-2")[1], **changes)


def test_torch_is_not_imported():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['accelerate'] = None\n"
        "import numpy as np\n"
        "from kljudge_jax.models.gguf_tokenizer import build_tokenizer\n"
        "keys = dict(model='gpt2', pre='gpt-2', tokens=['a', 'b', 'ab'], merges=['a b'])\n"
        "metadata = {f'tokenizer.ggml.{name}': value for name, value in keys.items()}\n"
        "assert build_tokenizer('', metadata).encode('ab') == [2]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"])
def test_real_tokenizers(name, models_dir):
    from transformers import AutoTokenizer

    ours = GGUFFile(f"{models_dir}/{name}").tokenizer()
    theirs = AutoTokenizer.from_pretrained(models_dir, gguf_file=name)
    for text in TEXTS:
        # Transformers leaves out what the models' own tokenizers do to these: NFC, and numerals as single letters.
        if not set("\u0301\u00bd") & set(text):
            assert ours.encode(text) == theirs.encode(text), text
            assert ours.decode(ours.encode(text)) == text
    assert ours.tokenize("123") == ["1", "2", "3"]
    chat = [{"role": "user", "content": "2 + 2 = ?"}, {"role": "assistant", "content": "4"}]
    rendered = ours.apply_chat_template(chat, tokenize=False)
    assert ours.apply_chat_template(chat, return_dict=False) == theirs.encode(rendered)
