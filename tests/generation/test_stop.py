"""Stop strings end an answer exactly where they begin, wherever that falls in tokens, drafts and cycles."""

import dataclasses
import itertools

import numpy as np
import pytest
from tiny_pairs import answer, tokens_of

from kljudge_jax.errors import InputError
from kljudge_jax.generation.detokenize import decode

LENGTH = 40
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def substrings(texts, sizes):
    """Every piece of those sizes of every text, each once."""
    found = {text[at : at + n]: None for n in sizes for text in texts for at in range(len(text) - n + 1)}
    return [piece for piece in found if _INCOMPLETE not in piece]


def tokens_before(tokenizer, tokens, at):
    """The fewest tokens whose text holds the first `at` characters of all of it."""
    whole = decode(tokenizer, tokens)
    return next(n for n in range(len(tokens) + 1) if decode(tokenizer, tokens[:n]).startswith(whole[:at]))


@pytest.mark.parametrize("which", ["text_pair", "chunk_pair"])
@pytest.mark.parametrize("rule", ["exact", None])
@pytest.mark.first_case
def test_every_piece_of_an_answer_can_stop_it(request, which, rule):
    pair = request.getfixturevalue(which)
    free = answer(pair, rule, max_new_tokens=LENGTH)
    sizes = (2,) if which == "text_pair" else (3,)
    first, inside, across_tokens, across_cycles, across_blocks = 0, 0, 0, 0, 0
    for stop in substrings(free.text, sizes):
        out = answer(pair, rule, max_new_tokens=LENGTH, stop=stop)
        for row in range(4):
            at = free.text[row].find(stop)
            if at < 0:
                assert (out.text[row], tokens_of(out)[row]) == (free.text[row], tokens_of(free)[row])
                assert out.stats.rows[row].finish == "length"
                continue
            kept = tokens_before(pair.tokenizer, free.tokens[row], at)
            assert out.text[row] == free.text[row][:at]
            assert tokens_of(out)[row] == tokens_of(free)[row][:kept]
            assert out.origin[row] == free.origin[row][:kept]
            assert out.stats.rows[row].finish == "stop"
            assert out.stats.rows[row].tokens == kept

            begun, ended = (tokens_before(pair.tokenizer, free.tokens[row], at + n) for n in (1, len(stop)))
            first += at == 0
            across_tokens += begun < ended
            across_blocks += rule is None and begun <= 16 < ended
            inside += "target" not in free.origin[row][begun - 1 : ended]
            across_cycles += "target" in free.origin[row][begun - 1 : ended - 1]
    assert first and across_tokens
    assert (inside and across_cycles) if rule else across_blocks


def test_counts_are_cut_with_the_tokens(text_pair):
    rule = "kl:4.0"
    free = answer(text_pair, rule, max_new_tokens=LENGTH, trace=True)
    for stop in substrings(free.text, (2,)):
        out = answer(text_pair, rule, max_new_tokens=LENGTH, trace=True, stop=stop)
        for row, counts in enumerate(out.stats.rows):
            length, origin = len(out.tokens[row]), out.origin[row]
            ends = list(itertools.accumulate(cycle.committed for cycle in free.cycles[row]))
            cycles = sum(end - cycle.committed < length for end, cycle in zip(ends, free.cycles[row], strict=True))
            assert counts.tokens == length == len(origin) == len(out.kl[row]) == len(out.logprobs[row])
            assert counts.cycles == cycles == len(out.cycles[row]) == counts.acceptance_histogram.sum()
            assert counts.drafted == sum(cycle.drafted for cycle in free.cycles[row][:cycles])
            assert counts.accepted == length - origin.count("target")
            assert counts.relaxed == origin.count("relaxed")
            assert sum(cycle.committed for cycle in out.cycles[row]) == length
            np.testing.assert_array_equal(out.kl[row], free.kl[row][:length])
        assert out.stats.tokens == sum(len(tokens) for tokens in out.tokens)


def test_the_first_of_several_stops_counts_and_others_never_come(text_pair):
    free = answer(text_pair, "exact", max_new_tokens=LENGTH)
    pieces = substrings(free.text[2:3], (2,))
    stops = [pieces[-1], pieces[3], "never", pieces[6]]
    out = answer(text_pair, "exact", max_new_tokens=LENGTH, stop=stops)
    for text, whole in zip(out.text, free.text, strict=True):
        assert text == whole[: min(at for at in (*map(whole.find, stops), len(whole)) if at >= 0)]
    assert 0 < len(out.text[2]) == free.text[2].find(pieces[3]) < free.text[2].find(pieces[6])
    never = answer(text_pair, "exact", max_new_tokens=LENGTH, stop=["never", "ever"])
    assert never.text == free.text and tokens_of(never) == tokens_of(free)


def test_a_stop_before_the_end_of_text_wins(text_pair):
    free = answer(text_pair, "exact", max_new_tokens=LENGTH)
    end = free.tokens[2][20].item()
    ending = dataclasses.replace(text_pair, eos=(end,))
    ended = answer(ending, "exact", max_new_tokens=LENGTH)
    text = ended.text[2]
    assert ended.stats.rows[2].finish == "eos" and ended.tokens[2][-1] == end
    assert text == decode(text_pair.tokenizer, ended.tokens[2][:-1])
    stopped = answer(ending, "exact", max_new_tokens=LENGTH, stop=text[-1:])
    assert stopped.stats.rows[2].finish == "stop"
    assert stopped.text[2] == text[: text.find(text[-1])]
    # What comes after the end of text is no text, and stops nothing.
    after = decode(text_pair.tokenizer, [end])
    if after not in text:
        assert answer(ending, "exact", max_new_tokens=LENGTH, stop=after).stats.rows[2].finish == "eos"


def test_no_stop_may_be_written_in_every_way(text_pair):
    free = answer(text_pair, "exact")
    assert all(answer(text_pair, "exact", stop=stop).text == free.text for stop in ((), [], None))


@pytest.mark.parametrize("stop", ["", [""], ["a", 3]])
def test_a_stop_is_a_text(text_pair, stop):
    with pytest.raises(InputError, match="stop string"):
        answer(text_pair, "exact", stop=stop)


def test_a_special_token_is_no_text_to_stop_at(text_pair):
    with pytest.raises(InputError, match="'<end>' is a special token"):
        answer(text_pair, "exact", stop=["a", "<end>"])
