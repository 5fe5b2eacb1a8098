"""Which form of a rule is ours and not its source's: what tables say beside its name."""

from __future__ import annotations

from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.spec import assigned
from kljudge_jax.verification.parameters import Parameter, parameters_of
from kljudge_jax.verification.rule import Rule, source_values
from kljudge_jax.verification.secure import Secure
from kljudge_jax.verification.specs import find_rule, wrapped_spec


def ours_in(spec: str, greedy: bool) -> str:
    """What is ours of the rule of a spec string, as far as it concerns runs of this kind and its parameters.

    Empty for none, and for what is no rule's spec string. Another name of a rule is marked as the rule is: what `ours`
    compares with is the source of the form, whoever gave it that name.
    """
    name, _, rest = (part.strip() for part in spec.partition(":"))
    try:
        if name == Secure.spec_name:
            return ours_in(wrapped_spec(rest)[0], greedy)
        rule = find_rule(name, greedy)
        values = _values(rule, spec)
    except InputError:
        return ""
    said = [rule.form_of_ours(greedy, values)]
    said += [f"its {key}" for key, known in source_values(rule).items() if values.get(key, known[0]) not in known]
    return ", and ".join(filter(None, said))


def _values(rule: type[Rule], spec: str) -> dict[str, Any]:
    """The parameters that a table can tell apart: of those that stand for a file or a rule nothing is read."""
    parameters = parameters_of(rule)
    texts = assigned(spec, parameters, rule.spec_name)
    return {
        key: parameter.parse(rule.spec_name, key, texts[key]) if key in texts else default
        for key, (parameter, default) in parameters.items()
        if type(parameter) is Parameter
    }
