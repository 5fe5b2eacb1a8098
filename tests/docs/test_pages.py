"""The site: every block of code on its pages runs, every public name has a place, and it builds without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.verification.rule import RULES

FOLDER = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (FOLDER / "pages").glob("*.md")}


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "python")])
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known, names = len(RULES), {}
    try:
        for block in blocks(PAGES[page], "python"):
            exec(compile(block, f"{page}.md", "exec"), names)
    finally:
        del RULES[known:]


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "bash")])
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(PAGES[page], "bash")).splitlines():
        program, *words = line.split()
        assert program == "kljudge"
        if words != ["demo"]:  # has tests of its own, and takes its time
            assert main(words) == 0, line


def test_every_public_name_has_a_place():
    shown = re.findall(r"^::: kljudge_jax\.(?:verification\.)?(\w+)$", "\n".join(PAGES.values()), re.MULTILINE)
    assert sorted(shown) == sorted(set(shown)) == sorted(kj.__all__)


def test_every_rule_shows_its_mathematics():
    assert all("Maths:" in rule.__doc__ and "$$" in rule.__doc__ for rule in RULES)


def test_all_holds_every_public_name():
    public = {name for name, value in vars(kj).items() if not name.startswith("_") and not is_module(value)}
    assert public == set(kj.__all__) and len(kj.__all__) == len(set(kj.__all__))
    assert {rule.__name__ for rule in RULES} <= set(kj.verification.__all__) <= set(kj.__all__)


def is_module(value):
    return type(value).__name__ == "module"


def test_the_site_builds_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("latex2mathml")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        FOLDER / "mkdocs.yml",
        "-d",
        tmp_path / "site",
    ]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    rules = (tmp_path / "site" / "rules.html").read_text(encoding="utf-8")
    assert rules.count("<math") > len(RULES) and "$$" not in rules and "arithmatex" not in rules
    for page in (tmp_path / "site").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="https?:', text)
        assert not re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="https?:', text)
