"""A learned judge's head: standardised features to the log-odds that a token is important."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kljudge_jax.errors import InputError
from kljudge_jax.verification.base import VerifyInputs
from kljudge_jax.verification.features import SETUPS, TARGET_ALONE, feature_count, judge_features, logit_primitives
from kljudge_jax.verification.states import state_of


@dataclasses.dataclass(frozen=True)
class PairIdentity:
    """The pair that a head was trained for: what it may be used with.

    Attributes:
      target_name, draft_name: last parts of the names the models were loaded by, since one folder has many paths.
      target_hidden_size, draft_hidden_size: Ht and Hd.
      vocab_size: V.
    """

    target_name: str
    draft_name: str
    target_hidden_size: int
    draft_hidden_size: int
    vocab_size: int

    @classmethod
    def of(cls, pair: Any) -> PairIdentity:
        """Of a `ModelPair`. Raises `InputError` if it has no draft model, or a model without states."""
        if callable(getattr(pair.draft, "check_target", None)):
            raise InputError(
                f"{pair.draft_name} is a head, and has no states but those that it makes of the target's: name a draft "
                "model of the same target; a judge that is mined and trained with it, of setup DT or pivot, reads the "
                "target alone and runs with the head too"
            )
        if not hasattr(pair.draft, "init_cache"):
            raise InputError("the pair has no draft model: load one, for a judge reads both models")
        target_size, draft_size = (state_of(model, "a learned judge")[0] for model in (pair.target, pair.draft))
        names = _last_part(pair.target_name), _last_part(pair.draft_name)
        return cls(*names, target_size, draft_size, pair.target.vocab_size)

    def check_target(self, pair: Any) -> None:
        """Raises `InputError`, naming both, if the pair at hand has another target."""
        ours = self.target_name, self.target_hidden_size, self.vocab_size
        size = state_of(pair.target, "a learned judge")[0]
        theirs = _last_part(pair.target_name), size, pair.target.vocab_size
        if ours != theirs:
            spelled = ("{} (states of {}) over {} tokens".format(*of) for of in (ours, theirs))
            raise InputError("this judge was trained for the target {}, and the one at hand is {}".format(*spelled))

    def __str__(self) -> str:
        return (
            f"{self.target_name} (states of {self.target_hidden_size}) and {self.draft_name} (states of "
            f"{self.draft_hidden_size}) over {self.vocab_size} tokens"
        )


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """Standardisation and one affine layer, or several with ReLU between. A pytree: weights are data.

    Attributes:
      mean, scale: f32 `[F]`; a feature x enters as (x - mean) / scale.
      layers: (kernel f32 `[I, O]`, bias f32 `[O]`) each; the last O is 1.
      setup: what the features are, a key of `verification.features.SETUPS`.
      pair: the pair it was trained for; None lets it run with any whose sizes fit.
    """

    mean: jax.Array
    scale: jax.Array
    layers: tuple[tuple[jax.Array, jax.Array], ...]
    setup: str = dataclasses.field(metadata={"static": True})
    pair: PairIdentity | None = dataclasses.field(default=None, metadata={"static": True})

    def logit(self, features: jax.Array) -> jax.Array:
        """Log-odds `[...]` that a token is important, of features `[..., F]`."""

        def along(vector: jax.Array) -> jax.Array:
            return jnp.expand_dims(vector, range(features.ndim - 1))

        x = (features - along(self.mean)) / along(self.scale)
        for i, (kernel, bias) in enumerate(self.layers):
            # A threshold is compared with this: accelerators would round a default product to 8 or 11 bits.
            x = jnp.matmul(jax.nn.relu(x) if i else x, kernel, precision=jax.lax.Precision.HIGHEST) + along(bias)
        return x[..., 0]

    @property
    def needs(self) -> frozenset[str]:
        """The inputs that cost extra."""
        return SETUPS[self.setup]

    def important(self, inputs: VerifyInputs) -> jax.Array:
        """P(important) of each draft token of a sequence, f32 `[K]`: infinite, and so above any threshold, where a
        feature is no finite number.

        Raises:
          InputError: the states have another size than those the head was trained on.
        """
        count = inputs.draft_tokens.shape[0]
        sizes = [0 if x is None else x.shape[-1] for x in (inputs.target_hidden, inputs.draft_hidden)]
        if feature_count(self.setup, *sizes) != self.mean.shape[-1]:
            made_for = "" if self.pair is None else f" of {self.pair}"
            raise InputError(
                f"this judge reads {self.mean.shape[-1]} features{made_for}, and the pair at hand has states of "
                f"{sizes[0]} and {sizes[1]}: train a judge for this pair"
            )
        primitives = jax.vmap(logit_primitives)(
            inputs.raw_target_logits[:count],
            inputs.raw_draft_logits,
            jnp.clip(inputs.draft_tokens, 0, inputs.raw_draft_logits.shape[-1] - 1),
        )
        features = judge_features(self.setup, inputs.target_hidden, inputs.draft_hidden, primitives)
        # An infinite feature times a negative weight would be a sure "unimportant".
        finite = jnp.all(jnp.isfinite(features), axis=-1)
        probability = jax.nn.sigmoid(self.logit(jnp.where(finite[:, None], features, 0.0)))
        return jnp.where(finite & jnp.isfinite(probability), probability, jnp.inf)

    def check_pair(self, pair: Any) -> None:
        """Raises `InputError`, naming both, if the head was trained for another pair than this `ModelPair`; where it
        reads the target alone, for another target."""
        if self.pair is None:
            return
        if self.setup in TARGET_ALONE:
            self.pair.check_target(pair)
        elif callable(getattr(pair.draft, "check_target", None)):
            raise InputError(
                f"this judge reads the draft (setup {self.setup}) and was trained for {self.pair}, and the draft at "
                f"hand, {pair.draft_name}, is a head: train one of a setup that reads the target alone, "
                f"{' or '.join(TARGET_ALONE)}"
            )
        elif PairIdentity.of(pair) != self.pair:
            raise InputError(f"this judge was trained for {self.pair}, and the pair at hand is {PairIdentity.of(pair)}")
