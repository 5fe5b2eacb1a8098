"""The head's arithmetic, what it refuses, and that nothing infinite ever counts as unimportant."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from heads import by_hand, random_head
from tiny_pairs import tiny_pair

from kljudge_jax.errors import InputError
from kljudge_jax.verification import VerifyInputs
from kljudge_jax.verification.head import PairIdentity


def inputs_with_states(count=3, vocab=5, target=4, draft=2, seed=0):
    random = np.random.default_rng(seed)
    target_logits, draft_logits = random.normal(size=(count + 1, vocab)), random.normal(size=(count, vocab))
    floats = [np.float32(x) for x in (draft_logits, target_logits)]
    states = [np.float32(random.normal(size=(count, size))) for size in (draft, target)]
    tokens = random.integers(vocab, size=count).astype(np.int32)
    return VerifyInputs(tokens, np.int32(count), *floats, *floats, *states, np.bool_(True))


@pytest.mark.parametrize("hidden", [0, 3])
def test_probability_is_the_hand_made_one(hidden):
    head, inputs = random_head(target=4, draft=2, hidden=hidden), inputs_with_states()
    rows = np.concatenate([inputs.draft_hidden, inputs.target_hidden], axis=1)
    np.testing.assert_allclose(head.important(inputs), [by_hand(head, row) for row in rows], rtol=1e-5)


def test_what_is_no_number_is_important():
    head, inputs = random_head(target=4, draft=2), inputs_with_states()
    clean = np.asarray(head.important(inputs))
    for value in (np.nan, np.inf, -np.inf):
        states = inputs.target_hidden.copy()
        states[1, 2] = value
        found = np.asarray(head.important(dataclasses.replace(inputs, target_hidden=states)))
        assert found[1] == np.inf and (found[[0, 2]] == clean[[0, 2]]).all()
    logits = inputs.raw_draft_logits.copy()
    logits[0, np.arange(5) != np.argmin(inputs.raw_target_logits[0])] = -np.inf  # no KL: the target is elsewhere
    found = random_head("logits").important(dataclasses.replace(inputs, raw_draft_logits=logits))
    assert found[0] == np.inf and (found[1:] < 1).all()


def test_states_of_another_size_are_refused():
    head = random_head(target=5, draft=2, pair=PairIdentity("large", "small", 5, 2, 9))
    with pytest.raises(InputError, match=r"reads 7 features of large .*has states of 4 and 2"):
        head.important(inputs_with_states())


def test_another_pair_is_refused_by_name():
    pair = dataclasses.replace(tiny_pair(), target_name="models/large/", draft_name="small")
    ours = PairIdentity.of(pair)
    assert ours == PairIdentity("large", "small", 16, 16, 257)
    random_head(pair=ours).check_pair(dataclasses.replace(pair, target_name="elsewhere/large"))
    random_head().check_pair(pair)
    with pytest.raises(InputError, match=r"trained for large .* at hand is other"):
        random_head(pair=ours).check_pair(dataclasses.replace(pair, target_name="other"))
    with pytest.raises(InputError, match="no draft"):
        PairIdentity.of(types.SimpleNamespace(draft=None))


def test_weights_are_data():
    traces = []

    @jax.jit
    def run(head, inputs):
        traces.append(head)
        return head.important(inputs)

    inputs = inputs_with_states()
    first, second = (run(random_head(target=4, draft=2, seed=seed), inputs) for seed in (0, 1))
    assert len(traces) == 1 and (first != second).all()
