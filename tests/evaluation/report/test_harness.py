"""The table of harness results."""

from kljudge_jax.evaluation.report.harness import compare_with_first, harness_markdown, harness_rows


def found(right, value, metric="exact_match"):
    samples = [{"doc_id": i, "filter": "last", metric: case} for i, case in enumerate(right)]
    figures = {"alias": "sums", "sample_len": len(right), f"{metric},last": value, f"{metric}_stderr,last": "N/A"}
    return {"results": {"sums": figures}, "samples": {"sums": samples}}


def test_rules_stand_beside_the_first():
    rows = harness_rows("none", found([1, 1, 1, 1, 1, 0], 5 / 6), None)
    rows += harness_rows("kl:0.4", found([0, 0, 0, 1, 1, 0], 2 / 6), None)
    rows = compare_with_first(rows)
    assert [row.n for row in rows] == [6, 6] and rows[0].p is None
    assert rows[1].difference == -0.5 and rows[1].p == 0.25
    assert rows[1].interval[0] < -0.5 < rows[1].interval[1]
    lines = harness_markdown(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| sums | exact_match (last) | kl:0.4 | 6 | 0.3333 |  | -0.5000 |")


def test_metrics_that_are_not_right_or_wrong_are_not_tested():
    rows = harness_rows("none", found([0.5, 0.1], 0.3, "f1"), None)
    rows += harness_rows("exact", found([0.5, 0.2], 0.35, "f1"), None)
    rows += harness_rows("exact", found([(1, 2), (3, 4)], 7.0, "perplexity"), None)
    rows = compare_with_first(rows)
    assert all(row.p is None for row in rows) and rows[2].cases == {}
