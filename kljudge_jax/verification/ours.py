"""Which form of a rule is ours and not its source's: what tables say beside its name."""

from __future__ import annotations

from kljudge_jax.verification.rule import RULES
from kljudge_jax.verification.secure import Secure


def ours_in(spec: str, greedy: bool) -> str:
    """What is ours of the rule of a spec string, as far as it concerns runs of this kind; empty for none, and for what
    is no rule's spec string."""
    name, _, rest = spec.partition(":")
    if name.strip() == Secure.spec_name:
        return ours_in(rest, greedy)
    name = name.partition(",")[0].strip()
    for rule in RULES:
        said = rule.ours if rule.spec_name == name else ""
        forms = [form for form in ("greedy", "sampling") if form in said]
        if said and (len(forms) != 1 or (forms[0] == "greedy") == greedy):
            return said
    return ""
