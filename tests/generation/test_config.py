"""The one configuration of decoding: what it checks, what it reads, and that it is declared once."""

import dataclasses
import json
import subprocess
import sys
import typing

import numpy as np
import pytest

import kljudge_jax as kj
from kljudge_jax.drafters.specs import parse_draft_length, parse_drafter
from kljudge_jax.generation.config import DecodingFields, configured


def test_calls_take_each_field_by_its_name_and_type():
    assert DecodingFields.__annotations__.keys() == {field.name for field in dataclasses.fields(kj.DecodingConfig)}
    fields = {field.name: field.type for field in dataclasses.fields(kj.DecodingConfig)}
    assert {name: kind.__forward_arg__ for name, kind in DecodingFields.__annotations__.items()} == fields
    assert not typing.get_type_hints(configured, include_extras=True).keys() & fields.keys()


def test_spec_strings_are_read_and_written():
    config = kj.DecodingConfig(draft_length="adaptive:maximum=4,cost=size", drafter="lookup:2", stop="Q:")
    assert config == kj.DecodingConfig(
        draft_length=kj.Adaptive(maximum=4, cost="size"), drafter=kj.PromptLookup(2), stop=("Q:",)
    )
    assert (config.longest, kj.DecodingConfig(draft_length="6").longest) == (4, 6)
    written = config.to_json()
    assert parse_draft_length(written["draft_length"]) == config.draft_length
    assert parse_drafter(written["drafter"]) == config.drafter and written["stop"] == ["Q:"]
    assert "stop" not in kj.DecodingConfig().to_json()
    given = kj.DecodingConfig(np.int64(24), np.float32(0.5), draft_length=np.int32(4), batch=np.int64(2))
    assert json.loads(json.dumps(given.to_json())) == kj.DecodingConfig(24, 0.5, draft_length=4, batch=2).to_json()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens starts at 1, got 0"),
        ({"max_new_tokens": 8.0}, "max_new_tokens is a whole number"),
        ({"batch": True}, "batch is a whole number"),
        ({"seed": -1}, "seed starts at 0"),
        ({"seed": 2**63}, "seed starts at 0 and ends at"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"stop": [""]}, "at least one character"),
        ({"draft_length": 0}, "a draft length is"),
        ({"draft_length": 1.5}, "a draft length is"),
        ({"drafter": "magic"}, "choose a drafter"),
        ({"template_args": {"tokenize": True}}, "'tokenize' is no argument of a chat template"),
        ({"template_args": ["brief"]}, "given as name=value"),
    ],
)
def test_what_cannot_be_is_one_line(wrong, said):
    with pytest.raises(kj.InputError, match=said) as error:
        kj.DecodingConfig(**wrong)
    assert "\n" not in str(error.value)


def test_a_call_has_its_own_defaults_and_takes_what_it_is_given():
    assert configured("sweep", None, {"temperature": 0.5}) == kj.DecodingConfig(temperature=0.5, batch=8)
    given = kj.DecodingConfig(seed=3, batch=2)
    assert configured("sweep", given, {"seed": 4}) == kj.DecodingConfig(seed=4, batch=2)


def test_it_starts_no_device():
    """Several hosts join before JAX looks for devices, and a configuration may be made before."""
    program = (
        "import kljudge_jax as kj; kj.DecodingConfig(temperature=0.7, top_k=5)\n"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
