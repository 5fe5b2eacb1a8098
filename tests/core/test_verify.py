"""Every rule over the drafts of every drafter, and every way to score them with every way to draft."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import random_head
from test_rule import EXAMPLES
from tiny_pairs import answer, prefilled, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.core import loop
from kljudge_jax.core.cycle import cycle
from kljudge_jax.core.protocols import Context, Models, Request
from kljudge_jax.core.sampling import Sampling, process_logits
from kljudge_jax.core.scorers import DraftScorer, ReflectionScorer
from kljudge_jax.core.state import Shape, numbers

DRAFTERS = (kj.ModelDraft(), kj.PromptLookup(), kj.SelfDraft(1))
LENGTH, VOCAB, STATE = 3, 11, 16
SEQUENCES = [[3, 1, 4, 3, 1, 4, 3, 1], [5, 9, 2, 6], [7], [2, 7, 2]]


@pytest.fixture(scope="module")
def small():
    return tiny_pair(vocab_size=VOCAB, noise=0.3, sharpness=2.0)


# Compiling is most of what these tests cost.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def shown(drafter):
    """What rules see of a drafter's sampled proposals for `SEQUENCES`, on a leading axis; all states there."""
    pair, sampling = tiny_pair(vocab_size=VOCAB, noise=0.3, sharpness=2.0), Sampling.create(0.8)
    lengths = jnp.asarray([len(row) for row in SEQUENCES])
    padded = jnp.asarray([np.pad(row, (0, 32 - len(row))) for row in SEQUENCES])
    keys = jax.random.split(jax.random.key(1), len(SEQUENCES))

    @compiled
    def run(models):
        def consumed(model):
            return prefilled(model, padded[:, :16], lengths, 32)

        context = Context(padded, lengths - 1, jnp.full_like(lengths, LENGTH), keys, sampling)
        request = Request(LENGTH, with_hidden=drafter.has_hidden)
        state = consumed(models.draft) if drafter.uses_draft_model else ()
        draft, cache, _ = drafter.propose(models, consumed(models.target), state, context, request)
        last = jnp.take_along_axis(padded, lengths[:, None] - 1, axis=1)[:, 0]
        cache = cache.at_length(lengths - 1)
        scores = DraftScorer().score(models.target, cache, last, draft.tokens, draft.count)
        logits, raw = draft.distributions(LENGTH, VOCAB)
        hidden = draft.hidden if drafter.has_hidden else jnp.zeros((len(SEQUENCES), LENGTH, STATE))
        processed = process_logits(scores.logits, sampling)
        seen = (draft.tokens, draft.count, logits, processed, raw, scores.logits, hidden, scores.features.hidden[:, 1:])
        return kj.VerifyInputs(*seen, jnp.asarray(False))

    return run(Models(pair.target, pair.draft))


@compiled
def verdicts(rule, keys, inputs):
    return jax.vmap(rule, in_axes=(0, kj.VerifyInputs(0, 0, 0, 0, 0, 0, 0, 0, None)))(keys, inputs)


LEARNED = [kj.LinearJudge(random_head(), 0.6), kj.PivotAware(random_head("pivot"), 0.6)]
# One of every way to verify, and what reads states: on drafts of no drafter `test_rule` looks at all others.
FEW = (
    kj.SpeculativeSampling, kj.GreedyExact, kj.KLJudge, kj.TopKAcceptance, kj.Cactus, kj.FLy, kj.EARS,
    kj.BlockVerification, kj.KSequential, kj.MultiPathBlock, kj.Reflective, kj.RelaxedThinking, kj.RegretBudget,
    kj.SyntheticAcceptance, kj.LinearJudge, kj.PivotAware,
)  # fmt: skip


@pytest.mark.parametrize(
    "rule",
    [rule if type(rule) in FEW else pytest.param(rule, marks=pytest.mark.slow) for rule in (*EXAMPLES, *LEARNED)],
    ids=lambda rule: type(rule).__name__,
)
def test_every_rule_decides_on_every_drafters_proposals(rule):
    for greedy in (True, False):
        for drafter in DRAFTERS:
            inputs = shown(drafter)
            if greedy:  # the same tokens, some of them the target's best
                raw = {"draft_logits": inputs.raw_draft_logits, "target_logits": inputs.raw_target_logits}
                inputs = dataclasses.replace(inputs, **raw, greedy=jnp.asarray(True))
            verdict = verdicts(rule, jax.random.split(jax.random.key(2), len(SEQUENCES)), inputs)
            chex.assert_shape([verdict.num_accepted, verdict.next_token], (len(SEQUENCES),))
            chex.assert_shape(verdict.relaxed, (len(SEQUENCES), LENGTH))
            accepted, tokens = np.asarray(verdict.num_accepted), np.asarray(verdict.next_token)
            counts, targets = np.asarray(inputs.draft_count), np.asarray(inputs.target_logits)
            assert (accepted >= 0).all() and (accepted <= counts).all()
            assert (tokens >= 0).all() and (tokens < VOCAB).all()
            if greedy:
                np.testing.assert_array_equal(
                    tokens, [row[n].argmax() for row, n in zip(targets, accepted, strict=True)]
                )
            if greedy and rule.lossless:
                best = targets[:, :LENGTH].argmax(axis=-1) == np.asarray(inputs.draft_tokens)
                best &= np.arange(LENGTH) < counts[:, None]
                np.testing.assert_array_equal(accepted, np.cumprod(best, axis=1).sum(axis=1))


def test_a_lookup_finds_something_and_not_everywhere():
    assert shown(kj.PromptLookup()).draft_count.tolist() == [LENGTH, 0, 0, LENGTH]


@pytest.mark.parametrize(
    "adaptive",
    [None, pytest.param(kj.Adaptive(maximum=LENGTH, cost=0.1), marks=pytest.mark.slow)],
    ids=["fixed", "adaptive"],
)
@pytest.mark.parametrize("drafter", DRAFTERS, ids=lambda drafter: type(drafter).__name__)
@pytest.mark.parametrize(
    ("rule", "scorer"),
    [
        (kj.SpeculativeSampling(), DraftScorer()),
        (kj.KSequential(2), DraftScorer(2)),
        (kj.MultiPathBlock(2), DraftScorer(2)),
        (kj.Reflective(0.3), ReflectionScorer((1, 2))),
    ],
    ids=["one", "several", "paths", "reflection"],
)
def test_every_way_to_score_takes_every_way_to_draft(small, rule, scorer, drafter, adaptive):
    """A cycle leaves a state of the shapes it found."""
    shape = Shape(LENGTH, 32, 64, True, scorer, adaptive)
    models, given = Models(small.target, small.draft), numbers(1, end_ids=[5], temperature=0.7)
    rule = jax.tree.map(jnp.float32, rule)

    def begin(models, keys):
        prompts, ones = jnp.ones((2, 4), jnp.int32), jnp.ones((2,), jnp.int32)
        return loop.init(models, drafter, rule, prompts, ones, keys, given, shape=shape)

    state = jax.eval_shape(begin, models, jax.random.split(jax.random.key(0), 2))
    after = jax.eval_shape(lambda models, state: cycle(models, drafter, rule, state, given, shape=shape), models, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_several_drafts_all_go_on_from_the_one_that_was_followed(pair):
    """If the wrong one's cache were kept, an equal draft would err in the next cycle."""
    equal = dataclasses.replace(pair, draft=pair.target)
    out = answer(equal, kj.KSequential(3), temperature=0.7, draft_length=2)
    assert out.stats.accepted == out.stats.drafted > 0
    assert [row.finish for row in out.stats.rows] == ["length"] * 4


def test_reflection_with_a_weight_of_0_is_exact_and_with_more_is_not(text_pair):
    plain = answer(text_pair, None)
    strict = answer(text_pair, kj.Reflective(0.0))
    assert tokens_of(strict) == tokens_of(plain) and strict.stats.relaxed == 0
    mixed = answer(text_pair, kj.Reflective(0.9))
    assert tokens_of(mixed) != tokens_of(plain) and mixed.stats.relaxed > 0 and mixed.stats.failed == 0


def test_reflection_needs_a_tokenizer(pair):
    with pytest.raises(kj.InputError, match="Reflective has a prompt of its own, and the pair has no tokenizer"):
        answer(pair, kj.Reflective())


def test_a_scorer_that_there_is_not_is_refused(pair):
    @kj.register
    @dataclasses.dataclass(frozen=True)
    class Lost:
        number: float = 0.0
        scorer = "oracle"

        def __call__(self, key, inputs):
            raise AssertionError

    with pytest.raises(kj.InputError, match="Lost names the scorer 'oracle': choose one of draft, several drafts"):
        answer(pair, Lost())
