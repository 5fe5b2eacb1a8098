"""Rules x draft lengths over the problems of a task: every answer kept, resumable, summed up in one table."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from kljudge_jax.decoding.generate import generate
from kljudge_jax.decoding.words import parse_drafter
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.machine import describe_machine
from kljudge_jax.evaluation.statistics import mcnemar, ratio_interval, wilson_interval
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.tasks.base import Task

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination that a sweep runs: a rule's word and a draft length (0 for plain decoding)."""

    rule: str
    draft_length: int

    @property
    def name(self) -> str:
        return self.rule if self.rule == "none" else f"{self.rule} @ {self.draft_length}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep runs. Two runs with one plan give the same answers, so a killed one can be resumed.

    Attributes:
      cells: the combinations.
      n, split, seed: which problems of the task.
      batch: answers decoded side by side; tokens per second are those of such batches.
      drafter: its word, as `decoding.words` reads it.
      max_new_tokens, temperature, top_k, top_p: as `generate` takes them; `seed` makes its key too.
    """

    cells: tuple[Cell, ...]
    n: int = 100
    split: str = "test"
    seed: int = 7
    batch: int = 8
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    drafter: str = "model"


def grid(rules: Sequence[str], draft_lengths: Sequence[int]) -> tuple[Cell, ...]:
    """Every rule at every draft length; plain decoding ("none") once."""
    cells = [Cell(rule, 0) for rule in rules if rule == "none"]
    cells += [Cell(rule, length) for length in draft_lengths for rule in rules if rule != "none"]
    return tuple(dict.fromkeys(cells))


def run_sweep(
    pair: ModelPair,
    task: Task,
    plan: Plan,
    folder: str | Path,
    report: Callable[[str], None] = lambda line: None,
    cells: Sequence[Cell] | None = None,
) -> list[dict]:
    """Answers the plan's problems in every cell, and returns one record an answer.

    Cells take turns batch by batch, so that a machine that slows down slows all of them. Records are appended to
    `folder/answers.jsonl` as batches end; a run that finds some there goes on after them. With `cells` only those of
    the plan are run now; the records are still all there are.

    Raises:
      InputError: the folder holds the answers of another plan, pair or task.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder of results: {error.strerror}") from error
    _claim(folder / "plan.json", pair, task, plan)
    path = folder / "answers.jsonl"
    records = list(read_records(path))
    done = {(r["rule"], r["draft_length"], r["problem"]) for r in records}
    problems = task.problems(split=plan.split, n=plan.n, seed=plan.seed)
    with path.open("a", encoding="utf-8") as file:
        for first in range(0, len(problems), plan.batch):
            batch = problems[first : first + plan.batch]
            for cell in plan.cells if cells is None else cells:
                if all((cell.rule, cell.draft_length, problem.id) in done for problem in batch):
                    continue
                answers = answer(pair, task, plan, cell, batch, first)
                answers = [a for a in answers if (a["rule"], a["draft_length"], a["problem"]) not in done]
                file.write("".join(json.dumps(record) + "\n" for record in answers))
                file.flush()
                os.fsync(file.fileno())
                records += answers
                right = sum(record["right"] for record in answers)
                report(
                    f"problems {first + 1}-{first + len(batch)} of {len(problems)}, {cell.name}: {right} right, "
                    f"{answers[0]['seconds']:.0f} s"
                )
    return records


def answer(pair, task, plan, cell, batch, first) -> list[dict]:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(plan.seed), jax.numpy.arange(first, first + len(batch))
    )
    out = generate(
        pair,
        [problem.prompt for problem in batch],
        verifier=cell.rule,
        draft_length=cell.draft_length,
        drafter=parse_drafter(plan.drafter),
        max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature,
        top_k=plan.top_k,
        top_p=plan.top_p,
        key=keys,
    )
    return [
        {
            "rule": cell.rule,
            "draft_length": cell.draft_length,
            "problem": problem.id,
            "right": bool(task.check(problem, text)),
            "text": text,
            "token_ids": tokens.tolist(),
            "batch": first,
            **{name: value for name, value in row.to_json().items() if name != "tokens_per_second"},
        }
        for problem, text, tokens, row in zip(batch, out.text, out.tokens, out.stats.rows, strict=True)
    ]


def _claim(path: Path, pair: ModelPair, task: Task, plan: Plan) -> None:
    asked = {
        "schema": SCHEMA,
        "target": pair.target_name,
        "draft": pair.draft_name,
        "dtype": str(pair.target.dtype),
        "task": task.name,
        "plan": json.loads(json.dumps(dataclasses.asdict(plan))),
    }
    if not path.exists():
        whole = path.with_suffix(".partial")
        whole.write_text(json.dumps(asked | {"machine": describe_machine()}, indent=2) + "\n", encoding="utf-8")
        os.replace(whole, path)  # so that a kill leaves all of it or nothing
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: name a new folder") from error
    differing = [name for name in asked if found.get(name) != asked[name]]
    if differing:
        raise InputError(
            f"{path.parent} holds another sweep (its {', '.join(differing)} differs): name a new folder, or repeat "
            "its options to go on with it"
        )


def read_records(path: Path) -> Iterator[dict]:
    """The records of an answers file; a last line that a kill cut short is dropped from the file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield json.loads(line)
        file.truncate(whole)


def summarise(records: Sequence[dict]) -> list[dict]:
    """One row a cell, in the order they ran: accuracy, acceptance, passes and speed, each with its uncertainty.

    Cells are compared with plain decoding on the answers that both have; "p" is McNemar's, "speed" the ratio of tokens
    per second. Without a "none" cell those are None.
    """
    cells: dict[Cell, dict[str, dict]] = defaultdict(dict)
    for record in records:
        cells[Cell(record["rule"], record["draft_length"])][record["problem"]] = record
    plain = cells.get(Cell("none", 0))
    rows = []
    for cell, answers in cells.items():
        of = list(answers.values())
        right = sum(r["right"] for r in of)
        tokens, cycles = [r["tokens"] for r in of], [r["cycles"] for r in of]
        row = {
            "rule": cell.rule,
            "draft_length": cell.draft_length,
            "n": len(of),
            "right": right,
            "accuracy": right / len(of),
            "accuracy_interval": wilson_interval(right, len(of)),
            "mean_acceptance_length": sum(tokens) / max(sum(cycles), 1),
            "mean_acceptance_length_interval": ratio_interval(tokens, cycles),
            "draft_acceptance_rate": sum(r["accepted"] for r in of) / max(sum(r["drafted"] for r in of), 1),
            "relaxed_per_answer": sum(r["relaxed"] for r in of) / len(of),
            "target_passes_per_answer": sum(cycles) / len(of),
            "tokens_per_answer": sum(tokens) / len(of),
            "cut_at_length": sum(r["finish"] == "length" for r in of),
            "failed": sum(r["failed"] for r in of),
            "tokens_per_second": _speed(of),
            "p": None,
            "same_text": None,
            "speed": None,
        }
        if plain:
            both = [name for name in answers if name in plain]
            ours, theirs = [answers[b] for b in both], [plain[b] for b in both]
            row["p"] = mcnemar([r["right"] for r in ours], [r["right"] for r in theirs])
            row["same_text"] = sum(a["token_ids"] == b["token_ids"] for a, b in zip(ours, theirs, strict=True))
            row["speed"] = _speed(ours) / max(_speed(theirs), 1e-12)
        rows.append(row)
    return rows


def _speed(records: Sequence[dict]) -> float:
    """Tokens per second of batches, whose rows share one time."""
    seconds = {r["batch"]: r["seconds"] for r in records}
    return sum(r["tokens"] for r in records) / max(sum(seconds.values()), 1e-12)


def markdown_table(rows: Sequence[dict]) -> str:
    """The summary as a Markdown table."""
    head = (
        "| rule | draft length | right | 95 % | p | same text | mean acceptance length | relaxed / answer "
        "| target passes / answer | tokens / answer | tokens/s | x plain |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        low, high = row["accuracy_interval"]
        short, long = row["mean_acceptance_length_interval"]
        plain = row["rule"] == "none"
        lines.append(
            f"| {'plain' if plain else row['rule']} | {'' if plain else row['draft_length']} "
            f"| {row['right']} of {row['n']} | {100 * low:.0f} to {100 * high:.0f} "
            f"| {'' if plain or row['p'] is None else format(row['p'], '.2f')} "
            f"| {'' if plain or row['same_text'] is None else row['same_text']} "
            f"| {row['mean_acceptance_length']:.2f} ({short:.2f} to {long:.2f}) | {row['relaxed_per_answer']:.1f} "
            f"| {row['target_passes_per_answer']:.1f} | {row['tokens_per_answer']:.0f} "
            f"| {row['tokens_per_second']:.2f} | {'' if row['speed'] is None else format(row['speed'], '.2f')} |"
        )
    return "\n".join(lines) + "\n"
