"""PivotAware: the score, the floor, and the strict rule's say."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from heads import cases_with_states, random_head
from heads import state_verdicts as verdicts
from random_cases import SIZE
from transcription import softmax

from kljudge_jax.verification import PivotAware, SpeculativeSampling


def test_it_overrides_a_rejection_by_score_and_floor():
    head, inputs = random_head("pivot", target=3, hidden=4), cases_with_states(0, True)
    rule = PivotAware(head, 0.5, floor=0.1)
    verdict, seen = jax.device_get(verdicts(rule, inputs)), set()
    logits, tokens = jax.device_get((inputs.raw_target_logits, inputs.draft_tokens))
    for i in range(SIZE):
        for k in range(verdict.num_accepted[i]):
            drawn = softmax(np.float64(logits[i, k]))[tokens[i, k]]
            assert drawn >= 0.1 or not verdict.relaxed[i, k]
            seen.add(bool(verdict.relaxed[i, k]))
    assert seen == {True, False}
    lower = verdicts(PivotAware(head, 0.5, floor=0.0), inputs)
    assert int(lower.num_accepted.sum()) > int(verdict.num_accepted.sum())


def test_a_threshold_of_zero_is_the_strict_rule():
    head = random_head("pivot", target=3, hidden=4)
    for greedy in (True, False):
        inputs = cases_with_states(1, greedy)
        strict = verdicts(SpeculativeSampling(), inputs)
        chex.assert_trees_all_equal(verdicts(PivotAware(head, 0.0), inputs), strict)
        assert jnp.all(verdicts(PivotAware(head, 0.7), inputs).num_accepted >= strict.num_accepted)


def test_the_floor_itself_passes():
    inputs = cases_with_states(0, True)
    flat = dataclasses.replace(inputs, raw_target_logits=jnp.zeros_like(inputs.raw_target_logits))
    head, share = random_head("pivot", target=3, hidden=4), np.float32(1) / np.float32(flat.raw_target_logits.shape[-1])
    at, above = (verdicts(PivotAware(head, 1.0, floor=floor), flat) for floor in (share, np.nextafter(share, 1)))
    np.testing.assert_array_equal(at.num_accepted, flat.draft_count)
    assert int(above.num_accepted.sum()) < int(at.num_accepted.sum()) and not above.relaxed.any()
