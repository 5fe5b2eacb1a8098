"""`kljudge correspond`."""

from __future__ import annotations

from kljudge_jax.commands.options import OK, command


def add(commands) -> None:
    parser = command(
        commands,
        "correspond",
        _correspond,
        "Measure how far a learned judge and KL read the same, on mismatches that it was not trained on.",
        "  kljudge correspond mined/test judges/arithmetic results/correspond",
    )
    parser.add_argument("data", metavar="DATA", help="a folder that `kljudge mine` wrote")
    parser.add_argument("judge", metavar="JUDGE", help="a folder that `kljudge train-judge` wrote")
    parser.add_argument("folder", metavar="DIR", help="for the report")
    parser.add_argument("--seed", metavar="INT", type=int, default=0, help="of folds and bootstrap")


def _correspond(options) -> int:
    from kljudge_jax.judges.jobs import correspond

    found, files = correspond(options.data, options.judge, options.folder, options.seed)
    print(found.markdown(), end="")
    print("\n" + "\n".join(map(str, files)))
    return OK
