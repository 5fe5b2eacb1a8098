"""The call `compare`: what `bench` kept, read again and put side by side."""

import json

import pytest
from sweep_records import Letters
from tiny_pairs import text_pair

import kljudge_jax as kj
from kljudge_jax.evaluation.bench import limits


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "matmul_size", lambda: 32)
        return kj.bench(text_pair(), Letters(), ["exact"], draft_length=4, prompts=1, max_new_tokens=24, rounds=1)


def test_what_is_saved_can_be_compared(measured, tmp_path):
    here = measured.save(tmp_path / "here")
    assert (tmp_path / "here" / "table.md").read_text() == measured.markdown()
    other = json.loads(here.read_text()) | {"machine": measured.figures["machine"] | {"processor": "<Other>"}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = kj.compare(here, tmp_path / "other.json")
    shown = found._repr_html_()
    assert "&lt;Other&gt;" in shown and "<Other>" not in shown and "<svg" in shown
    assert found.save(tmp_path / "both").stat().st_size > 1000
    assert (tmp_path / "both" / "compare.md").read_text() == found.markdown()


def test_the_shipped_bench_can_be_read():
    found = kj.compare(kj.shipped_bench())
    assert found.results[0].asked["target"]["name"] == "embedded target"


def test_nothing_is_nothing_to_compare():
    with pytest.raises(kj.InputError, match="name at least one result"):
        kj.compare()
