"""The tokenizer of the embedded pair."""

import pytest

from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.training.bpe import EOS, train_tokenizer

PROBLEMS = [Arithmetic().problem("train", 0, i) for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((p.prompt + p.solution for p in PROBLEMS), vocab_size=400)


def test_size_and_special_tokens(tokenizer):
    assert len(tokenizer) == 400
    assert tokenizer.eos_token == EOS
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_a_digit_is_always_a_token_of_its_own(tokenizer):
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not any(character.isdigit() for character in token), token
    tokens = [tokenizer.decode([i]) for i in tokenizer("17+25=42 is 42.")["input_ids"]]
    assert [token for token in tokens if token.isdigit()] == list("17254242")


def test_round_trip_of_any_text(tokenizer):
    for text in ["Tom has 3 apples.\n#### 3", " two  spaces \n\n", "größer → 1,5 €", "a ,b .c !"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompt_and_solution_split_into_tokens_as_their_join(tokenizer):
    for problem in PROBLEMS[:50]:
        apart = tokenizer(problem.prompt)["input_ids"] + tokenizer(problem.solution)["input_ids"]
        assert tokenizer(problem.prompt + problem.solution)["input_ids"] == apart


def test_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(str(tmp_path))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path))
    text = PROBLEMS[0].solution
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.eos_token_id == tokenizer.eos_token_id
