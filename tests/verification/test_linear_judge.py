"""LinearJudge: its limits, and in the decoding loop."""

import dataclasses

import chex
import numpy as np
import pytest
from heads import by_hand, cases_with_states, random_head
from heads import state_verdicts as verdicts
from tiny_pairs import PROMPTS, answer, forced, tiny_pair

from kljudge_jax.errors import InputError
from kljudge_jax.generation import programs
from kljudge_jax.verification import LinearJudge, SpeculativeSampling, parse_verifier


@pytest.mark.parametrize("greedy", [True, False])
def test_its_limits_are_the_strict_rule_and_acceptance_of_all(greedy):
    head, inputs = random_head(target=3, draft=2), cases_with_states(1, greedy)
    strict = verdicts(SpeculativeSampling(), inputs)
    chex.assert_trees_all_equal(verdicts(LinearJudge(head, 0.0), inputs), strict)
    chex.assert_trees_all_equal(verdicts(LinearJudge(head, 2.0, confidence=0.0), inputs), strict)
    everything = verdicts(LinearJudge(head, 2.0), inputs)
    np.testing.assert_array_equal(everything.num_accepted, inputs.draft_count)
    some = verdicts(LinearJudge(head, 0.4), inputs)
    lengths = [int(v.num_accepted.sum()) for v in (strict, some, everything)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_states_that_are_no_numbers_leave_the_strict_rule():
    head, inputs = random_head(target=3, draft=2), cases_with_states(2, True)
    broken = dataclasses.replace(inputs, target_hidden=np.full_like(inputs.target_hidden, np.nan))
    chex.assert_trees_all_equal(verdicts(LinearJudge(head, 0.99), broken), verdicts(SpeculativeSampling(), inputs))


def test_in_the_loop_it_reads_the_states_after_the_token_and_a_sweep_compiles_once():
    """Every relaxed token's probability is recomputed from teacher-forced states of both models."""
    pair, rule = tiny_pair(3), LinearJudge(random_head(seed=4), 0.6)
    programs.run_cycles.clear_cache()
    strict, out, _ = (
        answer(pair, r) for r in (LinearJudge(rule.head, 0.0), rule, LinearJudge(random_head(), 0.5, 0.9))
    )
    assert programs.run_cycles._cache_size() == 1
    relaxed = 0
    for prompt, tokens, origin in zip(PROMPTS, out.tokens, out.origin, strict=True):
        whole = np.concatenate([prompt, tokens])
        (logits, target_states), (_, draft_states) = forced(pair.target, whole), forced(pair.draft, whole)
        for i, source in enumerate(origin, len(prompt)):
            important = by_hand(rule.head, np.concatenate([draft_states[i], target_states[i]]))
            assert source != "relaxed" or (important < 0.6 and logits[i - 1].argmax() != whole[i])
            assert source != "target" or logits[i - 1].argmax() == whole[i]
            relaxed += source == "relaxed"
    assert relaxed > 5
    for prompt, tokens in zip(PROMPTS, strict.tokens, strict=True):
        whole = np.concatenate([prompt, tokens])
        np.testing.assert_array_equal(forced(pair.target, whole)[0].argmax(-1)[len(prompt) - 1 : -1], tokens)


def test_it_asks_for_the_states_that_its_head_reads():
    assert LinearJudge(random_head("logits"), 0.5).needs == frozenset()
    assert LinearJudge(random_head("DT"), 0.5).needs == {"target_hidden"}


@pytest.mark.parametrize("head", ["judge", None, 0.4])
def test_what_is_no_head_is_refused(head):
    with pytest.raises(InputError, match="train-judge wrote, or embedded as its head"):
        LinearJudge(head, 0.4)
    with pytest.raises(InputError, match=r"judge:head=\.\.\.,threshold=\.\.\.,confidence=1\.0,first=1"):
        parse_verifier("judge", greedy=True)
