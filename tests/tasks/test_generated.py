"""Our own tasks: splits that cannot overlap, and streams that repeat."""

import collections

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.tasks.base import SPLITS, Task
from kljudge_jax.tasks.conversion import Conversion
from kljudge_jax.tasks.generated import GeneratedTask, split_of

TASKS = (Arithmetic(), Conversion())


class Coin(GeneratedTask):
    """A task with 8 problems and two wordings of each."""

    name = "coin"

    def facts(self, rng):
        return ("coin", rng.randrange(8))

    def word(self, facts, rng):
        return rng.choice(("heads", "tails")), "solution", str(facts[1])

    def check(self, problem, text):
        return text == problem.answer


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_splits_share_no_facts_and_no_prompt(task):
    facts = {split: {task._draw(split, seed, i)[0] for seed in (0, 7) for i in range(600)} for split in SPLITS}
    prompts = {split: {task.problem(split, 7, i).prompt for i in range(600)} for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not facts[one] & facts[other]
        assert not prompts[one] & prompts[other]


def test_split_ignores_the_wording():
    task = Coin()
    wordings = collections.defaultdict(set)
    for split in SPLITS:
        for i in range(60):
            facts, problem = task._draw(split, 0, i)
            wordings[facts].add((split, problem.prompt))
    assert all(len({split for split, _ in seen}) == 1 for seen in wordings.values())
    assert any(len(seen) == 2 for seen in wordings.values()), "both wordings of a problem should occur"


def test_split_shares_are_70_10_20():
    counts = collections.Counter(split_of(("x", i)) for i in range(20_000))
    shares = {split: counts[split] / 20_000 for split in SPLITS}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.015)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_problems_repeat_for_a_seed_and_only_for_it(task):
    assert isinstance(task, Task)
    assert task.problems(n=20) == task.problems(split="test", n=20, seed=7)
    assert task.problems(n=20, seed=8) != task.problems(n=20)
    assert task.problems(n=5) == task.problems(n=20)[:5]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_problems_of_one_list_differ(task):
    problems = task.problems("test", 1000)
    assert len({problem.id for problem in problems}) == 1000
    assert len({problem.prompt for problem in problems}) == 1000


def test_a_stream_reaches_any_index_at_once():
    task = TASKS[0]
    assert task.problem("train", 3, 10**9) == task.problem("train", 3, 10**9)
    assert task.problem("train", 3, 10**9) != task.problem("train", 3, 10**9 + 1)


def test_too_many_and_unknown_are_refused():
    with pytest.raises(InputError, match="ask for fewer"):
        Coin().problems("train", n=9)
    with pytest.raises(InputError, match="train, validation, test"):
        Coin().problems("dev")
