"""Lists of tokens from a corpus: counted, ranked, written and read again."""

import numpy as np
import pytest
from tiny_pairs import byte_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.training.draft_vocab import (
    count_tokens,
    most_frequent,
    rank_tokens,
    read_draft_vocab,
    share_covered,
    write_draft_vocab,
)


def test_tokens_are_counted_in_texts_and_in_ids():
    tokenizer = byte_tokenizer()
    letters = tokenizer("abca", add_special_tokens=False)["input_ids"]
    counts = count_tokens(iter(["abca", letters, np.asarray(letters), [], ""]), tokenizer, 257)
    assert counts.dtype == np.int64 and counts.sum() == 12
    assert [counts[i] for i in letters] == [6, 3, 3, 6]
    np.testing.assert_array_equal(count_tokens(["abca"] * 2500, tokenizer, 257), 2500 * (counts // 3))
    assert count_tokens([], None, 4).tolist() == [0, 0, 0, 0]


def test_the_most_frequent_come_first_and_equals_by_their_ids():
    corpus = [[3, 3, 3, 1, 5, 5, 1, 0]]
    assert rank_tokens(corpus, None, 8, 4) == [3, 1, 5, 0]
    assert rank_tokens(corpus, None, 8, 3) == [3, 1, 5]
    # Tokens that never come fill a longer list; those that must be there push out the rarest.
    assert rank_tokens(corpus, None, 8, 6) == [3, 1, 5, 0, 2, 4]
    assert rank_tokens(corpus, None, 8, 3, always=(7, 3)) == [3, 1, 7]
    assert rank_tokens(corpus, None, 8, 8, always=(7,)) == [3, 1, 5, 0, 2, 4, 6, 7]


def test_the_share_that_a_list_covers():
    counts = count_tokens([[3, 3, 3, 1, 5, 5, 1, 0]], None, 8)
    assert share_covered(counts, most_frequent(counts, 2)) == 5 / 8
    assert share_covered(counts, most_frequent(counts, 8)) == 1.0
    assert share_covered(np.zeros(8, np.int64), [1]) == 1.0
    shares = [share_covered(counts, most_frequent(counts, size)) for size in range(1, 9)]
    assert shares == sorted(shares)


def test_a_list_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "ids.txt"
    write_draft_vocab(path, [9, 3, 1], "3 of 12 tokens\nmost frequent first")
    assert path.read_text() == "# 3 of 12 tokens\n# most frequent first\n9\n3\n1\n"
    assert read_draft_vocab(path, 12) == [9, 3, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: count_tokens(["a"], None, 8), "texts need a tokenizer"),
        (lambda: count_tokens([[1, 8]], None, 8), "the corpus has token 8, outside the vocabulary of 8"),
        (lambda: count_tokens([[-1]], None, 8), "token -1, outside"),
        (lambda: most_frequent(np.zeros(8), 9), "has from 1 to 8 tokens, not 9"),
        (lambda: most_frequent(np.zeros(8), 0), "has from 1 to 8 tokens, not 0"),
        (lambda: most_frequent(np.zeros(8), 1, (2, 3)), "has from 2 to 8 tokens, not 1"),
        (lambda: most_frequent(np.zeros(8), 4, (8,)), r"outside the vocabulary of 8: \[8\]"),
    ],
)
def test_what_cannot_be_ranked_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
