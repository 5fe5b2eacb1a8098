"""Rules by their command-line word: `kl:0.4`, `fuzzy:divergence=js,threshold=0.3`, and the table that lists them."""

from __future__ import annotations

import dataclasses
import inspect
import re

from kljudge_jax.errors import InputError
from kljudge_jax.verification.parameters import parameters_of
from kljudge_jax.verification.rule import RULES, Rule

_PLAIN = "none"


def parse_verifier(word: str, greedy: bool) -> Rule | None:
    """The rule that a word of the command line stands for; None for `none`, plain decoding.

    Args:
      word: a rule's word and, after a colon, its parameters: values in order, then `name=value`, commas between.
      greedy: temperature 0. `exact` is GreedyExact then, and SpeculativeSampling otherwise.

    Raises:
      InputError: no such rule, or a parameter that is unknown, missing, given twice or out of its range.
    """
    name, colon, rest = (part.strip() for part in word.partition(":"))
    if name == _PLAIN:
        if rest:
            raise InputError(f"write {_PLAIN!r} alone: plain decoding takes no parameters, not {rest!r}")
        return None
    rule = _find(name, greedy)
    parameters = parameters_of(rule)
    values: dict[str, object] = {}
    named = False
    # A comma between double quotes is a part of some text.
    items = re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', rest) if colon else ()
    for position, item in enumerate(items):
        key, equals, text = (part.strip() for part in item.partition("="))
        named = named or bool(equals)
        if not equals and not named and position < len(parameters):
            key, text = list(parameters)[position], key
        elif not equals or key not in parameters:
            raise InputError(f"write {_usage(rule)!r}, for {item!r} is no parameter of {name!r}")
        if key in values:
            raise InputError(f"give {name!r} its {key} once, not twice as in {word!r}")
        values[key] = parameters[key][0].parse(repr(name), key, text)
    missing = [key for key, (_, default) in parameters.items() if default is dataclasses.MISSING and key not in values]
    if missing:
        raise InputError(f"give {name!r} its {' and '.join(missing)}, as in {_usage(rule)!r}")
    return rule(**values)


def describe_rules() -> list[dict[str, object]]:
    """One row a rule, sorted by word, read off the classes; every value is plain JSON.

    Keys: name, word, usage, lossless, greedy_only, parameters (name, allowed, default), source, summary.
    """
    rows = []
    for rule in sorted(RULES, key=lambda rule: (rule.word, rule.__name__)):
        rows.append(
            {
                "name": rule.__name__,
                "word": rule.word,
                "usage": _usage(rule),
                "lossless": rule.lossless,
                "greedy_only": rule.greedy_only,
                "parameters": [
                    {
                        "name": name,
                        "allowed": str(parameter),
                        "default": None if default is dataclasses.MISSING else default,
                    }
                    for name, (parameter, default) in parameters_of(rule).items()
                ],
                "source": rule.source,
                "summary": inspect.getdoc(rule).splitlines()[0],
            }
        )
    return rows


def _find(name: str, greedy: bool) -> type[Rule]:
    namesakes = [rule for rule in RULES if rule.word == name]
    if not namesakes:
        known = sorted({rule.word for rule in RULES} | {_PLAIN})
        raise InputError(f"choose one of the rules {', '.join(known)}, not {name!r}")
    fitting = [rule for rule in namesakes if greedy or not rule.greedy_only]
    if not fitting:
        raise InputError(f"set the temperature to 0 for {name!r}, which verifies greedy decoding only")
    return max(fitting, key=lambda rule: rule.greedy_only)


def _written(parameter, default) -> str:
    """A default as one would write it: text in quotes, which keep its spaces and commas."""
    return f'"{default}"' if isinstance(default, str) and not parameter.choices else str(default)


def _usage(rule: type[Rule]) -> str:
    """`kl:threshold=...,confidence=0.9`"""
    shown = [
        f"{name}={'...' if default is dataclasses.MISSING else _written(parameter, default)}"
        for name, (parameter, default) in parameters_of(rule).items()
    ]
    return rule.word + (":" + ",".join(shown) if shown else "")
