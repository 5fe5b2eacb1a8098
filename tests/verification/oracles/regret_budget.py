"""ASD: what mismatches cost, token by token, and what is left of the answer's budget."""

import numpy as np

from kljudge_jax.verification import RegretBudget
from oracles.base import Case, Expected, Oracle, corrected


def asd(budget, gate, mismatches):
    def expected(case: Case) -> Expected:
        passed, kept, slack, spent = 0, 0, 1.0, 0.0
        left = budget - case.carry
        for i in range(case.count):
            row, token = case.target[i], case.tokens[i]
            best = int(np.argmax(row))
            if token != best:
                regret = row[best] - row[token]
                worth = (case.count - i) / case.count
                bounds = [(regret / worth, gate), (spent + regret, left)]
                slack = min([slack, *(abs(a - b) for a, b in bounds if np.isfinite(a) and a != b)])
                if not (regret / worth <= gate and spent < left and spent + regret <= left):
                    break
                passed += 1
                if passed > mismatches:
                    break
                spent += regret
            kept += 1
        lengths = np.eye(case.length + 1)[kept]
        return Expected(
            lengths, corrected(case.target, [row for row in case.target[:-1]], True), slack, case.carry + spent
        )

    return expected


ORACLES = [
    Oracle(RegretBudget(*numbers), asd(*numbers), modes=("greedy",), reads=("carry",))
    for numbers in (
        (3.0, 1.0, 1),
        (3.0, 1.0, 2),
        (8.0, 2.06, 4),
        (1.0, 100.0, 100),
        (100.0, 0.5, 100),
        (100.0, 100.0, 3),
    )
]
