"""Rules by their spec strings: `kl:0.4`, `fuzzy:divergence=js,threshold=0.3`, and the table that lists them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.spec import assigned, read_items, read_spec
from kljudge_jax.verification.parameters import Parameter, parameters_of
from kljudge_jax.verification.rule import RULES, Rule, source_values
from kljudge_jax.verification.secure import Secure, WrappedRule

_PLAIN = "none"


def parse_verifier(spec: str, greedy: bool) -> Rule | None:
    """The rule that a spec string stands for; None for `none`, plain decoding.

    Args:
      spec: a rule's name and, after a colon, its parameters: values in order, then `name=value`, commas between.
      greedy: temperature 0. `exact` is GreedyExact then, and SpeculativeSampling otherwise.

    Raises:
      InputError: no such rule, or a parameter that is unknown, missing, given twice or out of its range.
    """
    name, _, rest = (part.strip() for part in spec.partition(":"))
    if name == _PLAIN:
        if rest:
            raise InputError(f"write {_PLAIN!r} alone: plain decoding takes no parameters, not {rest!r}")
        return None
    if name == Secure.spec_name:
        inner, first = wrapped_spec(rest)
        wrapped = parse_verifier(inner, greedy)
        if wrapped is None:
            raise InputError(f"give {name!r} a rule such as 'kl:0.4', for {_PLAIN!r} is plain decoding")
        return Secure(wrapped, **first)
    rule, values = _read(spec, greedy)
    parameters = parameters_of(rule)
    missing = [key for key, (_, default) in parameters.items() if default is dataclasses.MISSING and key not in values]
    if missing:
        raise InputError(f"give {name!r} its {' and '.join(missing)}, as in {_usage(rule, name)!r}")
    return rule(**values)


def spec_of(rule: Any) -> str:
    """What results name a rule by: its spec string, `none` for no rule, and a spec string as it is.

    A rule that no spec string makes, for it is not registered or holds arrays, is named by its class and what it holds.

    Raises:
      InputError: this is neither a rule nor the spec string of one.
    """
    if rule is None or isinstance(rule, str):
        return rule or _PLAIN
    if not callable(rule) or isinstance(rule, type):
        raise InputError(f"a rule is a spec string such as 'kl:0.4' or a rule such as KLJudge(0.4), not {rule!r}")
    written = _written_out(rule)
    if written is not None:
        return written
    leaves, structure = jax.tree.flatten(rule)
    held = b"".join(np.asarray(leaf).tobytes() for leaf in leaves) + str(structure).encode()
    return f"{type(rule).__name__}-{hashlib.sha256(held).hexdigest()[:8]}"


def called(rule: Any) -> str:
    """What a message calls a rule: its class; one that wraps another by its spec string, which says what it wraps."""
    if not isinstance(rule, Secure):
        return type(rule).__name__
    if all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(rule)):
        spec = spec_of(rule)
        # Its own `first` may be left out where no other one would be taken for it.
        short = spec.removesuffix(f",first={parameters_of(Secure)['first'][1]}")
        return spec if "first=" in short else short
    return f"{type(rule).__name__} of {called(rule.rule)}"


def _written_out(rule: Any) -> str | None:
    """The spec string that makes a rule, less what holds without being said; None if none does."""
    if type(rule) not in RULES or any(np.ndim(leaf) for leaf in jax.tree.leaves(rule)):
        return None
    if isinstance(rule, Secure):
        wrapped = _written_out(rule.rule)
        return None if wrapped is None else f"{rule.spec_name}:{wrapped},first={rule.first}"
    items: list[str] = []
    in_order = True
    for key, (parameter, default) in parameters_of(type(rule)).items():
        if type(parameter) is not Parameter:
            return None
        value = getattr(rule, key)
        if default is not dataclasses.MISSING and value == default:
            in_order = False  # what comes after it is named
        else:
            items.append(str(value) if in_order else f"{key}={value}")
    return ":".join([rule.spec_name, *([",".join(items)] if items else [])])


def threshold_specs(spec: str, values: Sequence[str], greedy: bool) -> list[str]:
    """The specs of a relaxed rule at several thresholds: of `kl` and `0.1`, `0.4`, they are `kl:0.1` and `kl:0.4`.

    Args:
      spec: the rule less its threshold, which is the first number that the spec leaves out: `kl`, `fuzzy:js`,
        `judge:FOLDER`.
      values: from strict to relaxed.
      greedy: temperature 0.

    Raises:
      InputError: no such rule, one that is lossless or leaves no number open, or values that it cannot take, in no
        order, or from relaxed to strict.
    """
    name, _, given = (part.strip() for part in spec.partition(":"))
    if name == _PLAIN:
        raise InputError(f"choose a relaxed rule such as 'kl', for {_PLAIN!r} is plain decoding")
    if name == Secure.spec_name:
        inner, first = wrapped_spec(given)
        found = [f"{name}:{one},first={first.get('first', 1)}" for one in threshold_specs(inner, values, greedy)]
        parse_verifier(found[0], greedy)  # what it refuses to wrap
        return found
    rule, known = _read(spec, greedy)
    if rule.lossless:
        raise InputError(f"choose a relaxed rule such as 'kl', for {name!r} is lossless and has nothing to lose")
    parameters = parameters_of(rule)
    # How many tokens the strict rule has for itself is no threshold.
    numeric = [key for key, value in parameters.items() if key != "first" and _is_number(*value)]
    open_ones = [key for key in numeric if key not in known]
    if not open_ones:
        raise InputError(f"leave a threshold of {_usage(rule, name)!r} open to be chosen, for {spec!r} has none")
    key = open_ones[0]
    parameter = parameters[key][0]
    numbers: list[Any] = [parameter.parse(repr(name), key, value.strip()) for value in values]
    steps = list(itertools.pairwise(numbers))
    upward, downward = all(a < b for a, b in steps), all(a > b for a, b in steps)
    if not (upward if parameter.relaxes == "up" else downward if parameter.relaxes == "down" else upward or downward):
        order = {"up": ", from small to large", "down": ", from large to small"}.get(parameter.relaxes, "")
        raise InputError(f"give the thresholds of {name!r} from strict to relaxed{order}, not {','.join(values)!r}")
    short = not given and key == next(iter(parameters))
    head = f"{name}:{given}," if given else f"{name}:"
    specs = [head + ("" if short else f"{key}=") + value.strip() for value in values]
    parse_verifier(specs[0], greedy)  # what else it lacks
    return specs


def _is_number(parameter: Parameter, default: object) -> bool:
    plain = type(parameter) is Parameter and not parameter.choices
    return plain and (default is dataclasses.MISSING or isinstance(default, int | float))


def describe_rules() -> list[dict[str, Any]]:
    """One row a rule and one an alias, sorted by spec name, read off the classes; every value is plain JSON.

    Keys: name, spec, usage, lossless, greedy_only, parameters (name, allowed, default), source, ours (what of it is not
    its source's, or ""), ours_with (which values of parameters are ours beside that, or ""), summary.
    """
    named = [(rule.spec_name, rule) for rule in RULES]
    named += [(alias, rule) for rule in RULES for alias in _aliases(rule)]
    rows = []
    for spec, rule in sorted(named, key=lambda each: (each[0], each[1].__name__)):
        summary = (inspect.getdoc(rule) or "").partition("\n")[0]
        rows.append(
            {
                "name": rule.__name__,
                "spec": spec,
                "usage": _usage(rule, spec),
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
                "source": _aliases(rule).get(spec, rule.source),
                "ours": rule.ours,
                "ours_with": ", ".join(
                    f"{name} other than {' or '.join(map(str, known))}" for name, known in source_values(rule).items()
                ),
                "summary": summary if spec == rule.spec_name else f"Another name of {rule.spec_name}: {summary}",
            }
        )
    return rows


def wrapped_spec(text: str) -> tuple[str, dict[str, Any]]:
    """What follows `secure:`, as the spec of the wrapped rule, and the `first` that is its own, if that is said."""
    items = read_items(text)
    own = max((i for i, item in enumerate(items) if item.key == "first"), default=None)
    inner = ",".join(item.text for i, item in enumerate(items) if i != own)
    if not inner:
        raise InputError(f"give {Secure.spec_name!r} a rule, as in 'secure:kl:0.4,first=1'")
    if own is None:
        return inner, {}
    parameter = parameters_of(Secure)["first"][0]
    return inner, {"first": parameter.parse(repr(Secure.spec_name), "first", items[own].value)}


def _read(spec: str, greedy: bool) -> tuple[type[Rule], dict[str, object]]:
    """The rule of a spec, and the parameters that the spec gives."""
    name, _ = read_spec(spec)
    rule = find_rule(name, greedy)
    parameters = parameters_of(rule)
    texts = assigned(spec, parameters, _usage(rule, name))
    return rule, {key: parameters[key][0].parse(repr(name), key, text) for key, text in texts.items()}


def find_rule(name: str, greedy: bool) -> type[Rule]:
    """The rule of that name, or of which it is an alias.

    Raises:
      InputError: no such rule, or it is one of greedy decoding alone and this is not.
    """
    # A rule of one's own may have the name that is another's alias.
    namesakes = [rule for rule in RULES if rule.spec_name == name]
    namesakes = namesakes or [rule for rule in RULES if name in _aliases(rule)]
    if not namesakes:
        known = sorted({_PLAIN, *(spec for rule in RULES for spec in (rule.spec_name, *_aliases(rule)))})
        raise InputError(f"choose one of the rules {', '.join(known)}, not {name!r}")
    fitting = [rule for rule in namesakes if greedy or not rule.greedy_only]
    if not fitting:
        raise InputError(f"set the temperature to 0 for {name!r}, which verifies greedy decoding only")
    return max(fitting, key=lambda rule: rule.greedy_only)


def _written(parameter, default) -> str:
    """A default as one would write it: text in quotes, which keep its spaces and commas."""
    return f'"{default}"' if isinstance(default, str) and not parameter.choices else str(default)


def _aliases(rule: type[Rule]) -> dict[str, str]:
    """Other names of a rule, as other sources call it, each with that source."""
    return getattr(rule, "aliases", {})


def _usage(rule: type[Rule], spec: str = "") -> str:
    """`kl:threshold=...,confidence=0.9`, or by another of its names."""
    shown = [
        "..."
        if isinstance(parameter, WrappedRule)
        else f"{name}={'...' if default is dataclasses.MISSING else _written(parameter, default)}"
        for name, (parameter, default) in parameters_of(rule).items()
    ]
    return (spec or rule.spec_name) + (":" + ",".join(shown) if shown else "")
