"""`kljudge compare`."""

from __future__ import annotations

from pathlib import Path

from kljudge_jax.commands.options import OK, command
from kljudge_jax.errors import InputError


def add(commands) -> None:
    parser = command(
        commands,
        "compare",
        _compare,
        "Put results of several machines side by side: one table and one picture of benches, or of sweeps.",
        "  kljudge compare laptop/bench.json tpu/bench.json --out results/compare\n"
        "  kljudge compare laptop/summary.json tpu/summary.json",
    )
    parser.add_argument("results", nargs="+", metavar="FILE", help="bench.json files, or summary.json files of sweeps")
    parser.add_argument("--out", metavar="DIR", default="results/compare", help="where compare.md and compare.png go")
    parser.add_argument("--force", action="store_true", help="compare what differs all the same, and mark it")


def _compare(options) -> int:
    from kljudge_jax.evaluation.compare import compare, comparison_markdown, read_result, write_comparison

    results = [read_result(path) for path in options.results]
    notes = compare(results, options.force)
    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder of results: {error.strerror}") from error
    table = comparison_markdown(results, notes)
    (folder / "compare.md").write_text(table, encoding="utf-8")
    write_comparison(folder / "compare.png", results, notes)
    print(table, end="")
    print(f"\nPicture: {folder / 'compare.png'}")
    return OK
