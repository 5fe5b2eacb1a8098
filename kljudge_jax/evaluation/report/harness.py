"""What harness tasks say of several rules: one row a rule, task and metric, each beside the first rule's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kljudge_jax.evaluation.report.statistics import mcnemar, paired_difference
from kljudge_jax.generation.stats import Stats
from kljudge_jax.text_table import columns, markdown


def harness_rows(rule: str, found: Mapping, cost: Stats | None) -> list[dict]:
    """One row for each task and metric of what `lm_eval.simple_evaluate` returns.

    Args:
      rule: the rule's spec string.
      found: with `samples`.
      cost: of the rule's answers; None where no task has the model write.

    Returns:
      rows of rule, task, metric, filter, n, value, stderr (None where the harness gives none), `cases` (by document,
      where the metric is one of single documents), tokens, cycles and failed.
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
                {
                    "rule": rule,
                    "task": task,
                    "metric": metric,
                    "filter": chosen,
                    "n": len(cases),
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "cases": {str(i): float(case) for i, case in cases.items()} if single else {},
                    "tokens": cost.tokens if cost else 0,
                    "cycles": cost.cycles if cost else 0,
                    "failed": cost.failed if cost else 0,
                }
            )
    return rows


def compare_with_first(rows: Sequence[dict]) -> None:
    """Adds to each row whose documents are right or wrong how it differs from the first rule's row.

    `difference` is that of the shares of right documents, `interval` its 95 % interval, `p` McNemar's.
    """
    first: dict[tuple, dict] = {}
    for row in rows:
        against = first.setdefault((row["task"], row["metric"], row["filter"]), row)
        row["difference"] = row["interval"] = row["p"] = None
        pairs = [(case, against["cases"][i]) for i, case in row["cases"].items() if i in against["cases"]]
        if against is not row and pairs and all(case in (0, 1) for pair in pairs for case in pair):
            ours, theirs = zip(*[(bool(a), bool(b)) for a, b in pairs], strict=True)
            row["difference"], row["interval"] = paired_difference(ours, theirs)
            row["p"] = mcnemar(ours, theirs)


def harness_markdown(rows: Sequence[dict]) -> str:
    """The rows as a table."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["task"], row["metric"], row["filter"])):  # rules stay in their order
        name = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
        compared = row["p"] is not None
        lines.append(
            {
                "task": row["task"],
                "metric": name,
                "rule": row["rule"],
                "n": str(row["n"] or ""),
                "value": f"{row['value']:.4f}",
                "stderr": "" if row["stderr"] is None else f"{row['stderr']:.4f}",
                "difference": f"{row['difference']:+.4f}" if compared else "",
                "95 %": f"{row['interval'][0]:+.4f} to {row['interval'][1]:+.4f}" if compared else "",
                "p": f"{row['p']:.2g}" if compared else "",
                "mean acceptance length": f"{row['tokens'] / row['cycles']:.2f}" if row["cycles"] else "",
            }
        )
    return markdown(columns(lines))
