"""Finds a task by its name."""

from __future__ import annotations

from typing import Any

from kljudge_jax.errors import InputError
from kljudge_jax.tasks.arithmetic import Arithmetic
from kljudge_jax.tasks.base import Task
from kljudge_jax.tasks.conversion import Conversion, HardConversion, MixedConversion
from kljudge_jax.tasks.gsm8k import GSM8K
from kljudge_jax.tasks.humaneval import HumanEval
from kljudge_jax.tasks.math500 import Math500
from kljudge_jax.tasks.mbpp import MBPP
from kljudge_jax.tasks.prompts import Prompts

_OURS: dict[str, Any] = {task.name: task for task in (Arithmetic, Conversion, MixedConversion, HardConversion)}
_FROM_FILES: dict[str, Any] = {task.name: task for task in (GSM8K, HumanEval, Math500, MBPP, Prompts)}
_RUN_CODE = (HumanEval, MBPP)


def register_task(task: Any) -> Any:
    """Makes a task of your own known by its `name`, to `load_task` and to every command of this process.

    It is made without arguments; or, where the class has `from_file = True`, of the path after the colon. A class that
    is defined again takes the place of the old one.

    Raises:
      InputError: the class lacks what a `Task` has, or has the name of a task of this package.
    """
    lacking = [each for each in ("name", "problems", "check") if not hasattr(task, each)]
    if lacking:
        raise InputError(f"{task.__name__} lacks {lacking[0]!r}: see kljudge_jax.Task")
    kind = _FROM_FILES if getattr(task, "from_file", False) else _OURS
    for tasks in (_OURS, _FROM_FILES):
        old = tasks.get(task.name)
        if old is not None and old.__module__.startswith(f"{__name__.partition('.')[0]}."):
            raise InputError(f"{task.__name__} has the name of a task of this package, {task.name!r}: choose another")
        tasks.pop(task.name, None)
    kind[task.name] = task
    return task


def load_task(spec: str, *, chat: bool | None = None, run_code: bool = False) -> Task:
    """A task by name: "arithmetic", "conversion", "conversion-hard", "gsm8k:FILE", "math500:FILE", "mbpp:FILE",
    "humaneval:FILE", "prompts:FILE".

    Args:
      spec: the name and, for tasks that are read from a file, the path after a colon.
      chat: ask in a chat, or as text to complete (for models without a chat template). By default the published tasks
        are chats and plain prompts are what the file holds; our own tasks are always text.
      run_code: lets `check` run code that a model wrote (HumanEval, MBPP), confined as `tasks.sandbox` says.

    Raises:
      InputError: an unknown name, a missing file, or a file that is not the task's.
    """
    name, _, path = spec.partition(":")
    if name in _OURS:
        if path:
            raise InputError(f"{name} makes its own problems: write {name!r} without a file.")
        return _OURS[name]()
    if name not in _FROM_FILES:
        known = [*_OURS, *(f"{other}:FILE" for other in _FROM_FILES)]
        raise InputError(f"There is no task {name!r}: choose one of {', '.join(known)}.")
    if not path:
        raise InputError(f"{name} is read from a file: write '{name}:FILE'.")
    options: dict[str, Any] = {} if chat is None else {"chat": chat}
    if _FROM_FILES[name] in _RUN_CODE:
        options["run_code"] = run_code
    return _FROM_FILES[name](path, **options)
