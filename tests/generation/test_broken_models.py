"""A model that returns NaN, +inf or nothing but -inf yields no token, wherever in its logits that stands."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import random_head
from test_rule import EXAMPLES
from tiny_pairs import (
    END,
    answer,
    byte_tokenizer,
    in_bfloat16,
    rounded,
    sharpened,
    tiny_model,
    tokens_of,
    with_parameters,
)

import kljudge_jax as kj
from kljudge_jax.core.protocols import Draft, Features
from kljudge_jax.core.sampling import Sampling, process_logits
from kljudge_jax.core.scorers import DraftScorer, ReflectionScorer, Scores
from kljudge_jax.core.state import Shape
from kljudge_jax.core.verify import Progress, judge_drafts

# XLA's maximum on a CPU drops a NaN where it is vectorised: at these sizes it missed every one of them.
ROWS, LENGTH, VOCAB, STATE = 3, 4, 640, 16
COLUMNS = (0, 1, 319, 632, 638, 639)  # first, inside, and around the last whole vector
BAD = {"NaN": np.nan, "+inf": np.inf, "all -inf": -np.inf}
LEARNED = [kj.LinearJudge(random_head(), 0.6), kj.PivotAware(random_head("pivot"), 0.6)]
# One of every way to verify; what is under test comes before the rule, so that the others are slow.
FEW = (kj.GreedyExact, kj.SpeculativeSampling, kj.KLJudge, kj.BlockVerification, kj.KSequential, kj.Reflective)
RULES = [
    rule if type(rule) in FEW else pytest.param(rule, marks=pytest.mark.slow) for rule in (*EXAMPLES, *LEARNED[1:])
] + LEARNED[:1]
WAYS = {"several drafts": DraftScorer(3), "reflection": ReflectionScorer((1,))}


@dataclasses.dataclass(frozen=True)
class Placement:
    """One bad element: in the logits of which model, of which row, at which position and column."""

    where: str
    row: int
    position: int
    column: int
    value: str

    def spoilt(self, which, logits):
        """Logits `[n, positions, V]` of the `which` model with it."""
        logits = np.array(logits)
        if which == self.where:
            at = (self.row, self.position) if self.value == "all -inf" else (self.row, self.position, self.column)
            logits[at] = BAD[self.value]
        return logits


def placements(rows):
    """Every one of them: value, column, position and model, the row in turns."""
    every = [
        (where, position, column, value)
        for where, positions in (("target", LENGTH + 1), ("draft", LENGTH))
        for position in range(positions)
        for value in BAD
        for column in (COLUMNS if value != "all -inf" else COLUMNS[:1])
    ]
    return [Placement(where, i % rows, *rest) for i, (where, *rest) in enumerate(every)]


@functools.cache
def sound(rows):
    """Logits of a target and of a draft that it mostly keeps, `[rows, positions, V]`, and the draft's tokens."""
    random = np.random.default_rng(5)
    target = 3 * random.standard_normal((rows, LENGTH + 1, VOCAB)).astype(np.float32)
    draft = target[:, :-1] + 0.1 * random.standard_normal((rows, LENGTH, VOCAB)).astype(np.float32)
    return target, draft, target[:, :-1].argmax(axis=-1).astype(np.int32)


def outcomes(rule, greedy, rows=ROWS):
    """What becomes of the drafts of each placement, one batch at a time, and of a batch without any."""
    scorer = WAYS.get(getattr(rule, "scorer", "draft"), DraftScorer())
    shape, sampling = Shape(LENGTH, 32, scorer=scorer), Sampling.create(0.0 if greedy else 0.9)
    target, draft, tokens = (np.repeat(x, scorer.drafts, axis=0) for x in sound(rows))
    keys = jax.random.split(jax.random.key(3), rows)
    states = jnp.ones((len(tokens), LENGTH, STATE))
    progress = Progress(jnp.zeros((rows,), jnp.int32), jnp.ones((rows,), jnp.int32), None, None)

    def judged(logits):
        target, draft = logits
        hidden = jnp.ones((*target.shape[:2], STATE))
        scores = Scores(target, Features(hidden), None, target if isinstance(scorer, ReflectionScorer) else None)
        proposal = Draft(tokens, jnp.full((len(tokens),), LENGTH), process_logits(draft, sampling), draft, states)
        return judge_drafts(rule, sampling, proposal, proposal.count, keys, scores, progress, shape=shape)

    every = placements(len(tokens))
    spoilt = [(target, draft), *((one.spoilt("target", target), one.spoilt("draft", draft)) for one in every)]
    # One batch at a time: XLA then makes of each what it makes of a batch.
    program = jax.jit(lambda logits: jax.lax.map(judged, logits))
    found = jax.device_get(program(jax.tree.map(lambda *x: np.stack(x), *spoilt)))
    return every, jax.tree.map(lambda x: x[0], found), jax.tree.map(lambda x: x[1:], found)


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampling"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(getattr(rule, "values", [rule])[0])[:40])
def test_one_bad_element_ends_the_draft_before_it(rule, greedy):
    """And no other row is touched."""
    if rule.greedy_only and not greedy:
        pytest.skip("a rule of greedy decoding")
    every, clean, found = outcomes(rule, greedy)
    drafts = WAYS.get(getattr(rule, "scorer", "draft"), DraftScorer()).drafts
    reached = 0
    for i, one in enumerate(every):
        row = one.row // drafts
        for name in ("accepted", "next_token", "fit", "starved", "alone"):
            others = np.arange(ROWS) != row
            np.testing.assert_array_equal(getattr(found, name)[i][others], getattr(clean, name)[others])
        if found.branch[i, row] != one.row % drafts:
            continue  # another draft of the row was followed, which has nothing bad
        accepted, fit = found.accepted[i, row], found.fit[i, row]
        assert accepted <= one.position
        if accepted < one.position:
            assert fit and not found.starved[i, row] and not found.alone[i, row]
            continue
        reached += 1
        if one.where == "target":
            assert not fit
        else:  # a rule that keeps the target's distribution needs no draft; the target's own logits are sound
            assert fit and found.alone[i, row] == rule.lossless and found.starved[i, row] != rule.lossless
    assert reached


SCHEMES = {"float32": lambda model: model, "bfloat16": in_bfloat16, "int8": rounded}
# Batch, what multiplies, and how tokens are drawn: every one of each, not every combination.
LOOPS = [
    (3, "float32", 0.0),
    pytest.param(1, "float32", 0.8, marks=pytest.mark.slow),
    pytest.param(3, "bfloat16", 0.8, marks=pytest.mark.slow),
    pytest.param(3, "int8", 0.0, marks=pytest.mark.slow),
]


@functools.cache
def wide_models():
    """A target of 640 tokens that knows what it wants, and a draft that is right most of the time."""
    target = sharpened(tiny_model(3, vocab_size=VOCAB), 2.0)
    random = np.random.default_rng(4)
    return target, with_parameters(target, lambda _, x: x + 0.01 * random.standard_normal(x.shape).astype(x.dtype))


def with_bad_column(model, value, column):
    def spoil(name, x):
        if name == "head.weight":
            x[column] = value  # times states of both signs: NaN, or +inf and -inf
        return x

    return with_parameters(model, spoil)


@pytest.mark.parametrize(("batch", "scheme", "temperature"), LOOPS)
def test_a_bad_column_of_the_head_yields_no_token(batch, scheme, temperature):
    """In the compiled loop, whatever multiplies: this is what went wrong once."""
    prompts = [np.array([3, 1, 4]), np.array([1]), np.array([5, 9, 2, 6])][:batch]
    target, draft = wide_models()
    for column in (0, 321, VOCAB - 1):
        broken = kj.ModelPair(
            SCHEMES[scheme](with_bad_column(target, np.nan, column)), SCHEMES[scheme](draft), eos=(999,)
        )
        for verifier in ("exact", "kl:0.4"):
            out = answer(broken, verifier, prompts, temperature=temperature)
            assert tokens_of(out) == [[]] * batch, (verifier, column)
            assert [row.finish for row in out.stats.rows] == ["failed"] * batch
    pair = kj.ModelPair(SCHEMES[scheme](target), SCHEMES[scheme](with_bad_column(draft, np.nan, 321)), eos=(999,))
    exact, judged = (answer(pair, verifier, prompts, temperature=temperature) for verifier in ("exact", "kl:0.4"))
    assert exact.stats.failed == 0 and exact.stats.tokens == 24 * batch
    assert exact.stats.draft_failed == batch and exact.stats.drafted == 0
    assert judged.stats.failed == batch and judged.stats.draft_failed == 0
    if temperature == 0:
        assert tokens_of(exact) == tokens_of(answer(pair, None, prompts))


@pytest.mark.parametrize(
    "draft_length",
    [4, pytest.param(kj.Adaptive(maximum=4, cost=0.1), marks=pytest.mark.slow)],
    ids=["fixed", "adaptive"],
)
def test_a_draft_that_breaks_late_leaves_a_lossless_answer_whole(draft_length):
    """Rows that it left and rows that it did not are decoded side by side."""
    target, draft = wide_models()
    pair = kj.ModelPair(target, draft, eos=(999,))
    prompts = [np.array([3, 1, 4]), np.array([1]), np.array([5, 9, 2, 6]), np.array([2, 7])]
    plain = answer(pair, None, prompts)
    late = next(token for token in tokens_of(plain)[0][6:] if token not in np.concatenate(prompts))

    def spoil(name, x):
        if name == "embedding.table":
            x[late] = np.nan
        return x

    broken = dataclasses.replace(pair, draft=with_parameters(draft, spoil))
    out = answer(broken, "exact", prompts, draft_length=draft_length)
    assert tokens_of(out) == tokens_of(plain)
    met = [late in tokens[:-1] for tokens in tokens_of(plain)]
    assert met[0] and [row.draft_failed for row in out.stats.rows] == met
    assert out.stats.failed == 0 and out.stats.drafted > 0


def test_rounding_a_weight_to_integers_hides_no_nan():
    from kljudge_jax.kernels.quantize import INT4, INT8, Scheme, dequantize, quantize

    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    for scheme in (INT8, INT4, Scheme(4, minimum=True)):
        for value in (np.nan, np.inf, -np.inf):
            for column in (0, 31, 32, 127):
                spoilt = weight.copy()
                spoilt[5, column] = value
                again = np.asarray(dequantize(quantize(jnp.asarray(spoilt), scheme), jnp.float32))
                assert np.isnan(again[5, column]) and np.isfinite(np.delete(again, 5, axis=0)).all()


def test_an_answer_says_that_its_draft_failed():
    tokenizer = byte_tokenizer()
    target = tiny_model(3, vocab_size=END + 1)
    draft = with_parameters(target, lambda name, x: x * np.nan if name == "final_norm.scale" else x)
    out = answer(kj.ModelPair(target, draft, tokenizer, eos=(END,)), "exact", ["abc"])
    assert out.stats.to_json()["draft_failed"] == 1
    assert "the draft returned NaN or +inf, and the target went on alone" in out._repr_html_()
