"""The rules that decide how much of a draft to keep, each a pure function of one sequence."""

from kljudge_jax.verification.base import Verdict as Verdict
from kljudge_jax.verification.base import Verifier as Verifier
from kljudge_jax.verification.base import VerifyInputs as VerifyInputs
from kljudge_jax.verification.controls import AcceptAll as AcceptAll
from kljudge_jax.verification.controls import RandomAcceptance as RandomAcceptance
from kljudge_jax.verification.exact import GreedyExact as GreedyExact
from kljudge_jax.verification.exact import SpeculativeSampling as SpeculativeSampling
from kljudge_jax.verification.kl_judge import KLJudge as KLJudge
from kljudge_jax.verification.rule import RULES
from kljudge_jax.verification.words import describe_rules as describe_rules
from kljudge_jax.verification.words import parse_verifier as parse_verifier

# A rule's import above is its only line here: its name, word and row of the table come from the class.
__all__ = sorted(
    ["Verdict", "Verifier", "VerifyInputs", "describe_rules", "parse_verifier", *(rule.__name__ for rule in RULES)]
)
