"""Every rule over a draft that knows a part of the vocabulary: no NaN, and what is lossless stays lossless."""

import numpy as np
import pytest
from heads import random_head
from random_cases import as_inputs, expected_lengths, lengths_and_corrections, rows, verdicts
from scipy import stats
from test_exact import LOSSLESS, continuation, enumerated, models
from test_rule import EXAMPLES
from transcription import kl_on_support, softmax

from kljudge_jax.verification import (
    CascadeOpt,
    DivergenceThreshold,
    KLJudge,
    LinearJudge,
    PivotAware,
    RelaxedFuzzy,
    Secure,
    SpeculativeSampling,
)

SIZE, LENGTH, VOCAB = 60, 3, 9


def partial_cases(greedy, known=5, seed=0):
    """Drafts whose raw logits are -inf at the same tokens in every row, as a ranked head makes them."""
    rng = np.random.default_rng(seed)
    target, draft = 2 * rng.normal(size=(SIZE, LENGTH + 1, VOCAB)), 2 * rng.normal(size=(SIZE, LENGTH, VOCAB))
    draft += target[:, :LENGTH]
    draft[..., known:] = -np.inf
    tokens = np.array([[rng.choice(VOCAB, p=softmax(row)) for row in rows_of] for rows_of in draft])
    return as_inputs(tokens, np.full(SIZE, LENGTH), draft, target, draft, target, greedy)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("rule", EXAMPLES, ids=str)
def test_every_rule_is_finite_and_sums_to_one(rule, greedy):
    if rule.greedy_only and not greedy:
        return
    distributions, corrections = lengths_and_corrections(rule, partial_cases(greedy))
    assert np.isfinite(distributions).all() and np.isfinite(corrections).all()
    np.testing.assert_allclose(distributions.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(corrections.sum(axis=2), 1, atol=1e-5)
    # What the draft does not know can only come from the target.
    assert (corrections[..., 5:].sum(axis=2) > 0).any()


def test_a_lossless_rule_finds_the_target_where_the_draft_knows_two_of_three_tokens():
    """By enumeration; `test_exact` has drafts whose support changes with the prefix."""
    for rule in LOSSLESS:
        target, draft = models(np.random.default_rng(15), "random", 3, 3)
        for logits in draft.values():
            logits[2] = -np.inf
        joint = enumerated(rule, target, draft, 3, 3, 3)
        np.testing.assert_allclose(joint, continuation(target, (), 4), atol=1e-6)


def test_judges_do_not_become_exact_in_silence():
    inputs = partial_cases(False)
    strict = expected_lengths(SpeculativeSampling(), inputs)
    divergences = [
        kl_on_support(softmax(case[5][i]), softmax(case[4][i]))[0] for case in rows(inputs) for i in range(LENGTH)
    ]
    share = np.isfinite(divergences).mean()
    assert 0.3 < share < 0.95  # else the target has most of itself outside, and the strict rule decides
    for rule in (
        KLJudge(50.0, confidence=1.0),
        DivergenceThreshold("kl_target_draft", 50.0),
        DivergenceThreshold("js", 0.69),
        DivergenceThreshold("tv", 0.99),
        DivergenceThreshold("kl_draft_target", 50.0),
    ):
        assert (expected_lengths(rule, inputs) > strict + 1e-3).mean() > 0.2, rule


def test_js_and_tv_are_finite_whatever_is_outside_and_bounded_by_it():
    inputs = partial_cases(True, known=1)  # one token known: the draft is one-hot
    for divergence, largest in (("js", np.log(2)), ("tv", 1.0)):
        assert (expected_lengths(DivergenceThreshold(divergence, largest + 1e-6), inputs) == LENGTH).all()
        assert (expected_lengths(DivergenceThreshold(divergence, 0.0), inputs) < LENGTH).all()


def test_which_rules_read_a_divergence_that_a_token_alone_does_not_have():
    asked = {str(rule) for rule in EXAMPLES if getattr(rule, "compares_drafts", False)}
    assert asked == {
        str(KLJudge(0.4)),
        str(Secure(KLJudge(0.4))),
        str(CascadeOpt(0.3)),
        str(DivergenceThreshold("kl_target_draft", 0.4, confidence=0.6)),
        str(RelaxedFuzzy(0.4, "kl_target_draft", confidence=0.6)),
    }
    assert not PivotAware(random_head("pivot"), 0.5).compares_drafts
    assert not LinearJudge(random_head("DT"), 0.5).compares_drafts
    assert LinearJudge(random_head("logits"), 0.5).compares_drafts


@pytest.mark.parametrize("name", ["exact", "block"])
def test_draws_of_a_lossless_rule_are_the_targets(name):
    """Chi-square of the first token, one position at a time, over the draft's own draws."""
    rule = {"exact": SpeculativeSampling(), "block": LOSSLESS[1]}[name]
    rng = np.random.default_rng(16)
    target, draft = rng.normal(size=VOCAB), rng.normal(size=VOCAB)
    draft[4:] = -np.inf
    size = 4000
    tokens = rng.choice(VOCAB, size=(size, 1), p=softmax(draft))
    stack = [np.broadcast_to(x, (size, n, VOCAB)) for x, n in ((draft, 1), (target, 2), (draft, 1), (target, 2))]
    inputs = as_inputs(tokens, np.ones(size), *stack, False)
    verdict = verdicts(rule, inputs)
    first = np.where(np.asarray(verdict.num_accepted) > 0, tokens[:, 0], np.asarray(verdict.next_token))
    counted = np.bincount(first, minlength=VOCAB)
    assert stats.chisquare(counted, softmax(target) * size).pvalue > 1e-3
    assert counted[4:].sum() > 0
