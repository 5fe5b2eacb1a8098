"""Every form a prompt may take."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hf import make_tokenizer

from kljudge_jax.errors import InputError
from kljudge_jax.generation.prompts import split, tokenize

CHAT = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w3 w4"}]
TEMPLATE = "<s>{% for m in messages %} {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} w7{% endif %}"


@pytest.fixture(scope="module")
def tokenizer():
    """Words w2 to w63 and <s>, </s>; a text begins with <s>."""
    from tokenizers import processors

    made = make_tokenizer(template=TEMPLATE)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


@pytest.mark.parametrize(
    ("prompts", "rows"),
    [
        ("a text", ["a text"]),
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        (CHAT, [CHAT]),
        ([CHAT, CHAT[:1]], [CHAT, CHAT[:1]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([np.int64(1), np.int32(2)], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", CHAT, [5]], ["a", CHAT, [5]]),
    ],
)
def test_one_prompt_or_many(prompts, rows):
    assert split(prompts) == rows


@pytest.mark.parametrize("array", [np.array([4, 5]), jnp.array([4, 5]), np.array([[4, 5], [6, 7]])])
def test_arrays_are_one_prompt_or_a_row_each(array):
    assert [row.tolist() for row in split(array)] == np.atleast_2d(array).tolist()
    assert [row.tolist() for row in split(list(np.atleast_2d(array)))] == np.atleast_2d(array).tolist()


def test_ids_stay_as_they_are():
    for ids in ([3, 0, 9], np.array([3, 0, 9], np.uint8), jnp.array([3, 0, 9])):
        tokens = tokenize(ids, None, 10)
        assert tokens.dtype == np.int32 and tokens.tolist() == [3, 0, 9]


def test_a_text_is_completed_as_it_is(tokenizer):
    assert tokenize("w3 w4", tokenizer, 64).tolist() == [tokenizer.bos_token_id, 3, 4]


def test_a_chat_ends_where_the_answer_begins_and_gets_no_second_bos(tokenizer):
    assert tokenize(CHAT, tokenizer, 64).tolist() == [tokenizer.bos_token_id, 9, 3, 4, 7]
    assert tokenize(tuple(CHAT[1:]), tokenizer, 64).tolist() == [tokenizer.bos_token_id, 3, 4, 7]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "no prompt"), (None, "NoneType"), (7, "int"), ({"role": "user"}, "dict")],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(InputError, match=message):
        split(prompts)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ([], "is empty"),
        (np.array([], np.int32), "is empty"),
        ([10, 64], "token id 64, outside the vocabulary of 64"),
        ([-1, 99], "token id -1"),
        (np.array([1.0, 2.0]), "whole numbers, got float64"),
        (b"w3", "whole numbers"),
        (np.ones((2, 2), int), "neither a str, nor a chat, nor token ids: ndarray"),
        ([1, True], "neither"),
        ([0.5], "neither"),
        (None, "neither"),
        (3, "neither"),
        ([{"role": "user"}], 'a "role" and a "content"'),
        ("broken \udce9", "not UTF-8"),
        ([{"role": "user", "content": "\udce9"}], "not UTF-8"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(tokenizer, prompt, message):
    with pytest.raises(InputError, match=f"^prompt 3.*{message}"):
        tokenize(prompt, tokenizer, 64, "prompt 3")


def test_text_needs_a_tokenizer_and_a_chat_its_template():
    with pytest.raises(InputError, match="no tokenizer"):
        tokenize("w3", None, 64)
    with pytest.raises(InputError, match="no tokenizer"):
        tokenize(CHAT, None, 64)
    with pytest.raises(InputError, match="no chat template"):
        tokenize(CHAT, make_tokenizer(), 64)


def test_a_chat_that_its_template_refuses_is_refused():
    strict = make_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="chat template: roles must alternate"):
        tokenize(CHAT, strict, 64)
