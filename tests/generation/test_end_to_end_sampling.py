"""What sampling promises: tokens of the target's own distribution, as Transformers computes it."""

import dataclasses

import jax
import numpy as np
import pytest
from chi_square import joint_distribution, p_value
from tiny_hf import make_hf_model, make_tokenizer
from tiny_pairs import NEVER, noisy, sharpened

import kljudge_jax as kj

VOCAB = 7
PROMPT = [3, 5, 2]
ROWS = 2048
SAMPLING = {"temperature": 0.8, "top_k": 5, "top_p": 0.9}


@pytest.fixture(scope="module")
def hf_target(tmp_path_factory):
    """A tiny target: the Transformers model, and ours loaded from what it saved."""
    folder = tmp_path_factory.mktemp("target")
    model = make_hf_model("llama2", vocab_size=VOCAB)
    model.save_pretrained(folder)
    make_tokenizer(words=VOCAB).save_pretrained(folder)
    return model, dataclasses.replace(kj.ModelPair.from_pretrained(folder, dtype="float32"), eos=(NEVER,)).target


def pair_of(target, draft=None):
    return kj.ModelPair(target, draft, eos=(NEVER,))


def sample(pair, verifier, seed=0, **options):
    """Three tokens `[ROWS, 3]` after the prompt, and the run's counts."""
    shared = {"draft_length": 2, "max_new_tokens": 3, "key": jax.random.key(seed)}
    out = kj.generate(pair, np.tile(PROMPT, (ROWS, 1)), verifier=verifier, **(shared | options))
    return np.stack(out.tokens), out.stats


def test_plain_decoding_draws_from_the_target(hf_target):
    hf, target = hf_target
    expected = joint_distribution(hf, PROMPT, VOCAB, **SAMPLING)
    tokens, _ = sample(pair_of(target), None, **SAMPLING)
    assert np.count_nonzero(expected > 0.005) > 20
    assert p_value(tokens, expected) > 1e-4
    # The test can tell: a model that differs by the noise of the drafts below fails it, and so does no truncation.
    other, _ = sample(pair_of(noisy(target, 1, 0.5)), None, **SAMPLING)
    assert p_value(other, expected) < 1e-6
    assert p_value(tokens, joint_distribution(hf, PROMPT, VOCAB, 0.8)) < 1e-6


@pytest.mark.parametrize(
    ("draft", "rate"),
    [
        (lambda target: noisy(target, 1, 0.5), (0.3, 0.9)),
        (lambda target: target, (0.999, 1.0)),  # p == q: nothing is rejected
        (lambda target: sharpened(noisy(target, 2, 0.2), 100), (0.1, 0.9)),  # q is one-hot
        (lambda target: noisy(target, 3, 3.0), (0.0, 0.7)),  # often p(d) == 0: cut off by the target's top-p
    ],
    ids=["noisy", "equal", "one-hot", "wrong"],
)
def test_speculative_sampling_draws_from_the_target(hf_target, draft, rate):
    hf, target = hf_target
    tokens, stats = sample(pair_of(target, draft(target)), "exact", **SAMPLING)
    assert p_value(tokens, joint_distribution(hf, PROMPT, VOCAB, **SAMPLING)) > 1e-4
    assert rate[0] <= stats.draft_acceptance_rate <= rate[1]


@pytest.mark.parametrize(
    ("verifier", "options", "rate"),
    [
        pytest.param("exact", {"drafter": kj.PromptLookup(1)}, (0.05, 0.6), marks=pytest.mark.slow),
        pytest.param(
            "exact",
            {"drafter": kj.SelfDraft(1), "draft_length": kj.Adaptive(1, 2, confidence=0.4, cost=0.1)},
            (0.1, 0.9),
            marks=pytest.mark.slow,
        ),
        (kj.KSequential(3), {}, (0.5, 0.95)),
        pytest.param(kj.MultiPathBlock(3), {}, (0.3, 0.95), marks=pytest.mark.slow),
        pytest.param("block", {}, (0.3, 0.9), marks=pytest.mark.slow),
        ("block", {"drafter": kj.PromptLookup(1)}, (0.05, 0.6)),
    ],
    ids=["lookup", "self-adaptive", "kseq", "gbv", "block", "block-lookup"],
)
def test_every_way_to_draft_draws_from_the_target(hf_target, verifier, options, rate):
    hf, target = hf_target
    tokens, stats = sample(pair_of(target, noisy(target, 1, 0.5)), verifier, **SAMPLING, **options)
    assert p_value(tokens, joint_distribution(hf, PROMPT, VOCAB, **SAMPLING)) > 1e-4
    assert rate[0] <= stats.draft_acceptance_rate <= rate[1]


@pytest.mark.parametrize("verifier", ["exact", pytest.param("block", marks=pytest.mark.slow)])
def test_a_draft_over_a_part_of_the_vocabulary_draws_from_the_target(hf_target, verifier):
    hf, target = hf_target
    whole = pair_of(target, noisy(target, 1, 0.5))
    # Of the tokens that the target draws first, the draft knows some.
    known = np.argsort(-joint_distribution(hf, PROMPT, VOCAB, **SAMPLING).sum(axis=(1, 2)))[1:5]
    tokens, stats = sample(whole.with_draft_vocab(known.tolist()), verifier, **SAMPLING)
    expected = joint_distribution(hf, PROMPT, VOCAB, **SAMPLING)
    assert p_value(tokens, expected) > 1e-4
    assert 0.1 < stats.draft_acceptance_rate < 0.9
    assert expected[np.setdiff1d(np.arange(VOCAB), known)].sum() > 0.1


@pytest.mark.slow
def test_temperature_alone_draws_from_the_target(hf_target):
    hf, target = hf_target
    tokens, stats = sample(pair_of(target, noisy(target, 1, 0.5)), "exact", temperature=1.3)
    assert p_value(tokens, joint_distribution(hf, PROMPT, VOCAB, 1.3)) > 1e-4
    assert p_value(tokens, joint_distribution(hf, PROMPT, VOCAB, 1.0)) < 1e-6
    assert 0.2 < stats.draft_acceptance_rate < 0.9
