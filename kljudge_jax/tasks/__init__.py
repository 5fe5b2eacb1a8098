"""Tasks: prompts, and checkers that read the final answer."""

from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.tasks.load import load_task, register_task

__all__ = ["Problem", "Task", "load_task", "register_task"]
