"""The page of one's own model and loop: all of its Python runs, in its order, and compiles one rollout."""

import re

import tiny_pairs
from foreign_models import PAGE


def test_the_page_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert re.fullmatch(r"\[24, 24\] \d\.\d+\n(\(2, 24\) \[24 24\]\n){2}", capsys.readouterr().out)
    with tiny_pairs.compilations() as found:
        names["rollout"](names["weights"], names["params"], names["prompts"], names["lengths"], names["key"])
    assert not found
