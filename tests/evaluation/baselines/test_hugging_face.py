"""Transformers' decoding as a baseline: our plain decoding token for token, with counts that are true."""

import builtins
import importlib.util

import jax
import numpy as np
import pytest
import torch
from tiny_hf import FAMILIES

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines import hugging_face, torch_model
from kljudge_jax.evaluation.baselines.base import Request
from kljudge_jax.evaluation.baselines.hugging_face import HFAssisted, HFGenerate, HFLookup
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.models.pair import ModelPair

K, NEW = 4, 20
RANDOM = np.random.default_rng(3)
PROMPTS = [RANDOM.integers(2, 64, length).astype(np.int32) for length in (3, 12, 7)]


def request(prompts=PROMPTS, **changes):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(len(prompts)))
    key = changes.pop("key", keys)
    return Request(DecodingConfig(**({"draft_length": K, "max_new_tokens": NEW} | changes)), key)


def plain(pair, prompts=PROMPTS, **options):
    return kj.generate(pair, prompts, verifier=None, max_new_tokens=NEW, **options)


def tokens(answers):
    return [answer.tokens.tolist() for answer in answers]


# One family with full attention and one with windows; that all have the same logits is tested beside their export.
DAILY = ("qwen3", "gemma3")


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_baseline_writes_the_plain_answer(families, name):
    pair = families(name)[1]
    ours = [row.tolist() for row in plain(pair).tokens]
    assert len({tuple(row) for row in ours}) == 3
    for baseline in (HFGenerate(), HFAssisted(), HFLookup()):
        assert tokens(baseline.answer(pair, PROMPTS, request())) == ours, baseline


@pytest.fixture(scope="module")
def pair(families):
    return families("qwen3")[1]


@pytest.fixture(scope="module")
def ending(pair):
    """The pair with an EOS that stands within the first answer, and the plain answers with it."""
    first, *_ = plain(pair).tokens
    stop = next(int(t) for t in first[5:15] if t not in first[:5])
    ends = ModelPair(pair.target, pair.draft, eos=(999, stop))
    return ends, plain(ends)


def test_answers_end_with_an_eos_and_say_so(ending):
    pair, ours = ending
    finish = [row.finish for row in ours.stats.rows]
    assert finish[0] == "eos" and 5 < len(ours.tokens[0]) < NEW
    for baseline in (HFGenerate(), HFAssisted(), HFLookup()):
        answers = baseline.answer(pair, PROMPTS, request())
        assert tokens(answers) == [row.tolist() for row in ours.tokens]
        assert [answer.stats.finish for answer in answers] == finish
        assert [answer.stats.tokens for answer in answers] == [len(row) for row in ours.tokens]


def test_generate_takes_a_pass_a_token_and_all_prompts_at_once(ending):
    pair, ours = ending
    with torch_passes(pair.target) as passes:
        answers = HFGenerate().answer(pair, PROMPTS, request())
        warm = len(passes)
        answers = HFGenerate().answer(pair, PROMPTS, request())
    assert len(passes) - warm == max(len(row) for row in ours.tokens)
    for answer, tokens in zip(answers, ours.tokens, strict=True):
        assert answer.stats.cycles == answer.stats.tokens == len(tokens) and answer.stats.drafted == 0
        assert answer.batch == 0 and answer.notes["batch_size"] == 3
        assert answer.stats.seconds == answers[0].stats.seconds > answer.stats.prefill_seconds > 0


def torch_passes(model, role="target"):
    return hugging_face.Passes(torch_model.torch_model(model, role))


@pytest.mark.parametrize("baseline", [HFAssisted(), HFLookup()])
def test_assisted_passes_are_counted_as_they_are(ending, baseline):
    pair, _ = ending
    baseline.answer(pair, PROMPTS, request())  # warm
    with torch_passes(pair.target) as target, torch_passes(pair.draft, "draft") as draft:
        answers = baseline.answer(pair, PROMPTS, request())
    assert sum(answer.stats.cycles for answer in answers) == len(target)
    assert sum(answer.notes.get("draft_passes", 0) for answer in answers) == len(draft)
    for i, answer in enumerate(answers):
        stats = answer.stats
        assert stats.tokens == len(answer.tokens) and stats.cycles <= stats.tokens
        assert stats.accepted <= stats.drafted <= K * stats.cycles
        assert stats.tokens - stats.accepted <= stats.cycles  # at most one token of the target's own a pass
        assert answer.batch == i and answer.notes["batch_size"] == 1
    assert len({answer.stats.seconds for answer in answers}) == 3
    assert sum(answer.stats.accepted for answer in answers) > 0


def test_a_draft_that_is_the_target_is_accepted_whole(pair):
    same = ModelPair(pair.target, pair.target, eos=pair.eos)
    answers = HFAssisted().answer(same, PROMPTS, request())
    exact = kj.generate(same, PROMPTS, verifier="exact", draft_length=K, max_new_tokens=NEW)
    for answer, ours in zip(answers, exact.stats.rows, strict=True):
        assert answer.stats.cycles == ours.cycles == -(-answer.stats.tokens // (K + 1))
        assert answer.stats.accepted == answer.stats.drafted == ours.accepted


def test_assisted_generation_accepts_what_our_exact_rule_does(pair):
    answers = HFAssisted().answer(pair, PROMPTS, request())
    exact = kj.generate(pair, PROMPTS, verifier="exact", draft_length=K, max_new_tokens=NEW)
    assert [a.stats.cycles for a in answers] == [row.cycles for row in exact.stats.rows]
    assert [a.stats.accepted for a in answers] == [row.accepted for row in exact.stats.rows]
    assert 0 < sum(a.stats.accepted for a in answers) < sum(a.stats.drafted for a in answers)


def test_another_draft_length_is_heeded(pair):
    cycles = [
        sum(a.stats.cycles for a in HFAssisted().answer(pair, PROMPTS, request(draft_length=length)))
        for length in (1, 8)
    ]
    assert cycles[0] > cycles[1]


def test_sampling_draws_by_the_key_alone(pair):
    hot = {"temperature": 1.0, "top_k": 20, "top_p": 0.95}
    keys = request().key
    for baseline in (HFGenerate(), HFAssisted(), HFLookup()):
        first = tokens(baseline.answer(pair, PROMPTS, request(**hot)))
        state = torch.get_rng_state()
        assert tokens(baseline.answer(pair, PROMPTS, request(**hot))) == first
        assert torch.equal(torch.get_rng_state(), state)
        assert tokens(baseline.answer(pair, PROMPTS, request(**hot, key=keys[::-1]))) != first


def test_one_token_more_than_a_model_takes_is_refused(pair):
    with pytest.raises(InputError, match="prompt 1 has 12 tokens; with 60 new ones that is 72"):
        HFGenerate().answer(pair, PROMPTS, request(max_new_tokens=60))


def test_without_torch_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    monkeypatch.setattr(builtins, "__import__", refusing(builtins.__import__))
    for baseline in (HFGenerate(), HFAssisted(), HFLookup()):
        with pytest.raises(InputError, match=r"need torch: pip install 'kljudge-jax\[baselines\]'"):
            baseline.check()


def refusing(imported):
    def load(name, *args, **kwargs):
        assert not name.startswith("torch")
        return imported(name, *args, **kwargs)

    return load


def test_another_device_than_ours_is_refused(monkeypatch):
    HFGenerate().check()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(InputError, match="JAX computes on a tpu that this torch does not see"):
        HFGenerate().check()
