"""The rules that decide how much of a draft to keep, each a pure function of one sequence."""

from kljudge_jax.verification.base import Verdict as Verdict
from kljudge_jax.verification.base import Verifier as Verifier
from kljudge_jax.verification.base import VerifyInputs as VerifyInputs
from kljudge_jax.verification.block import BlockVerification as BlockVerification
from kljudge_jax.verification.cactus import Cactus as Cactus
from kljudge_jax.verification.cascades import CascadeOpt as CascadeOpt
from kljudge_jax.verification.cascades import CascadeToken as CascadeToken
from kljudge_jax.verification.controls import AcceptAll as AcceptAll
from kljudge_jax.verification.controls import RandomAcceptance as RandomAcceptance
from kljudge_jax.verification.controls import SyntheticAcceptance as SyntheticAcceptance
from kljudge_jax.verification.divergence import DivergenceThreshold as DivergenceThreshold
from kljudge_jax.verification.divergence import RelaxedFuzzy as RelaxedFuzzy
from kljudge_jax.verification.ensemble import Ensemble as Ensemble
from kljudge_jax.verification.entropy import EntropyThreshold as EntropyThreshold
from kljudge_jax.verification.entropy import FLy as FLy
from kljudge_jax.verification.exact import GreedyExact as GreedyExact
from kljudge_jax.verification.exact import SpeculativeSampling as SpeculativeSampling
from kljudge_jax.verification.k_sequential import KSequential as KSequential
from kljudge_jax.verification.kl_judge import KLJudge as KLJudge
from kljudge_jax.verification.lenience import Lenience as Lenience
from kljudge_jax.verification.lenience import Mentored as Mentored
from kljudge_jax.verification.linear_judge import LinearJudge as LinearJudge
from kljudge_jax.verification.multi_path import MultiPathBlock as MultiPathBlock
from kljudge_jax.verification.pivot import PivotAware as PivotAware
from kljudge_jax.verification.rank import MarginAcceptance as MarginAcceptance
from kljudge_jax.verification.rank import RelaxedThinking as RelaxedThinking
from kljudge_jax.verification.rank import RelaxedThinkingRatio as RelaxedThinkingRatio
from kljudge_jax.verification.rank import TopKAcceptance as TopKAcceptance
from kljudge_jax.verification.reflective import Reflective as Reflective
from kljudge_jax.verification.regret_budget import RegretBudget as RegretBudget
from kljudge_jax.verification.rule import RULES as RULES
from kljudge_jax.verification.rule import Rule as Rule
from kljudge_jax.verification.rule import ThresholdRule as ThresholdRule
from kljudge_jax.verification.rule import TokenRule as TokenRule
from kljudge_jax.verification.rule import register as register
from kljudge_jax.verification.secure import Secure as Secure
from kljudge_jax.verification.specs import describe_rules as describe_rules
from kljudge_jax.verification.specs import parse_verifier as parse_verifier
from kljudge_jax.verification.typical import TypicalAcceptance as TypicalAcceptance
from kljudge_jax.verification.uncertainty import EARS as EARS
from kljudge_jax.verification.uncertainty import EntropyVerify as EntropyVerify

# Spelled out, for type checkers read no more than a literal list; a test holds it to RULES.
__all__ = [
    "EARS",
    "AcceptAll",
    "BlockVerification",
    "Cactus",
    "CascadeOpt",
    "CascadeToken",
    "DivergenceThreshold",
    "Ensemble",
    "EntropyThreshold",
    "EntropyVerify",
    "FLy",
    "GreedyExact",
    "KLJudge",
    "KSequential",
    "Lenience",
    "LinearJudge",
    "MarginAcceptance",
    "Mentored",
    "MultiPathBlock",
    "PivotAware",
    "RandomAcceptance",
    "Reflective",
    "RegretBudget",
    "RelaxedFuzzy",
    "RelaxedThinking",
    "RelaxedThinkingRatio",
    "Rule",
    "Secure",
    "SpeculativeSampling",
    "SyntheticAcceptance",
    "ThresholdRule",
    "TokenRule",
    "TopKAcceptance",
    "TypicalAcceptance",
    "Verdict",
    "Verifier",
    "VerifyInputs",
    "describe_rules",
    "parse_verifier",
    "register",
]
