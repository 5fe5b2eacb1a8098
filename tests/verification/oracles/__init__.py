"""The definition of every rule in float64, a module a rule or family, as the package has them: `ORACLES`."""

import dataclasses

from oracles import (
    block,
    cactus,
    cascades,
    controls,
    divergence,
    drafts,
    ensemble,
    entropy,
    exact,
    kl_judge,
    learned,
    lenience,
    rank,
    reflective,
    regret_budget,
    secure,
    typical,
    uncertainty,
)

_MODULES = (
    block,
    cactus,
    cascades,
    controls,
    divergence,
    drafts,
    ensemble,
    entropy,
    exact,
    kl_judge,
    learned,
    lenience,
    rank,
    reflective,
    regret_budget,
    secure,
    typical,
    uncertainty,
)

ORACLES = [
    dataclasses.replace(oracle, written_in=f"{module.__name__.replace('.', '/')}.py")
    for module in _MODULES
    for oracle in module.ORACLES
]
