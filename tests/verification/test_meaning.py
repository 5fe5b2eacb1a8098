"""What spec strings mean now, and what they meant."""

import pytest

from kljudge_jax.verification import parse_verifier
from kljudge_jax.verification.meaning import as_meant, meaning_of, say_the_same
from kljudge_jax.verification.rule import RULES


def test_three_rules_have_another_meaning_than_in_0_1_0():
    assert {rule.spec_name for rule in RULES if meaning_of(rule.spec_name) != 1} == {"kl", "judge", "fly"}
    for spec in ("none", "exact", "draft", "hf:assisted", "lookup:3", "KLJudge-12345678", "secure:kl:0.4"):
        assert meaning_of(spec) == 1 and as_meant(spec, 1) == spec


@pytest.mark.parametrize(
    ("spec", "now"),
    [
        ("kl:0.4", "kl:0.4,first=0"),
        ("kl:threshold=0.4,confidence=1.0", "kl:threshold=0.4,confidence=1.0,first=0"),
        ("judge:embedded,0.2", "judge:embedded,0.2,first=0"),
        ("fly", "fly:entropy=full"),
        ("fly:0.3,2", "fly:0.3,2,entropy=full"),
    ],
)
def test_what_was_meant_is_written_with_what_was_not_to_be_said_then(spec, now):
    assert as_meant(spec, 1) == now and as_meant(spec, 2) == spec and as_meant(spec, 3) == spec
    rule = parse_verifier(now, greedy=True)
    assert getattr(rule, "entropy", rule.first) in (0, "full")


def test_specs_that_say_the_same_in_other_words():
    assert say_the_same("kl:0.4,first=0", "kl:first=0, threshold=0.4") and say_the_same("none", "none")
    for one, other in (("kl:0.4", "kl:0.5"), ("kl:0.4", "kl:0.4,first=0"), ("none", "exact"), ("kl:a=1", "kl:b=1")):
        assert not say_the_same(one, other)
