"""Drafting with the target's own first layers, in the target's own cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import (
    DRAFT_LENGTH,
    PROMPTS,
    answer,
    forced,
    greedy_by_hand,
    prefilled,
    tiny_model,
    tokens_of,
    with_parameters,
)

import kljudge_jax as kj
from kljudge_jax.core.protocols import Context, Models, Request
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.errors import InputError


def test_it_is_the_cut_model_and_leaves_the_other_layers_alone(pair):
    lengths = jnp.asarray([len(prompt) for prompt in PROMPTS])
    padded = jnp.asarray([np.pad(prompt, (0, 64 - len(prompt))) for prompt in PROMPTS])
    before = jax.jit(prefilled, static_argnums=3)(pair.target, padded[:, :16], lengths, 64)

    @jax.jit
    def propose(target, cache):
        keys = jax.random.split(jax.random.key(8), 4)
        context = Context(padded, lengths - 1, jnp.full((4,), DRAFT_LENGTH), keys, Sampling.create())
        return kj.SelfDraft(1).propose(Models(target), cache, (), context, Request(DRAFT_LENGTH, with_hidden=True))

    draft, after, state = propose(pair.target, before)
    cut = pair.target.first(1)
    for row, prompt in enumerate(PROMPTS):
        assert draft.tokens[row].tolist() == greedy_by_hand(cut, prompt, DRAFT_LENGTH)
        _, hidden = forced(cut, [*prompt, *draft.tokens[row].tolist()])
        np.testing.assert_allclose(draft.hidden[row], hidden[len(prompt) :], atol=1e-4)
        # What was in the cache before the draft is there still.
        for old, new in zip(before.keys, after.keys, strict=True):
            np.testing.assert_array_equal(old[row, :, : len(prompt) - 1], new[row, :, : len(prompt) - 1])
    np.testing.assert_array_equal(before.values[1], after.values[1])
    assert state == ()


def test_exact_decoding_is_plain_decoding_without_a_draft_model(pair):
    out = answer(dataclasses.replace(pair, draft=None), "exact", drafter=kj.SelfDraft(1))
    assert tokens_of(out) == tokens_of(answer(pair, None))
    assert 0 < out.stats.accepted < out.stats.drafted


def test_layers_that_change_nothing_reject_nothing():
    def silence(name, x):
        return 0 * x if name in ("layers.1.attention.out.weight", "layers.1.mlp.down.weight") else x

    idle = kj.ModelPair(with_parameters(tiny_model(), silence), eos=(999,))
    out = answer(idle, "exact", drafter=kj.SelfDraft(1))
    assert out.stats.accepted == out.stats.drafted > 0


def test_a_cut_model_keeps_the_windows_of_its_layers():
    model = tiny_model(num_layers=3, windows=(4, 0, 4))
    cut = model.first(2)
    assert cut.config.windows == (4, 0) and cut.config.num_layers == len(cut.layers) == 2
    assert cut.head.weight[...] is model.head.weight[...]


@pytest.mark.parametrize("layers", [0, -1, 1.0, "1"])
def test_layers_that_cannot_be_are_refused(layers):
    with pytest.raises(InputError, match="SelfDraft a whole number from 1"):
        kj.SelfDraft(layers)


@pytest.mark.parametrize("layers", [2, 9])
def test_the_whole_target_is_no_draft_of_itself(pair, layers):
    with pytest.raises(InputError, match=rf"SelfDraft\({layers}\) needs a target of more layers .* this one has 2"):
        answer(pair, "exact", drafter=kj.SelfDraft(layers))
