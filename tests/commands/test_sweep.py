"""`kljudge sweep` with every baseline, on the embedded pair."""

import json

import pytest

from kljudge_jax.cli import main
from kljudge_jax.evaluation.baselines import torch_model

RULES = ["none", "exact", "draft", "lookup:3", "hf", "hf:assisted", "hf:lookup"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    words = ["sweep", "--target", "embedded", "--task", "arithmetic", "--n", "3", "--batch", "3", "--out", str(folder)]
    words += ["--max-new-tokens", "24", "--draft-lengths", "4", "--examples", "0", "--rules", ",".join(RULES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_model, "cores", lambda: 1)  # threads of tiny products wait more than they compute
        assert main(words) == 0
    return folder


@pytest.mark.slow
def test_every_baseline_has_its_line(swept):
    cells = json.loads((swept / "summary.json").read_text())["cells"]
    assert {cell["rule"]: cell["draft_length"] for cell in cells} == {
        rule: 0 if rule in ("none", "draft", "hf") else 4 for rule in RULES
    }
    assert all(cell["n"] == 3 and cell["speed"] > 0 for cell in cells)
    lines = (swept / "report.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 + len(RULES)


def test_all_but_the_draft_alone_write_the_plain_answers(swept):
    for cell in json.loads((swept / "summary.json").read_text())["cells"]:
        if cell["rule"] == "draft":
            assert cell["same_text"] < 3 and len(cell["first_difference"]) == 3 - cell["same_text"]
        else:
            assert cell["same_text"] == 3 and cell["first_difference"] == {}


def test_assisted_generation_keeps_what_our_exact_rule_keeps(swept):
    cells = {cell["rule"]: cell for cell in json.loads((swept / "summary.json").read_text())["cells"]}
    assert cells["hf:assisted"]["mean_acceptance_length"] == cells["exact"]["mean_acceptance_length"] > 2
    assert cells["hf"]["mean_acceptance_length"] == 1


def test_records_say_what_was_decoded_together(swept):
    records = [json.loads(line) for line in (swept / "answers.jsonl").read_text().splitlines()]
    fields = set.intersection(*(set(record) for record in records))
    assert {"tokens", "cycles", "drafted", "accepted", "seconds", "token_ids", "text", "finish", "batch"} <= fields
    together = {(record["rule"], record.get("batch_size")): set() for record in records}
    for record in records:
        together[record["rule"], record.get("batch_size")].add(record["batch"])
    assert together["hf", 3] == {0} == together["exact", None]
    assert together["hf:assisted", 1] == together["hf:lookup", 1] == {0, 1, 2}
    engines = {record["rule"] for record in records if "engine" in record}
    assert engines == {"hf", "hf:assisted", "hf:lookup"}
