"""What a sweep's answers come to: every figure by hand, and its tables."""

import csv
import io

import pytest
from msgspec import structs
from sweep_records import answers, record

from kljudge_jax.evaluation.report.statistics import (
    mcnemar,
    paired_difference,
    ratio_interval,
    speed_ratio_interval,
    wilson_interval,
)
from kljudge_jax.evaluation.report.write import findings
from kljudge_jax.evaluation.sweep.summary import MARK, csv_table, markdown_table, note, short_table, summarise, table
from kljudge_jax.text_table import aligned


def test_figures_of_hand_made_records():
    plain = [record("none", 0, i, i < 3, cycles=10, drafted=0, accepted=0, seconds=8.0) for i in range(4)]
    judged = [record("kl:0.4", 8, i, i != 1, relaxed=i, token_ids=[i * (i < 2)]) for i in range(3)]
    judged.append(record("kl:0.4", 8, 3, False, tokens=14, cycles=7, finish="length", failed=1))
    first, second = summarise([*plain, *judged])
    assert (first.rule, first.draft_length, first.n, first.right) == ("none", 0, 4, 3)
    assert first.accuracy == 0.75 and first.accuracy_interval == wilson_interval(3, 4)
    assert first.tokens_per_second == 40 / 16  # two batches of two answers, 8 s each
    assert (first.speed, first.p, first.same_text) == (1.0, 1.0, 4)

    assert (second.n, second.right) == (4, 2)
    assert second.p == mcnemar([True, False, True, False], [True, True, True, False])
    assert second.same_text == 3  # answer 2 has other tokens
    assert (first.first_difference, second.first_difference) == ({}, {"p/2": 0})
    assert second.mean_acceptance_length == 44 / 22
    assert second.mean_acceptance_length_interval == ratio_interval([10, 10, 10, 14], [5, 5, 5, 7])
    assert second.draft_acceptance_rate == 20 / 80
    assert second.relaxed_per_answer == 3 / 4
    assert second.target_passes_per_answer == 22 / 4
    assert second.tokens_per_answer == 11
    assert (second.cut_at_length, second.failed) == (1, 1)
    assert second.tokens_per_second == 44 / 4
    assert second.speed == pytest.approx((44 / 4) / (40 / 16))


def test_speeds_beside_a_plain_decoding_that_wrote_nothing_are_none():
    plain = [record("none", 0, i, False, tokens=0, cycles=1, finish="failed", failed=1) for i in range(2)]
    rows = summarise([*plain, *answers("kl:0.4", [True, True])])
    assert [row.speed for row in rows] == [row.speed_interval for row in rows] == [None, None]
    assert table(rows)[2][table(rows)[0].index("speedup")] == ""
    assert all("faster" not in line and "Fastest" not in line for line in findings(rows))


def test_the_first_other_token_is_found_also_where_one_answer_ends():
    plain = [record("none", 0, i, True, token_ids=[1, 2, 3]) for i in range(4)]
    texts = [[1, 2, 3], [1, 9, 3], [1, 2], [1, 2, 3, 4]]
    others = [record("hf", 0, i, True, token_ids=text) for i, text in enumerate(texts)]
    _, row = summarise([*plain, *others])
    assert row.same_text == 1 and row.first_difference == {"p/1": 1, "p/2": 2, "p/3": 3}
    assert markdown_table([row]).splitlines()[2].startswith("| hf | 4 of 4 |")


def test_cells_are_compared_on_the_answers_that_both_have():
    plain = [record("none", 0, i, True, seconds=8.0) for i in range(2)]
    judged = [record("kl:0.4", 8, i, i < 2, seconds=2.0) for i in range(4)]
    _, row = summarise([*plain, *judged])
    assert row.n == 4 and row.same_text == 2 and row.p == 1.0
    assert row.speed == pytest.approx((20 / 2) / (20 / 8))


def test_without_plain_answers_nothing_is_compared():
    (row,) = summarise([record("kl:0.4", 8, 0, True)])
    assert row.p is row.same_text is row.first_difference is row.speed is None
    line = markdown_table([row]).splitlines()[2]
    assert line.startswith("| kl:0.4 | 1 of 1 | 2.00 (2.00 to 2.00) |  |  |  |  |  |")


def test_the_table_has_a_line_a_cell():
    rows = summarise(
        [record(rule, length, i, True) for rule, length in [("none", 0), ("exact", 4), ("kl:4.0", 4)] for i in range(2)]
    )
    head, rule, *lines = markdown_table(rows).splitlines()
    assert len(lines) == 3
    assert all(line.count("|") == head.count("|") == rule.count("|") for line in lines)
    assert lines[0].startswith("| plain | 2 of 2 | ") and lines[2].startswith("| kl:4.0 | 2 of 2 | ")


def test_a_rule_whose_form_is_ours_is_marked_and_told_of():
    names = ("none", "exact", "typical", "kl:0.4", "secure:typical:0.3,first=2", "topk:2")
    rows = summarise([record(rule, 8 * (rule != "none"), 0, True) for rule in names])
    for greedy, marked in ((True, {"typical", "secure:typical:0.3,first=2"}), (False, {"kl:0.4", "topk:2"})):
        shown = [line[0] for line in table(rows, greedy)[1:]]
        assert {name.removesuffix(f" {MARK}") for name in shown if name.endswith(MARK)} == marked
        assert [line[0] for line in short_table(rows, greedy)[1:]] == shown
        said = note(rows, greedy)
        assert said.startswith(f"{MARK} Ours") and all(name in said for name in marked) and "exact" not in said
        assert markdown_table(rows, greedy).endswith(f"\n\n{said}\n")
    assert note(rows[:2]) == "" and not markdown_table(rows[:2]).endswith("\n\n")


def test_a_draft_length_has_a_column_where_there_are_several():
    cells = [("none", 0), ("exact", 4), ("exact", 8)]
    rows = summarise([record(rule, length, 0, True) for rule, length in cells])
    assert [line[:2] for line in table(rows)] == [
        ["rule", "draft length"],
        ["plain", ""],
        ["exact", "4"],
        ["exact", "8"],
    ]
    assert "draft length" not in table(rows[:2])[0]


def test_what_is_gained_and_lost_comes_first_and_fits_a_terminal():
    rows = summarise([*answers("none", [True] * 40), *answers("kl:0.4", [i > 6 for i in range(40)])])
    head = [
        "rule",
        "right",
        "mean acceptance length",
        "speedup",
        "points from plain (95 %)",
        "verdict",
        "same text",
        "p",
    ]
    assert short_table(rows)[0] == head == table(rows)[0][: len(head)]
    assert max(map(len, aligned(short_table(rows)).splitlines())) <= 120


def test_the_verdict_is_corrected_for_the_number_of_rules():
    plain = answers("none", [True] * 40)
    worse = answers("all", [i >= 6 for i in range(40)])  # 6 lost: p = 0.03
    (_, alone), (_, first, *_) = (
        summarise([*plain, *worse]),
        summarise([*plain, *worse, *answers("exact", [True] * 40), *answers("kl:0.1", [i != 2 for i in range(40)])]),
    )
    assert alone.p == first.p == pytest.approx(2 / 2**6)
    assert (alone.verdict, alone.p_corrected) == ("worse", alone.p)
    assert (first.verdict, first.p_corrected) == ("doubtful", pytest.approx(3 * 2 / 2**6))
    assert (first.lost, first.won, first.difference) == (6, 0, -6 / 40)
    assert first.difference_interval == paired_difference([i >= 6 for i in range(40)], [True] * 40)[1]


@pytest.mark.parametrize(("lost", "won"), [(5, 0), (6, 0), (6, 1), (9, 1), (0, 6), (1, 9), (0, 5)])
def test_a_loss_is_doubtful_where_p_is_small_only_before_it_is_corrected(lost, won):
    plain = answers("none", [i >= won for i in range(40)])
    changed = answers("all", [i < won or i >= won + lost for i in range(40)])
    others = [record for rule in ("exact", "kl:0.1", "kl:0.2") for record in answers(rule, [True] * 40)]
    row = summarise([*plain, *changed, *others])[1]
    assert (row.lost, row.won) == (lost, won)
    expected = row.p < 0.05 <= row.p_corrected and lost > won
    assert (row.verdict == "doubtful") == expected
    # 5 of 5 lost: an interval of the difference below 0, and p = 0.06.
    assert expected == ((lost, won) in ((6, 0), (9, 1)))


def test_a_rule_that_changes_no_answer_is_the_same_and_one_that_mends_many_is_better():
    plain = answers("none", [i >= 12 for i in range(40)])
    _, exact, better = summarise(
        [*plain, *answers("exact", [i >= 12 for i in range(40)]), *answers("all", [True] * 40)]
    )
    assert (exact.verdict, better.verdict) == ("same", "better")


def test_speed_has_an_interval_from_four_batches_on():
    plain = answers("none", [True] * 8, seconds=4.0)
    judged = [structs.replace(r, seconds=1.0 + r.batch) for r in answers("kl:0.1", [True] * 8)]
    row = summarise([*plain, *judged])[1]
    assert row.speed_interval == speed_ratio_interval(([20] * 4, [1, 2, 3, 4]), ([20] * 4, [4] * 4))
    assert row.tokens_per_second_interval == ratio_interval([20] * 4, [1, 2, 3, 4])
    few = summarise([*plain[:6], *judged[:6]])[1]
    assert few.speed_interval is few.tokens_per_second_interval is None
    assert few.speed == pytest.approx((60 / 6) / (60 / 12))


def test_own_seconds_add_up_by_turn_also_of_a_turn_that_was_killed():
    def turn(i):
        return {"turn": i // 4, "own_seconds": 1.0 + i, "seconds": 99.0, "slot_cycles": 8.0}

    plain = [record("none", 0, i, True, **turn(i)) for i in range(16)]
    judged = [record("kl:0.1", 8, i, True, **(turn(i) | {"own_seconds": 0.5})) for i in (*range(9), 10, *range(12, 16))]
    first, second = summarise([*plain, *judged])
    assert first.tokens_per_second == 160 / sum(range(1, 17))
    assert first.tokens_per_second_interval == ratio_interval([40] * 4, [10, 26, 42, 58])
    assert second.speed == pytest.approx(20 / (140 / sum(1 + i for i in (*range(9), 10, *range(12, 16)))))
    theirs = [10, 26, 9 + 11, 58]
    assert second.speed_interval == speed_ratio_interval(([40, 40, 20, 40], [2, 2, 1, 2]), ([40, 40, 20, 40], theirs))
    assert first.slot_occupancy == 5 / 8
    assert summarise([record("hf", 0, 0, True)])[0].slot_occupancy is None


def test_positions_are_counted_over_all_cycles():
    counted = [record("exact", 3, i, True, acceptance_histogram=h) for i, h in enumerate([[2, 0, 1, 1], [0, 0, 0, 4]])]
    (row,) = summarise(counted)
    assert row.acceptance_histogram == (2, 0, 1, 5)
    assert row.acceptance_by_position == (6 / 8, 6 / 8, 5 / 8)


def test_strict_and_relaxed_accepts_add_up():
    (row,) = summarise([record("kl:0.1", 8, 0, True, accepted=7, relaxed=3)])
    assert (row.strict_per_answer, row.relaxed_per_answer) == (4, 3)


def test_the_csv_has_a_column_a_figure():
    rows = summarise([*answers("none", [True, False]), *answers("kl:threshold=0.1,confidence=1.0", [True, True])])
    plain, judged = csv.DictReader(io.StringIO(csv_table(rows)))
    assert judged["rule"] == "kl:threshold=0.1,confidence=1.0" and float(judged["accuracy"]) == 1.0
    assert float(plain["accuracy_interval_low"]) == rows[0].accuracy_interval[0]
    assert judged["speed_interval_low"] == "" and judged["verdict"] == "noise"
