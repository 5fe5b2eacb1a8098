"""A few answers of a sweep with where each token came from, to look at."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from kljudge_jax.evaluation.baselines import parse_baseline
from kljudge_jax.evaluation.report.token_page import Answer, answer_of
from kljudge_jax.evaluation.sweep.records import Example, TracedAnswer
from kljudge_jax.evaluation.sweep.run import Part, decode
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.parallel.hosts import share
from kljudge_jax.records import read, write

Examples = list[tuple[str, list[Answer]]]


def examples(pair: ModelPair, part: Part, count: int) -> Examples:
    """The part's first `count` prompts as text, each with its answer under every rule, traced.

    They are decoded once and kept in `examples.json` of the part's folder, so that a finished sweep can be reported
    again at no cost.
    """
    path = part.folder / "examples.json"
    share(part.folder, path.name)
    if path.exists():
        found = _read(path)
        if len(found) == count:
            return found
    plan = part.plan
    problems = part.task.problems(split=plan.split, n=plan.n, seed=plan.config.seed)[:count]
    found = [(_as_text(problem.prompt), []) for problem in problems]
    rules = [cell for cell in plan.cells if parse_baseline(cell.rule) is None]
    for cell in rules if problems else ():
        out = decode(pair, plan, cell, problems, range(len(problems)), trace=True)
        for row, (problem, (_, answers)) in enumerate(zip(problems, found, strict=True)):
            stats = out.stats.rows[row]
            right = "right" if part.task.check(problem, out.text[row]) else "wrong"
            note = f"{right}; {stats.tokens} tokens in {stats.cycles} target passes, {stats.relaxed} relaxed"
            answers.append(answer_of(cell.name, pair.tokenizer, out, row, note))
    _write(path, found)
    return found


def _as_text(prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


def _write(path: Path, found: Examples) -> None:
    def kept(answer: Answer) -> TracedAnswer:
        kl = tuple(float(kl) if np.isfinite(kl) else None for kl in answer.kl)
        return TracedAnswer(**vars(answer) | {"kl": kl})

    write(path, [Example(prompt=prompt, answers=tuple(map(kept, answers))) for prompt, answers in found])


def _read(path: Path) -> Examples:
    return [
        (one.prompt, [Answer(**msgspec.structs.asdict(a) | {"kl": np.array(a.kl, float)}) for a in one.answers])
        for one in read(path, list[Example], "delete the file and repeat the command, which decodes them again")
    ]
