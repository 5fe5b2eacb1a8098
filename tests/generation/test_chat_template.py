"""What a chat's template is told: which forms it takes, who reads it, and what nobody reads."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_hf import make_tokenizer
from tiny_pairs import DRAFT_LENGTH, VOCAB_SIZE, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.generation.chat_template import TemplateArgs, fill_template
from kljudge_jax.generation.prompts import tokenize

CHAT = [{"role": "user", "content": "w3 w4"}]
# Thinking is on where nothing is said of it, as in published templates.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if tools %}{% for tool in tools %} {{ tool.name }}{% endfor %}{% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %} w5 w6{% endif %}"
    "{% if add_generation_prompt %} w7{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(words=VOCAB_SIZE, template=TEMPLATE)


@pytest.fixture(scope="module")
def pair(tokenizer):
    return tiny_pair(tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((), {}),
        ({}, {}),
        ("enable_thinking=false", {"enable_thinking": False}),
        (["b=2", "a=1.5"], {"a": 1.5, "b": 2}),
        (["text=plain words", "quoted=\"7\"", "none=null"], {"text": "plain words", "quoted": "7", "none": None}),
        (['tools=[{"name": "w9"}]', "empty=", "sum=a=b", "number=NaN"],
         {"tools": [{"name": "w9"}], "empty": "", "sum": "a=b", "number": "NaN"}),
        ({"day": "2026-11-30"}, {"day": "2026-11-30"}),
    ],
)  # fmt: skip
def test_values_are_json_or_else_text(given, found):
    args = TemplateArgs(given)
    assert dict(args) == found and args == TemplateArgs(found) == TemplateArgs(args)
    assert hash(args) == hash(TemplateArgs(dict(reversed(found.items()))))
    assert TemplateArgs(json.loads(json.dumps(dict(args)))) == args


def test_they_cannot_be_changed_and_one_is_no_true():
    args = TemplateArgs({"tools": [{"name": "w9"}]})
    args["tools"].append(1)
    assert args["tools"] == [{"name": "w9"}]
    with pytest.raises(TypeError):
        args["tools"] = []
    assert TemplateArgs({"a": 1}) != TemplateArgs({"a": True})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["enable_thinking"], "given as name=value, such as enable_thinking=false, not 'enable_thinking'"),
        ([3], "given as name=value"),
        (["a=1", "a=2"], "the template argument a is given twice"),
        (["=1"], "'' is no argument"),
        ({"a b": 1}, "'a b' is no argument"),
        ({3: 1}, "3 is no argument"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' is no argument"),
        ({"day": np.float32(1)}, "the template argument day is no plain value"),
        ({"day": float("nan")}, "the template argument day is no plain value"),
        (["day=1e999"], "the template argument day is no plain value"),
        ({"tools": [print]}, "the template argument tools is no plain value"),
    ],
)
def test_what_is_no_argument_is_refused(wrong, said):
    with pytest.raises(InputError, match=said) as error:
        kj.DecodingConfig(template_args=wrong)
    assert "\n" not in str(error.value)


def test_a_template_is_told(tokenizer):
    assert fill_template(tokenizer, CHAT) == "w3 w4 w7"
    assert fill_template(tokenizer, CHAT, {"enable_thinking": True}) == "w3 w4 w7"
    assert fill_template(tokenizer, CHAT, "enable_thinking=false") == "w3 w4 w5 w6 w7"
    assert fill_template(tokenizer, CHAT, {"tools": [{"name": "w9"}]}) == "w3 w4 w9 w7"
    assert fill_template(tokenizer, CHAT, add_generation_prompt=False) == "w3 w4"
    assert tokenize(CHAT, tokenizer, VOCAB_SIZE, template_args=["enable_thinking=false"]).tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("name", ["thinking", "enable", "enable_thinking_budget", "content", "name"])
def test_what_no_template_reads_is_refused(tokenizer, name):
    with pytest.raises(InputError, match=f"^the tokenizer's chat template does not read {name}: leave it out$"):
        tokenize(CHAT, tokenizer, VOCAB_SIZE, template_args={name: False, "enable_thinking": False})


def test_one_of_several_templates_may_read_it():
    several = make_tokenizer(template={"default": "{{ messages[0].content }} {{ brief }}", "tool_use": "{{ tools }}"})
    assert fill_template(several, CHAT, "brief=w9") == "w3 w4 w9"
    with pytest.raises(InputError, match="does not read enable_thinking"):
        fill_template(several, CHAT, "enable_thinking=false")


def test_a_value_that_the_template_cannot_use_is_refused(tokenizer):
    with pytest.raises(InputError, match="prompt 2 does not fit the tokenizer's chat template"):
        tokenize(CHAT, tokenizer, VOCAB_SIZE, "prompt 2", {"tools": 7})


NO_CHATS = [("w3 w4", "text"), ([3, 4], "token ids"), (np.array([3, 4]), "token ids")]


@pytest.mark.parametrize(("prompt", "kind"), NO_CHATS)
def test_a_prompt_that_fills_no_template_is_refused(pair, prompt, kind):
    said = f"the prompt is {kind}, and enable_thinking would be read by a chat's template: ask in a chat, or leave out"
    with pytest.raises(InputError, match=said):
        kj.generate(pair, prompt, verifier="exact", template_args={"enable_thinking": False})
    with pytest.raises(InputError, match=f"prompt 1 is {kind}"):
        kj.generate(pair, [CHAT, prompt], verifier="exact", template_args={"enable_thinking": False})


def test_every_call_passes_them_on(pair):
    asked = {"verifier": "kl:4.0", "draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
    by_hand = kj.generate(pair, np.array([3, 4, 5, 6, 7]), **asked)
    args = {"enable_thinking": False}
    assert tokens_of(by_hand) != tokens_of(kj.generate(pair, CHAT, **asked))
    assert tokens_of(kj.generate(pair, CHAT, **asked, template_args=args)) == tokens_of(by_hand)
    config = kj.DecodingConfig(24, draft_length=DRAFT_LENGTH, template_args=args)
    assert tokens_of(kj.generate(pair, CHAT, verifier="kl:4.0", config=config)) == tokens_of(by_hand)
    *_, last = kj.stream(pair, CHAT, **asked, template_args=args)
    assert tokens_of(last.result) == tokens_of(by_hand)


def test_a_configuration_keeps_them():
    config = kj.DecodingConfig(template_args=["enable_thinking=false"])
    assert config == kj.DecodingConfig(template_args={"enable_thinking": False}) and len({config, config}) == 1
    assert config.to_json()["template_args"] == {"enable_thinking": False}
    assert kj.DecodingConfig(**config.to_json()) == config == dataclasses.replace(config)
    assert "template_args" not in kj.DecodingConfig().to_json()
