"""The call `sweep`: the figures of the command's, shown in a notebook, kept where it is told to."""

import pytest
from sweep_records import Letters
from tiny_pairs import text_pair

import kljudge_jax as kj

SIZES = {"draft_lengths": [4], "n": 8, "batch": 4, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def pair():
    return text_pair()


@pytest.fixture(scope="module")
def kept(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, kj.sweep(pair, Letters(), ["none", "exact", "kl:4.0"], examples=1, folder=folder, **SIZES)


def test_it_compares_the_rules(kept):
    _, found = kept
    assert [row["rule"] for row in found.rows] == ["none", "exact", "kl:4.0"]
    assert found.rows[1]["same_text"] == 8 and found.greedy


def test_a_notebook_shows_table_picture_and_answers(kept):
    shown = kept[1]._repr_html_()
    assert "<svg" in shown and "tokens per pass" in shown
    assert "<td>kl:4.0</td>" in shown
    assert shown.count("<details") == 3 and 'class="draft"' in shown


def test_it_goes_on_where_it_was(pair, kept):
    folder, found = kept
    assert (folder / "report.html").exists() and (folder / "answers.jsonl").exists()
    lines = []
    again = kj.sweep(
        pair, Letters(), ["none", "exact", "kl:4.0"], examples=1, folder=folder, report=lines.append, **SIZES
    )
    assert not lines and again.rows == found.rows


def test_without_a_folder_nothing_is_kept(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kj.sweep(pair, Letters(), ["exact"], **SIZES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"batch": 0}, {"draft_lengths": [0]}, {"draft_lengths": []}, {"rules": []}]
)
def test_sizes_that_cannot_be_are_refused(pair, wrong):
    with pytest.raises(kj.InputError, match="at least one rule"):
        kj.sweep(pair, Letters(), **(SIZES | wrong))
