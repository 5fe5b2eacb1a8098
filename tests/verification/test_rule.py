"""What holds for every rule: its range, its garbage rows, its draws, its tree of numbers."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_cases import LENGTH, SIZE, VOCAB, lengths_and_corrections, random_cases, rows, verdicts
from scipy import stats
from transcription import softmax

from kljudge_jax.errors import InputError
from kljudge_jax.verification import (
    EARS,
    AcceptAll,
    BlockVerification,
    Cactus,
    CascadeOpt,
    CascadeToken,
    DivergenceThreshold,
    Ensemble,
    EntropyThreshold,
    EntropyVerify,
    FLy,
    GreedyExact,
    KLJudge,
    KSequential,
    Lenience,
    LinearJudge,
    MarginAcceptance,
    Mentored,
    MultiPathBlock,
    PivotAware,
    RandomAcceptance,
    Reflective,
    RegretBudget,
    RelaxedFuzzy,
    RelaxedThinking,
    RelaxedThinkingRatio,
    Secure,
    SpeculativeSampling,
    SyntheticAcceptance,
    TopKAcceptance,
    TypicalAcceptance,
    Verdict,
    Verifier,
    VerifyInputs,
    parse_verifier,
)
from kljudge_jax.verification.parameters import number
from kljudge_jax.verification.rule import RULES, Odds, Rule, ThresholdRule, TokenRule, register

EXAMPLES = [
    AcceptAll(),
    BlockVerification(),
    Cactus(0.2),
    CascadeOpt(0.3),
    CascadeToken(0.4),
    DivergenceThreshold("js", 0.1),
    DivergenceThreshold("kl_target_draft", 0.4, confidence=0.6),
    DivergenceThreshold("tv", 0.3),
    EARS(0.4),
    Ensemble(0.6),
    EntropyThreshold(1.0),
    EntropyThreshold(1.0, "draft"),
    EntropyVerify(),
    FLy(0.5, 2),
    GreedyExact(),
    KLJudge(0.4),
    KSequential(3),
    Lenience(0.5),
    MarginAcceptance(0.5),
    Mentored(0.3),
    MultiPathBlock(3),
    RandomAcceptance(0.3),
    Reflective(0.3),
    RegretBudget(3.0, 1.0),
    RelaxedFuzzy(0.1),
    RelaxedFuzzy(0.4, "kl_target_draft", confidence=0.6),
    RelaxedThinking(3, 0.3),
    RelaxedThinkingRatio(3, 0.3),
    Secure(KLJudge(0.4)),
    SpeculativeSampling(),
    SyntheticAcceptance(0.7),
    TopKAcceptance(2),
    TypicalAcceptance(),
]

every_rule = pytest.mark.parametrize("rule", EXAMPLES, ids=str)


def test_every_rule_is_looked_at():
    learned = {LinearJudge, PivotAware}  # they read states and hold arrays: their own files look at them
    assert {type(rule) for rule in EXAMPLES} | learned == set(RULES)


@every_rule
def test_verdicts_stay_in_range_and_read_no_garbage(rule):
    for seed, greedy in itertools.product((0, 9041), (True, False)):
        check_range_and_garbage(rule, seed, greedy)


def check_range_and_garbage(rule, seed, greedy):
    inputs, key = random_cases(seed, greedy), seed + 1
    result = verdicts(rule, inputs, key)
    chex.assert_shape((result.num_accepted, result.next_token), (SIZE,))
    chex.assert_shape(result.relaxed, (SIZE, LENGTH))
    assert (result.num_accepted.dtype, result.next_token.dtype, result.relaxed.dtype) == (jnp.int32, jnp.int32, bool)

    lengths, tokens, relaxed = map(np.asarray, (result.num_accepted, result.next_token, result.relaxed))
    counts = np.asarray(inputs.draft_count)
    assert (lengths >= 0).all() and (lengths <= counts).all()
    assert (tokens >= 0).all() and (tokens < VOCAB).all()
    assert not relaxed[np.arange(LENGTH) >= lengths[:, None]].any()
    targets = np.asarray(inputs.target_logits)
    if greedy:
        np.testing.assert_array_equal(tokens, [np.argmax(targets[i, n]) for i, n in enumerate(lengths)])
    elif not rule.greedy_only:
        assert (targets[np.arange(SIZE), lengths, tokens] > -np.inf).all()
    if rule.lossless:
        assert not relaxed.any()
        for case, n in zip(rows(inputs), lengths, strict=True):
            assert all(case[3][i, case[0][i]] > -np.inf for i in range(n))

    chex.assert_trees_all_equal(verdicts(rule, other_garbage(seed, greedy), key), result)


@functools.cache
def other_garbage(seed, greedy):
    """The batch of these `random_cases`, zeros where it had NaN, infinities and wild ids."""
    inputs = random_cases(seed, greedy)
    counts = np.asarray(inputs.draft_count)[:, None]
    drafted, scored = np.arange(LENGTH) < counts, np.arange(LENGTH + 1) <= counts
    real = {
        "draft_tokens": drafted,
        "draft_logits": drafted[:, :, None],
        "raw_draft_logits": drafted[:, :, None],
        "target_logits": scored[:, :, None],
        "raw_target_logits": scored[:, :, None],
    }
    return dataclasses.replace(
        inputs, **{name: jnp.where(kept, getattr(inputs, name), 0) for name, kept in real.items()}
    )


@every_rule
def test_draws_follow_law_and_correction(rule):
    """Chi-square over accepted length and next token together: 20,000 draws of each of the least certain sequences."""
    draws = 50
    inputs = random_cases(21, rule.greedy_only, kinds=("close", "far", "holes"))
    outcomes, _ = lengths_and_corrections(rule, inputs)
    for case in np.argsort(np.sum(outcomes**2, axis=1))[:3]:
        same = np.full(SIZE, case)
        repeated = jax.tree.map(lambda x, same=same: x[same] if x.ndim else x, inputs)
        distributions, corrections = lengths_and_corrections(rule, repeated)
        reached = distributions[0][:, None] > 0  # past the draft a correction is made of garbage
        expected = np.where(reached, distributions[0][:, None] * corrections[0], 0.0)
        np.testing.assert_allclose(expected.sum(), 1.0, atol=1e-5)
        counted = np.zeros_like(expected)
        for seed in range(draws):
            result = verdicts(rule, repeated, seed)
            np.add.at(counted, (np.asarray(result.num_accepted), np.asarray(result.next_token)), 1)
        assert not counted[expected == 0].any()
        expected = expected / expected.sum() * draws * SIZE
        common = expected >= 5
        observed = np.append(counted[common], counted[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        if (wanted > 0).sum() > 1:
            assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-4
        else:
            np.testing.assert_allclose(observed, wanted, atol=1)


def test_a_coin_of_zero_accepts_nothing_of_no_probability():
    """A uniform draw is exactly 0 once in 8 million: the comparison with it is strict."""
    target, draft = jnp.array([[-jnp.inf, 0.0], [0.0, 0.0]]), jnp.zeros((1, 2))
    inputs = VerifyInputs(
        jnp.array([0]), jnp.int32(1), draft, target, draft, target, None, None, greedy=jnp.asarray(False)
    )
    accepted, _ = SpeculativeSampling().accept(jnp.zeros(1), inputs, Odds.of(inputs))
    assert accepted == 0


def test_a_test_that_stands_alone_also_says_where_the_correction_is_the_targets_own():
    """At the confidence itself it decides, so that what it rejects is drawn from p; above it, from the excess of p."""
    target, draft = jnp.zeros((2, 2)), jnp.array([[2.0, 0.0]])
    inputs = VerifyInputs(
        jnp.array([0]), jnp.int32(1), draft, target, draft, target, None, None, greedy=jnp.asarray(False)
    )
    at, above = (
        DivergenceThreshold("tv", 0.0, confidence=confidence).correction(inputs, jnp.int32(0))
        for confidence in (0.5, 0.49)
    )
    np.testing.assert_allclose(at, [0.5, 0.5])
    np.testing.assert_allclose(above, [0.0, 1.0])


def test_every_rule_works_without_a_draft():
    inputs = random_cases(22, False, length=0, size=1)
    case = jax.tree.map(lambda x: x[0] if x.ndim else x, inputs)
    p = softmax(np.asarray(case.target_logits[0], np.float64))

    @jax.jit
    def run(rules, key, case):
        return [(rule(key, case), rule.acceptance_distribution(case), rule.correction(case, 0)) for rule in rules]

    for greedy in (True, False):
        answers = run(EXAMPLES, jax.random.key(0), dataclasses.replace(case, greedy=jnp.asarray(greedy)))
        for rule, (verdict, distribution, correction) in zip(EXAMPLES, answers, strict=True):
            assert int(verdict.num_accepted) == 0 and verdict.relaxed.shape == (0,)
            np.testing.assert_array_equal(distribution, [1.0])
            point = greedy or rule.greedy_only
            np.testing.assert_allclose(correction, np.eye(VOCAB)[p.argmax()] if point else p, atol=1e-6)
            if point:
                assert int(verdict.next_token) == p.argmax()


@every_rule
def test_a_rule_is_a_tree_of_numbers(rule):
    leaves, structure = jax.tree.flatten(rule)
    assert all(isinstance(leaf, float | int) for leaf in leaves)
    assert jax.tree.unflatten(structure, leaves) == rule
    assert isinstance(rule, Verifier)
    # What transformations put in a leaf's place.
    for placeholder in (object(), jax.ShapeDtypeStruct((), jnp.float32), jnp.float32(jnp.nan), np.zeros(3)):
        jax.tree.unflatten(structure, [placeholder] * len(leaves))


def test_no_two_rules_have_the_same_structure():
    """jit looks a program up by it: equal structures, and a rule can be answered by the program of another."""
    for a, b in itertools.combinations(EXAMPLES, 2):
        alike = type(a) is type(b) and getattr(a, "divergence", None) == getattr(b, "divergence", None)
        alike = alike and getattr(a, "model", None) == getattr(b, "model", None)
        assert (jax.tree.structure(a) == jax.tree.structure(b)) == alike


@every_rule
def test_other_numbers_are_no_other_program(rule):
    traces = []

    @jax.jit
    def run(rule, key, case):
        traces.append(rule)
        return rule(key, case)

    inputs = random_cases(23, True, length=2, size=1)
    case = jax.tree.map(lambda x: x[0] if x.ndim else x, inputs)
    # Traced only: whether a second compilation is needed is decided there.
    run.eval_shape(rule, jax.random.key(0), case)
    less = jax.tree.map(lambda leaf: leaf * 0.99 if isinstance(leaf, float) else leaf + 1, rule)
    run.eval_shape(less, jax.random.key(1), dataclasses.replace(case, greedy=jnp.asarray(False)))
    assert len(traces) == 1


def test_a_new_rule_is_ten_lines():
    @register
    @dataclasses.dataclass(frozen=True)
    class AtLeast(TokenRule):
        """Accept d iff p(d) >= floor."""

        floor: float = number()
        spec_name = "atleast"
        source = "a test"

        def acceptance(self, inputs, odds):
            return (jnp.exp(odds.log_target) >= self.floor).astype(jnp.float32)

    try:
        rule = parse_verifier("atleast:0.2", greedy=False)
        assert rule == AtLeast(0.2)
        assert isinstance(verdicts(rule, random_cases(24, False)), Verdict)
    finally:
        RULES.remove(AtLeast)


def test_defaults_are_the_published_numbers():
    published = {
        "EntropyVerify": {"threshold": 0.95, "alpha": 0.4},
        "FLy": {"threshold": 0.3, "window": 6},
        "KLJudge": {"confidence": 0.9, "first": 1},
        "KSequential": {"drafts": 2},
        "LinearJudge": {"first": 1},
        "MarginAcceptance": {"threshold": 0.9},
        "MultiPathBlock": {"drafts": 2},
        "PivotAware": {"floor": 1e-4},
        "Reflective": {"weight": 0.3},
        "RegretBudget": {"mismatches": 1},
        "RelaxedThinking": {"k": 10, "delta": 0.6},
        "RelaxedThinkingRatio": {"k": 3, "ratio": 0.5},
        "Secure": {"first": 1},
        "TypicalAcceptance": {"epsilon": 0.3, "alpha": 0.09},
    }
    for rule in RULES:
        fields = {field.name: field.default for field in dataclasses.fields(rule)}
        numbers = {name: x for name, x in fields.items() if isinstance(x, int | float) and name != "confidence"}
        if rule.__name__ == "KLJudge":
            numbers["confidence"] = fields["confidence"]
        else:
            assert fields.get("confidence", 1.0) == 1.0, rule
        if rule.__module__.startswith("kljudge_jax."):
            assert numbers == published.get(rule.__name__, {}), rule


@pytest.fixture
def forgotten():
    """Rules that a test registers are of no other test."""
    before = list(RULES)
    yield
    RULES[:] = before


def written(name, base=ThresholdRule, fields=("threshold", "confidence"), **namespace):
    namespace = {"spec_name": name.lower(), "source": "a test", "passes": lambda self, inputs: None, **namespace}
    namespace = {key: value for key, value in namespace.items() if value is not None}
    return dataclasses.make_dataclass(
        name, [(field, float, 1.0) for field in fields], bases=(base,), frozen=True, namespace=namespace
    )


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: written("Mine", passes=None), "Mine lacks the method 'passes'"),
        (lambda: written("Mine", TokenRule), "Mine lacks the method 'acceptance'"),
        (lambda: written("Mine", Rule), "Mine lacks the method 'accept'"),
        (lambda: written("Mine", spec_name=None), "Mine lacks the attribute 'spec_name'"),
        (lambda: written("Mine", source=None), "Mine lacks the attribute 'source'"),
        (lambda: written("Mine", fields=("threshold",)), "Mine lacks the field 'confidence'"),
        (
            lambda: written("Mine", needs={"target_hiden"}),
            "needs 'target_hiden': choose of draft_hidden, section, ",
        ),
        (lambda: written("Mine", spec_name="kl"), "the spec name 'kl', which is KLJudge's"),
        (lambda: written("Mine", spec_name="none"), "which is plain decoding's"),
        (lambda: type("Bare", (), {}), "Bare is no dataclass"),
    ],
)
def test_a_class_that_lacks_something_is_refused(made, says):
    before = list(RULES)
    with pytest.raises(InputError, match=says):
        register(made())
    assert before == RULES


@pytest.mark.usefixtures("forgotten")
def test_a_cell_that_is_run_twice_defines_one_rule():
    first, second = register(written("Cell")), register(written("Cell"))
    assert [rule for rule in RULES if rule.__name__ == "Cell"] == [second] != [first]
    assert type(parse_verifier("cell:0.5", True)) is second
