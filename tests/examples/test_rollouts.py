"""The example of rollouts: weights that change compile nothing, log-probabilities and samples are the target's."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from tiny_pairs import NEVER, compilations, forced, tiny_pair

import kljudge_jax as kj

FILE = pathlib.Path(__file__).parents[2] / "examples" / "rollouts.py"
PROMPTS = [[3, 1, 4], [5, 9, 2, 6, 5], [1]]
GROUP, NEW = 8, 12
OPTIONS = {"group": GROUP, "max_new_tokens": NEW, "draft_length": 3}
LEVEL = 1e-3  # of the chi-square tests: seeds are fixed, so that they pass always or never


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("rollouts", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair():
    return tiny_pair(sharpness=2.0, noise=0.1)


def low(_, tokens):
    """What the tests reward: low ids."""
    return float(np.mean(tokens < 128))


@pytest.mark.parametrize(("temperature", "draft_rate"), [(1.0, 0.0), (0.7, 0.05)], ids=["it stays", "it follows"])
def test_weights_change_and_nothing_is_compiled_again(example, pair, temperature, draft_rate):
    options = OPTIONS | {"temperature": temperature, "draft_rate": draft_rate, "rate": 0.5, "steps": 6}
    run = example.train(pair, PROMPTS, low, **options)
    steps = [next(run)]
    with compilations() as compiled:
        steps.extend(run)
    assert not compiled and len(steps) == 6

    before = kj.core.Models(pair.target, pair.draft)
    for step in steps:
        moved = [
            any(np.any(a != b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
            for old, new in zip(before, step.models, strict=True)
        ]
        assert moved == [True, bool(draft_rate)]
        result = jax.tree.map(np.asarray, step.rollout)
        # The learner, in a pass of its own, finds what the sampler said: the answers are those of these weights.
        np.testing.assert_allclose(step.ratios, 1.0, atol=1e-3)
        prompt, answer = PROMPTS[1], result.tokens[GROUP, : result.count[GROUP]]
        logits = forced(before.target, [*prompt, *answer])[0][len(prompt) - 1 : -1]
        for found, at in ((result.logprobs, 1.0), (result.sampled_logprobs, temperature)):
            logs = scipy.special.log_softmax(logits / at, axis=-1)[np.arange(len(answer)), answer]
            np.testing.assert_allclose(found[GROUP, : len(answer)], logs, atol=1e-3)
        assert 1 < step.mean_acceptance_length <= 4
        before = step.models
    assert steps[-1].rewards.mean() > steps[0].rewards.mean() + 0.02


def test_exact_rollouts_are_samples_of_the_target_that_has_changed(example, pair):
    (step,) = example.train(pair, PROMPTS, low, **OPTIONS, steps=1, rate=0.5)
    models, rows, temperature = step.models, 4096, 0.8
    prompts, lengths = jnp.tile(jnp.asarray([PROMPTS[0]]), (rows, 1)), jnp.full((rows,), 3)
    numbers = kj.core.numbers(2, end_ids=(NEVER,), temperature=temperature)
    shape = kj.core.Shape(3, 2, trace=True)
    keys = jax.random.split(jax.random.key(3), rows)
    result, _ = example.rollout(
        models, kj.SpeculativeSampling(), prompts, lengths, keys, numbers, drafter=kj.ModelDraft(), shape=shape
    )
    tokens = np.asarray(result.tokens)

    def joint(model):
        """The exact probabilities of two tokens, [V, V]."""
        every = np.arange(model.vocab_size)
        two = np.concatenate([np.tile(PROMPTS[0], (len(every), 1)), every[:, None]], axis=1)
        logits = np.asarray(kj.score(model, two)[0], np.float64) / temperature
        first = scipy.special.softmax(logits[0, 2])
        return first[:, None] * scipy.special.softmax(logits[:, 3], axis=-1)

    def p_value(expected):
        counts = np.zeros_like(expected)
        np.add.at(counts, tuple(tokens.T), 1)
        expected = expected * rows
        common = expected >= 5
        seen = np.append(counts[common], counts[~common].sum())
        return scipy.stats.chisquare(seen, np.append(expected[common], expected[~common].sum())).pvalue

    assert p_value(joint(models.target)) > LEVEL
    # It would see the target of a step before, and the draft.
    assert p_value(joint(pair.target)) < 1e-6 and p_value(joint(models.draft)) < 1e-6


def test_a_relaxed_rule_is_refused_unless_the_learner_is_off_policy(example, pair):
    for rule in (kj.KLJudge(0.5), kj.TypicalAcceptance(), kj.AcceptAll()):
        with pytest.raises(kj.InputError, match=f"{type(rule).__name__} keeps .* off_policy=True"):
            next(example.train(pair, PROMPTS, low, rule=rule, **OPTIONS))
        kj.core.check_on_policy(rule, off_policy=True)
    for rule in (kj.SpeculativeSampling(), kj.GreedyExact(), kj.BlockVerification(), kj.KSequential(drafts=2)):
        kj.core.check_on_policy(rule)
    (step,) = example.train(pair, PROMPTS, low, rule=kj.KLJudge(2.0), off_policy=True, **OPTIONS, steps=1)
    assert (np.asarray(step.rollout.origin) == 1).any()
    assert np.isfinite(np.asarray(step.rollout.logprobs)).all()


@pytest.mark.slow
def test_the_example_trains_the_embedded_pair(example, capsys):
    example.main()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and all("ratio 1.0" in line for line in said)
