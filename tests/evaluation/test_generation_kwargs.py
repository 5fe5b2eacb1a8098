"""What harness tasks ask for, as `generate` takes it."""

import pytest
from tiny_pairs import END, byte_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.generation_kwargs import read_generation_kwargs
from kljudge_jax.generation.config import DecodingConfig

TOKENIZER = byte_tokenizer()


def read(**kwargs):
    """What a task's settings make of a configuration; nothing of it but its special tokens ends an answer."""
    config, ends = read_generation_kwargs(kwargs, TOKENIZER, DecodingConfig(99, draft_length=4))
    assert ends == ((END,) if "<end>" in kwargs.get("until", ()) else ())
    return config


def test_nothing_is_greedy_up_to_the_default():
    assert read() == DecodingConfig(99, draft_length=4)


def test_text_stops_and_special_tokens_end():
    assert read(until=["\n\n", "<end>", ""]) == DecodingConfig(99, stop=("\n\n",), draft_length=4)
    assert read(until="Q:") == DecodingConfig(99, stop=("Q:",), draft_length=4)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_number_of_tokens_has_several_names(name):
    assert read(**{name: 7}).max_new_tokens == 7


def test_greedy_leaves_sampling_aside():
    assert read(do_sample=False, temperature=0.7, top_p=0.9, top_k=5) == DecodingConfig(99, draft_length=4)
    assert read(do_sample=True, temperature=0.0, top_p=0.9) == DecodingConfig(99, draft_length=4)


def test_sampling_is_taken_over():
    settings = read(do_sample=True, temperature=0.7, top_p=0.9, top_k=-1, min_p=0.1)
    assert (settings.temperature, settings.top_k, settings.top_p, settings.min_p) == (0.7, 0, 0.9, 0.1)
    assert read(do_sample=True).temperature == 1.0
    assert read(temperature=0.3).temperature == 0.3


def test_what_is_off_is_no_matter_and_what_cannot_be_followed_is_named():
    assert read(num_beams=1, repetition_penalty=1.0, typical_p=None) == DecodingConfig(99, draft_length=4)
    for kwargs in ({"num_beams": 4}, {"repetition_penalty": 1.1}, {"typical_p": 0.5}, {"max_length": 8}):
        with pytest.raises(InputError, match=next(iter(kwargs))):
            read(**kwargs)
    with pytest.raises(InputError, match="until"):
        read(until=[1])
