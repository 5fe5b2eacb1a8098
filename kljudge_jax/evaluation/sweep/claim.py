"""What a folder of answers is of (`plan.json`), and whether a run may go on in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.sweep.records import AnswerRecord, CellRecord, SweepClaim, SweepPlan
from kljudge_jax.machine import describe_machine
from kljudge_jax.models.fingerprint import fingerprints
from kljudge_jax.models.leaves import layout_of
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.parallel.axes import LOGICAL
from kljudge_jax.parallel.mesh import mesh_sizes
from kljudge_jax.records import plain, read, read_log, write, write_text
from kljudge_jax.tasks.base import Problem, Task
from kljudge_jax.verification.meaning import as_meant, say_the_same

PLAN, ANSWERS = "plan.json", "answers.jsonl"

_ADVICE = "delete that line and repeat the command, which answers it again"

# Of a claim: what a run that goes on may have otherwise.
_NOT_ASKED = ("machine", "later_machines")


def claim(folder: Path, pair: ModelPair, task: Task, plan: SweepPlan, problems: Sequence[Problem]) -> None:
    """Notes in a new folder what its answers are of; in another, sees that they are of the same.

    Where an earlier version began it, and a rule has another meaning since, the answers of that rule go on under the
    spec string that says the same now: if the plan has that one, the folder's files are written again with it.

    Raises:
      InputError: the folder holds the answers of another plan, pair or task, to other problems, or of a rule whose
        spec string means something else now; one line that says what to do.
    """
    asked = SweepClaim(
        target=pair.target_name,
        draft=pair.draft_name,
        dtype=pair.precision,
        mesh=None if layout_of(pair.target) is None else plain(_placed(pair)),
        task=task.name,
        weights=fingerprints(pair),
        problems=problems_digest(problems),
        plan=plan,
        machine=describe_machine(),
    )
    path = folder / PLAN
    if not path.exists():
        write(path, asked)
        return
    found = read_claim(path)
    renamed = _in_todays_words(found.plan.cells, plan.cells)
    changed = {} if renamed else _changed(found.plan.cells, plan.cells)
    # Cells of the same spec string are named by their meaning alone, once nothing else differs.
    alike = plan.cells if renamed or changed else found.plan.cells
    _check_same(path, asked, msgspec.structs.replace(found, plan=msgspec.structs.replace(found.plan, cells=alike)))
    if "" in changed.values():
        raise InputError(f"{folder} was begun by a later version, whose rules mean something else: name a new folder")
    if changed:
        names, meant = ", ".join(changed), ", ".join(changed.values())
        raise InputError(
            f"{folder} was begun by a version to which {names} meant what {meant} means now: name a new folder, or ask "
            f"for {meant} to go on in this one"
        )
    if renamed:
        records = [
            msgspec.structs.replace(one, rule=renamed.get(one.rule, one.rule)) for one in read_records(folder / ANSWERS)
        ]
        # The answers first: a kill in between leaves a folder that is taken for one to be written again.
        write_text(folder / ANSWERS, "".join(json.dumps(plain(one)) + "\n" for one in records))
        write(path, msgspec.structs.replace(found, plan=plan))


def note_machine(folder: Path) -> None:
    """Adds the machine and date of a run that goes on to the claim, where they are others than those noted."""
    noted, machine = read_claim(folder / PLAN), describe_machine()
    if machine not in (noted.machine, *noted.later_machines):
        write(folder / PLAN, msgspec.structs.replace(noted, later_machines=(*noted.later_machines, machine)))


def read_claim(path: Path) -> SweepClaim:
    """What a `plan.json` says. Raises `InputError` if it cannot be read."""
    return read(path, SweepClaim, "name a new folder")


def read_records(path: Path) -> list[AnswerRecord]:
    """The records of an answers file; a last line that a kill cut short is dropped from the file.

    Raises:
      InputError: another line is no record.
    """
    return read_log(path, AnswerRecord, _ADVICE, mend=True)


def problems_digest(problems: Sequence[Problem]) -> str:
    """16 hexadecimal digits of what is asked and of what is right: ids are places, the same in every file of a task."""
    asked = [{name: value for name, value in vars(problem).items() if name != "solution"} for problem in problems]
    return hashlib.sha256(json.dumps(asked, default=repr).encode()).hexdigest()[:16]


def _placed(pair: ModelPair) -> dict:
    """Where a pair lies: another mesh adds in another order, and its answers are not to be mixed with these."""
    models = {"target": pair.target, "draft": pair.draft}
    layouts = {role: layout for role, model in models.items() if (layout := layout_of(model)) is not None}
    return {
        "sizes": mesh_sizes(layouts["target"].mesh),
        **{role: dict(zip(LOGICAL, map(list, layout.axes), strict=True)) for role, layout in layouts.items()},
    }


def _in_todays_words(noted: Sequence[CellRecord], asked: Sequence[CellRecord]) -> dict[str, str]:
    """By the names of older meanings, what the asked cells call them now; empty where the cells are not the same."""
    renamed = {}
    for old, new in zip(noted, asked, strict=False):
        meant = as_meant(old.rule, old.meaning) if old.meaning < new.meaning else old.rule
        if old.draft_length != new.draft_length or not (old == new or say_the_same(meant, new.rule)):
            return {}
        if meant != old.rule:
            renamed[old.rule] = new.rule
    return renamed if len(noted) == len(asked) else {}


def _changed(noted: Sequence[CellRecord], asked: Sequence[CellRecord]) -> dict[str, str]:
    """The rules of which two equal plans have different meanings, each with what it meant as it is written now; "" if
    only a later version could say it."""
    if [(old.rule, old.draft_length) for old in noted] != [(new.rule, new.draft_length) for new in asked]:
        return {}
    return {
        old.rule: as_meant(old.rule, old.meaning) if old.meaning < new.meaning else ""
        for old, new in zip(noted, asked, strict=True)
        if old.meaning != new.meaning
    }


def _check_same(path: Path, asked: SweepClaim, found: SweepClaim) -> None:
    """Raises `InputError`, which names the fields, where two claims are not of the same sweep."""
    ours, theirs = asked.to_dict(), found.to_dict()
    differing = [name for name in ours if name not in _NOT_ASKED and ours[name] != theirs[name]]
    in_plan = [name for name in ours["plan"] if ours["plan"][name] != theirs["plan"][name]]
    if found.weights is None and found.problems is None and set(differing) == {"weights", "problems"}:
        raise InputError(
            f"{path.parent} was begun by a version that did not note weights and problems, so that nothing says whether"
            " they are these: name a new folder"
        )
    # A difference that follows from another one is not named: numbers of other bits, problems of another seed.
    if "dtype" in differing or {"target", "draft"} & set(differing):
        differing = [name for name in differing if name != "weights"]
    if "plan" in differing or "task" in differing:
        differing = [name for name in differing if name != "problems"]
    if differing:
        named = ", ".join(f"plan ({', '.join(in_plan)})" if name == "plan" else name for name in differing)
        raise InputError(
            f"{path.parent} holds another sweep (its {named} differs): name a new folder, or repeat "
            "its options to go on with it"
        )
