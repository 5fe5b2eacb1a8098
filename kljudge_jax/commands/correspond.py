"""`kljudge correspond`."""

from __future__ import annotations

from kljudge_jax.commands.command import DIR, OK, argument, command, option


@command(
    "Measure how far a learned judge and KL read the same, on mismatches that it was not trained on.",
    [
        argument("data", "a folder that `kljudge mine` wrote", type=DIR),
        argument("judge", "a folder that `kljudge train-judge` wrote", type=DIR),
        argument("folder", "for the report", type=DIR),
        option("--seed", "of folds and bootstrap", default=0),
    ],
    "  kljudge correspond mined/test judges/arithmetic results/correspond",
)
def correspond(options) -> int:
    from kljudge_jax.judges.jobs import correspond

    found, files = correspond(options.data, options.judge, options.folder, options.seed)
    print(found.markdown(), end="")
    print("\n" + "\n".join(map(str, files)))
    return OK
