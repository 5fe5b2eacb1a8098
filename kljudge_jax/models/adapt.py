"""Others' models: a call that writes a cache at one position, mapped over rows so that each has its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from kljudge_jax.core.protocols import Features
from kljudge_jax.errors import InputError
from kljudge_jax.models.adapted_cache import AdaptedCache, Rows
from kljudge_jax.models.equal_functions import Function
from kljudge_jax.pytree import register_node
from kljudge_jax.varying import varying_as

Tree = TypeVar("Tree")

# What a call is tried with, by its shapes alone, when it is adapted.
_SLOTS, _TOKENS = 64, 2


@dataclasses.dataclass(frozen=True)
class Calls:
    """The functions of an adapted model, and its sizes. Static; the attributes are the arguments of `adapt`."""

    call: Function
    rewind: Function
    head: Function | None
    vocab_size: int
    max_length: int | None
    one_by_one: bool
    rows: Rows


@dataclasses.dataclass(frozen=True)
class AdaptedModel:
    """A model made of a call. See `adapt`, and `kljudge_jax.Model`.

    Attributes:
      params: its parameters, any pytree: the leaves of this one.
      calls: its functions.
    """

    params: Any
    calls: Calls

    @property
    def vocab_size(self) -> int:
        return self.calls.vocab_size

    @property
    def num_layers(self) -> int:
        """0: a call returns what comes of its last layer alone."""
        return 0

    @property
    def max_length(self) -> int | None:
        return self.calls.max_length

    def init_cache(self, batch: int, slots: int) -> AdaptedCache:
        """An empty cache of so many rows and slots."""
        rows = self.calls.rows
        stacked = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (batch, *x.shape)), rows.one(slots))
        return self.constrain(AdaptedCache(stacked, jnp.zeros((batch,), jnp.int32), slots, rows))

    def __call__(
        self, tokens: jax.Array, cache: AdaptedCache, *, layers: tuple[int, ...] = ()
    ) -> tuple[Features, AdaptedCache]:
        """Consumes tokens int32 `[B, T]`, row b's first one at position `cache.length[b]`.

        Returns:
          hidden states `[B, T, H]` where there is a head, else logits f32 `[B, T, V]`; and the cache.

        Raises:
          InputError: layers are asked for, or the call cannot be mapped over rows.
        """
        if layers:
            raise InputError("an adapted model gives no layers: the drafter that asks for them needs another target")
        batch, length = tokens.shape
        row = functools.partial(_row, self.calls, cache.slots)
        arguments = tokens[:, None], cache.length, cache.stacked
        if batch == 1:  # a call that cannot be mapped over rows can still be used
            out, stacked = jax.tree.map(lambda x: x[None], row(self.params, *jax.tree.map(lambda x: x[0], arguments)))
        else:
            mapped = jax.vmap(row, in_axes=(None, 0, 0, 0), spmd_axis_name=self.calls.rows.names(batch))
            try:
                out, stacked = mapped(self.params, *arguments)
            except NotImplementedError as error:
                raise InputError(
                    f"the call given to kljudge_jax.adapt cannot be mapped over rows by jax.vmap ({_line(error)}): "
                    "decode one row at a time (batch_size=1), or write that part of it in other operations"
                ) from error
        out = out.reshape(batch, length, out.shape[-1])
        cache = dataclasses.replace(cache, stacked=stacked, length=cache.length + length)
        return (Features(out) if self.calls.head else Features(None, logits=out.astype(jnp.float32))), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits of states `[..., H]`: f32 `[..., V]`."""
        if self.calls.head is None:
            raise InputError("an adapted model without a head gives logits alone: give kljudge_jax.adapt its head")
        return self.calls.head(self.params, hidden).astype(jnp.float32)

    def constrain(self, tree: Tree) -> Tree:
        """A tree of caches and of arrays with rows first, said to be split over `batch_axes`."""
        return jax.tree.map(self.calls.rows.placed, tree)


def adapt(
    call: Callable,
    init_cache: Callable,
    params: Any,
    *,
    vocab_size: int,
    rewind: Callable,
    head: Callable | None = None,
    max_length: int | None = None,
    one_by_one: bool = False,
    rollback: int | None = None,
    batch_axes: str | Sequence[str] | None = None,
) -> AdaptedModel:
    """A `kljudge_jax.Model` made of a call that writes its cache at one position.

    All functions are pure and see one row, with its batch axis of 1. Rows are mapped by `jax.vmap`, so that each has a
    position of its own; one row alone is not mapped. Nothing is compiled again for `dataclasses.replace(model,
    params=...)`, nor for a second model of the same functions, or of such that close over what is equal and has a hash.
    Hold the result to its protocol with `kljudge_jax.check_model`.

    Args:
      call: `(params, tokens int32 [1, T], positions int32 [1, T], cache, mask bool [1, T, S]) -> (out, cache)`, for any
        T from 1 on. Token t goes into slot `positions[0, t]` of S; it may see those that the mask has True, which are
        its own and those before it. `out` is states `[1, T, H]` with a head, else logits `[1, T, V]`. The cache comes
        back in the shapes and dtypes in which it was given.
      init_cache: `(slots) -> cache`, an empty cache of one row: any pytree of arrays. An axis whose size is not a
        matter of `slots` stays as it is when a cache grows.
      params: any pytree of arrays; new values compile nothing.
      vocab_size: V.
      rewind: `(cache, n int32 []) -> cache`, which then holds n tokens: the next goes to slot n. What is stored from
        there on is stale. It may set every position that the cache has a note of, and need not clear anything.
      head: `(params, states [..., H]) -> logits [..., V]`, for a call that returns states; rules that read hidden
        states need it.
      max_length: the most tokens of a row; None is any number.
      one_by_one: give the call one token at a time, for one that is right for T = 1 alone; a draft of K then costs
        K + 1 passes.
      rollback: how many tokens a cache can take back. A ring of R slots for a window of W has R - W; a state without
        positions, 0. None is any number.
      batch_axes: the axes of a mesh that rows are split over. Without it, rows that meet a sharding constraint inside
        the call come out on every device.

    Raises:
      InputError: a function returns what it should not; nothing was compiled yet.
    """
    for name, function in (("call", call), ("init_cache", init_cache), ("rewind", rewind), ("head", head)):
        if not callable(function) and not (name == "head" and function is None):
            raise InputError(f"give kljudge_jax.adapt a function as its {name}, not {function!r}")
    for name, number, least in (
        ("vocab_size", vocab_size, 1),
        ("max_length", max_length, 1),
        ("rollback", rollback, 0),
    ):
        if not (number is None and name != "vocab_size") and (type(number) is not int or number < least):
            raise InputError(f"give kljudge_jax.adapt a whole number from {least} on as its {name}, not {number!r}")
    axes = (batch_axes,) if isinstance(batch_axes, str) else tuple(batch_axes or ())
    params = jax.tree.map(lambda x: x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x), params)
    rows = Rows(Function(init_cache), rollback, axes, _mesh_of(params, axes))
    calls = Calls(
        Function(call),
        Function(rewind),
        None if head is None else Function(head),
        vocab_size,
        max_length,
        one_by_one,
        rows,
    )
    model = AdaptedModel(params, calls)
    jax.eval_shape(_tried, model)
    return model


def _tried(model: AdaptedModel) -> None:
    """One pass of a few tokens, for its shapes."""
    cache = model.init_cache(1, _SLOTS)
    if not jax.tree.leaves(cache.stacked):
        raise InputError("the init_cache given to kljudge_jax.adapt returns no arrays: a cache is a pytree of them")
    features, _ = model(jnp.zeros((1, _TOKENS), jnp.int32), cache)
    if features.hidden is None:
        return
    logits = model.logits(features.hidden)
    if logits.shape[-1] != model.vocab_size or logits.ndim != 3:
        raise InputError(
            f"the head given to kljudge_jax.adapt returns {list(logits.shape)} for states "
            f"{list(features.hidden.shape)}: return [..., {model.vocab_size}], one logit a token of vocab_size"
        )


def _row(calls: Calls, slots: int, params: Any, tokens: jax.Array, start: jax.Array, cache: Any) -> tuple[Any, Any]:
    """A pass of one row: tokens int32 `[1, T]` from position `start` int32 `[]` on."""
    length = tokens.shape[1]
    positions = start + jnp.arange(length, dtype=jnp.int32)[None]
    kept = cache
    cache = _as_given(calls.rewind(cache, start), kept, "rewind")

    def step(cache, inputs):
        tokens, positions = inputs
        # Slot s holds position s: what a token may see was written before it, or just now.
        mask = jnp.arange(slots, dtype=jnp.int32)[None, None] <= positions[..., None]
        answer = calls.call(params, tokens, positions, cache, mask)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise InputError(f"the call given to kljudge_jax.adapt returns no (out, cache) but {type(answer).__name__}")
        out, new = answer
        _check_out(out, tokens.shape[1], calls)
        return _as_given(new, cache, "call"), out

    if not calls.one_by_one or length == 1:
        cache, out = step(cache, (tokens, positions))
        return out, cache
    cache, out = jax.lax.scan(step, cache, (tokens.T[:, None], positions.T[:, None]))
    return out[:, :, 0].swapaxes(0, 1), cache


def _check_out(out: Any, length: int, calls: Calls) -> None:
    shape = list(getattr(out, "shape", ()))
    what = "H" if calls.head else calls.vocab_size
    if len(shape) != 3 or shape[:2] != [1, length] or (calls.head is None and shape[2] != calls.vocab_size):
        kind = "states" if calls.head else "logits (it has no head), one for each of vocab_size"
        raise InputError(
            f"the call given to kljudge_jax.adapt returns {shape or type(out).__name__} for tokens {[1, length]}: "
            f"return [1, {length}, {what}], {kind}"
        )


def _as_given(new: Any, old: Any, whose: str) -> Any:
    """A cache that a function of the user's returned, held to the one that it was given."""
    theirs: Any = jax.tree.structure(new)
    ours = jax.tree.structure(old)
    if theirs != ours:
        raise InputError(
            f"the {whose} given to kljudge_jax.adapt returns a cache of another structure than init_cache: "
            f"{str(theirs)[:200]} in place of {str(ours)[:200]}"
        )

    def leaf(path, given, before):
        shape, dtype = jnp.shape(given), jnp.result_type(given)
        if shape != before.shape or dtype != before.dtype:
            raise InputError(
                f"the {whose} given to kljudge_jax.adapt returns {dtype} {list(shape)} as the cache's "
                f"{jax.tree_util.keystr(path) or 'array'}, which was {before.dtype} {list(before.shape)}: what a loop "
                "carries cannot change"
            )
        if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            return given
        given = jax.lax.convert_element_type(given, dtype)  # a number that only Python has typed is none to a loop
        return varying_as(given, before)

    return jax.tree_util.tree_map_with_path(leaf, new, old)


def _mesh_of(params: Any, axes: tuple[str, ...]) -> Mesh | None:
    """The mesh that parameters lie on, if it has those axes."""
    for leaf in jax.tree.leaves(params):
        where = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if axes and isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh):
            missing = [axis for axis in axes if axis not in where.mesh.axis_names]
            if missing:
                raise InputError(
                    f"the mesh of the parameters has the axes {', '.join(map(str, where.mesh.axis_names))}, and no "
                    f"{missing[0]!r} for batch_axes"
                )
            return where.mesh
    return None


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


register_node(AdaptedModel, ("params",), ("calls",))
