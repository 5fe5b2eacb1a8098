"""Agreement with the target's own answers, right or wrong."""

from msgspec import structs
from sweep_records import record

from kljudge_jax.evaluation.calibration.target_answers import TargetAnswers
from kljudge_jax.tasks import Problem, load_task
from kljudge_jax.tasks.code import CodeProblem


class Plain:
    """Prompts without answers."""

    name = "plain"

    def problems(self, split, n, seed):
        return [Problem(f"plain/{split}/{seed}/{i}", "go on", "") for i in range(n)]

    def check(self, problem, text):
        raise AssertionError("there is nothing to check with")


def knows(task, problem, text):
    task = TargetAnswers(task)
    plain = structs.replace(record("none", 0, 0, True), problem=problem.id, text=text)
    task.learn([plain, record("all", 8, 1, True, text="y")])
    return task


def test_problems_and_name_are_the_tasks():
    task = TargetAnswers(Plain())
    assert task.name == "plain" and [p.id for p in task.problems("all", 2, 5)] == ["plain/all/5/0", "plain/all/5/1"]


def test_plain_prompts_are_compared_as_text_but_for_spaces_and_unicode():
    (problem,) = Plain().problems("all", 1, 0)
    task = knows(Plain(), problem, "A  caf\u00e9.\n")
    assert task.check(problem, "A cafe\u0301.") and not task.check(problem, "A bar.")


def test_the_first_answer_is_the_targets_own():
    (problem,) = Plain().problems("all", 1, 0)
    assert TargetAnswers(Plain()).check(problem, "anything")


def test_tasks_compare_final_answers_and_not_words():
    task = load_task("arithmetic")
    problem = Problem("p", "?", "12")
    right, wrong = knows(task, problem, "so it is\n#### 12"), knows(task, problem, "so it is\n#### 13")
    assert right.check(problem, "in other words\n#### 12") and not right.check(problem, "so it is\n#### 13")
    assert wrong.check(problem, "in other words\n#### 13") and not wrong.check(problem, "so it is\n#### 12")


def test_an_answer_that_ends_early_agrees_with_itself_alone():
    problem = Problem("p", "?", "12")
    task = knows(load_task("arithmetic"), problem, "so it")
    assert task.check(problem, "so  it") and not task.check(problem, "so it is\n#### 12")


def test_code_is_not_run():
    problem = CodeProblem("p", "?", "pass", tests="raise SystemExit")
    task = knows(Plain(), problem, "return 1")
    assert task.check(problem, "return  1") and not task.check(problem, "return 2")
