"""Token ids to text, piece by piece and cut at stop strings."""

import pytest
from tiny_pairs import END, byte_tokenizer

from kljudge_jax.generation.detokenize import Detokenizer, cut_at_stop, decode, find_stop


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def words():
    """A tokenizer of whole words that carry their leading space, in the manner of SentencePiece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"▁one": 0, "▁two": 1, "▁thr": 2, "ee": 3, "<0xE2>": 4, "<0x82>": 5, "<0xAC>": 6, "<unk>": 7}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_decode_leaves_special_tokens_out(tokenizer):
    assert decode(tokenizer, [*ids_of(tokenizer, "a é"), END]) == "a é"
    assert decode(tokenizer, []) == decode(None, [1, 2]) == ""


@pytest.mark.parametrize(
    "text", ["plain", "é€ and 👍 twice 👍👍", " spaces  kept ", "\n\n", "a\N{REPLACEMENT CHARACTER}b"]
)
def test_pieces_add_up_and_no_character_comes_in_halves(tokenizer, text):
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in ids_of(tokenizer, text)]
    assert len(pieces) == len(text.encode())
    assert "".join(pieces) + detokenizer.flush() == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert detokenizer.flush() == ""


def test_bytes_that_are_no_character_come_with_what_follows(tokenizer):
    euro = ids_of(tokenizer, "€")
    tokens = [*euro[:2], *ids_of(tokenizer, "x"), *euro[1:], *euro, euro[0], END]
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    assert pieces[:3] == ["", "", "\N{REPLACEMENT CHARACTER}x"]
    assert "".join(pieces) + detokenizer.flush() == decode(tokenizer, tokens)


def test_a_leading_space_is_given_out_with_its_word(words):
    detokenizer = Detokenizer(words)
    pieces = [detokenizer.push(token) for token in (0, 1, 2, 3, 4, 5, 6, 0)]
    assert pieces == ["one", " two", " thr", "ee", "", "", "€", " one"]


def test_the_first_stop_string_counts():
    assert find_stop("abcabc", ["c", "bc", "x"]) == 1
    assert find_stop("abc", ["x"]) == find_stop("abc", []) == -1


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one two three", [" two"], "one"),
        ("one two three", ["three", "two"], "one "),
        ("one two", ["one"], ""),
        ("é€👍 end", ["👍"], "é€"),
        ("é€👍 end", ["€", "end"], "é"),
    ],
)
def test_cut_keeps_the_fewest_tokens_that_hold_the_text(tokenizer, text, stop, kept):
    count, cut = cut_at_stop(tokenizer, ids_of(tokenizer, text), stop)
    assert cut == kept
    assert count == len(kept.encode())


def test_a_token_across_the_stop_is_kept_for_the_text_before_it(words):
    tokens = [0, 1, 2, 3]  # one two thr|ee
    assert cut_at_stop(words, tokens, ["wo th"]) == (2, "one t")
    assert cut_at_stop(words, tokens, ["ree"]) == (3, "one two th")
    assert cut_at_stop(words, tokens, ["one"]) == (0, "")
    assert cut_at_stop(words, tokens, ["four"]) is None
    assert cut_at_stop(words, [], ["one"]) is None
