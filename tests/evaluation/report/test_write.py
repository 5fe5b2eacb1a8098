"""The report: what it says in words, and that its page needs nothing but itself."""

import html
import html.parser
import json

import numpy as np
import pytest
from msgspec import structs
from sweep_records import answers

from kljudge_jax.evaluation.report.token_page import Answer
from kljudge_jax.evaluation.report.write import TaskResult, findings, read_metadata, write_report
from kljudge_jax.evaluation.sweep.summary import summarise

CELLS = [{"rule": "none", "draft_length": 0}, {"rule": "kl:0.1", "draft_length": 8}, {"rule": "all", "draft_length": 8}]
PLAN = {"cells": CELLS, "temperature": 0.0, "max_new_tokens": 24, "batch": 4, "n": 20, "split": "test", "seed": 7}


@pytest.fixture
def rows():
    found = answers("none", [True] * 20, seconds=4.0)
    found += answers("kl:0.1", [i != 1 for i in range(20)], tokens=14)
    found += answers("all", [i > 12 for i in range(20)], tokens=20)
    return summarise(found)


@pytest.fixture
def metadata(tmp_path):
    claims = {}
    for seed in (7, 8):
        (tmp_path / str(seed)).mkdir()
        machine = {"date": "2026-01-02", "processor": "P", "cores": 2, "devices": 1, "backend": "cpu"}
        machine |= {"device": "cpu", "python": "3.12", "versions": {"jax": "0.10"}}
        claim = {"target": "<big>", "draft": "small", "dtype": "float32", "task": "letters"}
        claims[seed] = claim | {"plan": PLAN | {"seed": seed}, "machine": machine}
        (tmp_path / str(seed) / "plan.json").write_text(json.dumps(claims[seed]))
    return read_metadata([tmp_path / "7", tmp_path / "8"], "kljudge sweep --rules 'none,kl:0.1,all'")


def test_the_findings_name_the_best_rule_that_loses_nothing_that_shows(rows):
    best, fastest, worse = findings(rows)
    low = -100 * rows[1].difference_interval[0]
    assert "20 problems can show: kl:0.1, 2.80" in best and f"up to {low:.1f} points" in best
    assert fastest.startswith("Fastest of those here: kl:0.1, 2.80 times plain decoding (2.80 to 2.80)")
    assert worse == "Worse than plain decoding: all."


def test_a_rule_whose_loss_is_shown_until_p_is_corrected_is_not_advised(rows):
    doubtful = structs.replace(rows[1], verdict="doubtful", difference_interval=(-0.237, -0.037))
    lines = findings([rows[0], doubtful])
    assert not any("Most tokens" in line for line in lines)
    assert any(line.startswith("Doubtful: kl:0.1; alone, the loss would be shown") for line in lines)


def test_the_findings_name_a_length_where_there_are_several_and_it_has_one(rows):
    draft = structs.replace(rows[2], rule="draft", draft_length=0)
    assert any("all, draft." in line for line in findings([*rows, draft]))
    longer = structs.replace(rows[1], draft_length=12, mean_acceptance_length=9.0)
    lines = findings([*rows, longer, draft])
    assert any("kl:0.1 @ 12, 9.00" in line for line in lines)
    assert any("all @ 8, draft." in line for line in lines)


def test_the_findings_say_when_nothing_was_compared():
    (line,) = findings(summarise(answers("exact", [True])))
    assert "No plain decoding" in line


def test_the_findings_say_when_exact_decoding_wrote_something_else():
    changed = [structs.replace(record, token_ids=(9,)) for record in answers("exact", [True] * 3)]
    rows = summarise([*answers("none", [True] * 3), *changed])
    assert "exact wrote 0 of 3 plain answers token for token." in findings(rows)
    assert not any("token for token" in line for line in findings(rows, greedy=False))


class Links(html.parser.HTMLParser):
    """Collects what a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        loads = named.get("src") or (named.get("href") if tag == "link" else None)
        if loads or tag == "script":
            self.found.append((tag, loads))


def test_the_report_is_whole_and_escapes_what_it_is_given(rows, metadata, tmp_path):
    answer = Answer("kl:0.1 @ 8", ["a <b>", "\n"], ["relaxed", "target"], np.array([0.25, np.nan]), "right")
    files = write_report(tmp_path, [TaskResult("letters", rows, [("1 < 2?", [answer])])], metadata)
    assert [file.name for file in files] == [
        "report.html", "report.md", "summary.csv", "summary.json", "tradeoff.png", "positions.png"
    ]  # fmt: skip
    assert all(file.stat().st_size > 0 for file in files)
    page = files[0].read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert links.found == []
    assert page.count("<svg") == 2 and "&lt;big&gt;" in page and "<big>" not in page
    assert "a &lt;b&gt;" in page and "KL 0.250 nats" in page and "1 &lt; 2?" in page
    assert "seeds 7, 8" in page and "kljudge sweep --rules &#39;none" in page
    text = files[1].read_text(encoding="utf-8")
    assert "draft length 8" in text and "| kl:0.1 | 19 of 20 |" in text and "    kljudge sweep --rules" in text
    summary = json.loads(files[3].read_text())
    assert summary["plan"]["seeds"] == [7, 8] and summary["cells"][1]["task"] == "letters"


def test_a_sweep_that_went_on_elsewhere_names_both_machines(rows, metadata, tmp_path):
    path = tmp_path / "8" / "plan.json"
    claim = json.loads(path.read_text())
    claim["later_machines"] = [claim["machine"] | {"date": "2026-02-03", "processor": "Q"}]
    path.write_text(json.dumps(claim))
    both = read_metadata([tmp_path / "7", tmp_path / "8"], "kljudge sweep")
    assert [machine.processor for machine in both.later_machines] == ["Q"] and metadata.later_machines == ()
    text = write_report(tmp_path, [TaskResult("letters", rows)], both)[1].read_text()
    assert "2026-01-02, P, 2 cores" in text and "Gone on with: 2026-02-03, Q, 2 cores" in text


def test_the_report_says_under_its_tables_which_forms_are_ours(rows, metadata, tmp_path):
    page, text, *_ = write_report(tmp_path, [TaskResult("letters", rows)], metadata)
    for file in (page, text):
        assert "all †" in (
            found := file.read_text(encoding="utf-8")
        ) and "† Ours, and not of the rule's source: all: " in (html.unescape(found))
    assert "<p>† Ours" in TaskResult("letters", rows)._repr_html_()
