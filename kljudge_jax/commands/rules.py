"""`kljudge rules`."""

from __future__ import annotations

import json

from kljudge_jax.commands.options import OK, command


def add(commands) -> None:
    parser = command(
        commands, "rules", _rules, "List the verification rules.", "  kljudge rules\n  kljudge rules --json"
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def _rules(options) -> int:
    from kljudge_jax.verification import describe_rules

    rows = describe_rules()
    if options.json:
        print(json.dumps(rows, indent=2))
        return OK
    width = max(len(row["usage"]) for row in rows)
    for row in rows:
        kind = "lossless" if row["lossless"] else "relaxed"
        print(f"{row['usage']:<{width}}  {kind:<8}  {row['summary']} [{row['source']}]")
    return OK
