"""Rules by their specs, and the table of them."""

import json

import jax
import pytest
from random_cases import never_shorter

from kljudge_jax import verification
from kljudge_jax.errors import InputError
from kljudge_jax.verification import (
    DivergenceThreshold,
    EntropyThreshold,
    FLy,
    GreedyExact,
    KLJudge,
    Lenience,
    RegretBudget,
    RelaxedFuzzy,
    RelaxedThinking,
    Secure,
    SpeculativeSampling,
    TopKAcceptance,
    TypicalAcceptance,
    describe_rules,
    parse_verifier,
)
from kljudge_jax.verification.ours import ours_in
from kljudge_jax.verification.rule import RULES
from kljudge_jax.verification.specs import spec_of, threshold_specs


@pytest.mark.parametrize(
    "spec, rule",
    [
        ("exact", SpeculativeSampling()),
        ("kl:0.4", KLJudge(0.4)),
        ("kl:threshold=0.4,confidence=1.0", KLJudge(0.4, 1.0)),
        (" kl : confidence = 1 , threshold = -1 ", KLJudge(-1.0, 1.0)),
        ("kl:0.4,0.5", KLJudge(0.4, 0.5)),
        ("kl:0.4,confidence=0.5", KLJudge(0.4, 0.5)),
        ("kl:0.4,first=0", KLJudge(0.4, first=0)),
        ("fly", FLy()),
        ("fly:0.2,entropy=full", FLy(0.2, entropy="full")),
        ("secure:kl:0.4", Secure(KLJudge(0.4))),
        ("secure:kl:0.4,first=2", Secure(KLJudge(0.4), first=2)),
        ("secure:kl:0.4,first=0,first=2", Secure(KLJudge(0.4, first=0), first=2)),
        ("secure : kl:threshold=0.4 , first = 2 , confidence=1.0", Secure(KLJudge(0.4, 1.0), first=2)),
        ("secure:exact", Secure(SpeculativeSampling())),
        ("secure:exact,first=3", Secure(SpeculativeSampling(), first=3)),
        ("topk:3", TopKAcceptance(3)),
        ("typical", TypicalAcceptance()),
        ("typical:alpha=0.1", TypicalAcceptance(alpha=0.1)),
        ("fuzzy:divergence=js,threshold=0.3", DivergenceThreshold("js", 0.3)),
        ("entropy:1,draft", EntropyThreshold(1.0, "draft")),
        ("adaptive:0.3", Lenience(0.3)),
        ("adaptive:factor=0.3", Lenience(0.3)),
        ("rfuzzy:0.1", RelaxedFuzzy(0.1, "js")),
        ("thinking:section=thinking", RelaxedThinking(section="thinking")),
    ],
)
def test_a_word_is_a_rule(spec, rule):
    assert parse_verifier(spec, greedy=False) == rule


@pytest.mark.parametrize(
    "rule",
    [
        GreedyExact(),
        KLJudge(0.4),
        KLJudge(0.25, 1.0),
        KLJudge(jax.numpy.float32(0.4)),
        TypicalAcceptance(alpha=0.1),
        DivergenceThreshold("js", 0.3),
        EntropyThreshold(1.0, "draft"),
        TopKAcceptance(3),
        KLJudge(0.4, first=0),
        KLJudge(0.4, 0.9, 3),
        FLy(entropy="full"),
        FLy(0.2, 3),
        Secure(KLJudge(0.4)),
        Secure(KLJudge(0.4, first=0), first=2),
        Secure(GreedyExact(), first=4),
        Secure(DivergenceThreshold("js", 0.3), first=jax.numpy.int32(2)),
    ],
)
def test_a_rule_has_the_word_that_makes_it(rule):
    assert parse_verifier(spec_of(rule), greedy=True) == rule


def test_a_rule_for_greedy_decoding_alone_has_a_word_for_that_alone():
    assert parse_verifier("asd:2,1", greedy=True) == RegretBudget(2.0, 1.0, 1)
    with pytest.raises(InputError, match="set the temperature to 0 for 'asd'"):
        parse_verifier("asd:2,1", greedy=False)


def test_the_word_of_a_rule_is_short_and_a_word_is_its_own():
    assert spec_of(KLJudge(0.4)) == "kl:0.4" and spec_of(KLJudge(0.4, 1.0)) == "kl:0.4,1.0"
    assert spec_of(KLJudge(0.4, first=0)) == "kl:0.4,first=0" and spec_of(FLy(entropy="full")) == "fly:entropy=full"
    assert spec_of(Secure(KLJudge(0.4, first=0), first=2)) == "secure:kl:0.4,first=0,first=2"
    assert spec_of(Secure(KLJudge(jax.numpy.arange(2.0)))).startswith("Secure-")
    assert (spec_of(None), spec_of("kl:threshold=1")) == ("none", "kl:threshold=1")
    for wrong in (0.4, KLJudge, ["exact"]):
        with pytest.raises(InputError, match="or a rule such as KLJudge"):
            spec_of(wrong)


def test_exact_follows_the_temperature_and_none_is_plain():
    assert parse_verifier("exact", greedy=True) == GreedyExact()
    assert parse_verifier("none", greedy=True) is None


@pytest.mark.parametrize(
    "spec, says",
    [
        ("kll:0.4", "choose one of the rules adaptive, all, asd, block"),
        ("", "choose one of the rules"),
        ("none:1", "plain decoding takes no parameters"),
        ("kl", "give 'kl' its threshold, as in 'kl:threshold=...,confidence=0.9,first=1'"),
        ("kl:", "not ''"),
        ("kl:confidence=0.5", "its threshold"),
        ("kl:0.4,tau=1", "'tau=1' is no parameter of 'kl'"),
        ("kl:confidence=0.5,0.4", "'0.4' is no parameter of 'kl'"),
        ("kl:0.4,0.5,1,0.6", "'0.6' is no parameter of 'kl'"),
        ("kl:0.4,first=0.5", "a whole number from 0 as its first, not '0.5'"),
        ("kl:0.4,first=-1", "a whole number from 0 as its first, not -1"),
        ("secure", "give 'secure' a rule, as in 'secure:kl:0.4,first=1'"),
        ("secure:first=1", "give 'secure' a rule, as in 'secure:kl:0.4,first=1'"),
        ("secure:none", "plain decoding"),
        ("secure:kl", "give 'kl' its threshold"),
        ("secure:kl:0.4,first=few", "'secure' a whole number from 0 as its first, not 'few'"),
        ("secure:block", "Secure wraps no BlockVerification, which decides on a draft as a whole"),
        ("secure:kseq:2", "Secure wraps no KSequential, which chooses among several drafts"),
        ("secure:secure:kl:0.4", "wrap what is in it, as in 'secure:kl:0.4'"),
        ("kl:0.4,threshold=0.4", "its threshold once, not twice"),
        ("kl:high", "a number as its threshold, not 'high'"),
        ("kl:nan", "a number as its threshold, not nan"),
        ("kl:0.4,confidence=2", "a number from 0 up to 1 as its confidence, not 2.0"),
        ("topk:2.5", "a whole number from 1 as its k, not '2.5'"),
        ("fuzzy:chi,0.3", "one of js"),
        ("all:1", "'1' is no parameter of 'all'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(spec, says):
    with pytest.raises(InputError) as error:
        parse_verifier(spec, greedy=False)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "values", "specs"),
    [
        ("kl", ["0.1", " 0.4"], ["kl:0.1", "kl:0.4"]),
        ("kl:confidence=1.0", ["0.1"], ["kl:confidence=1.0,threshold=0.1"]),
        ("fuzzy:js", ["0.1", "0.2"], ["fuzzy:js,threshold=0.1", "fuzzy:js,threshold=0.2"]),
        ("topk", ["1", "3"], ["topk:1", "topk:3"]),
        ("secure:kl", ["0.1", "0.4"], ["secure:kl:0.1,first=1", "secure:kl:0.4,first=1"]),
        ("secure:fuzzy:js,first=2", ["0.1"], ["secure:fuzzy:js,threshold=0.1,first=2"]),
        ("thinking:10", ["0.1", "0.2"], ["thinking:10,delta=0.1", "thinking:10,delta=0.2"]),
        ("entropy", ["1.5", "0.5"], ["entropy:1.5", "entropy:0.5"]),
        (
            "entropy:model=draft",
            ["0.5", "1.5"],
            ["entropy:model=draft,threshold=0.5", "entropy:model=draft,threshold=1.5"],
        ),
        ("lenience", ["0.9", "0.1"], ["lenience:0.9", "lenience:0.1"]),
    ],
)
def test_a_rule_less_its_threshold_is_a_word_at_each(spec, values, specs):
    assert threshold_specs(spec, values, greedy=True) == specs
    assert all(parse_verifier(spec, greedy=True) for spec in specs)


@pytest.mark.parametrize(
    ("spec", "values", "says"),
    [
        ("kl", ["0.4", "0.1"], "from strict to relaxed, from small to large, not '0.4,0.1'"),
        ("lenience", ["0.1", "0.9"], "from large to small"),
        ("entropy", ["1", "2", "1.5"], "from strict to relaxed, not"),
        ("kl", ["0.1", "0.1"], "from strict to relaxed"),
        ("exact", ["0.1"], "'exact' is lossless"),
        ("none", ["0.1"], "plain decoding"),
        ("all", ["0.1"], "'all' has none"),
        ("kl:0.4,0.9", ["0.1"], "has none"),
        ("fuzzy", ["0.1"], "its divergence"),
        ("secure:exact", ["0.1"], "'exact' is lossless"),
        ("secure:kl", ["0.4", "0.1"], "from small to large"),
        ("topk", ["1.5"], "a whole number"),
        ("random", ["2"], "up to 1"),
    ],
)
def test_thresholds_in_no_order_or_of_no_relaxed_rule_are_refused(spec, values, says):
    with pytest.raises(InputError, match=says):
        threshold_specs(spec, values, greedy=True)


@pytest.mark.parametrize(
    ("spec", "strict", "relaxed"),
    [
        ("kl", "0.05", "0.5"),
        ("fuzzy:js", "0.05", "0.3"),
        ("topk", "1", "3"),
        ("thinking", "1", "4"),
        ("thinking:10", "0.1", "0.5"),
        ("typical:alpha=1.0", "0.5", "0.1"),
        ("typical:0.5", "0.5", "0.1"),
        ("fly", "0.9", "0.2"),
        ("fly:entropy=full", "0.9", "0.2"),
        ("margin", "0.9", "0.1"),
        ("lenience", "0.9", "0.1"),
        ("adaptive", "0.9", "0.1"),
        ("asd:gate=9,mismatches=9", "0.1", "9"),
        ("asd:9,mismatches=9", "0.1", "9"),
        ("asd:9,9", "0", "2"),
        ("cascade_opt", "-0.5", "0.5"),
        ("cascade_tok", "0.1", "0.9"),
        ("rfuzzy", "0.01", "0.5"),
        ("thinking_ratio:ratio=0.1", "1", "4"),
        ("thinking_ratio:10", "0.9", "0.1"),
        ("mentored", "0.1", "0.9"),
        ("cactus", "0.1", "0.9"),
        ("random", "0.1", "0.9"),
    ],
)
def test_a_rule_keeps_more_the_way_that_it_is_said_to_relax(spec, strict, relaxed):
    rules = [parse_verifier(spec, True) for spec in threshold_specs(spec, [strict, relaxed], greedy=True)]
    assert never_shorter(rules, greedy=True)
    with pytest.raises(InputError, match="from strict to relaxed, from"):
        threshold_specs(spec, [relaxed, strict], greedy=True)


@pytest.mark.parametrize(
    ("spec", "strict", "relaxed"),
    [("ears", "0.1", "0.9"), ("entropy_verify:alpha=0", "0.9", "0.1"), ("entropy_verify:1.0", "0.1", "2")],
)
def test_a_rule_that_is_strict_when_greedy_relaxes_as_it_is_said_to_when_sampling(spec, strict, relaxed):
    rules = [parse_verifier(spec, False) for spec in threshold_specs(spec, [strict, relaxed], greedy=False)]
    assert never_shorter(rules, greedy=False)
    with pytest.raises(InputError, match="from strict to relaxed, from"):
        threshold_specs(spec, [relaxed, strict], greedy=False)


def test_an_alias_is_another_name_of_a_rule_in_the_table_too():
    (row,) = [row for row in describe_rules() if row["spec"] == "adaptive"]
    assert row["name"] == "Lenience" and row["usage"] == "adaptive:factor=..."
    assert row["summary"].startswith("Another name of lenience: ") and "2609.02897" in row["source"]
    assert spec_of(parse_verifier("adaptive:0.3", True)) == "lenience:0.3"
    with pytest.raises(InputError, match=r"give 'adaptive' its factor, as in 'adaptive:factor=...'"):
        parse_verifier("adaptive", True)


def test_the_table_is_read_off_the_classes():
    table = describe_rules()
    assert json.loads(json.dumps(table)) == table
    assert {row["name"] for row in table} == {rule.__name__ for rule in RULES} <= set(verification.__all__)
    kl = next(row for row in table if row["spec"] == "kl")
    assert kl["parameters"] == [
        {"name": "threshold", "allowed": "a number", "default": None},
        {"name": "confidence", "allowed": "a number from 0 up to 1", "default": 0.9},
        {"name": "first", "allowed": "a whole number from 0", "default": 1},
    ]
    assert not kl["lossless"] and "2601.04766" in kl["source"] and len(kl["summary"]) < 120
    assert {row["name"] for row in table if row["lossless"]} == {
        "BlockVerification",
        "GreedyExact",
        "KSequential",
        "MultiPathBlock",
        "SpeculativeSampling",
    }
    assert all(row["source"] and row["summary"] for row in table)


def test_the_table_says_what_is_ours():
    said = {row["name"]: row["ours"] for row in describe_rules()}
    assert "greedy" in said["TypicalAcceptance"] and "sampling" in said["KLJudge"] and "greedy" in said["Mentored"]
    assert not any(said[name] for name in ("SpeculativeSampling", "GreedyExact", "BlockVerification", "Lenience"))
    for spec, greedy, marked in (
        ("typical", True, True),
        ("typical", False, False),
        ("kl:0.4", True, False),
        ("kl:0.4", False, True),
        ("random:0.3", True, True),
        ("random:0.3", False, True),
        ("secure:typical", True, True),
        ("secure:typical,first=2", False, False),
        ("exact", True, False),
        ("none", True, False),
        ("hf:lookup:3", False, False),
        ("KLJudge-0a1b2c3d", False, False),
    ):
        assert bool(ours_in(spec, greedy)) == marked, spec


@pytest.mark.parametrize(
    ("spec", "greedy", "says"),
    [
        ("fly", False, ""),
        ("fly:entropy=full", False, "its form when sampling with entropy=full"),
        ("fly:entropy=full", True, ""),
        ("thinking:section=thinking", True, ""),
        ("thinking", True, "section=all"),
        ("thinking_ratio:section=thinking", False, "its form when sampling"),
        ("rfuzzy:0.3", True, ""),
        ("rfuzzy:0.3,js", False, ""),
        ("rfuzzy:0.3,tv", True, "its divergence"),
        ("rfuzzy:0.3,divergence=tv,confidence=0.9", True, "its divergence, and its confidence"),
        ("fuzzy:tv,0.3", True, ""),
        ("fuzzy:tv,0.3,confidence=1", True, ""),
        ("fuzzy:js,0.3,confidence=0.9", False, "its confidence"),
        ("topk:2,confidence=0.9", True, "its confidence"),
        ("topk:2,confidence=0.9", False, "its form when sampling, and its confidence"),
        ("secure:fuzzy:js,0.3,confidence=0.9,first=2", True, "its confidence"),
        ("kl:0.4,confidence=0.5", True, ""),  # the mask is its source's
        ("entropy:1.0,confidence=0.5", True, "all of it"),
        ("judge:no/such/folder,0.5", True, ""),  # nothing is read
        ("judge:no/such/folder,0.5,0.9", True, "its confidence"),
        # A name that another source gave to a rule that has one: both of its forms are published, as `lenience`.
        ("adaptive:0.3", True, ""),
        ("adaptive:0.3", False, ""),
    ],
)
def test_what_is_ours_hangs_on_the_parameters(spec, greedy, says):
    assert ours_in(spec, greedy) == says


def test_the_table_says_which_values_are_ours():
    said = {row["spec"]: row["ours_with"] for row in describe_rules()}
    assert said["rfuzzy"] == "divergence other than js, confidence other than 1.0"
    assert said["fuzzy"] == said["topk"] == "confidence other than 1.0"
    assert said["kl"] == said["entropy"] == said["adaptive"] == said["exact"] == ""
