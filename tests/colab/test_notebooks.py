"""Every notebook runs top to bottom from a clean kernel, in a folder of its own, and shows what it should."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "colab"
MOST_LINES = 15

# What the outputs of each hold: the colours of tokens, a picture, a table, a message.
SHOWS = {
    "quickstart": ['class="relaxed"', "<svg", "random:0.8", "tokens per target pass", "right answer: True"],
    "write_your_own_rule": ['class="relaxed"', "overlap:0.7", "Overlap 2", "Forgetful.passes returns bool[]"],
    "train_a_judge": ["mismatches", "(advised)", "AUC for the label", "image/png", "judge:judge/head,threshold=0.2"],
    "tpu_and_gpu": ["P(('tensor.0'", 'class="draft"', "target pass, 9 positions", "AMD EPYC", "<svg"],
}


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


@pytest.mark.parametrize("name", SHOWS)
def test_a_notebook_runs_and_shows_its_results(name, tmp_path):
    book = read(name)
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)
    for wanted in SHOWS[name]:
        assert wanted in said, wanted
    assert "Traceback" not in said
