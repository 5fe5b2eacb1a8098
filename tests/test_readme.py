"""What README.md shows runs as it stands; commands and names of the pages beside it are ones that there are."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

import kljudge_jax as kj
from kljudge_jax import cli
from kljudge_jax.commands.options import split_rules
from kljudge_jax.evaluation.baselines import parse_baseline
from kljudge_jax.verification.rule import RULES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ALL = "\n".join([TEXT, *PAGES.values()])


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
    for name in set(re.findall(r"\bkj\.([A-Za-z_]+)", ALL)):
        assert hasattr(kj, name), name


def commands():
    """Every `kljudge` command of the pages, as words."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", ALL, re.DOTALL)).splitlines()
    found = [shlex.split(line, comments=True) for line in lines if "kljudge " in line and "pip install" not in line]
    return [words[next(i for i, word in enumerate(words) if word.endswith("kljudge")) + 1 :] for words in found]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_a_command_is_one_that_the_parser_knows(words):
    options = cli._parser().parse_args(words)
    rules = getattr(options, "rules", None)
    for rule in split_rules(rules) if rules else ():
        if parse_baseline(rule) is None and not rule.startswith(("judge:judges/", "pivot:judges/")):
            kj.parse_verifier(rule, options.temperature == 0 if hasattr(options, "temperature") else True)


def test_the_other_blocks_of_python_are_python_and_the_first_one_runs(capsys, monkeypatch):
    """Run on the embedded pair, given a chat template, in place of a pair from the hub."""
    first, *others = re.findall(r"(?<!<!-- runs -->\n)```python\n(.*?)```", TEXT, re.DOTALL)
    for block in [
        *others,
        *(code for page in PAGES.values() for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)),
    ]:
        compile(block, "a page", "exec")
    pair = kj.ModelPair.embedded()
    pair.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    monkeypatch.setattr(kj.ModelPair, "from_pretrained", lambda *names, **options: dataclasses.replace(pair))
    exec(compile(first.replace("max_new_tokens=256", "max_new_tokens=64"), "README.md", "exec"), {})
    assert "####" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in PAGES)])
def test_links_to_files_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link
