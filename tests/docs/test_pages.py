"""The site: the code and the commands on its pages and in README.md run, every public name has a place, it builds."""

import importlib.util
import re
import subprocess
import sys
import warnings

import pytest
from command_lines import parsed
from documentation import (
    FILES,
    ONLY_PARSED,
    PAGES,
    SITE,
    blocks,
    check,
    check_calls,
    code,
    commands,
    daily,
    only_parsed,
    smaller,
    smaller_code,
    stand_in,
    write_files,
)

import kljudge_jax as kj
from kljudge_jax import _public, cli
from kljudge_jax.evaluation.baselines import parse_baseline
from kljudge_jax.evaluation.bench import limits
from kljudge_jax.spec import split_specs
from kljudge_jax.verification.rule import RULES

COMMANDS = [(page, words) for page in PAGES for block in code(page, "bash") for words in commands(block)]


PYTHON = [name for name in PAGES if code(name, "python")]

# What the Python of a page prints, of any size. `cost` and `harness` are only run whole: a bench has many programs.
PRINTS = {
    "README": r"\n\d+\.\d+ \d+ \d+\.\d+\n(.*\n)*.*\d+\n$",
    "families": r"'llama', .*'qwen3'",
    "heads": r"^\d+\.\d+\n$",
    "index": r"^\d+ \d+ \d+\nnone \d+ 1\.0\nexact \d+ \d+\.\d+\nkl:0\.4 \d+ \d+\.\d+\n$",
    "own_rule": r"^\d+\n$",
    "promises": "^$",  # it asserts what it says
    "scale": r"^\d+ \S(.*\n)*(0\.\d+|1\.0)\n$",
}
PRINTS_WHOLE = PRINTS | {
    "files": r"^bench 1\n$",
    "README": r"####(.*\n)*\d+\.\d+ \d+ \d+\.\d+\n(.*\n)*.*####",
    "cost": r"^2\.16, 3\.70 with a judge\n(.*\n)*\| 1 \| exact @ 8 \|",
    "harness": r"'sums': \{(.*\n?)*\d\.\d+\n$",
    "own_model": r"^\[24, 24\] \d\.\d+\n(\(2, 24\) \[24 24\]\n){2}$",
}


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder of one who follows a page: with the files that it names, and a pair for the models."""
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch)
    monkeypatch.setattr(limits, "matmul_size", lambda: 32)
    write_files(tmp_path)
    known = len(RULES)
    yield tmp_path
    del RULES[known:]


# These need one another's results: `test_judge_commands` runs them daily, and the slow run those of the pages.
_CHAIN = ("mine", "train-judge", "correspond")


def test_a_command_of_every_kind_does_what_a_page_says(reader, capsys):
    """One after another in one folder and one process: most of the time is compilation, and they share programs."""
    for words in daily():
        if words[0] in _CHAIN or (words[0] == "evaluate" and importlib.util.find_spec("lm_eval") is None):
            continue
        words = smaller(words, smallest=True)
        assert cli.main(words) == 0, words
        check(words, capsys.readouterr().out)


def test_every_command_of_a_page_has_one_of_its_kind_that_is_run_daily():
    assert {words[0] for _, words in COMMANDS} - {"demo", "train-draft"} == {words[0] for words in daily()}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page == "index" else page for page in PYTHON if page in PRINTS],
)
def test_the_python_of_a_page_runs(page, reader, capsys):
    names = {}
    for block in code(page, "python"):
        exec(compile(smaller_code(block), f"{page}.md", "exec"), names)
    assert re.search(PRINTS[page], capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name in PAGES if code(name, "python") or code(name, "bash")])
def test_what_a_page_shows_runs_from_top_to_bottom(page, reader, monkeypatch, capsys):
    """Blocks of Python share their names, and commands their folder, as they would on a reader's machine."""
    if page == "harness":
        pytest.importorskip("lm_eval")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", reader / "cache")
    names, printed = {}, ""
    with warnings.catch_warnings():
        if page == "harness":  # what the harness and the packages it stands on complain of is not ours
            warnings.simplefilter("ignore")
        for language, text in blocks(page):
            if language == "python":
                exec(compile(text.replace("max_new_tokens=256", "max_new_tokens=64"), f"{page}.md", "exec"), names)
                printed += capsys.readouterr().out
            elif language == "yaml":
                (reader / "my_tasks" / "sums.yaml").write_text(text, encoding="utf-8")
            elif language == "bash":
                for words in map(smaller, commands(text)):
                    if only_parsed(words) is None:
                        assert cli.main(words) == 0, words
                        check(words, capsys.readouterr().out)
    assert page not in PYTHON or re.search(PRINTS_WHOLE[page], printed)


@pytest.mark.parametrize("page", PYTHON)
def test_calls_on_a_page_have_the_arguments_of_the_function(page):
    """Also where a block takes too long to run on every change: a name that has gone is found without it."""
    for block in code(page, "python"):
        check_calls(block)


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_is_python(page):
    for block in code(page, "python"):
        compile(block, f"{page}.md", "exec")


@pytest.mark.parametrize(
    "words", [words for _, words in COMMANDS], ids=[f"{page} {words[0]}" for page, words in COMMANDS]
)
def test_a_command_is_one_that_the_parser_knows(words):
    options = parsed(words)
    greedy = getattr(options, "temperature", 0) == 0
    rules = getattr(options, "rules", None)
    for rule in [*(split_specs(rules) if rules else ()), *filter(None, [getattr(options, "verifier", None)])]:
        if parse_baseline(rule) is None and not rule.startswith(("judge:judges/", "pivot:judges/")):
            kj.parse_verifier(rule, greedy)


def test_what_is_only_parsed_is_on_a_page():
    reasons = {only_parsed(words) for _, words in COMMANDS}
    assert reasons - {None} == set(ONLY_PARSED.values())


def test_names_in_the_text_exist():
    for name in set(re.findall(r"\bkj\.([A-Za-z_]+)", "\n".join(PAGES.values()))):
        assert hasattr(kj, name), name


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    folder = FILES[page].parent
    for link in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        if "://" not in link:
            assert (folder / link).exists(), link
            assert page == "README" or (folder / link).resolve().is_relative_to(folder), f"{link} leaves the site"


def test_every_public_name_has_a_place():
    shown = re.findall(r"^::: kljudge_jax\.(?:verification\.)?(\w+)$", "\n".join(PAGES.values()), re.MULTILINE)
    assert sorted(shown) == sorted(set(shown)) == sorted(kj.__all__)


def test_the_page_of_rules_lists_those_that_have_a_form_of_ours():
    listed = set()
    for line in re.findall(r"^- (`.*?`): ", PAGES["rules"], re.MULTILINE):
        listed |= set(re.findall(r"`(\w+)`", line))
    assert listed == {row["spec"] for row in kj.describe_rules() if row["ours"]}


def test_every_rule_shows_its_mathematics():
    assert all("Maths:" in rule.__doc__ and "$$" in rule.__doc__ for rule in RULES)


def test_all_holds_every_public_name():
    public = {name for name, value in vars(_public).items() if not name.startswith("_") and not is_module(value)}
    assert public | {"RULES"} == {*kj.__all__, "RULES"} and len(kj.__all__) == len(set(kj.__all__))
    assert all(getattr(kj, name) is getattr(_public, name) for name in kj.__all__) and set(kj.__all__) < set(dir(kj))
    assert {rule.__name__ for rule in RULES} <= set(kj.verification.__all__) <= set(kj.__all__)


def is_module(value):
    return type(value).__name__ == "module"


def test_the_site_builds_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    pytest.importorskip("latex2mathml")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", SITE / "mkdocs.yml", "-d", site]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    rules = (site / "rules.html").read_text(encoding="utf-8")
    assert rules.count("<math") > len(RULES) and "$$" not in rules and "arithmatex" not in rules
    api = [(site / f"{name}.html").read_text(encoding="utf-8") for name in ("api", "rules", "own_rule")]
    firsts = re.findall(r"<tr[^>]*>\s*<td>(.*?)</td>", "".join(api), re.DOTALL)
    assert len(firsts) > 100 and not [cell for cell in firsts if "," in cell and "title=" not in cell]  # one name a row
    results = (site / "results.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<details>\s*<summary>(?:(?!</details>).)*<table>", results, re.DOTALL)) == 3
    assert "8.17*" in results and "<em>" not in results  # a star marks a loss, and nothing else
    assert {path.stem for path in site.glob("*.html")} - {"404", "search"} == set(PAGES) - {"README"}
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="https?:', text)
        assert not re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="https?:', text)
