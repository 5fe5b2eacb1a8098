"""`kljudge rules`."""

from __future__ import annotations

import json
import shutil
import textwrap

from kljudge_jax.commands.command import OK, command, flag

_KEY = (
    "p and q are the target's and the draft's distributions, d is the draft token, and the strict rule is greedy "
    "matching, or speculative sampling's draw when sampling. Values are given in order or by name: "
    "kl:0.4 is kl:threshold=0.4. What secure wraps follows its colon: secure:kl:0.4."
)


@command(
    "List the verification rules.",
    [flag("--json", "print them as JSON")],
    "  kljudge rules\n  kljudge rules --json",
)
def rules(options) -> int:
    from kljudge_jax.verification import describe_rules

    rows = describe_rules()
    if options.json:
        print(json.dumps(rows, indent=2))
        return OK
    width = min(shutil.get_terminal_size().columns, 100)

    def paragraph(text: str) -> str:
        return textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_long_words=False)

    print(textwrap.fill(_KEY, width))
    print("\nnone  (plain decoding)\n" + paragraph("No draft: the target alone, what the others are compared with."))
    for row in rows:
        kind = "lossless" if row["lossless"] else "relaxed"
        print(f"\n{row['usage']}  ({row['name']}, {kind}{', greedy only' if row['greedy_only'] else ''})")
        print(paragraph(row["summary"]))
        for parameter in row["parameters"]:
            print(paragraph(f"{parameter['name']}: {parameter['allowed']}"))
        ours = "; ".join(filter(None, (row["ours"], row["ours_with"])))
        print(paragraph(f"Source: {row['source']}." + (f" Ours: {ours}." if ours else "")))
    return OK
