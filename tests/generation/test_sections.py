"""Thinking blocks: a rule that reads sections through every public call that decodes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sweep_records import Letters
from tiny_pairs import DRAFT_LENGTH, PROMPTS, answer, forced, tokens_of

import kljudge_jax as kj
from kljudge_jax.errors import InputError

OPENS, CLOSES = 1, 5  # `PROMPTS` have both: some end inside a block, some outside


@kj.register
@dataclasses.dataclass(frozen=True)
class FreeInside:
    """Accepts every draft token that stands inside a block, and outside those that the target would write."""

    number: float = 0.0

    def __call__(self, key, inputs):
        count = len(inputs.draft_tokens)
        match = jnp.argmax(inputs.target_logits[:count], axis=-1).astype(jnp.int32) == inputs.draft_tokens
        inside = jnp.zeros((count + 1,), jnp.int32) if inputs.section is None else inputs.section
        kept = jnp.cumprod((match | (inside[:count] == 1)) & (jnp.arange(count) < inputs.draft_count))
        accepted = jnp.sum(kept, dtype=jnp.int32)
        token = jnp.argmax(inputs.target_logits[accepted]).astype(jnp.int32)
        return kj.Verdict(accepted, token, (kept == 1) & ~match)


def inside_by_hand(tokens):
    found, inside = [], False
    for token in tokens:
        found.append(inside)
        inside = (inside or token == OPENS) and token != CLOSES
    return found


def test_generate_tells_a_rule_where_a_token_would_stand(pair):
    plain = tokens_of(answer(pair, None))
    strict = answer(pair, FreeInside())
    assert tokens_of(strict) == plain and strict.stats.relaxed == 0
    out = answer(pair, FreeInside(), section_ids=(OPENS, CLOSES))
    relaxed, outside = 0, 0
    for prompt, tokens, origin in zip(PROMPTS, tokens_of(out), out.origin, strict=True):
        whole = [*prompt.tolist(), *tokens]
        right = np.argmax(forced(pair.target, whole)[0], axis=-1)[len(prompt) - 1 : -1].tolist()
        inside = inside_by_hand(whole)[len(prompt) :]
        for token, wanted, where, source in zip(tokens, right, inside, origin, strict=True):
            assert (source == "relaxed") == (token != wanted)
            assert where or token == wanted
            relaxed, outside = relaxed + (source == "relaxed"), outside + (not where)
    assert relaxed == out.stats.relaxed > 0 and outside > 0


THINKING = [kj.RelaxedThinking(20, 1.0, section="thinking"), kj.RelaxedThinkingRatio(20, 0.0, section="thinking")]


@pytest.mark.parametrize("rule", THINKING, ids=lambda rule: type(rule).__name__)
def test_relaxed_thinking_relaxes_inside_a_block_alone(pair, rule):
    out = answer(pair, rule, section_ids=(OPENS, CLOSES))
    for prompt, tokens, origin in zip(PROMPTS, tokens_of(out), out.origin, strict=True):
        whole = [*prompt.tolist(), *tokens]
        right = np.argmax(forced(pair.target, whole)[0], axis=-1)[len(prompt) - 1 : -1].tolist()
        inside = inside_by_hand(whole)[len(prompt) :]
        for token, wanted, where, source in zip(tokens, right, inside, origin, strict=True):
            assert (source == "relaxed") == (token != wanted) and (where or token == wanted)
    free = answer(pair, dataclasses.replace(rule, section="all"), section_ids=(OPENS, CLOSES))
    assert free.stats.relaxed > out.stats.relaxed > 0
    assert tokens_of(free) == tokens_of(answer(pair, dataclasses.replace(rule, section="all")))


def test_relaxed_thinking_without_the_ids_of_a_block_is_refused_before_anything_runs(pair, monkeypatch, tmp_path):
    monkeypatch.setattr("kljudge_jax.generation.programs.start", lambda *args, **options: pytest.fail("it ran"))
    for spec in ("thinking:section=thinking", "thinking_ratio:section=thinking", THINKING[0]):
        with pytest.raises(InputError, match="no ids of one are given: give section_ids") as error:
            answer(pair, spec)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no ids of one are given: give section_ids"):
        kj.sweep(pair, Letters(), ["none", THINKING[1]], folder=tmp_path, n=1, draft_lengths=[DRAFT_LENGTH])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_others_pass_them_on(text_pair, tmp_path):
    pair = text_pair
    prompt = Letters().problems(n=1, seed=0)[0].prompt
    opens = pair.tokenizer(prompt)["input_ids"][-1]  # every answer begins inside a block
    sections = {"section_ids": (opens, 256)}
    asked = {"verifier": FreeInside(), "draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
    free = kj.generate(pair, prompt, **asked, **sections)
    assert free.stats.relaxed > 0 and free.text != kj.generate(pair, prompt, **asked).text
    config = kj.DecodingConfig(24, draft_length=DRAFT_LENGTH, **sections)
    assert kj.generate(pair, prompt, verifier=FreeInside(), config=config).text == free.text
    *_, last = kj.stream(pair, prompt, **asked, **sections)
    assert last.result.text == free.text

    sizes = {"draft_lengths": [DRAFT_LENGTH], "n": 1, "batch": 1, "max_new_tokens": 24, "examples": 0}
    swept = kj.sweep(pair, Letters(), ["none", FreeInside()], folder=tmp_path, **sizes, **sections)
    assert swept.rows[1].mean_acceptance_length == pytest.approx(free.stats.mean_acceptance_length)
    with pytest.raises(InputError, match="holds another sweep"):
        kj.sweep(pair, Letters(), ["none", FreeInside()], folder=tmp_path, **sizes)


def test_a_configuration_keeps_them():
    config = kj.DecodingConfig(section_ids=np.array([3, 4]))
    assert config.section_ids == (3, 4) and config == kj.DecodingConfig(section_ids=[3, 4])
    assert config.to_json()["section_ids"] == [3, 4] and "section_ids" not in kj.DecodingConfig().to_json()
    assert kj.DecodingConfig(**config.to_json()) == config


@pytest.mark.parametrize("wrong", [3, (3,), (3, 4, 5), (3, 3), (-1, 3), (1.0, 2), (True, 2), "ab", {3: 4}, [[1, 2]]])
def test_what_are_no_two_tokens_is_refused(pair, wrong):
    with pytest.raises(InputError, match="the tokens that begin and end a thinking block, two ids"):
        kj.DecodingConfig(section_ids=wrong)
    with pytest.raises(InputError, match="the tokens that begin and end a thinking block, two ids"):
        answer(pair, "exact", section_ids=wrong)


def test_tokens_outside_the_vocabulary_are_refused(pair):
    with pytest.raises(InputError, match=r"section_ids are \(3, 999\), outside the vocabulary of 257"):
        answer(pair, "exact", section_ids=(3, 999))
