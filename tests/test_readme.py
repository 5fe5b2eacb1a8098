"""What README.md shows runs as it stands."""

import re
from pathlib import Path

import kljudge_jax as kj
from kljudge_jax.verification.rule import RULES

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_blocks_marked_as_running_run(capsys):
    blocks = re.findall(r"<!-- runs -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        known = len(RULES)
        try:
            exec(compile(block, "README.md", "exec"), {})
        finally:
            del RULES[known:]
    assert capsys.readouterr().out.strip().isdigit()


def test_an_own_rule_is_short():
    (block,) = re.findall(r"<!-- runs -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 15


def test_names_in_the_text_exist():
    for name in set(re.findall(r"\bkj\.([A-Za-z_]+)", TEXT)):
        assert hasattr(kj, name), name
