"""Which meaning a spec string has: that of a rule changes now and then, and answers of both are not one rule's."""

from __future__ import annotations

from kljudge_jax.errors import InputError
from kljudge_jax.spec import assigned, read_spec
from kljudge_jax.verification.parameters import parameters_of
from kljudge_jax.verification.rule import RULES, Rule


def meaning_of(spec: str) -> int:
    """The number of the meaning that a spec string has in this version, from 1 on.

    It is 1 of rules that never changed, and of what is no rule's spec string. `secure:` came after the last change.
    """
    rule = _rule(spec)
    return 1 if rule is None else 1 + len(rule.earlier)


def as_meant(spec: str, meaning: int) -> str:
    """The spec string that says in this version what `spec` said when its meaning was of that number."""
    rule = _rule(spec)
    if rule is None or not 1 <= meaning <= len(rule.earlier):
        return spec
    return f"{spec}{',' if ':' in spec else ':'}{rule.earlier[meaning - 1]}"


def say_the_same(one: str, other: str) -> bool:
    """Whether two spec strings give one rule the same parameters, in whatever order and by name or place."""
    return one == other or (_said(one) is not None and _said(one) == _said(other))


def _said(spec: str) -> tuple[str, dict[str, str]] | None:
    rule = _rule(spec)
    try:
        return None if rule is None else (rule.spec_name, assigned(spec, parameters_of(rule), spec))
    except InputError:
        return None


def _rule(spec: str) -> type[Rule] | None:
    name, _ = read_spec(spec)
    return next((rule for rule in RULES if rule.spec_name == name), None)
