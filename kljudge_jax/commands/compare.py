"""`kljudge compare`."""

from __future__ import annotations

from kljudge_jax.commands.command import DIR, FILE, OK, argument, command, flag, option


@command(
    "Put results of several machines side by side: one table and one picture of benches, or of sweeps.",
    [
        argument("results", "bench.json files, or summary.json files of sweeps", nargs=-1, required=True, type=FILE),
        option("--out", "where compare.md and compare.png go", type=DIR, default="results/compare"),
        flag("--force", "compare what differs all the same, and mark it"),
    ],
    "  kljudge compare laptop/bench.json tpu/bench.json --out results/compare\n"
    "  kljudge compare laptop/summary.json tpu/summary.json",
)
def compare(options) -> int:
    from kljudge_jax.evaluation.report.compare import compare

    compared = compare(*options.results, force=options.force)
    picture = compared.save(options.out)
    print(compared.markdown(), end="")
    print(f"\nPicture: {picture}")
    return OK
