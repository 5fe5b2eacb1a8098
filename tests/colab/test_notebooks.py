"""Every notebook runs top to bottom from a clean kernel, in a folder of its own, and shows what it should."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from documentation import check_calls
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "colab"
MOST_LINES = 15

# What the outputs of each hold: the colours of tokens, a picture, a table, a message.
SHOWS = {
    "quickstart": ['class="relaxed"', "<svg", "random:0.8", "mean acceptance length", "right answer: True"],
    "write_your_own_rule": ['class="relaxed"', "overlap:0.7", "Overlap 2", "Forgetful.passes returns bool[]"],
    "train_a_judge": ["mismatches", "(advised)", "AUC for the label", "image/png", "judge:judge/head,threshold=0.2"],
    "tpu_and_gpu": ["P(('tensor.0'", 'class="draft"', "target pass, 9 positions", "AMD EPYC", "<svg"],
}


# The notebooks that a plain run of the tests runs, and what takes the place of numbers in their cells there: few
# problems, one at a time as `generate` decodes, and two rules, so that a sweep compiles little. `slow` runs all, whole.
DAILY = ["write_your_own_rule"]
SMALLER = [
    ("n=100, batch=25", "n=2, batch=1"),
    ('"none", "exact", "kl:0.02", "kl:0.1", "kl:0.4", "overlap:0.9", "overlap:0.7", "overlap:0.5", "random:0.8"',
     '"none", "overlap:0.7"'),
    ("max_new_tokens=160", "max_new_tokens=24"),
]  # fmt: skip


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_known_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
def test_a_notebook_is_valid_short_and_kept_without_outputs(name):
    book = read(name)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(len(cell.source.splitlines()) <= MOST_LINES for cell in code)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "%pip install" in code[0].source and "find_spec" in code[0].source  # skipped where it is installed
    assert code[0].source == read("quickstart").cells[2].source


# The first cell in a shell that finds all packages but this one; what it installs goes to a folder of its own.
INSTALL = """
import sys
sys.path += {paths}
from IPython.core.interactiveshell import InteractiveShell
ran = InteractiveShell.instance().run_cell({cell!r})
if ran.success:
    import kljudge_jax
    print("installed", kljudge_jax.__file__)
"""


@pytest.fixture
def install(tmp_path):
    """Runs the first cell of a notebook in a folder, where the package is absent and pip has no index."""
    pip = importlib.util.find_spec("pip")
    if pip is None:
        pytest.skip("needs pip")
    others = tmp_path / "others"
    others.mkdir()
    for path in Path(pip.origin).parents[1].iterdir():
        if not path.name.startswith(("kljudge_jax", "_")):
            (others / path.name).symlink_to(path)

    def run(folder):
        paths = [str(others), str(tmp_path / "installed")]
        program = INSTALL.format(paths=paths, cell=read("quickstart").cells[2].source)
        settings = {"PIP_TARGET": paths[1], "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "false"}
        command = [sys.executable, "-I", "-S", "-c", program]
        ran = subprocess.run(
            command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, timeout=300, check=True
        )
        return ran.stdout + ran.stderr

    return run


def test_the_first_cell_installs_a_wheel_beside_the_notebook(install, built, tmp_path):
    (tmp_path / "content").mkdir()
    (wheel,) = built.glob("*.whl")
    shutil.copy(wheel, tmp_path / "content")
    assert f"installed {tmp_path / 'installed'}" in install(tmp_path / "content")


@pytest.mark.slow
def test_the_first_cell_installs_the_checkout_that_the_notebook_lies_in(install, tmp_path):
    assert f"installed {tmp_path / 'installed'}" in install(FOLDER)


def test_the_first_cell_says_what_to_do_where_there_is_nothing_to_install(install, tmp_path):
    said = re.sub("\x1b[^m]*m", "", install(tmp_path))
    assert "ImportError: put kljudge_jax-*.whl beside this notebook" in said and "installed /" not in said


@pytest.mark.parametrize("name", DAILY)
def test_a_notebook_of_few_problems_and_rules_shows_its_results(name, tmp_path):
    book = read(name)
    for old, new in SMALLER:
        assert any(old in cell.source for cell in book.cells), old
        for cell in book.cells:
            cell.source = cell.source.replace(old, new)
    run(book, tmp_path, SHOWS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWS)
def test_a_notebook_runs_and_shows_its_results(name, tmp_path):
    run(read(name), tmp_path, SHOWS[name])


def run(book, folder, shows):
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)
    for wanted in shows:
        assert wanted in said, wanted
    assert "Traceback" not in said
    # Nothing is red but what the package itself has to say.
    red = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not [line for line in red.splitlines() if not line.startswith("WARNING:kljudge_jax.")]


@pytest.mark.parametrize("name", SHOWS)
def test_the_cells_of_a_notebook_are_python_whose_calls_have_the_arguments_of_the_functions(name):
    """Also where a notebook takes too long to run on every change: a name that has gone is found without it."""
    (_, *cells) = [cell.source for cell in read(name).cells if cell.cell_type == "code"]
    assert sum(check_calls(source) for source in cells) > 0
