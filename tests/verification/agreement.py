"""Compares every rule with its definition in float64, and writes what agrees as records and as a table.

`python tests/verification/agreement.py --cases 4000 --out docs/pages/definitions.json` takes some minutes, and
`--page docs/pages/definitions.md` puts the table between the marks of that page.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import test_exact
import test_k_sequential
import test_multi_path
from oracles import ORACLES
from oracles.base import RESOLUTION, Expected, Oracle
from oracles.cases import NEVER_FIRST, OPTIONAL, several, single
from random_cases import batch_axes, lengths_and_corrections, verdicts
from scipy import stats

from kljudge_jax.machine import Machine, describe_machine
from kljudge_jax.records import Count, Record, write
from kljudge_jax.verification import GreedyExact, KSequential, MultiPathBlock, VerifyInputs, describe_rules
from kljudge_jax.verification.rule import RULES
from kljudge_jax.verification.specs import spec_of

# Probabilities that differ by less are the same in float32; of a correction that is made of little, digits are lost.
TOLERANCE = 2e-5

# A correction that is made of less is what rounding left of two distributions that are nearly equal: p may stand in its
# stead, and nothing says what it is.
_LEAST_WEIGHT = 1e-4

# Draft lengths and vocabularies, and of ten batches how many have each.
SHAPES = {(4, 5): 6, (8, 7): 2, (3, 2): 2}
BATCH = 400


class Tally(Record, frozen=True, kw_only=True):
    """What came of some cases.

    Attributes:
      cases: how many.
      agree: those in which all probabilities, and the drawn verdict, are the definition's.
      undecided: those so near to a threshold that float32 may see them on its other side.
      differ: the others.
    """

    cases: Count = 0
    agree: Count = 0
    undecided: Count = 0
    differ: Count = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class SettingRecord(Record, frozen=True, kw_only=True):
    """A rule at some numbers.

    Attributes:
      rule: its spec string; of a rule with a head, the head's set-up stands in its place.
      greedy, sampling: the cases of either; None where it has no such form.
      draws: in how many of the verdicts chance had a say.
      p: of the chi-square test that these are the definition's; None of less than 100.
    """

    rule: str
    greedy: Tally | None
    sampling: Tally | None
    draws: Count
    p: float | None


class Enumeration(Record, frozen=True, kw_only=True):
    """Of a lossless rule: all outcomes of some pairs of models, added up to the distribution of the tokens.

    Attributes:
      distributions: how many joint distributions of up to four tokens.
      largest_error: by which a probability differed from the target's.
    """

    distributions: Count
    largest_error: float


class RuleRecord(Record, frozen=True, kw_only=True):
    """A rule: its class, spec names, source, what of it is ours, the file of its definition, and what was found."""

    name: str
    spec: str
    aliases: tuple[str, ...]
    source: str
    ours: str
    definition: str
    settings: tuple[SettingRecord, ...]
    lossless: Enumeration | None

    def total(self, mode: str) -> Tally | None:
        """Over all settings."""
        found = [tally for each in self.settings if (tally := getattr(each, mode)) is not None]
        return sum(found, Tally()) if found else None


class Agreement(Record, frozen=True, kw_only=True):
    """How far the rules are their definitions (`definitions.json`).

    Attributes:
      machine: on which it ran.
      cases: of each setting, greedy and sampling apiece.
      seed: of the first batch.
      tolerance: of probabilities. resolution: nearer to a threshold, a case is undecided.
      rules: by spec name.
    """

    schema: Literal[1] = 1
    kind: Literal["agreement"] = "agreement"
    machine: Machine
    cases: Count
    seed: int
    tolerance: float
    resolution: float
    rules: tuple[RuleRecord, ...]


# Compiling is most of what a small run costs.
_compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@_compiled
def _of_several(rule, keys, inputs):
    def one(key, case):
        drafts, length = case.draft_tokens.shape
        lengths = jnp.arange(length + 1)
        if isinstance(rule, MultiPathBlock):
            followed, branch = rule.greatest(case)
            each = jnp.zeros((drafts, length + 1)).at[branch].set(rule.acceptance_distribution(followed))
            corrections = jax.vmap(functools.partial(rule.correction, followed))(lengths)
            corrections = jnp.broadcast_to(corrections, (drafts, *corrections.shape))
        else:
            each = rule.law_among(case)
            by_draft = jax.vmap(functools.partial(rule.correction_among, case), (None, 0))
            corrections = jax.vmap(by_draft, (0, None))(jnp.arange(drafts), lengths)
        return each, corrections, rule.choose(key, case)

    return jax.vmap(one, in_axes=(0, batch_axes(inputs)))(keys, inputs)


def compare(oracle: Oracle, mode: str, shape: tuple[int, int], size: int, seed: int):
    """`tallied` of a batch of random and adversarial cases of one shape."""
    (length, vocab), greedy = shape, mode == "greedy"
    if oracle.several:
        return tallied(oracle, *several(seed, greedy, oracle.rule.drafts, min(length, 4), min(vocab, 5), size), seed)
    inputs, cases = single(seed, greedy, length, vocab, size)
    left_out = {name: None for name in OPTIONAL if name not in oracle.reads}
    if "position" in left_out:
        cases = [dataclasses.replace(case, position=NEVER_FIRST) for case in cases]
    return tallied(oracle, dataclasses.replace(inputs, **left_out), cases, seed)


def tallied(oracle: Oracle, inputs: VerifyInputs, cases: list, seed: int = 0) -> tuple[Tally, list[float], str]:
    """What a rule makes of cases against its definition.

    Returns:
      the tally; for each verdict that was left to chance its place among all that could have been, in [0, 1]; and the
      first difference as text, or "".
    """
    if oracle.several:
        keys = jax.random.split(jax.random.key(seed), len(cases))
        lengths, corrections, (verdict, branches) = _of_several(oracle.rule, keys, inputs)
        lengths, corrections, branches = (np.asarray(x) for x in (lengths, corrections, branches))
    else:
        lengths, corrections = lengths_and_corrections(oracle.rule, inputs)
        verdict, branches = verdicts(oracle.rule, inputs, seed), None
    kept, tokens, relaxed = (np.asarray(x) for x in (verdict.num_accepted, verdict.next_token, verdict.relaxed))
    carries = None if verdict.carry is None else np.asarray(verdict.carry, np.float64)
    rng, tally, places, first = np.random.default_rng(seed), Tally(), [], ""
    for i, case in enumerate(cases):
        expected = oracle.expected(case)
        at = (int(kept[i]),) if branches is None else (int(branches[i]), int(kept[i]))
        undecided = expected.slack < RESOLUTION
        wrong = "" if undecided else _difference(expected, lengths[i], corrections[i])
        if not undecided and not wrong:
            before, chance, weight = _place(expected, at, int(tokens[i]))
            if chance <= 0 and weight > _LEAST_WEIGHT:
                wrong = f"verdict {at} and {tokens[i]}, which cannot be"
            elif 0 < chance < 1 - 1e-6:
                places.append(before + chance * rng.random())
            if not oracle.several and case.greedy and not _marked(case, kept[i], relaxed[i]):
                wrong = f"relaxed {relaxed[i]}"
            if expected.carry is not None and abs(carries[i] - expected.carry) > 1e-5 * (1 + expected.carry):
                wrong = f"carry {carries[i]}, not {expected.carry}"
        tally += Tally(cases=1, agree=not wrong and not undecided, undecided=undecided, differ=bool(wrong))
        first = first or (wrong and f"{wrong}\n{case}")
    return tally, places, first


def _difference(expected: Expected, lengths, corrections) -> str:
    if np.abs(lengths - expected.lengths).max() > TOLERANCE:
        return f"lengths {lengths}, not {expected.lengths}"
    for at, (row, weight) in expected.corrections.items():
        if weight > _LEAST_WEIGHT and np.abs(corrections[at] - row).max() > TOLERANCE / 2 + 1e-6 / weight:
            return f"correction after {at}: {corrections[at]}, not {row}"
    return ""


def _place(expected: Expected, at, token: int) -> tuple[float, float, float]:
    """How probable the outcomes before one are, in some order, and it itself; and what its correction is made of."""
    before = 0.0
    for index, (row, weight) in expected.corrections.items():
        key = index if isinstance(index, tuple) else (index,)
        reached = float(expected.lengths[key])
        if key == at:
            return before + reached * float(row[:token].sum()), reached * float(row[token]), weight
        before += reached
    return before, 0.0, 1.0


def _marked(case, kept, relaxed) -> bool:
    """Whether the relaxed tokens are those kept that are not the target's argmax."""
    best = np.argmax(case.target, axis=-1)
    return [i < kept and case.tokens[i] != best[i] for i in range(case.length)] == relaxed.tolist()


def batches(cases: int) -> list[tuple[tuple[int, int], int]]:
    """Shapes and sizes of the batches that come to so many cases."""
    order = [shape for shape, share in SHAPES.items() for _ in range(share)]
    sizes = [min(BATCH, cases - at) for at in range(0, cases, BATCH)]
    return [(order[i % len(order)], size) for i, size in enumerate(sizes)]


def measure(oracle: Oracle, cases: int, seed: int) -> SettingRecord:
    """A setting over so many cases of each mode; prints the first difference that it finds."""
    tallies: dict[str, Tally] = {}
    places: list[float] = []
    for mode in oracle.modes:
        for i, (shape, size) in enumerate(batches(cases)):
            tally, drawn, first = compare(oracle, mode, shape, size, seed + i)
            tallies[mode] = tallies.get(mode, Tally()) + tally
            places += drawn
            if first:
                print(f"{label(oracle.rule)}, {mode}, {shape}, seed {seed + i}: {first}", flush=True)
    counted = np.histogram(places, bins=20, range=(0, 1))[0]
    p = float(stats.chisquare(counted).pvalue) if len(places) >= 100 else None
    return SettingRecord(
        rule=label(oracle.rule), **{"greedy": None, "sampling": None, **tallies}, draws=len(places), p=p
    )


def label(rule: Any) -> str:
    """The spec string of a rule, less what holds without being said; of one with a head, its set-up for the head."""
    written = {}
    for one in dataclasses.fields(rule):
        value = getattr(rule, one.name)
        if value != one.default:
            written[one.name] = getattr(value, "setup", value)
    if "head" not in written and "prompt" not in [one.name for one in dataclasses.fields(rule)]:
        return spec_of(rule)
    return rule.spec_name + "".join(f"{',' if i else ':'}{k}={v}" for i, (k, v) in enumerate(written.items()))


def enumerate_outcomes(rule: Any) -> Enumeration | None:
    """Every draft that can be drawn of some pairs of models, with all that may come of it."""
    if not rule.lossless or isinstance(rule, GreedyExact):
        return None
    errors = []
    for kind in test_exact.KINDS_OF_MODELS:
        rng = np.random.default_rng(11)
        if isinstance(rule, KSequential):
            for drafts, length, vocab in ((2, 3, 3), (3, 2, 3)):
                joint, wanted, _ = test_k_sequential.joint_and_mean(kind, drafts, length, vocab)
                errors.append(np.abs(joint - wanted).max())
        elif isinstance(rule, MultiPathBlock):
            for drafts, length, vocab in ((2, 3, 3), (3, 2, 3)):
                target, draft = test_exact.models(rng, kind, length, vocab)
                joint, _ = test_multi_path.joint_and_mean(target, draft, drafts, length, vocab)
                errors.append(np.abs(joint - test_exact.continuation(target, (), length + 1)).max())
        else:
            for count in (0, 1, 2, 3):
                target, draft = test_exact.models(rng, kind, 3, 3)
                joint = test_exact.enumerated(rule, target, draft, count, 3, 3)
                errors.append(np.abs(joint - test_exact.continuation(target, (), count + 1)).max())
    return Enumeration(distributions=len(errors), largest_error=float(max(errors)))


def run(cases: int, seed: int = 0) -> Agreement:
    """Every rule at every setting that has an oracle."""
    rules = []
    described = {row["name"]: row for row in describe_rules() if row["spec"] in {rule.spec_name for rule in RULES}}
    for kind in sorted(RULES, key=lambda rule: (rule.spec_name, rule.__name__)):
        print(kind.__name__, file=sys.stderr, flush=True)
        oracles = [oracle for oracle in ORACLES if type(oracle.rule) is kind]
        row = described[kind.__name__]
        rules.append(
            RuleRecord(
                name=kind.__name__,
                spec=kind.spec_name,
                aliases=tuple(getattr(kind, "aliases", ())),
                source=row["source"],
                ours="; ".join(filter(None, (row["ours"], row["ours_with"]))),
                definition=oracles[0].written_in,
                settings=tuple(measure(oracle, cases, seed) for oracle in oracles),
                lossless=enumerate_outcomes(oracles[0].rule),
            )
        )
    return Agreement(
        machine=describe_machine(),
        cases=cases,
        seed=seed,
        tolerance=TOLERANCE,
        resolution=RESOLUTION,
        rules=tuple(rules),
    )


def table(found: Agreement) -> str:
    """A row a rule, in Markdown."""
    lines = [
        "| rule | source | definition | settings | greedy cases | sampling cases | draws: lowest p "
        "| lossless by enumeration | not its source's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rule in found.rules:
        lossless, chances = rule.lossless, [each.p for each in rule.settings if each.p is not None]
        cells = [
            f"[`{rule.spec}`](rules.md#kljudge_jax.verification.{rule.name})"
            + "".join(f", `{alias}`" for alias in rule.aliases)
            + (f" ({rule.name})" if [each.spec for each in found.rules].count(rule.spec) > 1 else ""),
            rule.source,
            f"`{rule.definition}`",
            str(len(rule.settings)),
            *(_told(rule.total(mode)) for mode in ("greedy", "sampling")),
            f"{min(chances):.2g}" if chances else "none",
            "" if lossless is None else f"{lossless.distributions}, {lossless.largest_error:.0e}",
            rule.ours,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    totals = [rule.total(mode) for rule in found.rules for mode in ("greedy", "sampling")]
    everything = sum((each for each in totals if each is not None), Tally())
    return "\n".join([*lines, "", f"In all: {_told(everything)}."]) + "\n"


def _told(tally: Tally | None) -> str:
    if tally is None:
        return "no such form"
    said = f"{tally.agree:,} of {tally.cases - tally.undecided:,} agree"
    return said + (f", {tally.undecided:,} undecided" if tally.undecided else "")


MARKS = "<!-- agreement -->\n\n", "\n<!-- end of agreement -->"


def on_page(text: str, found: Agreement) -> str:
    """A page with the table of these records between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return before + MARKS[0] + table(found) + MARKS[1] + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4000, help="of each setting, greedy and sampling apiece")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--out", type=Path, help="the file of records")
    parser.add_argument("--page", type=Path, help="the page that has the table")
    options = parser.parse_args()
    found = run(options.cases, options.seed)
    if options.out:
        write(options.out, found)
    if options.page:
        options.page.write_text(on_page(options.page.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
