"""Mining against a literal transcription of the search; kills, batches, shortcuts, ends of text."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from literal_search import search
from tiny_pairs import byte_tokenizer, text_pair, tiny_model, tiny_pair, with_parameters
from toy_task import LetterParity
from transcription import entropy, kl, softmax

from kljudge_jax.errors import InputError
from kljudge_jax.generation.config import DecodingConfig
from kljudge_jax.judges import passes, semi_greedy
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.semi_greedy import Options
from kljudge_jax.judges.sources import Likelihood, label_mismatches
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.verification.features import PRIMITIVES

TASK, N, NEW = LetterParity(), 12, 12


@pytest.fixture(scope="module")
def pair():
    """A pair that ends many of its texts: "e" is its end of text."""
    pair = text_pair(noise=0.25)
    return dataclasses.replace(pair, eos=(pair.tokenizer("e")["input_ids"][0],))


@pytest.fixture(scope="module", autouse=True)
def one_width():
    """Passes of one width, so that little is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        use_widths(patch, 32)
        yield


def use_widths(patch, *widths):
    for module in (semi_greedy, passes):
        patch.setattr(module, "WIDTHS", widths)


@pytest.fixture(scope="module")
def mined(pair, one_width, tmp_path_factory):
    return mine(pair, TASK, tmp_path_factory.mktemp("mined"), n=N, options=Options(NEW, batch=8, gap_tokens=5))


def labels(data):
    names = ("question", "position", "important", "target_token", "draft_token")
    return np.stack([data[name] for name in names], axis=1).tolist()


class Asked(LetterParity):
    """The same problems, asked in a chat."""

    def problems(self, split="test", n=200, seed=7):
        found = super().problems(split, n, seed)
        return [dataclasses.replace(p, prompt=[{"role": "user", "content": p.prompt}]) for p in found]


class Ended(LetterParity):
    """The same problems, each with what the template adds."""

    def problems(self, split="test", n=200, seed=7):
        return [dataclasses.replace(p, prompt=f"{p.prompt}ab") for p in super().problems(split, n, seed)]


def test_a_template_is_told_and_the_dataset_says_so(pair, tmp_path):
    chat = dataclasses.replace(pair, tokenizer=byte_tokenizer())
    chat.tokenizer.chat_template = "{{ messages[0].content }}{% if brief %}ab{% endif %}"
    given = {"n": 4, "options": Options(NEW, batch=8, gap_tokens=5)}
    found = mine(chat, Asked(), tmp_path / "a", **given, template_args={"brief": True})
    assert labels(found) == labels(mine(pair, Ended(), tmp_path / "b", **given)) and len(found)
    assert found.origin["template_args"] == {"brief": True}
    config = DecodingConfig(NEW, batch=8, seed=7, template_args="brief=true")
    assert labels(mine(chat, Asked(), tmp_path / "a", **given, config=config)) == labels(found)
    with pytest.raises(InputError, match="its template_args differs"):
        mine(chat, Asked(), tmp_path / "a", **given)
    by = label_mismatches(chat, Asked(), tmp_path / "c", Likelihood(NEW), n=2, template_args="brief=true")
    ended = label_mismatches(pair, Ended(), tmp_path / "d", Likelihood(NEW), n=2)
    assert labels(by) == labels(ended) and len(by) and by.origin["template_args"] == {"brief": True}


@pytest.mark.parametrize("kind", ["target", "gold"])
def test_labels_and_features_are_those_of_the_literal_search(pair, mined, kind, tmp_path):
    if kind == "gold":
        options = Options(NEW, "gold", batch=8, gap_tokens=5)
        mined = mine(pair, TASK, tmp_path, n=N, options=options)
    row, ends = 0, 0
    for i, problem in enumerate(TASK.problems(n=N)):
        prompt = pair.tokenizer(problem.prompt)["input_ids"]

        def same_answer(reference, text, problem=problem):
            if kind == "gold":
                return TASK.check(problem, text)
            return TASK.answer(reference) == TASK.answer(text)

        expected = search(pair, prompt, same_answer, NEW)
        record = mined.questions[i]
        if record.status == "no reference":
            assert kind == "gold" and not TASK.check(problem, record.answer)
            continue
        assert record.rows == len(expected)
        for position, important, target_token, draft_token, target_state, draft_state, p_logits, q_logits in expected:
            assert labels(mined)[row] == [i, position, important, target_token, draft_token]
            np.testing.assert_allclose(mined["target_hidden"][row], target_state, atol=2e-5)
            np.testing.assert_allclose(mined["draft_hidden"][row], draft_state, atol=2e-5)
            p, q = softmax(p_logits), softmax(q_logits)
            hand = {"kl_target_draft": kl(p, q), "draft_entropy": entropy(q), "target_logprob": np.log(p[draft_token])}
            for name, value in hand.items():
                assert mined["primitives"][row, PRIMITIVES.index(name)] == pytest.approx(value, abs=1e-4)
            np.testing.assert_allclose(mined["gap"][row], (p_logits - q_logits)[[0, 64, 128, 192, 256]], atol=1e-4)
            ends += draft_token in pair.eos
            row += 1
    assert row == len(mined) > 5 and 0 < mined["important"].sum() < row
    assert ends > 0 or kind == "gold"


def test_a_batch_of_another_size_finds_the_same(pair, mined, tmp_path, monkeypatch):
    # Passes of a few tokens and rollouts of a few steps: everything that goes on in pieces does.
    use_widths(monkeypatch, 8)
    monkeypatch.setattr(semi_greedy, "_MOST_STEPS", 5)
    found = mine(pair, TASK, tmp_path, n=N, options=Options(NEW, batch=1, gap_tokens=5))
    assert labels(found) == labels(mined)
    for name in ("target_hidden", "draft_hidden", "primitives", "gap", "next_gap", "second_order_kl"):
        np.testing.assert_allclose(found[name], mined[name], atol=2e-5, err_msg=name)


def test_ten_kills_change_nothing_and_nothing_is_mined_twice(pair, mined, tmp_path):
    random, options = np.random.default_rng(0), Options(NEW, batch=8, gap_tokens=5)
    seen = []

    def killed_at(calls):
        def stop(progress):
            nonlocal calls
            seen.append(progress)
            calls -= 1
            if not calls:
                raise KeyboardInterrupt

        return stop

    for _ in range(10):
        try:
            mine(pair, TASK, tmp_path, n=N, options=options, progress=killed_at(int(random.integers(1, 5))))
        except KeyboardInterrupt:
            with (tmp_path / "columns" / "gap.bin").open("ab") as file:
                file.write(b"half a row")
    found = mine(pair, TASK, tmp_path, n=N, options=options, progress=seen.append)
    assert labels(found) == labels(mined)
    assert [r.question for r in found.questions] == [*range(N)]
    assert seen[-1].done == seen[-1].total == N and f" {len(mined)} mismatches" in seen[-1]
    assert all(b.done >= a.done for a, b in itertools.pairwise(seen))
    assert "of 12 questions" in seen[0]
    more = mine(pair, TASK, tmp_path, n=N + 2, options=options)
    assert labels(more)[: len(mined)] == labels(mined) and len(more.questions) == N + 2


def test_the_shortcut_labels_without_a_rollout(pair, mined, tmp_path):
    found = mine(pair, TASK, tmp_path, n=N, options=Options(NEW, shortcut=0.02, batch=8, gap_tokens=5))
    cut = np.exp(found.primitive("target_logprob")) < 0.02
    assert found["important"][cut].all() and not found["rolled_out"][cut].any() and 0 < cut.sum() < len(found)
    # Up to a question's first token that was cut short, the search is the same.
    first = found["question"][np.flatnonzero(cut)[0]]
    assert [row for row in labels(found) if row[0] < first] == [row for row in labels(mined) if row[0] < first]


def test_a_model_without_numbers_fails_its_questions_by_name(pair, tmp_path):
    broken = with_parameters(pair.draft, lambda name, x: x * np.nan if name == "final_norm.scale" else x)
    found = mine(
        dataclasses.replace(pair, draft=broken), TASK, tmp_path, n=N, options=Options(NEW, batch=8, gap_tokens=5)
    )
    assert {record.status for record in found.questions} == {"failed"} and len(found) == 0


@pytest.mark.parametrize("which", ["target", "draft"])
def test_one_column_that_is_no_number_fails_a_question_too(which, tmp_path):
    """At a width of vocabulary at which XLA's maximum drops a NaN; ids past the bytes' are never written."""
    tokenizer = byte_tokenizer()
    models = {"target": tiny_model(1, vocab_size=640), "draft": tiny_model(2, vocab_size=640)}
    for name, model in models.items():
        value = np.nan if name == which else 0

        def silence(name, x, value=value):
            if name == "head.weight":
                x[257:] = 0
                x[321] = value
            return x

        models[name] = with_parameters(model, silence)
    found = mine(
        ModelPair(**models, tokenizer=tokenizer, eos=(256,)), TASK, tmp_path, n=16, options=Options(4, batch=16)
    )
    assert {record.status for record in found.questions} == {"failed"} and len(found) == 0


@pytest.mark.parametrize(
    "change, says",
    [
        ({"reference": "best"}, "target or gold"),
        ({"shortcut": 2.0}, "from 0 to 1"),
        ({"batch": 0}, "batch starts at 1"),
        ({"max_new_tokens": 5000}, "more than the 4096"),
    ],
)
def test_what_cannot_be_mined_is_refused(pair, tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        mine(pair, TASK, tmp_path, n=2, options=Options(**change))


def test_pairs_that_cannot_be_mined_are_refused(pair, tmp_path):
    with pytest.raises(InputError, match="no tokenizer"):
        mine(tiny_pair(), TASK, tmp_path, n=2)
    with pytest.raises(InputError, match="no draft"):
        mine(dataclasses.replace(pair, draft=None), TASK, tmp_path, n=2)
    assert jax.tree.leaves(pair)
