"""Random and adversarial inputs of a rule: batches of sequences, garbage past each one's draft."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.verification import VerifyInputs

KINDS = ("close", "far", "sharp", "ties", "holes", "one_hot_draft", "one_hot_target", "equal")

# Two best tokens of some last bits apart, and a draft that knows a part of the vocabulary.
ADVERSARIAL = (*KINDS, "near_ties", "partial_draft")


# One shape for most tests: a rule is compiled for it once.
SIZE, LENGTH, VOCAB = 400, 4, 5


def random_cases(seed: int, greedy: bool, *, length=LENGTH, vocab=VOCAB, size=SIZE, kinds=KINDS) -> VerifyInputs:
    """`size` sequences stacked on a leading axis, `greedy` alone unbatched; NaN and wild ids past `draft_count`."""
    return _random_cases(seed, greedy, length, vocab, size, tuple(kinds))


@functools.cache
def _random_cases(seed, greedy, length, vocab, size, kinds) -> VerifyInputs:
    rng = np.random.default_rng(seed)
    cases = [_case(rng, kinds[i % len(kinds)], length, vocab, greedy) for i in range(size)]
    stacked = [np.stack(values) for values in zip(*cases, strict=True)]
    return as_inputs(*stacked, greedy)


def as_inputs(tokens, count, draft, target, raw_draft, raw_target, greedy) -> VerifyInputs:
    floats = [jnp.asarray(x, jnp.float32) for x in (draft, target, raw_draft, raw_target)]
    integers = [jnp.asarray(x, jnp.int32) for x in (tokens, count)]
    return VerifyInputs(*integers, *floats, None, None, jnp.asarray(greedy))


def batch_axes(inputs: VerifyInputs) -> VerifyInputs:
    """in_axes for `jax.vmap` over a batch of `random_cases`, with whatever else it was given a value a sequence of."""
    return dataclasses.replace(jax.tree.map(lambda _: 0, inputs), greedy=None)


def rows(inputs: VerifyInputs):
    """The sequences of a batch, float64 NumPy, one at a time."""
    fields = ("draft_tokens", "draft_count", "draft_logits", "target_logits", "raw_draft_logits", "raw_target_logits")
    arrays = [np.asarray(getattr(inputs, field)) for field in fields]
    for i in range(arrays[0].shape[0]):
        tokens, count, *logits = (array[i] for array in arrays)
        yield tokens, int(count), *(x.astype(np.float64) for x in logits)


def lengths_and_corrections(rule, inputs: VerifyInputs):
    """distribution `[B, K + 1]` and the corrections after every length `[B, K + 1, V]`, as float64 NumPy."""
    distribution, corrections = _lengths_and_corrections(rule, inputs)
    return np.asarray(distribution, np.float64), np.asarray(corrections, np.float64)


def verdicts(rule, inputs: VerifyInputs, seed: int = 0):
    """A verdict a sequence, each drawn with a key of its own."""
    return _verdicts(rule, _keys(seed, inputs.draft_tokens.shape[0]), inputs)


@functools.cache
def _keys(seed, size):
    return jax.random.split(jax.random.key(seed), size)


def expected_lengths(rule, inputs: VerifyInputs) -> np.ndarray:
    """The mean accepted length of every sequence, `[B]`."""
    distribution, _ = lengths_and_corrections(rule, inputs)
    return distribution @ np.arange(distribution.shape[1])


def never_shorter(rules, greedy: bool) -> bool:
    """Whether each rule of a sweep accepts at least as much as the one before it on every sequence, and some more."""
    means = np.stack([expected_lengths(rule, random_cases(99, greedy)) for rule in rules])
    return bool((np.diff(means, axis=0) > -1e-5).all() and (means[-1] > means[0] + 1e-3).any())


# Compiling is most of what these tests cost.
_compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@_compiled
def _lengths_and_corrections(rule, inputs):
    def one(case):
        lengths = jnp.arange(case.draft_tokens.shape[0] + 1)
        return rule.acceptance_distribution(case), jax.vmap(lambda n: rule.correction(case, n))(lengths)

    return jax.vmap(one, in_axes=(batch_axes(inputs),))(inputs)


@_compiled
def _verdicts(rule, keys, inputs):
    return jax.vmap(rule, in_axes=(0, batch_axes(inputs)))(keys, inputs)


def _case(rng, kind: str, length: int, vocab: int, greedy: bool):
    target = rng.normal(size=(length + 1, vocab)) * (6.0 if kind == "sharp" else 1.5)
    noise = {"far": 3.0, "equal": 0.0}.get(kind, 0.6)
    draft = target[:length] + noise * rng.normal(size=(length, vocab))
    if kind == "ties":
        target, draft = np.round(target / 2), np.round(draft / 2)
    if kind == "holes":
        target[:, 1:][rng.random((length + 1, vocab - 1)) < 0.4] = -np.inf
        draft[:, 1:][rng.random((length, vocab - 1)) < 0.4] = -np.inf
    if kind == "near_ties":
        ids = np.argmax(target, axis=-1)
        near = target.max(axis=-1) * (1 + rng.choice([-3e-7, -1e-7, 0.0, 1e-7], size=length + 1))
        target[np.arange(length + 1), (ids + rng.integers(1, vocab, size=length + 1)) % vocab] = near
    if kind == "partial_draft":
        draft[:, (vocab + 2) // 2 :] = -np.inf
    if kind == "one_hot_draft":
        draft = _one_hot(rng.integers(vocab, size=length), vocab)
    if kind == "one_hot_target":
        target = _one_hot(rng.integers(vocab, size=length + 1), vocab)
    raw_draft, raw_target = draft, target
    if not greedy:
        temperature = rng.choice([0.7, 1.0, 1.5])
        draft, target = draft / temperature, target / temperature
        if rng.random() < 0.5 and kind != "equal":
            draft, target = (_top_k(logits, int(rng.integers(1, vocab + 1))) for logits in (draft, target))
    # Mostly what the draft would draw, now and then what it could not.
    tokens = np.argmax(draft + rng.gumbel(size=draft.shape), axis=-1)
    tokens = np.where(rng.random(length) < 0.1, rng.integers(vocab, size=length), tokens)
    count = int(rng.integers(0, length + 1))
    tokens[count:] = rng.integers(-3, vocab + 3, size=length - count)
    garbage = [np.array(x) for x in (draft, target, raw_draft, raw_target)]
    for array, real in zip(garbage, (count, count + 1) * 2, strict=True):
        array[real:] = rng.choice([np.nan, np.inf, -np.inf])
    return tokens, count, *garbage


def _top_k(logits, k):
    return np.where(logits >= np.sort(logits, axis=-1)[..., -k][..., None], logits, -np.inf)


def _one_hot(ids, vocab):
    return np.where(np.arange(vocab) == ids[:, None], 0.0, -np.inf)
