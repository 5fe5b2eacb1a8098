"""Reflective verification: the target looks at the draft a second time, after being asked to think again."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError
from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.parameters import Parameter, probability
from kljudge_jax.verification.rule import Odds, TokenRule, register


class _Text(Parameter):
    """A parameter that is text."""

    def __str__(self) -> str:
        return "some text"

    def check(self, owner: str, name: str, value: object) -> None:
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"give {owner} {self} as its {name}, not {value!r}")

    def parse(self, owner: str, name: str, text: str) -> str:
        text = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
        self.check(owner, name, text)
        return text


@register
@dataclasses.dataclass(frozen=True)
class Reflective(TokenRule):
    r"""Verify as `exact` does, against logits that mix the target's own with those of a second look at the draft.

    The target's pass reads, after the draft, a reflection prompt and a copy of the draft. With z the logits that
    predict a draft token and z' those that predict its copy, the rule is speculative sampling against the softmax of
    (1 - weight) z + weight z', raw logits, processed for sampling after they are mixed; so are the correction and the
    bonus token, which follow the copied prefix. A weight of 0 is the strict rule. Where no draft is scored there is
    nothing to reflect on, and z alone decides. Greedy: accept iff d is the argmax of the mixed logits.

    A pass reads twice the draft and the prompt, which pays where it is bound by reading weights.

    Maths:
      $$ p_w = \text{softmax}\left((1 - w) z + w z'\right) $$

      $$ P(\text{accept } d) = \min\left(1, \frac{p_w(d)}{q(d)}\right) $$

    Source: arXiv 2505.18629, in the form of a summary (second-hand), with its weight of 0.3. That form leaves open
    whether corrections and bonus tokens read the mixed logits, and its prompt: both choices are ours.

    Attributes:
      weight: of the second view, 0 to 1.
      prompt: the reflection prompt; part of the compiled program. It needs the pair's tokenizer.
    """

    weight: float = probability(0.3, relaxes="up")
    prompt: str = dataclasses.field(
        default=" Let me check that and write it again: ", metadata={"parameter": _Text(), "static": True}
    )

    spec_name = "reflective"
    source = "arXiv 2505.18629 (second-hand); its prompt is ours"
    ours = "its prompt, and that corrections and bonus tokens read the mixed logits"
    scorer = "reflection"

    def fuse(self, logits: jax.Array, reflected: jax.Array) -> jax.Array:
        """The mixed logits of both views, raw, f32 `[..., V]` each."""
        # A token that only one view excludes stays where that view has no weight: 0 times -inf is no number.
        mixed = (1.0 - self.weight) * logits + self.weight * reflected
        return jnp.where(self.weight <= 0, logits, jnp.where(self.weight >= 1, reflected, mixed))

    def acceptance(self, inputs: VerifyInputs, odds: Odds) -> jax.Array:
        return Odds.of(self._judged(inputs)).strict()

    def correction(self, inputs: VerifyInputs, num_accepted: jax.Array, odds: Odds | None = None) -> jax.Array:
        return super().correction(self._judged(inputs), num_accepted)

    def _judged(self, inputs: VerifyInputs) -> VerifyInputs:
        """The inputs with the mixed logits in place of the target's, which the first tokens keep; as they are, if there
        was one view only."""
        if inputs.judged_logits is None:
            return inputs
        judged, strict = inputs.judged_logits, self.among_first(inputs)
        if strict is not None:
            judged = jnp.where(strict[:, None], inputs.target_logits, judged)
        return dataclasses.replace(inputs, target_logits=judged)
