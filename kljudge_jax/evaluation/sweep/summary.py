"""What the answers of a sweep come to: a row a cell, with the uncertainty of every figure, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np

from kljudge_jax.evaluation.report.statistics import (
    holm,
    mcnemar,
    paired_difference,
    ratio_interval,
    speed_ratio_interval,
    wilson_interval,
)
from kljudge_jax.evaluation.sweep.records import AnswerRecord, SweepRow
from kljudge_jax.evaluation.sweep.run import Cell, cell_of
from kljudge_jax.text_table import markdown, ranged
from kljudge_jax.verification.ours import ours_in

# Beside a rule whose form is ours.
MARK = "†"

# An interval over fewer turns than these is too wide to say anything.
_FEWEST_TURNS = 4

# So many answers that are not the plain ones are named; of a relaxed rule, most are not.
_MOST_DIFFERENCES = 20


def summarise(records: Sequence[AnswerRecord]) -> list[SweepRow]:
    """One row a cell, in the order they ran: accuracy, acceptance, passes and speed, each with its uncertainty.

    Cells are compared with plain decoding on the answers that both have. `p` is McNemar's, `difference` that of the
    shares of right answers, `verdict` says whether it is more than noise once p is corrected for the number of cells
    (Holm): "better", "worse", "doubtful" for a loss that is more than noise before p is corrected and not after,
    "noise", or "same" where no answer changed sides. `slot_occupancy` is the share of the device's row-cycles that
    went into answers. `speed` is the ratio of tokens per second, `first_difference` where the first other token of an
    answer stands, by problem, if at most 20 are not the plain ones. Without a "none" cell those are None, and so are
    intervals of speeds over fewer than 4 turns, and speeds where plain decoding wrote nothing.
    """
    cells: dict[Cell, dict[str, AnswerRecord]] = defaultdict(dict)
    for record in records:
        cells[cell_of(record)][record.problem] = record
    plain = cells.get(Cell("none", 0))
    rows = [_row(cell, answers, plain) for cell, answers in cells.items()]
    compared = [i for i, row in enumerate(rows) if row.p is not None and row.rule != "none"]
    for i, p in zip(compared, holm([cast(float, rows[i].p) for i in compared]), strict=True):
        rows[i] = msgspec.structs.replace(rows[i], p_corrected=p, verdict=_verdict(rows[i], p))
    return rows


def _row(cell: Cell, answers: dict[str, AnswerRecord], plain: dict[str, AnswerRecord] | None) -> SweepRow:
    # A run that was killed ends its answers in another order, and sums of floats hang on theirs.
    of = [answers[name] for name in sorted(answers)]
    right = sum(r.right for r in of)
    tokens, cycles = [r.tokens for r in of], [r.cycles for r in of]
    histogram = _pooled([r.acceptance_histogram for r in of])
    accepted, relaxed = sum(r.accepted for r in of), sum(r.relaxed for r in of)
    return SweepRow(
        rule=cell.rule,
        draft_length=cell.draft_length,
        n=len(of),
        right=right,
        accuracy=right / len(of),
        accuracy_interval=wilson_interval(right, len(of)),
        mean_acceptance_length=sum(tokens) / max(sum(cycles), 1),
        mean_acceptance_length_interval=ratio_interval(tokens, cycles),
        draft_acceptance_rate=accepted / max(sum(r.drafted for r in of), 1),
        acceptance_histogram=tuple(histogram.tolist()),
        acceptance_by_position=tuple(_by_position(histogram)),
        strict_per_answer=(accepted - relaxed) / len(of),
        relaxed_per_answer=relaxed / len(of),
        target_passes_per_answer=sum(cycles) / len(of),
        tokens_per_answer=sum(tokens) / len(of),
        cut_at_length=sum(r.finish == "length" for r in of),
        failed=sum(r.failed for r in of),
        tokens_per_second=_speed(of),
        tokens_per_second_interval=_speed_interval(of),
        slot_occupancy=_occupancy(of),
        **(_beside_plain(answers, plain) if plain else {}),
    )


def _beside_plain(answers: dict[str, AnswerRecord], plain: dict[str, AnswerRecord]) -> dict[str, Any]:
    """The figures of a row that compare a cell with plain decoding."""
    both = [name for name in sorted(answers) if name in plain]
    ours, theirs = [answers[b] for b in both], [plain[b] for b in both]
    outcomes = [r.right for r in ours], [r.right for r in theirs]
    difference, interval = paired_difference(*outcomes)
    at = {name: _first_difference(answers[name].token_ids, plain[name].token_ids) for name in both}
    places = {name: place for name, place in at.items() if place is not None}
    found = {
        "p": mcnemar(*outcomes),
        "lost": sum(b and not a for a, b in zip(*outcomes, strict=True)),
        "won": sum(a and not b for a, b in zip(*outcomes, strict=True)),
        "difference": difference,
        "difference_interval": interval,
        "same_text": len(both) - len(places),
        "first_difference": places if len(places) <= _MOST_DIFFERENCES else None,
    }
    if _speed(theirs) > 0:  # a target that failed has written nothing to be compared with
        found |= {"speed": _speed(ours) / _speed(theirs), "speed_interval": _speed_ratio_interval(ours, theirs)}
    return found


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The index of the first token that is not the same; None if all are."""
    return next((at for at, (a, b) in enumerate(itertools.zip_longest(ours, theirs)) if a != b), None)


def _verdict(row: SweepRow, p: float) -> str:
    alone, lost, won = row.p, row.lost or 0, row.won or 0
    if lost == won == 0:
        return "same"
    if p >= 0.05:  # one of many rules may lose that much by luck, but nobody should be advised to take it
        return "doubtful" if alone is not None and alone < 0.05 and lost > won else "noise"
    return "better" if won > lost else "worse"


def _pooled(histograms: Sequence[Sequence[int]]) -> np.ndarray:
    """The sum of histograms, the shorter ones taken to hold zeros."""
    total = np.zeros(max((len(h) for h in histograms), default=0), np.int64)
    for histogram in histograms:
        total[: len(histogram)] += np.asarray(histogram, np.int64)
    return total


def _by_position(histogram: np.ndarray) -> list[float]:
    """The share of cycles that commit draft token 1, 2, ... K."""
    reached = histogram[::-1].cumsum()[::-1]
    return (reached[1:] / max(reached[0], 1)).tolist() if len(reached) else []


def _turns(records: Sequence[AnswerRecord]) -> dict:
    """Tokens and seconds of each turn."""
    found: dict[Any, tuple[int, float]] = {}
    whole_batches = set()
    for r in records:
        turn = r.seed, r.batch if r.turn is None else r.turn
        tokens, seconds = found.get(turn, (0, 0.0))
        if r.own_seconds is not None:
            seconds += r.own_seconds
        elif (r.seed, r.batch) not in whole_batches:  # records of old, whose rows share one time
            whole_batches.add((r.seed, r.batch))
            seconds += r.seconds
        found[turn] = tokens + r.tokens, seconds
    return found


def _occupancy(records: Sequence[AnswerRecord]) -> float | None:
    """The share of the device's row-cycles that went into answers; None where they were not counted."""
    computed = sum(r.slot_cycles for r in records)
    return sum(r.cycles for r in records) / computed if computed else None


def _speed(records: Sequence[AnswerRecord]) -> float:
    """Tokens per second."""
    turns = _turns(records).values()
    return sum(tokens for tokens, _ in turns) / max(sum(seconds for _, seconds in turns), 1e-12)


def _speed_interval(records: Sequence[AnswerRecord]) -> tuple[float, float] | None:
    turns = _turns(records).values()
    if len(turns) < _FEWEST_TURNS:
        return None
    return ratio_interval([tokens for tokens, _ in turns], [seconds for _, seconds in turns])


def _speed_ratio_interval(ours: Sequence[AnswerRecord], theirs: Sequence[AnswerRecord]) -> tuple[float, float] | None:
    mine, other = _turns(ours), _turns(theirs)
    if mine.keys() != other.keys() or len(mine) < _FEWEST_TURNS:
        return None

    def columns(turns: dict) -> tuple[list[int], list[float]]:
        return [turns[name][0] for name in mine], [turns[name][1] for name in mine]

    return speed_ratio_interval(columns(mine), columns(other))


def markdown_table(rows: Sequence[SweepRow], greedy: bool = True) -> str:
    """The summary as a Markdown table, and under it what `note` says."""
    said = note(rows, greedy)
    return markdown(table(rows, greedy)) + (f"\n{said}\n" if said else "")


def note(rows: Sequence[SweepRow], greedy: bool = True) -> str:
    """Of the rules that `table` marks, what is ours and not their source's; nothing if none is marked."""
    said = {row.rule: ours_in(row.rule, greedy) for row in rows}
    named: dict[str, list[str]] = {}
    for rule, what in said.items():
        if what:
            named.setdefault(what, []).append(rule)
    found = "; ".join(f"{', '.join(rules)}: {what}" for what, rules in named.items())
    return f"{MARK} Ours, and not of the rule's source: {found}." if found else ""


def table(rows: Sequence[SweepRow], greedy: bool = True) -> list[list[str]]:
    """The summary as cells of text, the head first; a draft length that all drafting rules share has no column.

    A rule is marked where its form in runs of this kind, greedy or not, is ours: `note` says what.
    """
    lengths = {row.draft_length for row in rows} - {0}
    lines = [_cells(row, greedy) for row in rows]
    head = [name for name in lines[0] if name != "draft length" or len(lengths) > 1]
    return [head, *([cells[name] for name in head] for cells in lines)]


def short_table(rows: Sequence[SweepRow], greedy: bool = True) -> list[list[str]]:
    """The columns of `table` that a terminal has room for."""
    head, *lines = table(rows, greedy)
    kept = range(head.index("p") + 1)
    return [[cells[i] for i in kept] for cells in (head, *lines)]


def _cells(row: SweepRow, greedy: bool) -> dict[str, str]:
    """A line of the table by its columns: what is gained and what is lost first, what explains it after."""
    p = None if row.rule == "none" else row.p
    compared = p is not None
    low, high = row.accuracy_interval
    return {
        "rule": "plain" if row.rule == "none" else row.rule + (f" {MARK}" if ours_in(row.rule, greedy) else ""),
        "draft length": str(row.draft_length or ""),
        "right": f"{row.right} of {row.n}",
        "mean acceptance length": ranged(row.mean_acceptance_length, row.mean_acceptance_length_interval),
        "speedup": _ratio(row),
        "points from plain (95 %)": _points(row) if compared else "",
        "verdict": (row.verdict or "") if compared else "",
        "same text": str(row.same_text) if compared else "",
        "p": "" if p is None else _p_value(p),
        "right, 95 %": f"{100 * low:.0f} to {100 * high:.0f}",
        "relaxed / answer": f"{row.relaxed_per_answer:.1f}",
        "passes / answer": f"{row.target_passes_per_answer:.1f}",
        "tokens / answer": f"{row.tokens_per_answer:.0f}",
        "tokens/s": f"{row.tokens_per_second:.2f}",
    }


def _points(row: SweepRow) -> str:
    assert row.difference is not None and row.difference_interval is not None
    return ranged(100 * row.difference, [100 * end for end in row.difference_interval], "+.1f")


def _p_value(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.0e}"


def _ratio(row: SweepRow) -> str:
    if row.speed is None:
        return ""
    if row.rule == "none" or row.speed_interval is None:
        return f"{row.speed:.2f}"
    return ranged(row.speed, row.speed_interval)


def csv_table(rows: Sequence[SweepRow]) -> str:
    """The summary as CSV: one column a figure, two for an interval (`_low`, `_high`)."""
    flat = [_flattened(row) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flattened(row: SweepRow) -> dict:
    flat = {}
    figures = msgspec.structs.asdict(row)
    for name in sorted(figures, key=lambda name: name != "task"):  # a task first
        value = figures[name]
        if name.endswith("_interval"):
            flat[f"{name}_low"], flat[f"{name}_high"] = value or (None, None)
        elif not isinstance(value, tuple | dict):  # a histogram has no column of its own
            flat[name] = value
    return flat
