"""Batches: a function of the step, weighted on the solution."""

import numpy as np
import pytest

from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.tasks.conversion import Conversion
from kljudge_jax.tasks.generated import split_of
from kljudge_jax.training.batches import Curriculum, Mixture


def mixture(tokenizer, seed=0, **options):
    return Mixture({Arithmetic(): 0.6, Conversion(): 0.4}, tokenizer, batch_size=8, seed=seed, **options)


def test_a_batch_depends_on_the_step_alone(tokenizer):
    forward = mixture(tokenizer)
    in_order = [forward.at(step) for step in range(20)]
    for step in (19, 3, 17, 0):
        again = mixture(tokenizer).at(step)
        np.testing.assert_array_equal(again.tokens, in_order[step].tokens)
        np.testing.assert_array_equal(again.weights, in_order[step].weights)


def test_a_curriculum_goes_from_mixture_to_mixture(tokenizer):
    stages = [mixture(tokenizer, seed) for seed in range(3)]
    stream = Curriculum([(0, stages[0]), (5, stages[1]), (9, stages[2])])
    for step, stage in ((0, 0), (4, 0), (5, 1), (8, 1), (9, 2), (40, 2)):
        np.testing.assert_array_equal(stream.at(step).tokens, stages[stage].at(step).tokens)
    assert stream.tokenizer is tokenizer and set(stream.tasks) == set(stages[2].tasks)


def test_no_example_comes_twice_in_a_row_of_steps(tokenizer):
    stream = mixture(tokenizer)
    rows = [tuple(row[row != tokenizer.pad_token_id]) for step in range(40) for row in stream.at(step).tokens]
    assert len(set(rows)) == len(rows) == 320


def test_seeds_differ(tokenizer):
    one, other = mixture(tokenizer, 0).at(0), mixture(tokenizer, 1).at(0)
    assert one.tokens.shape != other.tokens.shape or (one.tokens != other.tokens).any()


def test_only_the_solution_counts_and_digits_count_more(tokenizer):
    batch = mixture(tokenizer, digit_weight=3.0).at(0)
    assert batch.tokens.dtype == np.int32 and batch.tokens.shape[1] % 16 == 0
    for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
        counted = np.flatnonzero(weights)
        assert (np.diff(counted) == 1).all(), "the solution is one stretch"
        assert tokens[counted[-1]] == tokenizer.eos_token_id
        assert (tokens[counted[-1] + 1 :] == tokenizer.pad_token_id).all()
        prompt, solution = tokenizer.decode(tokens[: counted[0]]), tokenizer.decode(tokens[counted[0] : counted[-1]])
        assert prompt.endswith("\n") and ("####" in solution) != ("Answer:" in solution)
        for position in counted:
            digit = tokenizer.decode([tokens[position]]).isdigit()
            assert weights[position] == (3.0 if digit else 1.0)


def test_shares_are_kept_and_rows_of_a_batch_are_alike(tokenizer):
    stream = mixture(tokenizer)
    texts = [tokenizer.decode(row) for step in range(64) for row in stream.at(step).tokens]
    assert sum("####" in text for text in texts) / len(texts) == pytest.approx(0.6, abs=0.1)
    padding = np.mean([(stream.at(step).tokens == tokenizer.pad_token_id).mean() for step in range(64)])
    assert padding < 0.2


def test_examples_come_from_the_train_split():
    task = Arithmetic()
    assert all(split_of(task._draw("train", 0, i)[0]) == "train" for i in range(50))
