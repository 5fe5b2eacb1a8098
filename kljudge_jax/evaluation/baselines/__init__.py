"""What a rule is compared with: the draft alone, prompt lookup, and Transformers' own decoding of the same weights."""

from kljudge_jax.evaluation.baselines.base import Answer, Baseline, Request, answers_of
from kljudge_jax.evaluation.baselines.specs import check_baselines, parse_baseline

__all__ = ["Answer", "Baseline", "Request", "answers_of", "check_baselines", "parse_baseline"]
