"""Counts of hand-made cycles."""

import json

import pytest

from kljudge_jax.generation.stats import Cycle, cut_cycles, pool, row_stats

# Of 4 drafted 2 accepted, all accepted, none accepted, and a draft that ended with the text.
CYCLES = [Cycle(4, 2, 3), Cycle(4, 4, 5), Cycle(4, 0, 1), Cycle(2, 2, 2)]


@pytest.fixture
def row():
    return row_stats(CYCLES, 3, 4, "eos", seconds=2.0, prefill_seconds=0.5, compile_seconds=9.0)


def test_counts_of_one_answer(row):
    assert (row.tokens, row.cycles, row.drafted, row.accepted, row.relaxed) == (11, 4, 14, 8, 3)
    assert row.acceptance_histogram.tolist() == [1, 0, 2, 0, 1]
    assert row.mean_acceptance_length == 11 / 4
    assert row.draft_acceptance_rate == 8 / 14
    assert row.tokens_per_second == 5.5
    assert (row.finish, row.failed) == ("eos", 0)


def test_an_answer_of_nothing_divides_by_nothing():
    row = row_stats([], 0, 4, "failed")
    assert (row.mean_acceptance_length, row.draft_acceptance_rate, row.tokens_per_second) == (0, 0, 0)
    assert row.acceptance_histogram.tolist() == [0] * 5
    assert row.failed == 1


def test_a_pool_adds_counts_and_keeps_the_shared_time(row):
    other = row_stats([Cycle(4, 1, 2)], 0, 4, "failed", seconds=2.0, prefill_seconds=0.5, compile_seconds=9.0)
    both = pool([row, other])
    assert (both.tokens, both.cycles, both.drafted, both.accepted, both.relaxed) == (13, 5, 18, 9, 3)
    assert both.acceptance_histogram.tolist() == [1, 1, 2, 0, 1]
    assert both.mean_acceptance_length == 13 / 5
    assert both.tokens_per_second == 6.5
    assert (both.seconds, both.prefill_seconds, both.compile_seconds) == (2.0, 0.5, 9.0)
    assert (both.finish, both.failed, both.rows) == ("", 1, (row, other))


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (0, []),
        (1, [Cycle(4, 1, 1)]),
        (2, [Cycle(4, 2, 2)]),
        (3, CYCLES[:1]),
        (7, [CYCLES[0], Cycle(4, 4, 4)]),
        (9, CYCLES[:3]),
        (11, CYCLES),
        (20, CYCLES),
    ],
)
def test_a_cut_keeps_the_cycles_of_the_tokens_that_stay(tokens, kept):
    assert cut_cycles(CYCLES, tokens) == kept


def test_json_holds_plain_numbers_and_what_they_come_to(row):
    shown = json.loads(json.dumps(row.to_json()))
    assert shown["mean_acceptance_length"] == 2.75 and shown["acceptance_histogram"] == [1, 0, 2, 0, 1]
    assert shown["finish"] == "eos"
    assert "finish" not in pool([row]).to_json()
    assert {"seconds", "prefill_seconds", "compile_seconds", "tokens_per_second", "failed"} <= set(shown)
