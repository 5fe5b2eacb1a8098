"""Others' models: a call that writes a cache at one position, mapped over rows so that each has its own."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljudge_jax.core.protocols import Features
from kljudge_jax.errors import InputError
from kljudge_jax.varying import varying_as

Tree = TypeVar("Tree")

# What a call is tried with, by its shapes alone, when it is adapted.
_SLOTS, _TOKENS = 64, 2


class Function:
    """A function that equals another of the same code and the same closure, so that both run one compiled program.

    Where the closure holds what has no hash, an array for instance, it equals itself alone.
    """

    def __init__(self, function: Callable):
        self.function = function
        try:
            self._key: Any = _key(function)
            self._hash = hash(self._key)
        except (TypeError, ValueError, RecursionError):  # no hash; a name not bound yet; a function that holds itself
            self._key = id(function)
            self._hash = hash(self._key)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Function) and self._key == other._key)


def _key(x: Any) -> Any:
    if isinstance(x, functools.partial):
        return "partial", _key(x.func), tuple(map(_key, x.args)), _items(x.keywords)
    if isinstance(x, types.MethodType):
        return "method", _key(x.__func__), _key(x.__self__)
    if isinstance(x, types.FunctionType):
        held = tuple(_key(cell.cell_contents) for cell in x.__closure__ or ())
        defaults = tuple(map(_key, x.__defaults__ or ())), _items(x.__kwdefaults__ or {})
        # Code objects of two files may be equal, and a cell that is run again may name another number.
        return x.__code__.co_filename, x.__code__, held, defaults, _globals(x.__code__, x.__globals__)
    return type(x), x  # 1, 1.0 and True are equal, and no program is the same with each


def _globals(code: types.CodeType, named: dict[str, Any]) -> Any:
    """What the names stand for that a function takes from its module, those of functions within it too."""
    inner = tuple(_globals(each, named) for each in code.co_consts if isinstance(each, types.CodeType))
    return tuple((name, _key(named[name])) for name in code.co_names if name in named), inner


def _items(keywords: dict[str, Any]) -> Any:
    return tuple((name, _key(value)) for name, value in sorted(keywords.items()))


@dataclasses.dataclass(frozen=True)
class Rows:
    """How rows are made, and where they lie: what an adapted model and its caches share. Static.

    Attributes:
      init_cache: `(slots) -> cache` of one row.
      rollback: how many tokens a cache can take back; None is any number.
      axes: the mesh axes that rows are split over.
      mesh: the devices; None where only the call knows of them.
    """

    init_cache: Function
    rollback: int | None
    axes: tuple[str, ...] = ()
    mesh: Mesh | None = None

    def one(self, slots: int) -> Any:
        """An empty cache of one row."""
        return jax.tree.map(jnp.asarray, self.init_cache(slots))

    def shapes(self, slots: int) -> list[jax.ShapeDtypeStruct]:
        """The shape of every leaf of it."""
        return jax.tree.leaves(jax.eval_shape(lambda: self.one(slots)))

    def names(self, rows: int) -> tuple[str, ...] | None:
        """The mesh axes that so many rows are split over, as `jax.vmap` takes them."""
        # Inside shard_map over them, what a device sees is not split any more.
        axes = tuple(axis for axis in self.axes if axis not in jax.sharding.get_abstract_mesh().manual_axes)
        if not axes or axes != self.axes or (self.mesh is not None and rows % _ways(self.mesh, axes)):
            return None
        return axes

    def placed(self, x: jax.Array) -> jax.Array:
        """An array whose first axis is rows, said to lie with them; how its other axes are split is left open."""
        if self.mesh is None or not x.ndim or self.names(x.shape[0]) is None:
            return x
        others = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(self.axes, *others)))


@dataclasses.dataclass(frozen=True)
class AdaptedCache:
    """Caches of one row each, stacked: every leaf `[B, ...]`. See `kljudge_jax.Cache`.

    Slots are found by asking `init_cache` for another number of them: the axes whose size differs are theirs.

    Attributes:
      stacked: the pytree that `init_cache` returns, with rows before its axes.
      length: int32 `[B]`. The position that a row's own cache holds is set to it before each pass.
      slots: of a row.
      rows: how they are made.
    """

    stacked: Any
    length: jax.Array
    slots: int
    rows: Rows

    @property
    def rollback(self) -> int | None:
        """How many tokens `at_length` can take back; None is any number."""
        return self.rows.rollback

    def at_length(self, length: jax.Array) -> AdaptedCache:
        """The same cache with `length` tokens consumed, int32 `[B]`."""
        return dataclasses.replace(self, length=jnp.asarray(length, jnp.int32))

    def resized(self, slots: int) -> AdaptedCache:
        """With so many slots a row, new ones as `init_cache` has them.

        Outside of a trace the arrays given are deleted, one after another.
        """
        leaves, structure = jax.tree.flatten(self.stacked)
        moved = []
        for i, (leaf, shape) in enumerate(zip(leaves, self.rows.shapes(slots), strict=True)):
            same = leaf.shape[1:] == shape.shape
            moved.append(leaf if same else _resized(leaf, rows=self.rows, slots=slots, index=i))
            if not same and not isinstance(leaf, jax.core.Tracer):
                leaf.delete()
        return dataclasses.replace(self, stacked=jax.tree.unflatten(structure, moved), slots=slots)

    def take(self, row: jax.Array, slots: int) -> AdaptedCache:
        """The first slots of row int32 `[]`, as a cache of one row."""
        leaves, structure = jax.tree.flatten(self.stacked)
        split = self.rows.names(self.length.shape[0]) is not None

        def taken(x):
            # Of rows on several devices all but one are masked: a slice at a place that is not known when it is
            # compiled would gather all of them.
            if split and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
                own = (jnp.arange(x.shape[0]) == row).reshape(-1, *(1,) * (x.ndim - 1))
                if x.dtype == jnp.bool_:
                    return jnp.any(own & x, axis=0, keepdims=True)
                return jnp.sum(jnp.where(own, x, jnp.zeros((), x.dtype)), axis=0, keepdims=True, dtype=x.dtype)
            return jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0)

        shapes = self.rows.shapes(slots)
        part = [taken(_cut(x, (x.shape[0], *shape.shape))) for x, shape in zip(leaves, shapes, strict=True)]
        return dataclasses.replace(
            self, stacked=jax.tree.unflatten(structure, part), length=taken(self.length), slots=slots
        )

    def put(self, row: jax.Array, other: AdaptedCache) -> AdaptedCache:
        """With a cache of one row, of as many slots or fewer, in place of row int32 `[]`."""
        if other.slots != self.slots:
            # What the row before has left may not stay: a ring's slots are any positions', and what a call masks may be
            # NaN, of which 0 times is NaN.
            leaves, structure = jax.tree.flatten(other.stacked)
            whole = [_fitted(x, self.rows, self.slots, i) for i, x in enumerate(leaves)]
            other = dataclasses.replace(other, stacked=jax.tree.unflatten(structure, whole))

        def placed(x, new):
            return jax.lax.dynamic_update_slice(x, new, (row, *(jnp.zeros((), row.dtype),) * (x.ndim - 1)))

        row = jnp.asarray(row)
        return dataclasses.replace(
            self,
            stacked=jax.tree.map(placed, self.stacked, other.stacked),
            length=placed(self.length, other.length),
        )

    def follow(self, source: jax.Array, start: jax.Array, count: int) -> AdaptedCache:
        """With slots `start[b]` to `start[b] + count` of row `source[b]` in those of row b, int32 `[B]` both.

        A leaf whose slots are no positions is copied whole, a ring for instance.
        """
        leaves, structure = jax.tree.flatten(self.stacked)
        others = self.rows.shapes(self.slots + 1)

        def copied(x, other):
            axes = [i for i, (a, b) in enumerate(zip(x.shape[1:], other.shape, strict=True)) if a != b]
            if len(axes) != 1 or x.shape[1 + axes[0]] != self.slots:
                return jnp.take(x, source, axis=0)

            def written(row, at, of):
                new = jax.lax.dynamic_slice_in_dim(of, at, count, axis=axes[0])
                return jax.lax.dynamic_update_slice_in_dim(row, new, at, axis=axes[0])

            return jax.vmap(lambda row, at, of: written(row, at, x[of]))(x, start, source)

        moved = [copied(x, other) for x, other in zip(leaves, others, strict=True)]
        return dataclasses.replace(self, stacked=jax.tree.unflatten(structure, moved))


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


def _cut(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """The first of each axis."""
    return jax.lax.slice(x, (0,) * x.ndim, tuple(map(min, x.shape, shape)))


def _fitted(x: jax.Array, rows: Rows, slots: int, index: int) -> jax.Array:
    """Leaf number `index` `[B, ...]` of caches in the shape that it has with so many slots."""
    # As it is when it is empty: zero may be a position, and mean a token.
    empty = jax.tree.leaves(rows.one(slots))[index]
    fresh = jnp.broadcast_to(empty[None], (x.shape[0], *empty.shape))
    return jax.lax.dynamic_update_slice(fresh, _cut(x, fresh.shape), (0,) * x.ndim)


@functools.partial(jax.jit, static_argnames=("rows", "slots", "index"))
def _resized(x, *, rows, slots, index):
    return rows.placed(_fitted(x, rows, slots, index))


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


def _ways(mesh: Mesh, axes: tuple[str, ...]) -> int:
    ways = 1
    for axis in axes:
        ways *= mesh.shape[axis]
    return ways


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _register(kind: type, data: tuple[str, ...], static: tuple[str, ...]) -> None:
    # Not jax.tree_util.register_dataclass: in jaxlib 0.10.2 the structures of two such classes with as many fields
    # compare equal.
    def flatten(x):
        return tuple(getattr(x, name) for name in data), tuple(getattr(x, name) for name in static)

    def flatten_with_keys(x):
        children, choices = flatten(x)
        return tuple(zip(map(jax.tree_util.GetAttrKey, data), children, strict=True)), choices

    jax.tree_util.register_pytree_with_keys(
        kind, flatten_with_keys, lambda choices, children: kind(*children, *choices), flatten
    )


_register(AdaptedCache, ("stacked", "length"), ("slots", "rows"))
_register(AdaptedModel, ("params",), ("calls",))
