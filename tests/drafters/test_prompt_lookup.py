"""Prompt lookup against a plain search, and what it does to a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import random_head
from tiny_pairs import PROMPTS, answer, tokens_of

import kljudge_jax as kj
from kljudge_jax.core import loop
from kljudge_jax.core.protocols import Context, Models, Request
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.state import Shape, numbers
from kljudge_jax.errors import InputError

LENGTH = 5


def random_head_rule():
    """A learned judge that reads the divergences."""
    return kj.LinearJudge(random_head("logits"), 0.6)


def by_hand(sequence, ngram, length):
    """The continuation after the longest and then latest earlier match of the sequence's end; None without one."""
    for size in range(min(ngram, len(sequence) - 1), 0, -1):
        for begin in range(len(sequence) - size - 1, -1, -1):
            if sequence[begin : begin + size] == sequence[-size:]:
                written = list(sequence)
                for i in range(length):
                    written.append(written[begin + size + i])
                return written[len(sequence) :]
    return None


def looked_up(sequences, ngram, wanted=LENGTH):
    batch = len(sequences)
    padded = jnp.asarray([np.pad(row, (0, 24 - len(row)), constant_values=1) for row in sequences])
    context = Context(
        padded,
        jnp.asarray([len(row) - 1 for row in sequences]),
        jnp.full((batch,), wanted),
        jnp.zeros((batch,)),
        Sampling.create(),
    )
    propose = jax.jit(kj.PromptLookup(ngram).propose, static_argnames="request")
    draft, cache, state = propose(Models(None), None, (), context, request=Request(LENGTH))
    assert (cache, state) == (None, ())
    return draft


@pytest.mark.parametrize("ngram", [1, 3])
def test_the_longest_and_latest_match_is_continued(ngram):
    rng = np.random.default_rng(ngram)
    sequences = [rng.integers(0, rng.integers(2, 9), size=rng.integers(1, 20)).tolist() for _ in range(300)]
    draft = looked_up(sequences, ngram)
    found = 0
    for sequence, tokens, count in zip(sequences, draft.tokens.tolist(), draft.count.tolist(), strict=True):
        expected = by_hand(sequence, ngram, LENGTH)
        assert count == (0 if expected is None else LENGTH)
        if expected is not None:
            assert tokens == expected
            found += 1
    assert 100 < found < 300


def test_a_row_is_given_no_more_than_it_wants():
    draft = looked_up([[1, 2, 1], [1, 2, 3]], 3, wanted=2)
    assert draft.count.tolist() == [2, 0] and draft.tokens[0, :2].tolist() == [2, 1]


def test_its_distribution_is_all_at_its_token():
    draft = looked_up([[1, 2, 1]], 3)
    assert draft.logits is None and draft.raw_logits is None and draft.hidden is None
    processed, raw = draft.distributions(3, 7)
    np.testing.assert_array_equal(jax.nn.softmax(raw), jax.nn.one_hot(draft.tokens[:, :3], 7))
    assert processed is raw and not raw.weak_type  # or a rule would be compiled anew for it


def test_exact_decoding_needs_no_draft_model_and_plain_steps_where_nothing_matches(pair):
    single = dataclasses.replace(pair, draft=None)
    out = answer(single, "exact", drafter=kj.PromptLookup(), trace=True)
    plain = answer(pair, None)
    assert tokens_of(out) == tokens_of(plain)
    for prompt, tokens, cycles in zip(PROMPTS, tokens_of(out), out.cycles, strict=True):
        at = 0
        for cycle in cycles:
            left = len(tokens) - at - 1
            match = by_hand([*prompt.tolist(), *tokens[:at]], 3, 4)
            assert cycle.drafted == (0 if match is None else min(4, left))
            at += cycle.committed
    assert 0 < out.stats.accepted < out.stats.drafted
    # KL(target || draft), where the target has half of itself at the token, is what that costs; else there is none.
    for origin, kl, logprobs in zip(out.origin, out.kl, out.logprobs, strict=True):
        drafted = np.asarray([o == "draft" for o in origin])
        wanted = np.where(logprobs > np.log(0.5), -logprobs, np.inf)
        np.testing.assert_allclose(kl[drafted], wanted[drafted], rtol=1e-4, atol=1e-6)
        assert np.isfinite(logprobs).all()
    # A divergence that a token alone does not make infinite has something to add to the strict rule.
    judged = answer(single, kj.DivergenceThreshold("tv", 0.9), drafter=kj.PromptLookup())
    assert judged.stats.relaxed > 0 == judged.stats.failed


@pytest.mark.parametrize("rule", ["kl:0.4", "fuzzy:divergence=kl_target_draft,threshold=1", random_head_rule()])
def test_rules_that_compare_distributions_are_refused_by_name(pair, rule):
    with pytest.raises(InputError, match=r"(KLJudge|DivergenceThreshold|LinearJudge) reads KL.target .. draft., and "):
        answer(pair, rule, drafter=kj.PromptLookup())
    # In the caller's own program it is refused too, when that is traced.
    rule = kj.parse_verifier(rule, True) if isinstance(rule, str) else rule
    with pytest.raises(InputError, match="the drafter gives no distributions"):
        jax.eval_shape(lambda: decoded(pair, rule))


@pytest.mark.parametrize(
    "rule",
    [
        "fuzzy:divergence=js,threshold=0.4",
        "entropy:1.0,model=draft",
        *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("typical", "exact")),  # which read no draft's
    ],
)
def test_rules_that_mean_something_without_a_distribution_are_not(pair, rule):
    assert answer(pair, rule, drafter="lookup:2").stats.failed == 0


def decoded(pair, rule):
    models, shape, given = Models(pair.target), Shape(2, 8, 64), numbers(4)
    prompts, ones = jnp.ones((2, 4), jnp.int32), jnp.ones((2,), jnp.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    state = loop.init(models, kj.PromptLookup(), rule, prompts, ones, keys, given, shape=shape)
    return loop.decode(models, kj.PromptLookup(), rule, state, given, shape=shape)


@pytest.mark.parametrize("ngram", [0, -1, 1.5, "3", True])
def test_ngrams_that_cannot_be_are_refused(ngram):
    with pytest.raises(InputError, match="PromptLookup a whole number from 1"):
        kj.PromptLookup(ngram)


def test_a_rule_that_reads_the_drafts_states_is_refused(pair):
    @kj.register
    @dataclasses.dataclass(frozen=True)
    class Curious:
        number: float = 0.0
        needs = frozenset({"draft_hidden"})

        def __call__(self, key, inputs):
            raise AssertionError

    with pytest.raises(InputError, match="Curious reads the draft's states, and PromptLookup has none"):
        answer(pair, Curious(), drafter=kj.PromptLookup())
