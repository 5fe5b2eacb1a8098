"""Reflective verification: the strict rule against the logits of two views."""

import dataclasses

from kljudge_jax.verification import Reflective
from oracles.base import Case, Expected, Oracle
from oracles.exact import strict


def reflective(case: Case) -> Expected:
    return strict(dataclasses.replace(case, target=case.judged))


ORACLES = [Oracle(Reflective(0.3), reflective, reads=("judged_logits",))]
