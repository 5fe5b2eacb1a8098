"""Secure: the strict rule on the first tokens of an answer, the wrapped rule after them, and all that it hands on."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import random_head
from random_cases import as_inputs, lengths_and_corrections, random_cases, rows, verdicts
from test_exact import continuation, enumerated, models
from tiny_pairs import PROMPTS, answer, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.generation.arguments import check_compared
from kljudge_jax.verification import (
    AcceptAll,
    BlockVerification,
    Cactus,
    DivergenceThreshold,
    Ensemble,
    EntropyThreshold,
    FLy,
    GreedyExact,
    KLJudge,
    KSequential,
    Lenience,
    LinearJudge,
    Mentored,
    RandomAcceptance,
    Reflective,
    Secure,
    SpeculativeSampling,
    SyntheticAcceptance,
    TopKAcceptance,
    TypicalAcceptance,
    Verdict,
    parse_verifier,
)
from kljudge_jax.verification.rule import RULES, Odds, TokenRule, register
from kljudge_jax.verification.specs import called


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class At:
    """A rule that is told how far the answer has come, and given a second view where the rule looks for one."""

    rule: object
    position: jax.Array

    def _told(self, inputs):
        second = jnp.flip(inputs.target_logits, axis=-1)
        return dataclasses.replace(inputs, position=self.position, judged_logits=second)

    def acceptance_distribution(self, inputs):
        return self.rule.acceptance_distribution(self._told(inputs))

    def correction(self, inputs, num_accepted):
        return self.rule.correction(self._told(inputs), num_accepted)

    def __call__(self, key, inputs):
        return self.rule(key, self._told(inputs))


WRAPPED = [
    AcceptAll(),
    Cactus(0.2),
    DivergenceThreshold("tv", 0.3),
    Ensemble(0.4),
    EntropyThreshold(0.5),
    KLJudge(0.6, 1.0, first=0),
    Lenience(0.3),
    Mentored(0.5),
    RandomAcceptance(0.5),
    Reflective(0.3),
    SpeculativeSampling(),
    SyntheticAcceptance(0.6),
    TopKAcceptance(2),
    TypicalAcceptance(),
]
# Of rules that define the same methods of a rule one stays in the fast suite, which `test_rule` shows all of them.
FEW = (AcceptAll, Cactus, KLJudge, Mentored, Reflective, SpeculativeSampling, TopKAcceptance)
named = pytest.mark.parametrize(
    "rule",
    [rule if type(rule) in FEW else pytest.param(rule, marks=pytest.mark.slow) for rule in WRAPPED],
    ids=lambda rule: type(rule).__name__,
)


@named
@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("position, first", [(0, 2), (1, 3), (3, 1)])
def test_acceptance_and_correction_are_the_mixture(rule, greedy, position, first):
    """(1 - eta) strict + eta relaxed, token by token; each correction is of the rule that rejects there."""
    inputs = random_cases(31, greedy, size=96)
    secured, relaxed, strict = (
        lengths_and_corrections(At(each, jnp.int32(position)), inputs)
        for each in (Secure(rule, first), rule, SpeculativeSampling())
    )
    strict_places = max(0, first - position)

    def acceptance(distribution, count):
        """P(accept i | all before), from P(length = n)."""
        reached = np.cumsum(distribution[::-1])[::-1]
        return [reached[i + 1] / reached[i] if reached[i] > 1e-4 else None for i in range(count)]

    for case, found, theirs, ours in zip(rows(inputs), secured[0], relaxed[0], strict[0], strict=True):
        count = case[1]
        expected, reached = np.zeros_like(found), 1.0
        chances = [*acceptance(ours, count)[:strict_places], *acceptance(theirs, count)[strict_places:]]
        for i, chance in enumerate(chances):
            if reached == 0:
                break
            if chance is None:  # never reached by that rule alone, so that its distribution does not say
                expected = None
                break
            expected[i] = reached * (1 - chance)
            reached *= chance
        if expected is not None:
            expected[count] = reached
            np.testing.assert_allclose(found, expected, atol=2e-3)
    for n in range(inputs.draft_tokens.shape[1] + 1):
        wanted = strict if position + n < first else relaxed
        np.testing.assert_allclose(secured[1][:, n], wanted[1][:, n], atol=1e-6)


@named
@pytest.mark.parametrize("greedy", [True, False])
def test_its_ends_are_the_wrapped_rule_and_the_strict_one(rule, greedy):
    inputs = random_cases(32, greedy)
    plain = verdicts(At(rule, jnp.int32(2)), inputs)
    for secured in (Secure(rule, 0), Secure(rule, 2)):
        chex.assert_trees_all_equal(verdicts(At(secured, jnp.int32(2)), inputs), plain)
    chex.assert_trees_all_equal(verdicts(Secure(rule, 9), inputs), verdicts(rule, inputs))  # no position: never first
    strict = verdicts(At(SpeculativeSampling(), jnp.int32(0)), inputs)
    chex.assert_trees_all_equal(verdicts(At(Secure(rule, 99), jnp.int32(0)), inputs), strict)


@pytest.mark.parametrize("rule", [AcceptAll(), Mentored(0.5), TopKAcceptance(2), FLy(0.0, 0), Reflective(0.5)], ids=str)
def test_what_is_strict_throughout_is_lossless_by_enumeration(rule):
    secured = At(Secure(rule, 4), jnp.int32(0))
    for kind in ("random", "draft_holes"):
        target, draft = models(np.random.default_rng(41), kind, 3, 3)
        joint = enumerated(secured, target, draft, 3, 3, 3)
        np.testing.assert_allclose(joint, continuation(target, (), 4), atol=1e-6)
    joint = enumerated(At(Secure(rule, 1), jnp.int32(0)), target, draft, 3, 3, 3)
    first = joint.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(first, continuation(target, (), 1), atol=1e-6)
    assert np.abs(joint - continuation(target, (), 4)).max() > 1e-3


def test_it_is_lossless_if_the_wrapped_rule_is():
    target, draft = models(np.random.default_rng(42), "random", 3, 3)
    joint = enumerated(At(Secure(SpeculativeSampling(), 2), jnp.int32(0)), target, draft, 3, 3, 3)
    np.testing.assert_allclose(joint, continuation(target, (), 4), atol=1e-6)
    assert Secure(SpeculativeSampling()).lossless and Secure(GreedyExact()).lossless
    assert not Secure(KLJudge(0.4)).lossless and not Secure.lossless


def test_the_judges_own_first_token_is_strict():
    target, draft = models(np.random.default_rng(43), "random", 2, 3)
    for first, lossless in ((1, True), (0, False)):
        judge = At(KLJudge(math.inf, 1.0, first=first), jnp.int32(0))
        found = enumerated(judge, target, draft, 2, 2, 3).sum(axis=(1, 2))
        assert (np.abs(found - continuation(target, (), 1)).max() < 1e-6) == lossless


def test_the_larger_first_holds():
    inputs = random_cases(33, True)
    for own, theirs in ((0, 2), (2, 0), (2, 1)):
        secured = At(Secure(KLJudge(9.0, 1.0, first=own), theirs), jnp.int32(0))
        alone = At(KLJudge(9.0, 1.0, first=2), jnp.int32(0))
        chex.assert_trees_all_equal(verdicts(secured, inputs), verdicts(alone, inputs))


def test_it_has_what_the_wrapped_rule_has():
    head = random_head("DT")
    learned, reflective = Secure(LinearJudge(head, 0.5)), Secure(Reflective(0.3))
    assert learned.needs == {"target_hidden"} and not learned.compares_drafts
    assert Secure(KLJudge(0.4)).compares_drafts and Secure(GreedyExact()).greedy_only
    assert reflective.scorer == "reflection" and reflective.prompt == Reflective().prompt
    np.testing.assert_array_equal(
        reflective.fuse(jnp.zeros(2), jnp.ones(2)), Reflective(0.3).fuse(jnp.zeros(2), jnp.ones(2))
    )
    assert not hasattr(learned, "init_carry") and not hasattr(Secure(KLJudge(0.4)), "scorer")
    assert not Secure.greedy_only and Secure.needs == frozenset() and Secure(TypicalAcceptance()).ours
    with pytest.raises(InputError, match="train"):
        answer(tiny_pair(3), Secure(LinearJudge(random_head(pair={"target": "a", "draft": "b"}), 0.5)))


@pytest.mark.parametrize(
    ("wrapped", "says"),
    [
        (BlockVerification(), "Secure wraps no BlockVerification, which decides on a draft as a whole"),
        (KSequential(2), "Secure wraps no KSequential, which chooses among several drafts"),
        (Secure(KLJudge(0.4)), "Secure wraps no Secure: wrap what is in it, as in 'secure:kl:0.4'"),
        ("kl:0.4", "a rule such as KLJudge.0.4. as its rule, not 'kl:0.4'"),
        (None, "not None"),
        (KLJudge, "a rule such as KLJudge"),
    ],
)
def test_what_it_cannot_wrap_is_refused_by_name(wrapped, says):
    with pytest.raises(InputError, match=says):
        Secure(wrapped)


def test_other_numbers_compile_nothing_and_may_be_one_a_row():
    pair = tiny_pair(3)
    together = answer(pair, Secure(KLJudge(jnp.array([0.1, 2.0, 5.0, 5.0])), first=jnp.array([1, 2, 0, 3])))
    for i, (tau, first) in enumerate(((0.1, 1), (2.0, 2), (5.0, 0), (5.0, 3))):
        alone = answer(pair, Secure(KLJudge(tau), first=first))
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[i])
    traces = []

    @jax.jit
    def run(rule, key, case):
        traces.append(rule)
        return rule(key, case)

    inputs = as_inputs([1], 1, np.zeros((1, 2)), np.zeros((2, 2)), np.zeros((1, 2)), np.zeros((2, 2)), True)
    for rule in (Secure(KLJudge(0.1), 1), Secure(KLJudge(0.7, 0.5, 2), 3)):
        run.eval_shape(rule, jax.random.key(0), inputs)
    assert len(traces) == 1


def test_in_the_loop_the_first_tokens_are_the_targets_own():
    """Under a rule that keeps every draft: the first tokens of each answer are plain decoding's, and later ones not."""
    pair = tiny_pair(5, noise=0.6)
    plain, everything = tokens_of(answer(pair, None)), answer(pair, AcceptAll())
    assert any(tokens[0] != wanted[0] for tokens, wanted in zip(tokens_of(everything), plain, strict=True))
    for first in (1, 3, 7):
        out = answer(pair, Secure(AcceptAll(), first), batch_size=2)  # fewer rows than prompts: rows are filled again
        for tokens, origin, wanted in zip(tokens_of(out), out.origin, plain, strict=True):
            assert tokens[:first] == wanted[:first] and "relaxed" not in list(origin[:first])
        assert out.stats.relaxed > 0
    assert tokens_of(answer(pair, Secure(AcceptAll(), 99))) == plain
    judged = answer(pair, KLJudge(50.0, 1.0))
    assert all(origin[0] != "relaxed" for origin in judged.origin) and judged.stats.relaxed > 0
    assert tokens_of(answer(pair, KLJudge(50.0, 1.0, first=0))) == tokens_of(everything)


@pytest.fixture
def forgotten():
    """Rules that a test registers are of no other test."""
    before = list(RULES)
    yield
    RULES[:] = before


@pytest.mark.usefixtures("forgotten")
def test_a_memory_goes_with_it():
    """A rule that lets so many mismatches of an answer pass, and remembers them."""

    @register
    @dataclasses.dataclass(frozen=True)
    class Few(TokenRule):
        """Accept a mismatch while fewer than `most` were accepted in the answer."""

        most: float
        spec_name, source = "few", "a test"

        def init_carry(self):
            return jnp.float32(0)

        def acceptance(self, inputs, odds):
            mismatches = jnp.cumsum((odds.strict() < 1).astype(jnp.float32))
            return jnp.where(mismatches + inputs.carry <= self.most, 1.0, odds.strict())

        def __call__(self, key, inputs):
            verdict = super().__call__(key, inputs)
            return dataclasses.replace(verdict, carry=inputs.carry + jnp.sum(verdict.relaxed, dtype=jnp.float32))

    pair = tiny_pair(5, noise=0.6)
    secured = answer(pair, Secure(Few(3), first=2), batch_size=2)
    plain = tokens_of(answer(pair, None))
    for tokens, origin, wanted in zip(tokens_of(secured), secured.origin, plain, strict=True):
        assert tokens[:2] == wanted[:2] and list(origin).count("relaxed") == 3
    together = answer(pair, Secure(Few(3), first=2))
    assert tokens_of(together) == tokens_of(secured)


@pytest.mark.usefixtures("forgotten")
def test_a_wrapped_rule_of_ones_own_is_checked():
    @register
    @dataclasses.dataclass(frozen=True)
    class Wrong(TokenRule):
        """Answers in the wrong shape."""

        number: float = 0.0
        spec_name, source = "wrong", "a test"

        def acceptance(self, inputs, odds):
            return jnp.float32(1.0)

    with pytest.raises(InputError, match=r"Wrong\.acceptance returns"):
        answer(tiny_pair(3), Secure(Wrong()))


def test_an_empty_draft_is_the_targets_own_token():
    inputs = random_cases(22, False, length=0, size=1)
    case = dataclasses.replace(jax.tree.map(lambda x: x[0] if x.ndim else x, inputs), position=jnp.int32(0))
    for rule in (Secure(KLJudge(0.4), 3), Secure(FLy(), 3), Secure(TopKAcceptance(2), 3)):
        found = rule(jax.random.key(0), case)
        assert isinstance(found, Verdict) and int(found.num_accepted) == 0
        np.testing.assert_array_equal(rule.acceptance_distribution(case), [1.0])


def test_fly_passes_nothing_among_the_first():
    inputs = random_cases(34, False)
    uniforms = jax.random.uniform(jax.random.key(1), inputs.draft_tokens.shape)
    rule = Secure(FLy(0.2, 1), 2)

    @jax.jit
    def run(draws, inputs):
        def one(draws, i):
            case = jax.tree.map(lambda x: x[i] if x.ndim else x, inputs)
            case = dataclasses.replace(case, position=jnp.int32(0))
            return rule.accept(draws, case, Odds.of(case))

        return jax.vmap(one)(draws, jnp.arange(draws.shape[0]))

    _, relaxed = run(uniforms, inputs)
    assert not np.asarray(relaxed)[:, :2].any() and np.asarray(relaxed)[:, 2:].any()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Secure(KLJudge(0.4)), "secure:kl:0.4"),
        (Secure(KLJudge(0.4), first=2), "secure:kl:0.4,first=2"),
        (Secure(KLJudge(0.4, first=0)), "secure:kl:0.4,first=0,first=1"),
        (Secure(KLJudge(jnp.array([0.1, 2.0]))), "Secure of KLJudge"),
        (Secure(LinearJudge(random_head("DT"), 0.5)), "Secure of LinearJudge"),
        (KLJudge(0.4), "KLJudge"),
    ],
)
def test_a_message_names_the_rule_that_is_wrapped(rule, says):
    assert called(rule) == says


@pytest.mark.parametrize("spec", ["secure:kl:0.4", "secure:cascade_opt:0.5", "secure:fuzzy:kl_target_draft,0.3"])
def test_a_refusal_with_prompt_lookup_names_the_rule_as_it_is_written(spec):
    rule = parse_verifier(spec, True)
    with pytest.raises(InputError, match=f"^{spec}[^:]* reads .* PromptLookup has no distribution") as error:
        check_compared(rule, kj.PromptLookup())
    assert "Secure" not in str(error.value)
    with pytest.raises(InputError, match=f"^{spec}"):
        kj.generate(tiny_pair(3), PROMPTS[0][None], verifier=spec, drafter="lookup", max_new_tokens=2)
