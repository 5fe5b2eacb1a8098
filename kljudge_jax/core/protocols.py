"""What the core asks of a model, of its cache, and of what drafts: anything that keeps to these can be used."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from kljudge_jax.core.sampling import Sampling
from kljudge_jax.errors import InputError
from kljudge_jax.pytree import is_mistaken

State = Any
"""What a drafter remembers: a pytree in which every array leads with rows or lies in a `Cache`."""

Self = TypeVar("Self", bound="Cache")


class Features(NamedTuple):
    """What a model computed for T tokens a row; B rows, H hidden size.

    Attributes:
      hidden: states after the final norm, `[B, T, H]`; None from a model that gives logits alone.
      layers: residual streams of the layers asked for, `[B, T, H]` each: i is that after i blocks, 0 the embeddings.
      logits: f32 `[B, T, V]`, from a model that gives logits alone; else None, and `Model.logits` makes them.
    """

    hidden: jax.Array | None
    layers: tuple[jax.Array, ...] = ()
    logits: jax.Array | None = None


@runtime_checkable
class Cache(Protocol):
    """What a model keeps of the tokens that it has consumed: a pytree whose every array has rows first.

    Attributes:
      length: int32 `[B]`, how many tokens each row has consumed.
      slots: how many a row has room for.
      rollback: static, how many tokens `at_length` can take back; None is any number.
    """

    @property
    def length(self) -> jax.Array: ...
    @property
    def slots(self) -> int: ...
    @property
    def rollback(self) -> int | None: ...

    def at_length(self: Self, length: jax.Array) -> Self:
        """The same cache with `length` tokens consumed, int32 `[B]`. What was written past them is stale."""

    def resized(self: Self, slots: int) -> Self:
        """With so many slots a row. Outside of a trace the arrays given may be deleted, one after another."""

    def take(self: Self, row: jax.Array, slots: int) -> Self:
        """The first slots of row int32 `[]`, as a cache of one row."""

    def put(self: Self, row: jax.Array, other: Self) -> Self:
        """With a cache of one row, of as many slots or fewer, in place of row int32 `[]`."""

    def follow(self: Self, source: jax.Array, start: jax.Array, count: int) -> Self:
        """With slots `start[b]` to `start[b] + count` of row `source[b]` in those of row b, int32 `[B]` both."""


@runtime_checkable
class Model(Protocol):
    """A language model: a pytree of parameters, whose static parts compare equal for equal architectures.

    Two things more are used where they are there: `first(n)`, the model cut after n layers, whose call takes the whole
    model's caches (self-draft); and `constrain(tree)`, a tree of caches and rows said to lie where a mesh has them.

    Attributes:
      vocab_size: V.
      num_layers: what `layers` may name; 0 is a model that cannot be asked.
      max_length: the most tokens of a row; None is any number.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...

    def init_cache(self, batch: int, slots: int) -> Any:
        """An empty cache: the model chooses its layout and dtype."""

    def __call__(self, tokens: jax.Array, cache: Any, *, layers: tuple[int, ...] = ()) -> tuple[Features, Any]:
        """Consumes int32 `[B, T]`, any T from 1 on; row b's first token stands at position `cache.length[b]`."""

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits of states `[..., H]`: f32 `[..., V]`."""


def check_methods(model: Any, whose: str) -> None:
    """Refuses what lacks a method or an attribute of a model that messages call `whose`."""
    for name in ("init_cache", "logits", "__call__", "vocab_size"):
        found = None if isinstance(model, type) else getattr(model, name, None)
        if found is None or not (callable(found) or name == "vocab_size"):
            kind = "attribute" if name == "vocab_size" else "method"
            raise InputError(
                f"the {whose} is a {type(model).__name__}, which has no {kind} {name!r}: give a kljudge_jax.Model, "
                "or wrap a model of your own with kljudge_jax.adapt"
            )
    check_structure(model, whose)


def check_structure(model: Any, whose: str) -> None:
    """Refuses a model for which JAX may run another model's program."""
    if is_mistaken(model):
        raise InputError(
            f"the {whose} is a {type(model).__name__} under jax.tree_util.register_dataclass or what stands on it, "
            "such as flax.struct.dataclass, and JAX takes two such classes with as many fields for one: write "
            "@kljudge_jax.register over @dataclasses.dataclass(frozen=True) in its place"
        )


class Models(NamedTuple):
    """The models of a run; `draft` is whatever the drafter keeps its parameters in, None where it has none."""

    target: Model
    draft: Any = None


class Window(NamedTuple):
    """What the target has just consumed: a piece of the prompts, or a row's last token and its draft.

    Attributes:
      start: int32 `[B]`, the position of `tokens[:, 0]`.
      tokens: int32 `[B, T]`.
      next_tokens: int32 `[B, T]`, what follows each: of the prompt, accepted draft tokens, then correction or bonus.
      features: what the target computed for `tokens`; of the first view, where a rule has two.
      valid: int32 `[B]`, how many of the T are in the answer or the prompt; the rest is garbage.
      prompt: static, whether it is a piece of the prompts.
    """

    start: jax.Array
    tokens: jax.Array
    next_tokens: jax.Array
    features: Features
    valid: jax.Array
    prompt: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Where each row stands; B rows, S slots.

    Attributes:
      sequence: int32 `[B, S]`, prompt and new tokens by position, as in the caches; stale past the last token.
      consumed: int32 `[B]`, how many tokens stand before the last one; so it is the last one's position.
      wanted: int32 `[B]`, how many draft tokens a row can use, 0 to K.
      keys: one PRNG key a row `[B]`.
      sampling: how tokens are drawn.
    """

    sequence: jax.Array
    consumed: jax.Array
    wanted: jax.Array
    keys: jax.Array
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """The static half of what is asked for.

    Attributes:
      draft_length: K, the most tokens of a draft.
      with_hidden: every draft token's own state is wanted, that after the last one too.
      shortens: a draft may end where no row wants more; else it has K tokens whatever `wanted` says.
      confidence: it also ends where the top probability (at temperature 1) is below this; 0 is never.
      skips: some cycles draft nothing, so that a draft may have to catch up with several tokens.
    """

    draft_length: int
    with_hidden: bool = False
    shortens: bool = False
    confidence: float = 0.0
    skips: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draft:
    """What a drafter proposes for one cycle.

    Attributes:
      tokens: int32 `[B, K]`.
      count: int32 `[B]`, how many of the K are proposed; what comes after is garbage.
      logits: f32 `[B, K, V]`, processed exactly as the tokens were drawn; None where they are `raw_logits` (greedy).
      raw_logits: f32 `[B, K, V]`, before processing; None from a drafter that draws nothing, whose distribution is all
        at its token.
      hidden: `[B, K, Hd]`, the state after consuming each token, or None where no rule asked.
    """

    tokens: jax.Array
    count: jax.Array
    logits: jax.Array | None = None
    raw_logits: jax.Array | None = None
    hidden: jax.Array | None = None

    def distributions(self, width: int, vocab_size: int) -> tuple[jax.Array, jax.Array]:
        """Processed and raw logits of the first `width` tokens, f32 `[B, width, V]` both."""
        if self.raw_logits is None:
            # Made here, inside the program that reads them, they are fused into it and never stored.
            at_token = jnp.arange(vocab_size)[None, None] == self.tokens[:, :width, None]
            raw = jnp.where(at_token, jnp.float32(0.0), -jnp.inf)
        else:
            raw = self.raw_logits[:, :width]
        return (raw if self.logits is None else self.logits[:, :width]), raw


class Drafter(Protocol):
    """Where the draft tokens come from: frozen, hashable and static; its arrays are `Models.draft`, any pytree.

    Four attributes are read where they are there. What they are without is in parentheses.

    Attributes:
      layers: the target's layers that it wants to see in a `Window` (none, which costs nothing).
      has_hidden: it has hidden states for a rule that needs the draft's (False).
      draws: it has distributions, from which its tokens are drawn when sampling, so that two drafts can differ (True).
        One that draws nothing has all at its token, and no rule that compares the two models' distributions.
      always_full: it proposes K tokens in every cycle that asks for K (False).
    """

    def init(self, models: Models, batch: int, slots: int) -> State:
        """What it remembers before the prompts, for so many rows and slots; `()` where that is nothing."""

    def observe(self, models: Models, state: State, window: Window) -> State:
        """Told of every piece of the prompts and of every target pass, those without a draft too."""

    def propose(
        self, models: Models, target_cache: Any, state: State, context: Context, request: Request
    ) -> tuple[Draft, Any, State]:
        """Up to `request.draft_length` = K >= 1 tokens a row.

        The target's cache comes back with whatever was written; the core rolls it back to `context.consumed`.
        """


def layers_of(drafter: Drafter | None) -> tuple[int, ...]:
    """The target's layers that a drafter wants to see. A number by that name is a drafter's own, as in `SelfDraft`."""
    layers = getattr(drafter, "layers", ())
    if not isinstance(layers, tuple | int):
        raise InputError(f"{type(drafter).__name__}.layers are {layers!r}: give a tuple of whole numbers")
    return layers if isinstance(layers, tuple) else ()
