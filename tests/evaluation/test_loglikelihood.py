"""Log-likelihoods against a log-softmax by hand."""

import jax
import numpy as np
import pytest
from tiny_pairs import VOCAB_SIZE, forced, tiny_model, with_parameters

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.loglikelihood import Continuation, log_likelihoods, windows


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def by_hand(model, context, tokens):
    logits = forced(model, [*context, *tokens])[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logprobs -= logits.max(-1, keepdims=True)
    rows = range(len(context) - 1, len(context) + len(tokens) - 1)
    total = sum(logprobs[row, token] for row, token in zip(rows, tokens, strict=True))
    return total, all(logits[row].argmax() == token for row, token in zip(rows, tokens, strict=True))


def found(model, continuations, **options):
    return [answer for _, answer in sorted(log_likelihoods(model, continuations, **options))]


def greedy_after(model, context, count):
    row = list(context)
    for _ in range(count):
        row.append(int(forced(model, row)[0][-1].argmax()))
    return row[len(context) :]


def test_totals_and_greediness_are_those_by_hand_in_the_order_asked(model):
    random = np.random.default_rng(0)
    sizes = [(3, 1), (30, 9), (1, 2), (7, 5), (12, 1)]
    asked = [Continuation(*(random.integers(0, VOCAB_SIZE, n).tolist() for n in size)) for size in sizes]
    asked.append(Continuation([5, 3], greedy_after(model, [5, 3], 4)))
    asked.append(Continuation([5, 3], [*asked[-1].tokens[:-1], (asked[-1].tokens[-1] + 1) % VOCAB_SIZE]))
    answers = found(model, asked, batch_size=4)
    assert len(answers) == len(asked)
    for (total, greedy), one in zip(answers, asked, strict=True):
        wanted, choice = by_hand(model, *one)
        assert total == pytest.approx(wanted, abs=2e-4) and greedy == choice
    assert [answer.greedy for answer in answers[-2:]] == [True, False]


def test_many_positions_are_scored_in_pieces(model):
    tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, 300).tolist()
    ((total, _),) = found(model, [Continuation([0], tokens)], batch_size=1)
    parts = [Continuation([0, *tokens[:i]][-301:], tokens[i : i + 60]) for i in range(0, 300, 60)]
    assert total == pytest.approx(sum(answer.total for answer in found(model, parts)), abs=1e-3)


def test_a_long_context_loses_its_beginning(model):
    tokens = np.random.default_rng(2).integers(0, VOCAB_SIZE, 24).tolist()
    ((total, _),) = found(model, [Continuation(tokens[:20], tokens[20:])], max_length=10)
    assert total == pytest.approx(by_hand(model, tokens[13:20], tokens[20:])[0], abs=2e-4)
    assert abs(total - by_hand(model, tokens[:20], tokens[20:])[0]) > 1e-2


@pytest.mark.parametrize(
    ("one", "message"),
    [(([], [1]), "at least one token"), (([1], []), "at least one token"), (([1], [2] * 11), "the target takes 10")],
)
def test_what_cannot_be_scored_is_refused(model, one, message):
    with pytest.raises(InputError, match=message):
        found(model, [Continuation(*one)], max_length=10)


def test_a_model_that_returns_nan_scores_nothing(model):
    broken = with_parameters(model, lambda name, x: x * np.nan if name == "final_norm.scale" else x)
    with pytest.raises(InputError, match="NaN"):
        found(broken, [Continuation([1], [2])])


@pytest.mark.parametrize(("count", "width"), [(0, 4), (3, 4), (4, 4), (5, 4), (9, 4), (10, 4), (7, 1)])
def test_windows_cover_each_token_once_after_its_own_past(count, width):
    tokens = list(range(count))
    found = windows(tokens, -1, width)
    assert [token for part in found for token in part.tokens] == tokens
    for i, (context, part) in enumerate(found):
        assert list(context) == ([-1] if i == 0 else tokens[part[0] - len(context) : part[0]])
        assert len(context) >= 1 and len(context) + len(part) <= width + 1
    assert all(len(context) + len(part) == width + 1 for context, part in found[1:])


def test_similar_requests_share_a_program(model):
    from tiny_pairs import compilations

    found(model, [Continuation([1] * 9, [2, 3])], batch_size=4)
    with compilations() as made:
        found(model, [Continuation([4] * 14, [2]), Continuation([1], [5] * 8)], batch_size=4)
    jax.block_until_ready(jax.numpy.zeros(1))
    assert not made
