"""Rules x draft lengths over the problems of tasks: every answer kept, resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import msgspec

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.drafters.specs import spec_of
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.baselines import Answer, Request, answers_of, check_baselines, parse_baseline
from kljudge_jax.evaluation.sweep.claim import ANSWERS, PLAN, claim, note_machine, read_records
from kljudge_jax.evaluation.sweep.records import KIND, SCHEMA, AnswerRecord, SweepPlan
from kljudge_jax.generation.arguments import check_compared
from kljudge_jax.generation.config import DecodingConfig, configured
from kljudge_jax.generation.generate import generate
from kljudge_jax.generation.results import Generation
from kljudge_jax.generation.sections import sections_for
from kljudge_jax.models.leaves import head_kind, is_head
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import Transformer
from kljudge_jax.parallel.hosts import share
from kljudge_jax.progress_update import ProgressUpdate
from kljudge_jax.records import LineWriter, convert, plain
from kljudge_jax.results_folder import results_folder
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.verification import Verifier, parse_verifier
from kljudge_jax.verification.meaning import meaning_of
from kljudge_jax.verification.specs import spec_of as rule_name

__all__ = ["KIND", "SCHEMA", "Cell", "Part", "Plan", "answer", "decode", "grid", "parts", "pooled", "run_sweep"]

# In one turn a cell answers so many problems a slot: the last answers of a turn leave slots empty, and cells that take
# turns often are compared best.
_PROBLEMS_A_SLOT = 4


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination that a sweep runs.

    Attributes:
      rule: the spec string of a rule or baseline, or the name of a rule that has none.
      draft_length: a number (0 if none is needed), or the spec string of an adaptive length.
      verifier: the rule itself, where one was given.
    """

    rule: str
    draft_length: int | str
    verifier: Verifier | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.rule} @ {self.draft_length}" if self.draft_length else self.rule


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep runs. Two runs with one plan give the same answers, so a killed one can be resumed.

    Attributes:
      cells: the combinations.
      n, split: which problems of the task; `config.seed` chooses them.
      config: how each is answered, but for the draft length. Tokens per second are those of `config.batch` side by
        side.
    """

    cells: tuple[Cell, ...]
    n: int = 100
    split: str = "test"
    config: DecodingConfig = dataclasses.field(default_factory=lambda: configured("sweep", None, {}))

    @property
    def turn(self) -> int:
        """How many problems a cell answers before it is another's turn."""
        batch = self.config.batch or self.n
        return 1 if batch == 1 else _PROBLEMS_A_SLOT * batch

    def seeded(self, seed: int) -> Self:
        """The plan under another seed."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, seed=seed))

    def of(self, cell: Cell) -> DecodingConfig:
        """How a cell's problems are answered."""
        return dataclasses.replace(self.config, draft_length=cell.draft_length) if cell.draft_length else self.config

    def to_json(self) -> dict[str, Any]:
        """Everything that a run that goes on has to have the same."""
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "config"}
        own["cells"] = [
            {"rule": cell.rule, "draft_length": cell.draft_length, "meaning": meaning_of(cell.rule)}
            for cell in self.cells
        ]
        return own | {name: value for name, value in self.config.to_json().items() if name != "draft_length"}

    def to_record(self) -> SweepPlan:
        """The same, as the files of a sweep hold it."""
        return convert(plain(self.to_json()), SweepPlan, "the plan")


def grid(rules: Sequence[str | Verifier | None], draft_lengths: Sequence[int | Adaptive | str]) -> tuple[Cell, ...]:
    """Every rule at every draft length; plain decoding ("none") once, and so every baseline that drafts nothing.

    Raises:
      InputError: what is no rule or no length, or an adaptive one for a baseline that drafts by Transformers.
    """
    lengths = [spec_of(DecodingConfig(draft_length=length).draft_length) for length in draft_lengths]
    named = [(rule_name(rule), rule if callable(rule) else None) for rule in rules]
    cells = [Cell(name, 0, rule) for name, rule in named if not drafts(name)]
    cells += [Cell(name, length, rule) for length in lengths for name, rule in named if drafts(name)]
    for cell in cells:
        if isinstance(cell.draft_length, str) and cell.rule.startswith("hf"):
            raise InputError(f"{cell.rule!r} drafts by one length: leave it out of a sweep of adaptive ones")
    return tuple(dict.fromkeys(cells))


def drafts(rule: str) -> bool:
    """Whether the draft length matters to a rule or baseline of that name."""
    baseline = parse_baseline(rule)
    return rule != "none" if baseline is None else baseline.drafts


@dataclasses.dataclass(frozen=True)
class Part:
    """One task under one seed: a sweep's part, which has a folder of its own where there are several."""

    task: Task
    plan: Plan
    folder: Path


def parts(tasks: Sequence[Task], seeds: Sequence[int], plan: Plan, folder: str | Path) -> list[Part]:
    """The parts of a sweep: every task under every seed, in `folder/TASK-seedN`; in `folder` itself if there is one.

    Raises:
      InputError: two tasks of one name.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"the tasks {', '.join(names)} would share a folder: sweep them one at a time")
    found = [
        Part(task, plan.seeded(seed), Path(folder) / f"{task.name}-seed{seed}")
        for task in tasks
        for seed in dict.fromkeys(seeds)
    ]
    return [dataclasses.replace(found[0], folder=Path(folder))] if len(found) == 1 else found


def pooled(records_of_seeds: Sequence[tuple[Plan, Sequence[AnswerRecord]]]) -> list[AnswerRecord]:
    """The records of one task under several seeds as those of one sweep.

    A problem that several seeds drew counts once when decoding is greedy, for its answer is the same; when sampling,
    its answers are different draws and all count.
    """
    found: dict[tuple, AnswerRecord] = {}
    for plan, records in records_of_seeds:
        for record in records:
            problem = record.problem if plan.config.greedy else f"{record.problem}#{plan.config.seed}"
            key = (record.rule, record.draft_length, problem)
            # Batches and turns are numbered from 0 under every seed.
            found.setdefault(key, msgspec.structs.replace(record, problem=problem, seed=plan.config.seed))
    return list(found.values())


def run_sweep(
    pair: ModelPair,
    task: Task,
    plan: Plan,
    folder: str | Path,
    report: Callable[[str], None] = lambda line: None,
    cells: Sequence[Cell] | None = None,
) -> list[AnswerRecord]:
    """Answers the plan's problems in every cell, and returns one record an answer.

    Cells take turns, `plan.turn` problems each, so that a machine that slows down slows all of them. Within a turn a
    problem that waits takes the slot of an answer that ended. Records are appended to `folder/answers.jsonl` as answers
    end, in that order; a run that finds some there answers what is missing. With `cells` only those of the plan are run
    now; the records are still all there are.

    A record's `own_seconds` is its part of the time that its turn took: those of any answers add up to what they cost.
    Records with one `turn`, the place of its first problem, were decoded together; `batch` says so of baselines, which
    decode batches.

    Raises:
      InputError: the folder holds the answers of another plan, pair or task or to other problems, it is damaged, or a
        baseline cannot run here.
    """
    names = [cell.rule for cell in plan.cells]
    check_baselines(names, pair.draft is not None)
    if is_head(pair.draft) and "draft" in names:
        raise InputError(
            f"the cells draft decode with the draft alone, and an {head_kind(pair.draft)} head cannot: leave them out"
        )
    if plan.config.stop and any(name.startswith("hf") for name in names):
        raise InputError("Transformers' decoding ends at no stop string here: leave out stop, or the cells hf")
    for baseline in (parse_baseline(name) for name in names if name.startswith("hf")):
        for model in (pair.target, pair.draft if baseline is not None and baseline.needs_draft else None):
            if not isinstance(model, Transformer | None):
                raise InputError(
                    f"the cells hf give Transformers the weights of a kljudge_jax.Transformer, and the pair has a "
                    f"{type(model).__name__}: leave them out"
                )
    for cell in plan.cells:
        if parse_baseline(cell.rule) is None:
            rule = parse_verifier(cell.rule, plan.config.greedy) if cell.verifier is None else cell.verifier
            check_compared(rule, plan.config.drafter)
            sections_for(plan.config.section_ids, rule, pair.tokenizer, pair.target.vocab_size)
    problems = task.problems(split=plan.split, n=plan.n, seed=plan.config.seed)
    folder = results_folder(folder)
    share(folder, PLAN, ANSWERS)
    claim(folder, pair, task, plan.to_record(), problems)
    path = folder / ANSWERS
    records = read_records(path)
    done = {(r.rule, r.draft_length, r.problem) for r in records}
    asked = list(plan.cells if cells is None else cells)
    before = sum(cell_of(record) in asked for record in records)
    noted = False
    with LineWriter(path) as file:

        def keep(record: AnswerRecord) -> None:
            file.append(record)
            records.append(record)

        for first in range(0, len(problems), plan.turn):
            places = range(first, min(first + plan.turn, len(problems)))
            for cell in asked:
                left = [i for i in places if (cell.rule, cell.draft_length, problems[i].id) not in done]
                if not left:
                    continue
                if done and not noted:
                    note_machine(folder)
                noted = True
                answers = answer(pair, task, plan, cell, [problems[i] for i in left], left, first, keep)
                file.sync()
                right = sum(record.right for record in answers)
                reached = sum(cell_of(r) in asked for r in records)
                line = (
                    f"problems {first + 1}-{places.stop} of {len(problems)}, {cell.name}: {right} right, "
                    f"{sum(a.own_seconds or 0.0 for a in answers):.0f} s"
                )
                report(ProgressUpdate(line, reached, len(asked) * len(problems), before))
    return records


def cell_of(record: AnswerRecord) -> Cell:
    """The cell that a record is of."""
    return Cell(record.rule, record.draft_length)


def decode(
    pair: ModelPair,
    plan: Plan,
    cell: Cell,
    problems: Sequence[Problem],
    places: Sequence[int],
    trace: bool = False,
    answered: Callable[[int, Generation], None] | None = None,
) -> Generation:
    """Answers problems in one call; `places` say which of the plan each is. `answered` as `generate` takes it."""
    return generate(
        pair,
        [problem.prompt for problem in problems],
        verifier=cell.rule if cell.verifier is None else cell.verifier,
        **plan.of(cell).arguments(),
        key=_row_keys(plan.config.seed, places),
        trace=trace,
        batch_size=plan.config.batch,
        answered=answered,
    )


def answer(
    pair: ModelPair,
    task: Task,
    plan: Plan,
    cell: Cell,
    problems: Sequence[Problem],
    places: Sequence[int],
    turn: int = 0,
    keep: Callable[[AnswerRecord], None] = lambda record: None,
) -> list[AnswerRecord]:
    """The records of some problems in one cell, in the order in which they end; `keep` is given each as it does.

    `places` say which problem of the plan each is, and `turn` which is the first of their turn.
    """
    records: list[AnswerRecord] = []

    def answered(i: int, given: Answer) -> None:
        counts = {name: value for name, value in given.stats.to_json().items() if name != "tokens_per_second"}
        counts |= {"acceptance_histogram": tuple(given.stats.acceptance_histogram.tolist()), **given.notes}
        records.append(
            AnswerRecord(
                rule=cell.rule,
                draft_length=cell.draft_length,
                problem=problems[i].id,
                right=bool(task.check(problems[i], given.text)),
                text=given.text,
                token_ids=tuple(given.tokens.tolist()),
                turn=turn,
                batch=places[given.batch],
                **counts,
            )
        )
        keep(records[-1])

    baseline = parse_baseline(cell.rule)
    if baseline is None:
        decode(pair, plan, cell, problems, places, answered=lambda i, out: answered(i, answers_of(out)[0]))
    else:
        request = Request(plan.of(cell), _row_keys(plan.config.seed, places), answered)
        baseline.answer(pair, [problem.prompt for problem in problems], request)
    return records


def _row_keys(seed: int, places: Sequence[int]) -> jax.Array:
    """The keys of some problems of a sweep: `fold_in(key(seed), i)`, whatever is decoded together."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jax.numpy.asarray(places))
