"""Answers to look at: those of the sweep, traced, and kept."""

import dataclasses

import numpy as np
import pytest
from sweep_records import Letters
from tiny_pairs import text_pair

from kljudge_jax.evaluation.sweep import examples as module
from kljudge_jax.evaluation.sweep.examples import examples
from kljudge_jax.evaluation.sweep.run import Part, Plan, grid, run_sweep
from kljudge_jax.generation.config import DecodingConfig

PLAN = Plan(grid(["none", "exact", "kl:4.0"], [4]), n=8, config=DecodingConfig(24, seed=7, batch=4))


@pytest.mark.slow
def test_examples_are_the_sweeps_own_answers_and_are_kept(tmp_path, monkeypatch):
    pair, part = text_pair(), Part(Letters(), PLAN, tmp_path)
    records = run_sweep(pair, part.task, part.plan, tmp_path)
    found = examples(pair, part, 4)
    assert [prompt for prompt, _ in found] == [problem.prompt for problem in Letters().problems(n=4)]
    told = {(r.rule, r.problem): r for r in records}
    for i, (_, answers) in enumerate(found):
        for cell, answer in zip(PLAN.cells, answers, strict=True):
            record = told[cell.rule, f"letters/{i}"]
            assert "".join(answer.pieces) == record.text
            assert "".join(name[0] for name in answer.origin) == record.origin
            assert answer.note.startswith("right" if record.right else "wrong")

    monkeypatch.setattr(module, "decode", lambda *_, **__: pytest.fail("these are kept"))
    again = examples(pair, part, 4)
    for (_, ours), (_, theirs) in zip(found, again, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert dataclasses.replace(a, kl=None) == dataclasses.replace(b, kl=None)
            finite = np.isfinite(a.kl)
            np.testing.assert_array_equal(a.kl[finite], b.kl[finite])
            assert not np.isfinite(b.kl[~finite]).any()


def test_none_can_be_asked_for(tmp_path):
    assert examples(text_pair(), Part(Letters(), PLAN, tmp_path), 0) == []
