"""What every rule of this room shares: how a verdict is drawn, and the test of one draft token at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError
from kljudge_jax.pytree import register_node
from kljudge_jax.verification.base import Verdict, VerifyInputs
from kljudge_jax.verification.distributions import (
    Normaliser,
    argmax,
    excess,
    is_argmax,
    probabilities,
    sample,
    token_log_probability,
)
from kljudge_jax.verification.parameters import parameters_of

# The inputs that are only there for a rule that names them.
NEEDS = frozenset({"draft_hidden", "target_hidden", "section"})

# Two equal distributions that were computed apart leave a residual of float32 noise. It is reached as rarely as it is
# small, so taking p in its place moves no probability by more than this.
_ROUNDING = 1e-6


class Odds(NamedTuple):
    """Log-probabilities of the draft tokens under target and draft, processed logits, f32 `[K]` each.

    When greedy both distributions are point masses: the draft's at its token, the target's at its argmax.
    """

    log_target: jax.Array
    log_draft: jax.Array

    @classmethod
    def of(cls, inputs: VerifyInputs) -> Odds:
        count = inputs.draft_tokens.shape[0]
        if count == 0:
            return cls(jnp.zeros((0,)), jnp.zeros((0,)))

        def greedy():
            match = is_argmax(inputs.target_logits[:count], inputs.draft_tokens)
            return cls(jnp.where(match, 0.0, -jnp.inf), jnp.zeros_like(match, jnp.float32))

        def sampled():
            return cls(
                token_log_probability(inputs.target_logits[:count], inputs.draft_tokens),
                token_log_probability(inputs.draft_logits, inputs.draft_tokens),
            )

        return jax.lax.cond(inputs.greedy, greedy, sampled)

    def ratio(self) -> jax.Array:
        """p(d) / q(d), f32 `[K]`: 0 where p(d) is 0 whatever q(d), infinite where only q(d) is."""
        return jnp.where(self.log_target == -jnp.inf, 0.0, jnp.exp(self.log_target - self.log_draft))

    def strict(self) -> jax.Array:
        """The strict rule's acceptance probability, min(1, p(d) / q(d)), f32 `[K]`: 0 or 1 when greedy."""
        return jnp.minimum(1.0, self.ratio())


ALL_OURS = "all of it"
"""`Rule.ours` of a rule that nobody else has."""


class Rule:
    """A rule as two pure functions, `acceptance_distribution` and `correction`; calling it draws from the two.

    Attributes:
      spec_name: what spec strings call it, as in `kl:0.4`.
      source: the paper or code that defines it, and how well that is known.
      lossless: it keeps the target's distribution, and when greedy the target's own tokens.
      greedy_only: it has no meaning at a temperature above 0.
      needs: the inputs that cost extra, "draft_hidden", "target_hidden" and "section".
      compares_drafts: its test needs KL(target || draft), which is none where the draft's distribution is all at its
        token: a drafter that draws nothing is refused with it.
      reads_length: its test hangs on K itself, so that no row may be scored in a shorter draft than another.
      ours: which of its forms its source does not have, in a few words; they name "greedy" or "sampling" where it is
        one of the two. Empty where rule and source agree.
      earlier: what its spec string would have to add to say what it said in earlier versions, oldest first. Results
        note how many there were (`verification.meaning`), so that answers of two meanings are not mixed.
      source_has: of parameters that the source does not have as freely, the values that it has; with another one the
        rule is ours. A mask by `confidence` is where it is off by default: no source has one but `KLJudge`'s.
      first: so many first tokens of an answer the strict rule decides alone; a field of some rules, and 0 of others.
        None is of a rule that does not decide token by token.
    """

    spec_name: ClassVar[str]
    source: ClassVar[str]
    lossless: ClassVar[bool] = False
    greedy_only: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    compares_drafts: ClassVar[bool] = False
    reads_length: ClassVar[bool] = False
    ours: ClassVar[str] = ""
    earlier: ClassVar[tuple[str, ...]] = ()
    source_has: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    first: Any = None

    def __post_init__(self):
        for name, (parameter, _) in parameters_of(type(self)).items():
            value = getattr(self, name)
            parameter.check(type(self).__name__, name, value)
            if isinstance(value, int) and not parameter.integer:
                # A threshold of 2 and one of 2.5 are numbers of one type, or the loop would compile for each.
                object.__setattr__(self, name, float(value))

    @classmethod
    def form_of_ours(cls, greedy: bool, values: Mapping[str, Any]) -> str:
        """What of `ours` concerns runs of this kind, with these values of its parameters; empty if nothing does."""
        forms = [form for form in ("greedy", "sampling") if form in cls.ours]
        return "" if len(forms) == 1 and (forms[0] == "greedy") != greedy else cls.ours

    def acceptance_distribution(self, inputs: VerifyInputs) -> jax.Array:
        """Distribution of the accepted length, given the draft: f32 `[K + 1]`, zero past `draft_count`."""
        raise NotImplementedError

    def accept(self, uniforms: jax.Array, inputs: VerifyInputs, odds: Odds) -> tuple[jax.Array, jax.Array]:
        """The accepted length that `uniforms`, f32 `[K]` in [0, 1), draw from that distribution, and `relaxed`."""
        raise NotImplementedError

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        """Weights `[V]` of the token that replaces a rejected one when sampling; p and q `[V]` predict it."""
        return excess(p, q)

    def among_first(self, inputs: VerifyInputs) -> jax.Array | None:
        """Which places of the draft, and the one after it, are of the `first` tokens of the answer: bool `[K + 1]`.

        None where no place does: the rule has no such tokens, or nobody knows how far the answer has come.
        """
        if inputs.position is None or self.first is None or (isinstance(self.first, int) and self.first <= 0):
            return None
        places = inputs.position + jnp.arange(inputs.draft_tokens.shape[0] + 1, dtype=jnp.int32)
        return places < jnp.asarray(self.first).astype(jnp.int32)

    def correction(self, inputs: VerifyInputs, num_accepted: jax.Array, odds: Odds | None = None) -> jax.Array:
        """Distribution of the token after `num_accepted` draft tokens: f32 `[V]`, a point mass when greedy.

        After the whole draft it is the target's own; so it is where the residual is empty (p = q). `odds` are those of
        `inputs`, for a caller that has them.
        """
        odds = Odds.of(inputs) if odds is None else odds
        target_row = inputs.target_logits[num_accepted]
        count = inputs.draft_tokens.shape[0]

        def greedy():
            return jax.nn.one_hot(argmax(target_row), target_row.shape[0])

        def sampled():
            p = probabilities(target_row)
            if count == 0:
                return p
            q = probabilities(inputs.draft_logits[jnp.minimum(num_accepted, count - 1)])
            rejected = num_accepted < inputs.draft_count
            weights = self.residual(inputs, odds, num_accepted, p, q)
            strict = self.among_first(inputs)
            if strict is not None:
                weights = jnp.where(strict[num_accepted], excess(p, q), weights)
            weights = jnp.where(rejected, weights, p)
            total = jnp.sum(weights)
            return jnp.where(total > _ROUNDING, weights / total, p)

        return jax.lax.cond(inputs.greedy, greedy, sampled)

    def __call__(self, key: jax.Array, inputs: VerifyInputs) -> Verdict:
        """Draws a verdict; consumes `key`."""
        uniform_key, token_key = jax.random.split(key)
        uniforms = jax.random.uniform(uniform_key, inputs.draft_tokens.shape)
        odds = Odds.of(inputs)
        num_accepted, relaxed = self.accept(uniforms, inputs, odds)
        distribution = self.correction(inputs, num_accepted, odds)
        next_token = jax.lax.cond(
            inputs.greedy,
            lambda: argmax(distribution),
            lambda: sample(token_key, jnp.log(distribution)),
        )
        return Verdict(num_accepted, next_token.astype(jnp.int32), relaxed)


def source_values(rule: type[Rule]) -> dict[str, tuple[Any, ...]]:
    """`Rule.source_has`, and of a mask by `confidence` that is off by default that it is off."""
    if rule.ours == ALL_OURS:
        return {}
    parameters = parameters_of(rule)
    masks = "confidence" in parameters and parameters["confidence"][1] == 1.0
    return {**rule.source_has, **({"confidence": (1.0,)} if masks else {})}


class TokenRule(Rule):
    """A rule that gives each draft token an acceptance probability and keeps the leading run of accepted ones."""

    first: Any = 0

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        """Probability, f32 `[K]`, that each draft token is accepted once all before it were."""
        raise NotImplementedError

    def _acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        if inputs.draft_tokens.shape[0] == 0:
            return odds.strict()
        accept = _checked(self, "acceptance", self.acceptance(inputs, odds), inputs, jnp.float32)
        strict = self.among_first(inputs)
        return accept if strict is None else jnp.where(strict[:-1], odds.strict(), accept)

    def acceptance_distribution(self, inputs: VerifyInputs) -> jax.Array:
        real = jnp.arange(inputs.draft_tokens.shape[0]) < inputs.draft_count
        accept = jnp.where(real, self._acceptance(inputs, Odds.of(inputs)), 0.0)
        reached = jnp.cumprod(jnp.append(1.0, accept))
        return reached * (1.0 - jnp.append(accept, 0.0))

    def accept(self, uniforms: jax.Array, inputs: VerifyInputs, odds: Odds) -> tuple[jax.Array, jax.Array]:
        real = jnp.arange(inputs.draft_tokens.shape[0]) < inputs.draft_count
        kept = jnp.cumprod(real & (uniforms < self._acceptance(inputs, odds)), dtype=jnp.int32)
        # One uniform draw serves both tests, so that `relaxed` compares the two rules on the same draw.
        return jnp.sum(kept), (kept == 1) & ~(uniforms < odds.strict())


class ThresholdRule(TokenRule):
    """A rule that tests each draft token without a draw, where the target's top probability is `confidence` or less.

    Where the target is surer than that, the strict rule decides. A concrete rule has a field `confidence` (1.0 is no
    mask) and a method `passes`.

    Attributes:
      keeps_strict: a token that fails the test is still accepted where the strict rule accepts it; the correction is
        then the strict rule's. Otherwise the test alone decides and the correction is drawn from the target.
    """

    keeps_strict: ClassVar[bool] = True
    confidence: Any  # a field of the concrete rule

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        """The test, bool `[K]`, on the raw logits."""
        raise NotImplementedError

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        strict = odds.strict()
        otherwise = strict if self.keeps_strict else 0.0
        passes = _checked(self, "passes", self.passes(inputs), inputs, jnp.bool_)
        tested = jnp.where(passes, 1.0, otherwise)
        unsure = Normaliser.of(inputs.raw_target_logits[: strict.shape[0]]).top <= self.confidence
        return jnp.where(unsure, tested, strict)

    def residual(
        self, inputs: VerifyInputs, odds: Odds, num_accepted: jax.Array, p: jax.Array, q: jax.Array
    ) -> jax.Array:
        if self.keeps_strict:
            return excess(p, q)
        unsure = Normaliser.of(inputs.raw_target_logits[num_accepted]).top <= self.confidence
        return jnp.where(unsure, p, excess(p, q))


def _checked(rule: Rule, method: str, answer, inputs: VerifyInputs, dtype) -> jax.Array:
    """What a rule's method answered, if it is one value a draft token: broadcasting would let almost all else pass."""
    count = inputs.draft_tokens.shape[0]
    found = (jnp.shape(answer), jnp.result_type(answer))
    if found != ((count,), dtype):
        shapes = [f"{jnp.dtype(kind).name}[{','.join(map(str, shape))}]" for shape, kind in (found, ((count,), dtype))]
        raise InputError(
            f"{type(rule).__name__}.{method} returns {shapes[0]} for a draft of {count} tokens: return {shapes[1]}"
        )
    return answer


def _check_class(rule: type[Rule]) -> None:
    """Raises `InputError` for a rule that lacks something, or asks for what there is not."""
    name = rule.__name__
    missing = [
        f"the method {method!r}"
        for kind, method in ((ThresholdRule, "passes"), (TokenRule, "acceptance"), (Rule, "accept"))
        if issubclass(rule, kind) and getattr(rule, method) is getattr(kind, method)
    ]
    missing += [f"the attribute {each!r}" for each in ("spec_name", "source") if not hasattr(rule, each)]
    fields = {field.name for field in dataclasses.fields(cast(Any, rule))}
    if issubclass(rule, ThresholdRule) and "confidence" not in fields:
        missing.append("the field 'confidence' (1.0 is no mask)")
    if missing:
        raise InputError(f"{name} lacks {missing[0]}: see kljudge_jax.{rule.__mro__[1].__name__}")
    needs: Any = getattr(rule, "needs", frozenset())
    unknown = [] if isinstance(needs, property) else sorted(set(needs) - NEEDS)
    if unknown:
        raise InputError(f"{name} needs {unknown[0]!r}: choose of {', '.join(sorted(NEEDS))}")
    taken = [other for other in RULES if other.spec_name == rule.spec_name and other.greedy_only == rule.greedy_only]
    if taken or rule.spec_name == "none":
        owner = taken[0].__name__ if taken else "plain decoding"
        raise InputError(f"{name} has the spec name {rule.spec_name!r}, which is {owner}'s: choose another")


def register(rule: type) -> type:
    """Makes a frozen dataclass a rule: a pytree whose numbers are data, known to spec strings by its `spec_name`.

    A `Model` of one's own, or its cache, is registered the same way: arrays are data, and what is not is a field with
    `metadata={"static": True}`. JAX takes two classes under its own `register_dataclass` for one where they have as
    many fields, so those are refused.

    One that derives from `Rule` has its fields from `verification.parameters`, or plain numbers. Any other maps
    `(key, VerifyInputs)` to a `Verdict` in its own `__call__`, and has no spec name. A class that is defined again, as
    when a notebook's cell is run twice, takes the place of the old one.

    Raises:
      InputError: the class lacks what its base class asks for, or has another rule's spec name.
    """
    if not dataclasses.is_dataclass(rule):
        raise InputError(f"{rule.__name__} is no dataclass: write @dataclasses.dataclass(frozen=True) under @register")
    if issubclass(rule, Rule):
        if not hasattr(rule, "spec_name") and hasattr(rule, "word"):
            cast(Any, rule).spec_name = rule.word  # as rules of 0.1.0 have it
        RULES[:] = [old for old in RULES if (old.__module__, old.__qualname__) != (rule.__module__, rule.__qualname__)]
        _check_class(rule)
    fields = dataclasses.fields(rule)
    data = [field.name for field in fields if not field.metadata.get("static")]
    register_node(rule, data, [field.name for field in fields if field.metadata.get("static")])
    if issubclass(rule, Rule):
        RULES.append(rule)
    return rule


RULES: list[type[Rule]] = []
