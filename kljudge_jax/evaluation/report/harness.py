"""What harness tasks say of several rules: one row a rule, task and metric, each beside the first rule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import structs

from kljudge_jax.evaluation.report.statistics import mcnemar, paired_difference
from kljudge_jax.generation.stats import Stats
from kljudge_jax.records import Count, Record
from kljudge_jax.text_table import columns, markdown


class HarnessRow(Record, frozen=True, kw_only=True):
    """What a rule comes to by one metric of one task, and beside the first rule.

    Attributes:
      filter: of the harness, what is read from an answer.
      n, value, stderr: documents, the metric, and its standard error where the harness gives one.
      cases: the metric of each document, by its id, where it is one of single documents.
      tokens, cycles, failed: of the rule's answers on the task; 0 where the model writes none.
      difference, interval, p: from the first rule, where documents are right or wrong: that of the shares of right
        documents, its 95 % interval, and McNemar's p.
    """

    rule: str
    task: str
    metric: str
    filter: str
    n: Count
    value: float
    stderr: float | None
    cases: dict[str, float]
    tokens: Count
    cycles: Count
    failed: Count
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None


class HarnessFile(Record, frozen=True, kw_only=True):
    """What `kljudge evaluate` writes (`harness.json`): the command line word by word, the models' names, the rows."""

    schema: Literal[1] = 1
    command: tuple[str, ...]
    target: str
    draft: str | None
    rows: tuple[HarnessRow, ...]


def harness_rows(rule: str, found: Mapping, cost: Stats | None) -> list[HarnessRow]:
    """One row for each task and metric of what `lm_eval.simple_evaluate` returns.

    Args:
      rule: the rule's spec string.
      found: with `samples`.
      cost: of the rule's answers; None where no task has the model write.

    Returns:
      the rows, compared with nothing yet.
    """
    rows = []
    for task, figures in found["results"].items():
        samples = found["samples"].get(task, [])
        for key, value in figures.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = figures.get(f"{metric}_stderr,{chosen}")
            cases = {s["doc_id"]: s.get(metric) for s in samples if s["filter"] == chosen}
            single = cases and all(isinstance(case, int | float) for case in cases.values())
            rows.append(
                HarnessRow(
                    rule=rule,
                    task=task,
                    metric=metric,
                    filter=chosen,
                    n=len(cases),
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    cases={str(i): float(case) for i, case in cases.items()} if single else {},
                    tokens=cost.tokens if cost else 0,
                    cycles=cost.cycles if cost else 0,
                    failed=cost.failed if cost else 0,
                )
            )
    return rows


def compare_with_first(rows: Sequence[HarnessRow]) -> list[HarnessRow]:
    """The rows; those whose documents are right or wrong say how they differ from the first rule's row."""
    first: dict[tuple, HarnessRow] = {}
    compared = []
    for row in rows:
        against = first.setdefault((row.task, row.metric, row.filter), row)
        pairs = [(case, against.cases[i]) for i, case in row.cases.items() if i in against.cases]
        if against is not row and pairs and all(case in (0, 1) for pair in pairs for case in pair):
            ours, theirs = zip(*[(bool(a), bool(b)) for a, b in pairs], strict=True)
            difference, interval = paired_difference(ours, theirs)
            row = structs.replace(row, difference=difference, interval=interval, p=mcnemar(ours, theirs))
        compared.append(row)
    return compared


def harness_markdown(rows: Sequence[HarnessRow]) -> str:
    """The rows as a table."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.task, row.metric, row.filter)):  # rules stay in their order
        name = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
        lines.append(
            {
                "task": row.task,
                "metric": name,
                "rule": row.rule,
                "n": str(row.n or ""),
                "value": f"{row.value:.4f}",
                "stderr": "" if row.stderr is None else f"{row.stderr:.4f}",
                "difference": "" if row.difference is None else f"{row.difference:+.4f}",
                "95 %": "" if row.interval is None else f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}",
                "p": "" if row.p is None else f"{row.p:.2g}",
                "mean acceptance length": f"{row.tokens / row.cycles:.2f}" if row.cycles else "",
            }
        )
    return markdown(columns(lines))
