"""`kljudge compare`."""

from __future__ import annotations

from kljudge_jax.commands.options import OK, command


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
    from kljudge_jax.evaluation.compare_call import compare

    compared = compare(*options.results, force=options.force)
    picture = compared.save(options.out)
    print(compared.markdown(), end="")
    print(f"\nPicture: {picture}")
    return OK
