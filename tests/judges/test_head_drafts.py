"""Learned judges of a pair whose draft is a head: those that read the target alone run, all else is refused by name."""

import dataclasses

import pytest
from heads import random_head
from tiny_heads import headed_pair
from tiny_pairs import DRAFT_LENGTH, PROMPTS, noisy, tokens_of
from toy_task import LetterParity

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.semi_greedy import Options
from kljudge_jax.judges.sources import Likelihood, label_mismatches
from kljudge_jax.judges.storage import load_head, save_head
from kljudge_jax.verification import LinearJudge
from kljudge_jax.verification.head import PairIdentity


@pytest.fixture(scope="module")
def headed():
    return headed_pair()


@pytest.fixture(scope="module")
def of_models(headed):
    """The identity of the same target with a draft model."""
    return PairIdentity.of(dataclasses.replace(headed, draft=noisy(headed.target, 1, 0.2), draft_name="small"))


@pytest.mark.parametrize("setup", ["DT", "pivot"])
@pytest.mark.first_case
def test_a_judge_on_the_target_alone_runs_with_a_head(headed, of_models, setup, tmp_path):
    save_head(tmp_path / "judge", random_head(setup, pair=of_models), {})
    head = load_head(tmp_path / "judge", headed)
    asked = {"draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
    strict, lenient = (
        kj.generate(headed, PROMPTS, verifier=LinearJudge(head, threshold), **asked) for threshold in (0.0, 1.1)
    )
    plain = kj.generate(headed, PROMPTS, verifier=None, max_new_tokens=24)
    assert tokens_of(strict) == tokens_of(plain)
    assert lenient.stats.relaxed > 0 and lenient.stats.cycles < strict.stats.cycles
    other = dataclasses.replace(headed, target_name="another")
    with pytest.raises(InputError, match=r"trained for the target target \(states of 16\) .* at hand is another"):
        head.check_pair(other)


@pytest.mark.parametrize(
    ("setup", "says"), [("DD", "draft's states"), ("DD-DT", "draft's states"), ("logits", "setup")]
)
def test_a_judge_that_reads_the_draft_is_refused_by_name(headed, of_models, setup, says):
    with pytest.raises(InputError, match=says):
        kj.generate(headed, PROMPTS, verifier=LinearJudge(random_head(setup, pair=of_models), 0.5))
    with pytest.raises(InputError, match=rf"setup {setup}\) .* a head, is a head: train one of .* DT or pivot"):
        random_head(setup, pair=of_models).check_pair(dataclasses.replace(headed, draft_name="a head"))


@pytest.mark.slow
def test_a_judge_on_the_target_alone_runs_with_looked_up_drafts(headed, of_models):
    alone = dataclasses.replace(headed, draft=None)
    head = random_head("DT", pair=of_models)
    out = kj.generate(alone, PROMPTS, verifier=LinearJudge(head, 0.5), drafter="lookup:2", max_new_tokens=8)
    assert out.stats.tokens > 0


def test_to_mine_with_a_head_is_refused_with_what_to_do(headed, tmp_path):
    task, says = LetterParity(), "a head is a head, .*: name a draft model of the same target; .* of setup DT or pivot"
    with pytest.raises(InputError, match=says):
        mine(headed, task, tmp_path, n=2, options=Options(4))
    with pytest.raises(InputError, match=says):
        label_mismatches(headed, task, tmp_path, Likelihood(4), n=2)
    assert not list(tmp_path.iterdir())
