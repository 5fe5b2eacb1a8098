"""Answers as a sweep keeps them, and a task whose answers hold a letter."""

from kljudge_jax.evaluation.sweep.records import AnswerRecord
from kljudge_jax.tasks import Problem


class Letters:
    """A task: an answer is right if it holds the problem's letter."""

    name = "letters"

    def problems(self, split="test", n=200, seed=7):
        return [Problem(f"letters/{i}", f"text {seed} {i}", "abcdefghij"[i % 10]) for i in range(n)]

    def check(self, problem, text):
        return problem.answer in text


def record(rule, length, problem, right, **counts):
    given = {"tokens": 10, "cycles": 5, "drafted": 20, "accepted": 5, "relaxed": 0, "failed": 0, "finish": "eos"}
    given |= {"batch": problem // 2, "seconds": 2.0, "text": "", "token_ids": (problem,)} | counts
    return AnswerRecord(rule=rule, draft_length=length, problem=f"p/{problem}", right=right, **given)


def answers(rule, right, length=8, **counts):
    return [record(rule, length if rule != "none" else 0, i, answer, **counts) for i, answer in enumerate(right)]
