"""Constructors refuse what cannot be meant and let everything else pass."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.verification import (
    Cactus,
    DivergenceThreshold,
    Ensemble,
    EntropyThreshold,
    FLy,
    KLJudge,
    Lenience,
    Mentored,
    RandomAcceptance,
    TopKAcceptance,
    parse_verifier,
)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: KLJudge(math.nan), "give KLJudge a number as its threshold, not nan"),
        (lambda: KLJudge(np.float32("nan")), "KLJudge a number"),
        (lambda: KLJudge("0.4"), "give KLJudge a number as its threshold, not '0.4'"),
        (lambda: KLJudge(None), "not None"),
        (lambda: KLJudge(0.4, 1.1), "a number from 0 up to 1 as its confidence, not 1.1"),
        (lambda: RandomAcceptance(-0.1), "a number from 0 up to 1 as its rate"),
        (lambda: Lenience(0.0), "a number above 0 up to 1 as its factor, not 0.0"),
        (lambda: Mentored(1), "a number from 0 below 1 as its alpha, not 1"),
        (lambda: Cactus(-1e-9), "a number from 0 as its delta"),
        (lambda: Ensemble(2), "as its weight"),
        (lambda: TopKAcceptance(0), "a whole number from 1 as its k, not 0"),
        (lambda: TopKAcceptance(2.5), "a whole number from 1 as its k, not 2.5"),
        (lambda: FLy(0.3, math.inf), "a whole number from 0 as its window"),
        (lambda: DivergenceThreshold("chi", 1.0), "one of js, kl_target_draft, kl_draft_target, tv as its divergence"),
        (lambda: EntropyThreshold(1.0, 3), "one of target, draft as its model, not 3"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["topk:99999999999", "lenience:1e-60", "mentored:0.999999999"])
def test_numbers_are_held_to_what_the_device_can_hold(spec):
    with pytest.raises(InputError, match=spec.partition(":")[0]):
        parse_verifier(spec, True)


def test_lets_pass():
    assert KLJudge(math.inf).threshold == math.inf
    KLJudge(jnp.float32(jnp.nan))
    KLJudge(object(), object())
    jax.jit(lambda rule: rule.threshold)(KLJudge(0.4))
    jax.vmap(lambda rule: rule.threshold)(KLJudge(jnp.arange(3.0), jnp.ones(3), jnp.arange(3)))
