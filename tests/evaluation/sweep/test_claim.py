"""Folders that 0.1.0 began: which go on, and under which names of their rules."""

import json
import shutil
from pathlib import Path

import pytest

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.sweep.claim import read_claim, read_records
from kljudge_jax.evaluation.sweep.run import Plan, grid, run_sweep
from kljudge_jax.generation.config import DecodingConfig

OLD = Path(__file__).parents[2] / "files_of_0_1_0" / "sweep"


@pytest.fixture(scope="module")
def pair():
    return kj.ModelPair.embedded(dtype="float32")


@pytest.fixture
def folder(tmp_path):
    """A whole sweep of 0.1.0: none, exact and kl:0.4."""
    return shutil.copytree(OLD, tmp_path / "old")


def go_on(pair, folder, *rules, report=lambda line: pytest.fail("an answer was made"), **config):
    plan = Plan(grid(rules, [8]), n=4, config=DecodingConfig(48, batch=4, **config))
    return run_sweep(pair, kj.load_task("arithmetic"), plan, folder, report)


def test_a_rule_whose_meaning_changed_is_refused_in_one_line(pair, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError) as error:
        go_on(pair, folder, "none", "exact", "kl:0.4")
    assert str(error.value) == (
        f"{folder} was begun by a version to which kl:0.4 meant what kl:0.4,first=0 means now: name a new folder, or "
        "ask for kl:0.4,first=0 to go on in this one"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("said", ["kl:0.4,first=0", "kl:first=0,threshold=0.4"])
def test_it_goes_on_as_what_it_means_now(pair, folder, said):
    lines = (folder / "answers.jsonl").read_bytes().splitlines(True)
    texts = [json.loads(line)["text"] for line in lines]
    for _ in range(2):
        found = go_on(pair, folder, "none", "exact", said)
        assert [record.text for record in found] == texts
        assert {record.rule for record in found} == {"none", "exact", said}
        assert read_records(folder / "answers.jsonl") == found
    cells = read_claim(folder / "plan.json").plan.cells
    assert [(cell.rule, cell.meaning) for cell in cells] == [("none", 1), ("exact", 1), (said, 2)]
    with pytest.raises(InputError, match=r"its plan \(cells\) differs"):
        go_on(pair, folder, "none", "exact", "kl:0.4")


def test_a_kill_while_names_are_written_is_no_harm(pair, folder):
    claim = (folder / "plan.json").read_bytes()
    found = go_on(pair, folder, "none", "exact", "kl:0.4,first=0")
    (folder / "plan.json").write_bytes(claim)
    assert go_on(pair, folder, "none", "exact", "kl:0.4,first=0") == found


def test_what_is_missing_is_answered_under_the_new_name(pair, folder):
    path = folder / "answers.jsonl"
    lines = path.read_bytes().splitlines(True)
    last = json.loads(lines[-1])
    path.write_bytes(b"".join(lines[:-1]))
    found = go_on(pair, folder, "none", "exact", "kl:0.4,first=0", report=lambda line: None)
    assert (found[-1].rule, found[-1].token_ids) == ("kl:0.4,first=0", tuple(last["token_ids"]))


def test_cells_of_other_rules_go_on(pair, folder):
    claim = json.loads((folder / "plan.json").read_text())
    claim["plan"]["cells"].pop()
    (folder / "plan.json").write_text(json.dumps(claim))
    path = folder / "answers.jsonl"
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b"kl:0.4" not in line))
    assert len(go_on(pair, folder, "none", "exact")) == 8


def test_another_difference_is_named_first(pair, folder):
    with pytest.raises(InputError, match=r"its plan \(seed\) differs"):
        go_on(pair, folder, "none", "exact", "kl:0.4", seed=3)
    with pytest.raises(InputError, match=r"its plan \(cells\) differs"):
        go_on(pair, folder, "none", "exact", "kl:0.5,first=0")


def test_a_folder_of_a_later_meaning_is_refused(pair, folder):
    claim = json.loads((folder / "plan.json").read_text())
    claim["plan"]["cells"][-1]["meaning"] = 3
    (folder / "plan.json").write_text(json.dumps(claim))
    with pytest.raises(InputError, match="begun by a later version, whose rules mean something else: name a new fold"):
        go_on(pair, folder, "none", "exact", "kl:0.4")
