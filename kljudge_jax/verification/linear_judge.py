"""The learned judge of AutoJudge and Judge Decoding: accept what a head on the models' states calls unimportant."""

from __future__ import annotations

import dataclasses
import pkgutil
from typing import Any

import jax

from kljudge_jax.errors import InputError
from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.head import Head
from kljudge_jax.verification.parameters import Parameter, first_tokens, number, probability
from kljudge_jax.verification.rule import ThresholdRule, register


class StoredHead(Parameter):
    """A parameter that a spec string names by its folder."""

    def __str__(self) -> str:
        return "a folder that kljudge train-judge wrote, or embedded"

    def check(self, owner: str, name: str, value: object) -> None:
        """Refuses what a person may have written by mistake; lets every placeholder of a transformation pass."""
        if value is None or isinstance(value, str | bytes | int | float):
            raise InputError(f"give {owner} {self} as its {name} (judges.storage.load_head reads one), not {value!r}")

    def parse(self, owner: str, name: str, text: str) -> Head:
        # By its name: this room imports none above it, and only a spec that names a folder needs the reader.
        return pkgutil.resolve_name("kljudge_jax.judges.storage:load_head")(text)


# Metadata of a dataclass field that holds a `Head`: data, so that another head of the same shapes compiles nothing.
STORED_HEAD = {"parameter": StoredHead(), "static": False}


@register
@dataclasses.dataclass(frozen=True, eq=False)
class LinearJudge(ThresholdRule):
    r"""Accept what the strict rule accepts, and a mismatch that the head calls unimportant.

    accept = strict or (max p <= confidence and P(important | x) < threshold), x the head's features at the draft token
    itself, after both models consumed it. Where a feature is no finite number the strict rule decides, and so it does
    on the first token of an answer, as in `KLJudge`; AutoJudge's own loop judges that token too, which is `first=0`.

    Maths:
      $$ \text{accept } d \iff \text{strict}(d) \lor \left(\max_v p(v) \le c \land \sigma(w^\top x + b) < \tau\right) $$

    Source: AutoJudge, arXiv 2504.20039 (code): logistic regression on [draft state; target state], no mask. Judge
    Decoding, arXiv 2501.19309 (second-hand): on the target's state; its delta is 1 - threshold. The mask is KLJudge's,
    for comparison; the form when sampling (the strict rule's draw and correction) is ours.

    Attributes:
      head: what `judges.training` fitted; its `pair` says for which models.
      threshold: P(important) has to be below it; 0 is the strict rule.
      confidence: above this top probability of the target the strict rule decides; 1.0 is never.
      first: so many first tokens of an answer the strict rule decides alone.
    """

    head: Head = dataclasses.field(metadata=STORED_HEAD)
    threshold: float = number(relaxes="up")
    confidence: float = probability(1.0)
    first: int = first_tokens()

    spec_name = "judge"
    source = "AutoJudge, arXiv 2504.20039 (code); Judge Decoding, arXiv 2501.19309 (second-hand)"
    ours = "its form when sampling"
    earlier = ("first=0",)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # known with the head, not with the class
        return self.head.needs

    @property
    def compares_drafts(self) -> bool:  # type: ignore[override]  # known with the head, not with the class
        return self.head.setup == "logits"

    def check_pair(self, pair: Any) -> None:
        """Raises `InputError` if the head was trained for another pair."""
        self.head.check_pair(pair)

    def passes(self, inputs: VerifyInputs) -> jax.Array:
        return self.head.important(inputs) < self.threshold
