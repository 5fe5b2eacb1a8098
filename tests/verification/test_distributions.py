"""The numbers read off logits, where float32 is at its worst."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transcription import entropy as exact_entropy
from transcription import kl, softmax
from transcription import kl_on_support as exact_on_support

from kljudge_jax.verification.distributions import (
    Normaliser,
    argmax,
    entropy,
    is_argmax,
    is_distribution,
    js_divergence,
    kl_divergence,
    kl_on_support,
    probabilities,
    sample,
    token_rank,
    total_variation,
)


def test_large_logits_lose_no_digits():
    logits = np.array([4000.0, 3999.0, 3990.0])
    p = softmax(logits)
    normaliser = Normaliser.of(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(probabilities(jnp.asarray(logits, jnp.float32)), p, rtol=1e-6)
    np.testing.assert_allclose(normaliser.log_probability(jnp.float32(3990.0)), np.log(p[2]), rtol=1e-6)
    np.testing.assert_allclose(normaliser.top, p[0], rtol=1e-6)
    assert float(Normaliser.of(jnp.zeros(2)).top) == 0.5


def test_divergences_of_a_distribution_with_itself_are_zero():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 1000)) * 5, jnp.float32)
    for divergence in (kl_divergence, js_divergence, total_variation):
        np.testing.assert_allclose(divergence(logits, logits), 0, atol=1e-7)


def test_a_large_vocabulary_in_float32():
    rng = np.random.default_rng(1)
    p = rng.normal(size=(4, 50_000)) * 3
    q = p + rng.normal(size=p.shape) * 0.3
    found = kl_divergence(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(found, [kl(softmax(a), softmax(b)) for a, b in zip(p, q, strict=True)], rtol=1e-4)
    found = entropy(jnp.asarray(p, jnp.float32))
    np.testing.assert_allclose(found, [exact_entropy(softmax(a)) for a in p], rtol=1e-5)


def test_zero_and_underflowing_probabilities():
    nothing, inf = -jnp.inf, jnp.inf
    assert float(kl_divergence(jnp.array([0.0, nothing]), jnp.array([0.0, nothing]))) == 0
    assert float(kl_divergence(jnp.array([0.0, nothing]), jnp.array([0.0, 0.0]))) == np.float32(np.log(2.0))
    assert float(kl_divergence(jnp.array([0.0, 0.0]), jnp.array([0.0, nothing]))) == inf
    # exp(-200) is 0 in float32, the probability is not.
    assert float(kl_divergence(jnp.array([0.0, -200.0]), jnp.array([0.0, nothing]))) == inf
    assert float(entropy(jnp.array([0.0, nothing, nothing]))) == 0


def test_a_draft_over_a_part_of_the_vocabulary_is_compared_there():
    rng = np.random.default_rng(2)
    p, q = rng.normal(size=(2, 40, 30)) * 2
    q[rng.random(q.shape) < np.linspace(0, 0.9, 40)[:, None]] = -np.inf
    q[:, 0] = 0
    found = np.asarray(jax.jit(kl_on_support)(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)))
    wanted, half = np.transpose([exact_on_support(softmax(a), softmax(b)) for a, b in zip(p, q, strict=True)])
    assert half.min() > 1e-3 and 10 < np.isinf(wanted).sum() < 30
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    # Of two equal models one cut to S: no more than S costs.
    cut = jnp.where(jnp.arange(30) < 20, jnp.asarray(p, jnp.float32), -jnp.inf)
    outside = softmax(p)[:, 20:].sum(axis=-1)
    expected = np.where(outside > 0.5, np.inf, -2 * np.log1p(-outside) + np.log1p(-outside))
    np.testing.assert_allclose(kl_on_support(jnp.asarray(p, jnp.float32), cut), expected, rtol=1e-4)
    nothing = -jnp.inf
    for p, q, wanted in (
        ([0.0, 0.0], [0.0, nothing], np.log(2.0)),  # half of the target is outside, no more
        ([0.0, 0.1], [0.0, nothing], np.inf),
        ([nothing, 0.0], [0.0, nothing], np.inf),
        ([0.0, nothing], [0.0, nothing], 0.0),
        ([jnp.nan, 0.0], [0.0, nothing], np.nan),
        ([0.0, 0.0], [nothing, nothing], np.nan),
    ):
        np.testing.assert_allclose(kl_on_support(jnp.array(p), jnp.array(q)), wanted, rtol=1e-6)


def test_over_the_whole_vocabulary_it_is_kl_to_the_bit_and_costs_no_more_sums():
    rng = np.random.default_rng(3)
    p = jnp.asarray(rng.normal(size=(8, 20_000)) * 3, jnp.float32)
    q = p + jnp.asarray(rng.normal(size=p.shape) * 0.5, jnp.float32)
    p = p.at[0, 7].set(-jnp.inf)  # of the target's own, which a draft need not know
    programs = [jax.jit(f).lower(p, q).compile() for f in (kl_divergence, kl_on_support)]
    whole, on_support = (program(p, q) for program in programs)
    np.testing.assert_array_equal(on_support, whole)
    # What lies in the loop does not run; XLA would move out of it what every turn repeats. Two peaks, two totals, and
    # the sum over both.
    for operation, number in (("exponential", 3), ("reduce", 5)):
        found = [len(re.findall(rf" {operation}\(", outside_loops(program))) for program in programs]
        assert found == [number, number], operation


def outside_loops(program):
    """The text of a compiled program without its loops."""
    parts = re.split(r"\n(?=(?:ENTRY )?%\S+ \()", program.as_text())
    text = {re.match(r"(?:ENTRY )?%(\S+)", part)[1]: part for part in parts if re.match(r"(?:ENTRY )?%", part)}
    (entry,) = (name for name, part in text.items() if part.startswith("ENTRY"))
    seen, left = [], [entry]
    while left:
        seen.append(left.pop())
        left += re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text[seen[-1]])
    return "\n".join(text[name] for name in seen)


def test_argmax_and_draws_are_those_of_jax():
    nan, low = jnp.nan, -jnp.inf
    rows = [[1.0, 3, 3, 2], [0, -1, -2, -3], [nan, 1, 2, 3], [3, 1, nan, nan], [low] * 4, [low, low, 0, low], [nan] * 4]
    logits = jnp.array(rows)
    np.testing.assert_array_equal(argmax(logits), jnp.argmax(logits, axis=-1))
    assert argmax(logits).dtype == jnp.int32
    for i, key in enumerate(jax.random.split(jax.random.key(0), 50)):
        row = logits[i % len(rows)]
        assert sample(key, row) == jax.random.categorical(key, row)


def test_is_argmax_is_the_lowest_of_the_best_and_never_in_a_row_with_nan():
    logits = jnp.array([[1.0, 2.0, 2.0]] * 3 + [[jnp.nan, 2.0, 1.0], [-jnp.inf, -jnp.inf, 0.0]])
    np.testing.assert_array_equal(is_argmax(logits, jnp.array([0, 1, 2, 1, 2])), [False, True, False, False, True])
    # At this size XLA's maximum on a CPU drops the NaN.
    wide = np.random.default_rng(2).standard_normal((15, 640)).astype(np.float32)
    tokens = wide.argmax(axis=-1)
    assert jax.jit(is_argmax)(wide, tokens).all()
    wide[:, 321] = np.nan
    assert not jax.jit(is_argmax)(wide, np.where(tokens == 321, 0, tokens)).any()


def test_rank_puts_ties_by_id_and_nan_last():
    logits = jnp.array([[1.0, 2.0, 2.0, 0.0]] * 4)
    np.testing.assert_array_equal(token_rank(logits, jnp.array([0, 1, 2, 3])), [2, 0, 1, 3])
    np.testing.assert_array_equal(token_rank(jnp.full((1, 4), jnp.nan), jnp.array([1])), [4])


@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (jnp.bfloat16, jnp.float16))],
    ids=lambda dtype: dtype.__name__,
)
def test_a_bad_element_is_seen_at_every_width(dtype):
    """Of the batch, of the positions and of the vocabulary; a large number and an excluded token are not bad."""
    random, wide = np.random.default_rng(1), 640
    shapes = [(3, width, wide) for width in range(1, 18)] + [(3, 5, size) for size in range(1, 18)] + [(1, 1, wide)]
    for shape in shapes:
        plain = random.standard_normal(shape).astype(np.float32)
        plain[..., 0] = float(jnp.finfo(dtype).max)
        plain[..., 1:2] = -np.inf
        columns = sorted({0, 1, shape[2] // 2, shape[2] - 2, shape[2] - 1} & set(range(shape[2])))
        cases, wanted = [plain], [np.ones(shape[:2], bool)]
        for value in (np.nan, np.inf, -np.inf):
            for column in columns:
                for row, position in {(0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, shape[1] // 2)}:
                    spoilt, fit = plain.copy(), wanted[0].copy()
                    spoilt[row, position, slice(None) if value == -np.inf else column] = value
                    fit[row, position] = False
                    cases.append(spoilt)
                    wanted.append(fit)
        see = jax.jit(lambda logits: jax.lax.map(is_distribution, logits))
        np.testing.assert_array_equal(see(jnp.asarray(np.stack(cases), dtype)), wanted)
