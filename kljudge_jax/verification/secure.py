"""SecureSD: any rule, with the first tokens of an answer left to the strict one."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError
from kljudge_jax.pytree import is_registered
from kljudge_jax.verification.base import Verdict, VerifyInputs
from kljudge_jax.verification.parameters import Parameter, first_tokens
from kljudge_jax.verification.rule import Odds, Rule, register


class WrappedRule(Parameter):
    """A parameter that is a rule."""

    def __str__(self) -> str:
        return "the spec string of a rule, such as kl:0.4"

    def check(self, owner: str, name: str, value: object) -> None:
        if not isinstance(value, Rule) or not is_registered(type(value)):
            raise InputError(f"give {owner} a rule such as KLJudge(0.4) as its {name}, not {value!r}")
        kind = type(value).__name__
        if isinstance(value, Secure):
            raise InputError(f"{owner} wraps no {kind}: wrap what is in it, as in 'secure:kl:0.4', and say first once")
        if getattr(value, "scorer", "draft") == "several drafts":
            raise InputError(f"{owner} wraps no {kind}, which chooses among several drafts and is lossless as it is")
        if value.first is None:
            raise InputError(
                f"{owner} wraps no {kind}, which decides on a draft as a whole and not on its first tokens: wrap a "
                "kljudge_jax.TokenRule"
            )


class _OfTheRule:
    """A class attribute that an instance has from the rule that it wraps."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return getattr(Rule if instance is None else instance.rule, self._name)


@register
@dataclasses.dataclass(frozen=True)
class Secure(Rule):
    r"""The strict rule on the first tokens of an answer, the wrapped rule on all that follow.

    The acceptance probability is (1 - eta_j) strict + eta_j relaxed, with eta_j = 0 for token j < first of the answer,
    and 1 after it. What is rejected among the first tokens is corrected as the strict rule does, from
    norm(max(p - q, 0)), and later as the wrapped rule does. Relaxed rules lose safety long before they lose accuracy,
    and nearly all of it in the first tokens. It is lossless if the wrapped rule is. Where nobody says how far an answer
    has come (`VerifyInputs.position` is None), no token is among the first.

    It wraps every rule that decides token by token, and has its needs, its memory and its numbers. Block verification,
    whose decision on a prefix hangs on the tokens after it, and rules that choose among several drafts are refused:
    they are lossless, and have nothing that first tokens would have to be kept from.

    As a spec string, `secure:kl:0.4,first=2`: the last `first=` is this rule's own, and what else there is belongs to
    the wrapped rule. `kl` has a `first` too, 1 if nothing is said; both are said as in `secure:kl:0.4,first=0,first=2`,
    and the larger of the two holds.

    Maths:
      $$ P(\text{accept } d_j) = (1 - \eta_j) P_{\text{strict}}(d_j) + \eta_j P_{\text{relaxed}}(d_j), \quad
      \eta_j = [j \ge L] $$

    Source: SecureSD, arXiv 2610.08678 (second-hand, and what its released code says of itself): its step schedule,
    with L = 1 or 2.

    Attributes:
      rule: the wrapped rule.
      first: L, so many first tokens of an answer are the strict rule's.
    """

    rule: Any = dataclasses.field(metadata={"parameter": WrappedRule(), "static": False})
    first: int = first_tokens()

    spec_name = "secure"
    source = "SecureSD, arXiv 2610.08678 (second-hand)"
    lossless = _OfTheRule("lossless")
    greedy_only = _OfTheRule("greedy_only")
    needs = _OfTheRule("needs")
    compares_drafts = _OfTheRule("compares_drafts")
    reads_length = _OfTheRule("reads_length")
    ours = _OfTheRule("ours")

    def __getattr__(self, name: str) -> Any:
        # What only some rules have, and the loop asks for: scorer, fuse, prompt, check_pair, init_carry.
        if name.startswith("__") or "rule" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.rule, name)

    def acceptance_distribution(self, inputs: VerifyInputs) -> jax.Array:
        return self._secured().acceptance_distribution(inputs)

    def accept(self, uniforms: jax.Array, inputs: VerifyInputs, odds: Odds) -> tuple[jax.Array, jax.Array]:
        return self._secured().accept(uniforms, inputs, odds)

    def correction(self, inputs: VerifyInputs, num_accepted: jax.Array, odds: Odds | None = None) -> jax.Array:
        return self._secured().correction(inputs, num_accepted, odds)

    def __call__(self, key: jax.Array, inputs: VerifyInputs) -> Verdict:
        return self._secured()(key, inputs)

    def _secured(self) -> Rule:
        """The wrapped rule, told of the tokens that are not its own (`Rule.first`)."""
        ours, theirs = self.first, self.rule.first
        if isinstance(ours, int) and isinstance(theirs, int):
            first: Any = max(ours, theirs)
        else:
            first = jnp.maximum(*(jnp.asarray(each).astype(jnp.int32) for each in (ours, theirs)))
        rule = copy.copy(self.rule)
        object.__setattr__(rule, "first", first)
        return rule
