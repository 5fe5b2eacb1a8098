"""What `train_draft` refuses before the target answers anything."""

import dataclasses

import pytest

import kljudge_jax as kj
from kljudge_jax.results_folder import FolderLock


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr("kljudge_jax.training.train_draft._answered", lambda *args: pytest.fail("it answered"))
    return kj.ModelPair.embedded()


def refused(pair, tmp_path, says, **options):
    problems = kj.load_task("arithmetic").problems(split="train", n=10, seed=0)
    recipe = kj.HeadRecipe(held_out=2, batch_size=8)
    with pytest.raises(kj.InputError, match=says) as error:
        kj.train_draft(pair, problems, tmp_path / "made", **{"recipe": recipe, **options})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("held_out", [3, 10])
def test_too_few_problems(pair, tmp_path, held_out):
    recipe = kj.HeadRecipe(held_out=held_out, batch_size=8)
    refused(pair, tmp_path, f"10 problems leave no batch .* at least {held_out + 8}$", recipe=recipe)


def test_a_batch_that_the_devices_do_not_divide(pair, tmp_path):
    recipe = kj.HeadRecipe(held_out=2, batch_size=3)
    refused(pair, tmp_path, "3 answers of an optimizer step do not divide over 8 devices", recipe=recipe)


def test_a_seed_below_0():
    with pytest.raises(kj.InputError, match="a seed from 0 on"):
        kj.HeadRecipe(seed=-1)


def test_a_list_alone_where_a_head_was_begun(pair, tmp_path):
    (tmp_path / "training" / "checkpoints" / "50").mkdir(parents=True)
    problems = kj.load_task("arithmetic").problems(split="train", n=10, seed=0)
    with pytest.raises(kj.InputError, match="holds the training of a head: choose an empty folder for a list"):
        kj.train_draft(pair, problems, tmp_path, vocab_only=True)


def test_a_list_of_tokens_that_the_target_does_not_have(pair, tmp_path):
    refused(pair, tmp_path, "640", draft_vocab=[1, 640])


def test_a_folder_that_another_call_writes_to(pair, tmp_path):
    (tmp_path / "made").mkdir()
    problems = kj.load_task("arithmetic").problems(split="train", n=10, seed=0)
    with FolderLock(tmp_path / "made"), pytest.raises(kj.InputError, match=r"another process writes to .*made: wait"):
        kj.train_draft(pair, problems, tmp_path / "made", kj.HeadRecipe(held_out=2, batch_size=8))


def test_more_tokens_than_the_target_has(pair, tmp_path):
    refused(pair, tmp_path, "from 1 to the target's 640 tokens, not 8192", draft_vocab=8192)


@pytest.mark.parametrize(
    "what, says", [("yarn", "scaling 'yarn'"), ("divisors", "divisors"), ("cap", "caps its logits")]
)
def test_a_target_whose_head_could_not_be_written(pair, tmp_path, monkeypatch, what, says):
    known = pair.target.config
    changed = {
        "yarn": {"rope": dataclasses.replace(known.rope, scaling="yarn", factor=2.0)},
        "divisors": {"rope": dataclasses.replace(known.rope, frequency_divisors=(1.0,) * (known.head_dim // 2))},
        "cap": {"final_softcap": 5.0},
    }[what]
    monkeypatch.setattr(pair.target, "config", dataclasses.replace(known, **changed))
    refused(pair, tmp_path, says)


@pytest.mark.parametrize(
    "wrong", [{"rate": float("nan")}, {"rate": float("inf")}, {"passes": float("nan")}, {"decay": -1.0}]
)
def test_a_recipe_of_no_numbers(wrong):
    with pytest.raises(kj.InputError, match="above 0"):
        kj.HeadRecipe(**wrong)
