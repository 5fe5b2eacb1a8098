"""Rules of one's own that break the contract are refused before anything runs, and told how."""

import dataclasses
import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import PROMPTS

import kljudge_jax as kj
from kljudge_jax.core.rule_check import check_rule
from kljudge_jax.errors import InputError
from kljudge_jax.verification.rule import RULES

SHAPES = {"draft_length": 4, "vocab_size": 9, "draft_state": None, "target_state": None}


def rule(call):
    """A rule with one number, as one would write it."""
    made = dataclasses.make_dataclass("Mine", [("number", float)], namespace={"__call__": call}, frozen=True)
    return kj.register(made)(jnp.float32(1.0))


def verdict(inputs, **changes):
    token = jnp.argmax(inputs.target_logits[0]).astype(jnp.int32)
    return dataclasses.replace(kj.Verdict(jnp.int32(0), token, jnp.zeros(inputs.draft_tokens.shape, bool)), **changes)


def test_a_good_rule_is_traced_once_for_its_shapes():
    traces = []

    def call(self, key, inputs):
        hidden = inputs.draft_hidden
        traces.append((inputs.draft_logits.shape, None if hidden is None else (hidden.shape, hidden.dtype)))
        return verdict(inputs, num_accepted=jnp.where(self.number > jax.random.uniform(key), inputs.draft_count, 0))

    mine = rule(call)
    check_rule(mine, **SHAPES)
    first = len(traces)
    check_rule(jax.tree.map(lambda x: x + 1, mine), **SHAPES)
    assert len(traces) == first == 2
    assert traces[0] == ((4, 9), None)
    check_rule(mine, **SHAPES | {"draft_state": (16, jnp.dtype(jnp.bfloat16)), "draft_length": 3})
    assert traces[-1] == ((3, 9), ((3, 16), jnp.bfloat16))


kept = []
counter = iter(range(99))


def leaks(inputs):
    kept.append(inputs.draft_count + 1)
    return verdict(inputs)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda inputs: (jnp.int32(0), jnp.int32(0)), "returns a tuple: return a kljudge_jax.Verdict"),
        (lambda inputs: {"num_accepted": 0}, "returns a dict: return a kljudge_jax.Verdict"),
        (lambda inputs: "all", "no tree of arrays: return a kljudge_jax.Verdict"),
        (lambda inputs: verdict(inputs, num_accepted=jnp.float32(0)), r"float32\[\] as num_accepted: return int32\[\]"),
        (lambda inputs: verdict(inputs, next_token=inputs.draft_tokens), r"int32\[4\] as next_token: return int32\[\]"),
        (lambda inputs: verdict(inputs, relaxed=jnp.zeros((5,), bool)), r"bool\[5\] as relaxed: return bool\[4\]"),
        (lambda inputs: verdict(inputs, relaxed=inputs.draft_tokens), r"int32\[4\] as relaxed: return bool\[4\]"),
        (lambda inputs: verdict(inputs, relaxed=None), r"NoneType as relaxed: return bool\[4\]"),
        (lambda inputs: verdict(inputs) if inputs.draft_count > 0 else None, "only traced: write jnp.where"),
        (lambda inputs: verdict(inputs, next_token=int(np.argmax(inputs.target_logits[0]))), "jnp in place of NumPy"),
        (lambda inputs: verdict(inputs, num_accepted=jnp.int32(next(counter))), "another function each time"),
    ],
)
def test_what_breaks_the_contract_is_named(answer, says):
    with pytest.raises(InputError, match=says) as error:
        check_rule(rule(lambda self, key, inputs: answer(inputs)), **SHAPES)
    assert str(error.value).startswith("Mine ") and "\n" not in str(error.value)


def test_an_array_that_leaves_its_trace_is_named():
    # JAX asks of every object that there is whether it holds the array: not of those that are frozen.
    gc.freeze()
    try:
        test_what_breaks_the_contract_is_named(leaks, "lets an array out of its trace")
    finally:
        gc.unfreeze()


def test_a_rules_own_errors_are_its_own():
    def call(self, key, inputs):
        raise KeyError("no such table")

    with pytest.raises(KeyError, match="no such table"):
        check_rule(rule(call), **SHAPES)


def test_generate_checks_before_it_runs(pair, monkeypatch):
    monkeypatch.setattr("kljudge_jax.generation.programs.start", lambda *args, **options: pytest.fail("it ran"))
    with pytest.raises(InputError, match=r"Mine returns bool\[3\] as relaxed: return bool\[4\]"):
        mine = rule(lambda self, key, inputs: verdict(inputs, relaxed=jnp.zeros((3,), bool)))
        kj.generate(pair, PROMPTS, verifier=mine, draft_length=4)


def as_taught(base, **methods):
    """A rule written as the README teaches, less what it says."""
    made = dataclasses.make_dataclass(
        "Taught",
        [("threshold", float, 0.5), ("confidence", float, 1.0)],
        bases=(base,),
        frozen=True,
        namespace={"word": "taught", "source": "a test", **methods},
    )
    return kj.register(made)


@pytest.fixture
def forgotten():
    """Rules that a test registers are of no other test."""
    before = list(RULES)
    yield
    RULES[:] = before


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("base", "method", "answer", "says"),
    [
        (kj.ThresholdRule, "passes", lambda i: i.raw_target_logits[:-1, 0], r"float32\[4\] .* return bool\[4\]"),
        (kj.ThresholdRule, "passes", lambda i: i.draft_tokens, r"int32\[4\] for a draft of 4 tokens: return bool\[4\]"),
        (kj.ThresholdRule, "passes", lambda i: i.raw_target_logits[:, 0] > 0, r"bool\[5\] .* return bool\[4\]"),
        (kj.ThresholdRule, "passes", lambda i: True, r"bool\[\] .* return bool\[4\]"),
        (kj.TokenRule, "acceptance", lambda i: jnp.float32(1), r"float32\[\] .* return float32\[4\]"),
        (kj.TokenRule, "acceptance", lambda i: i.draft_tokens > 0, r"bool\[4\] .* return float32\[4\]"),
        (kj.TokenRule, "acceptance", lambda i: i.raw_target_logits[:, 0], r"float32\[5\] .* return float32\[4\]"),
    ],
)
def test_what_a_base_class_asks_for_is_checked(base, method, answer, says):
    made = as_taught(base, **{method: lambda self, inputs, odds=None: answer(inputs)})
    with pytest.raises(InputError) as error:
        check_rule(jax.tree.map(jnp.asarray, made()), **SHAPES)
    assert re.fullmatch(rf"Taught\.{method} returns {says}", str(error.value))


@pytest.mark.usefixtures("forgotten")
def test_an_error_in_a_rule_comes_with_the_shapes_that_it_had():
    made = as_taught(kj.ThresholdRule, passes=lambda self, i: i.raw_target_logits.sum(-1) > i.raw_draft_logits.sum(-1))
    with pytest.raises(Exception, match="shapes") as error:
        check_rule(jax.tree.map(jnp.asarray, made()), **SHAPES)
    (note,) = [note for note in error.value.__notes__ if "Taught" in note]
    assert note.startswith("while Taught was traced with draft_tokens int32[4], ")
    assert "raw_target_logits float32[5,9]" in note and "target_hidden None (name it in `needs`)" in note
