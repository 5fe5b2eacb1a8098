"""The call `bench`: what it measures and what it refuses."""

import json

import pytest
from sweep_records import Letters
from tiny_pairs import text_pair

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.evaluation.bench import limits

SIZES = {"draft_length": 4, "prompts": 1, "max_new_tokens": 24, "rounds": 1}


@pytest.fixture(scope="module")
def pair():
    return text_pair()


@pytest.fixture(scope="module")
def measured(pair):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "matmul_size", lambda: 32)
        return kj.bench(pair, Letters(), ["exact"], **SIZES)


@pytest.mark.slow
def test_it_measures_plain_decoding_too(measured):
    assert [rule.rule for rule in measured.figures.batches[0].rules] == ["none", "exact"]
    assert "target pass, 5 positions" in measured._repr_markdown_()


def test_it_saves_figures_and_table(measured, tmp_path):
    assert json.loads(measured.save(tmp_path / "here").read_text()) == measured.to_dict()
    assert (tmp_path / "here" / "table.md").read_text() == measured.markdown()


@pytest.mark.parametrize("wrong", [{"batches": []}, {"batches": [0]}, {"draft_length": 0}, {"max_new_tokens": 5}])
def test_sizes_that_cannot_be_are_refused(pair, wrong):
    with pytest.raises(kj.InputError, match=r"start at 1|give at least|from 1 on"):
        kj.bench(pair, Letters(), **(SIZES | wrong))


def test_random_weights_have_no_bits_of_a_file(capsys):
    assert main(["bench", "--shape", "smollm2-135m:layers=1", "--bits", "file"]) == 2
    assert "random weights come from no file whose bits could be kept" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rule_itself_an_adaptive_length_and_truncated_sampling_are_timed(pair, monkeypatch):
    monkeypatch.setattr(limits, "matmul_size", lambda: 32)
    config = kj.DecodingConfig(24, temperature=0.8, top_k=5, draft_length=kj.Adaptive(maximum=4, cost=0.1))
    found = kj.bench(pair, Letters(), [kj.KLJudge(4.0)], prompts=1, rounds=1, config=config)
    plain, judged = found.figures.batches[0].rules
    assert (plain.rule, plain.draft_length) == ("none", 0)
    assert judged.rule == "kl:4.0" and judged.draft_length.startswith("adaptive:") and judged.tokens > 0
    assert plain.model is not None and judged.model is None  # its costs are those of one length
    assert {name: getattr(found.figures.plan, name) for name in ("temperature", "top_k")} == {
        "temperature": 0.8,
        "top_k": 5,
    }
    assert "kl:4.0 @ adaptive" in found.markdown(profile=True)
