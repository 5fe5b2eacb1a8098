"""What `train_draft` refuses before the target answers anything."""

import dataclasses

import pytest

import kljudge_jax as kj


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr("kljudge_jax.training.train_draft._answered", lambda *args: pytest.fail("it answered"))
    return kj.ModelPair.embedded()


def refused(pair, tmp_path, says, **options):
    problems = kj.load_task("arithmetic").problems(split="train", n=4, seed=0)
    with pytest.raises(kj.InputError, match=says) as error:
        kj.train_draft(pair, problems, tmp_path / "made", **{"recipe": kj.HeadRecipe(held_out=2), **options})
    assert "\n" not in str(error.value)


def test_too_few_problems(pair, tmp_path):
    refused(pair, tmp_path, "4 problems leave none to learn from", recipe=kj.HeadRecipe(held_out=4))


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
