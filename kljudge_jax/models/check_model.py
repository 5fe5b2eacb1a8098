"""A model held to its protocol by what it computes: passes of several tokens against single steps from scratch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.protocols import Cache, Features, check_structure
from kljudge_jax.errors import InputError
from kljudge_jax.kernels.place import default_platform

# Sizes that tell a cache whose slots are few from one that has as many as it is asked for.
_FEW, _MANY, _MORE = 8, 1 << 14, 1 << 15
# Where a pass begins that is warm, and how far past a window one begins that is past it.
_WARM = 5


class ModelCheck(NamedTuple):
    """What `check_model` found of a model that is right.

    Attributes:
      length: up to which position it looked.
      window: the window that it looked past; 0 where none was named and no cache has fewer slots than asked for.
      difference: the largest one of a logit from that of single steps, as a share of the largest logit.
    """

    length: int
    window: int
    difference: float


def check_model(
    model: Any,
    *,
    draft_length: int = 4,
    window: int | None = None,
    rows: int = 2,
    tolerance: float | None = None,
    seed: int = 0,
) -> ModelCheck:
    """Holds a `kljudge_jax.Model` to its protocol: what decoding does to it, against single steps from scratch.

    A pass of `draft_length + 1` tokens on an empty cache, on a warm one, after a rejected draft was taken back, and
    the two past the window; in one row and in rows of different lengths; then a larger cache, rows that are taken and
    put, and a row that follows another; and where `num_layers` is above 0, what the call gives of its layers. All over
    random tokens.

    Args:
      model: such as `kljudge_jax.adapt` returns.
      draft_length: K.
      window: the longest window of its layers, where a layer does not see all. None is the most slots that a cache
        takes, if it is a ring; a window that is no more than a mask cannot be seen from outside, so name it.
      rows: of the batch, B; 1 for a call that cannot be mapped over rows.
      tolerance: how far logits may be off, as a share of the largest one. None is 1e-3 in float32 on a CPU, else 5e-2.
      seed: of the tokens.

    Returns:
      how far it looked.

    Raises:
      InputError: something is wrong; the message names the method.
    """
    checker = _Checker(model, draft_length + 1, rows, tolerance, seed)
    ring = checker.protocol()
    window = (ring or 0) if window is None else window
    starts = [0, _WARM] + ([window + _WARM] if window else [])
    most = model.max_length
    needed = starts[-1] + rows + 2 * checker.width
    if most is not None and needed > most:
        raise InputError(
            f"to look past a window of {window}, check_model needs {needed} positions: max_length is {most}"
        )
    checker.make(needed)
    for batch in sorted({1, rows}):
        for start in starts:
            checker.passes(start, batch, past=start > _WARM)
    checker.larger(_WARM)
    checker.layers(_WARM)
    if rows > 1:
        checker.taken(_WARM)
        checker.followed(_WARM)
    return ModelCheck(needed, window, checker.worst)


class _Checker:
    """The model, random tokens `[rows, n]`, and the programs that run it."""

    def __init__(self, model: Any, width: int, rows: int, tolerance: float | None, seed: int):
        self.model, self.width, self.rows, self.seed = model, width, rows, seed
        kinds = {x.dtype for x in jax.tree.leaves(model) if hasattr(x, "dtype")}
        narrow = any(jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4 for kind in kinds)
        exact = not narrow and default_platform() == "cpu"
        self.tolerance = (1e-3 if exact else 5e-2) if tolerance is None else tolerance
        self.worst, self.ring = 0.0, False

    def protocol(self) -> int | None:
        """What can be seen without running it; returns the slots of a ring, if a cache has one."""
        model = self.model
        for name in ("vocab_size", "num_layers", "max_length", "init_cache", "logits", "__call__"):
            if not hasattr(model, name):
                raise InputError(f"{type(model).__name__} has no {name!r}: see kljudge_jax.Model")
        check_structure(model, "model")
        try:
            hash(jax.tree.structure(model))
        except TypeError as error:
            raise InputError(
                f"the static parts of {type(model).__name__} cannot be hashed ({error}): see Model"
            ) from None
        cache = self._shapes(self.rows, _FEW)
        if not isinstance(cache, Cache):
            lacking = [name for name in dir(Cache) if not name.startswith("_") and not hasattr(cache, name)]
            raise InputError(f"Model.init_cache returns a {type(cache).__name__} without {lacking[0]!r}: see Cache")
        if cache.length.shape != (self.rows,) or cache.slots != _FEW:
            raise InputError(
                f"Model.init_cache({self.rows}, {_FEW}) returns a cache of length {list(cache.length.shape)} and "
                f"{cache.slots} slots: Cache.length is int32 [{self.rows}], Cache.slots {_FEW}"
            )
        wrong = [x.shape for x in jax.tree.leaves(cache) if not x.ndim or x.shape[0] != self.rows]
        if wrong:
            raise InputError(f"Model.init_cache makes an array {list(wrong[0])} for {self.rows} rows: rows come first")
        self.ring = cache.rollback is not None
        if cache.rollback is not None:
            if cache.rollback < 1:
                raise InputError(
                    "Cache.rollback is 0: after a rejected draft token a cache has to take it back, so such a model "
                    "decodes without a draft alone"
                )
            self.width = min(self.width, cache.rollback + 1)
        tokens = jax.ShapeDtypeStruct((self.rows, self.width), jnp.int32)
        made = self._shapes(self.rows, _MANY)
        features, after = jax.eval_shape(lambda model, tokens, cache: model(tokens, cache), model, tokens, made)
        if not isinstance(features, Features):
            raise InputError(f"Model.__call__ returns {type(features).__name__} and a cache: the first is Features")
        self._check_layers(tokens, made, features)
        logits = jax.eval_shape(_logits, model, features)
        if logits.shape != (*tokens.shape, model.vocab_size):
            raise InputError(
                f"Model.logits are {list(logits.shape)} for tokens {list(tokens.shape)}: "
                f"return {[*tokens.shape, model.vocab_size]}, one logit a token of Model.vocab_size"
            )
        if _sizes(after) != _sizes(made):
            raise InputError("Model.__call__ returns a cache of other shapes, dtypes or structure than it was given")
        few, many, more = (jax.tree.leaves(x) for x in (cache, made, self._shapes(self.rows, _MORE)))
        rings = [
            size
            for a, b, c in zip(few, many, more, strict=True)
            if a.shape != b.shape and b.shape == c.shape
            for before, size in zip(a.shape, b.shape, strict=True)
            if before != size
        ]
        return max(rings, default=None)

    def _check_layers(self, tokens: Any, cache: Any, features: Features) -> None:
        """The shapes of what is given of layers, asked for or not."""
        model, most = self.model, self.model.num_layers
        if type(most) is not int or most < 0:
            raise InputError(f"Model.num_layers is {most!r}: give a whole number, 0 where no layers can be asked for")
        if features.layers:
            raise InputError(f"Model.__call__ returns {len(features.layers)} layers, and none were asked for")
        if not most:
            return
        wanted = (0, most)
        try:
            streams = jax.eval_shape(
                lambda model, tokens, cache: model(tokens, cache, layers=wanted)[0].layers, model, tokens, cache
            )
        except TypeError as error:
            reason = (str(error).splitlines() or ["a TypeError"])[0]
            raise InputError(
                f"Model.num_layers is {most}, and Model.__call__ cannot be asked for layers={wanted} ({reason}): take "
                "the keyword, or let num_layers be 0"
            ) from error
        if not isinstance(streams, tuple) or len(streams) != len(wanted):
            number = len(streams) if isinstance(streams, tuple | list) else type(streams).__name__
            raise InputError(f"Model.__call__ returns {number} layers for layers={wanted}: return one each, in a tuple")
        hidden = features.hidden
        for layer, x in zip(wanted, streams, strict=True):
            shape = list(getattr(x, "shape", ()))
            size = hidden.shape[-1] if hidden is not None else shape[-1] if shape else "H"
            if shape != [*tokens.shape, size]:
                raise InputError(
                    f"Model.__call__ returns {shape} as layer {layer} for tokens {list(tokens.shape)}: return "
                    f"{[*tokens.shape, size]}"
                )

    def _shapes(self, rows: int, slots: int) -> Any:
        return jax.eval_shape(lambda model: model.init_cache(rows, slots), self.model)

    def make(self, length: int) -> None:
        """Tokens for so many positions, and the programs."""
        random = np.random.default_rng(self.seed)
        vocab = self.model.vocab_size
        self.tokens = random.integers(0, vocab, (self.rows, length), np.int32)
        self.others = (self.tokens + random.integers(1, max(vocab, 2), self.tokens.shape, np.int32)) % vocab
        self.slots = length
        # From here on the model is an argument: its parameters are no constants of a program.
        self._advance = jax.jit(_advance)
        self._steps = jax.jit(_steps)
        self._pass = jax.jit(_pass)
        self._streams = jax.jit(_streams, static_argnames="layers")
        self._stream_steps = jax.jit(_stream_steps, static_argnames="layers")

    def passes(self, start: int, batch: int, past: bool) -> None:
        """A pass from `start` on, row b from `start + b` on, and one after a draft that was taken back."""
        starts = start + np.arange(batch)
        place = "past the window" if past else "on a warm cache" if start else "on an empty cache"
        self._clean(starts, place)
        # A draft of which not even the first token is kept.
        drafted = np.where(np.arange(self.tokens.shape[1])[None] > starts[:, None], *self._rows(batch))
        _, cache = self._logits(drafted, starts, self._filled(starts))
        found, _ = self._logits(self.tokens, starts + 1, cache.at_length(jnp.asarray(starts + 1, jnp.int32)))
        try:
            self._compare(
                found,
                starts + 1,
                f"Cache.at_length does not take back {self.width - 1} rejected tokens {place}{_of(batch)}",
                "a ring needs as many slots more than its window; say how many in Cache.rollback, and set every "
                "position that the cache holds",
            )
        except InputError:
            # Unless nothing was to be taken back.
            self._clean(starts + 1, "past the window" if past else "on a warm cache")
            raise

    def _clean(self, starts: np.ndarray, place: str) -> None:
        """A pass of rows that have consumed single steps alone."""
        self._compare(
            self._logits(self.tokens, starts, self._filled(starts))[0],
            starts,
            f"Model.__call__ is wrong for {self.width} tokens {place}{_of(len(starts))}",
            f"its ring needs {self.width - 1} slots more than its window, as Cache.rollback says"
            if self.ring
            else "it may be right for one token at a time: then adapt it with one_by_one=True"
            if len(starts) == 1
            else "it may write all rows at one position, or see other rows",
        )

    def larger(self, start: int) -> None:
        """The same on a cache that has grown."""
        starts = np.array([start])
        cache = self._filled(starts).resized(2 * self.slots)
        if cache.slots != 2 * self.slots:
            raise InputError(f"Cache.resized({2 * self.slots}) returns a cache whose slots are {cache.slots}")
        self._compare(self._logits(self.tokens, starts, cache)[0], starts, "Cache.resized loses what was consumed")

    def layers(self, start: int) -> None:
        """The first and the last residual stream of a pass, against those of single steps asked for the other way."""
        most = self.model.num_layers
        if not most:
            return
        starts = start + np.arange(self.rows)
        found = self._streams(self.model, self._window(self.tokens, starts), self._filled(starts), layers=(0, most))
        for row, at in enumerate(starts.tolist()):
            cache = self._advanced(self.tokens[row], at)
            right = self._stream_steps(
                self.model, self.tokens[row : row + 1, at : at + self.width], cache, layers=(most, 0)
            )
            for layer, several, single in zip((0, most), found, reversed(right), strict=True):
                worst, token = self._off(np.asarray(several)[row], np.asarray(single))
                if token is not None:
                    raise InputError(
                        f"Model.__call__ gives another layer {layer} for {self.width} tokens with layers={(0, most)} "
                        f"than for single steps with layers={(most, 0)}: at position {at + token} it is {worst:.2g} of "
                        "the largest number off; layer i is the residual stream after i blocks, in the order asked for"
                    )

    def taken(self, start: int) -> None:
        """The last row taken out of a batch and decoded alone."""
        row = self.rows - 1
        starts = start + np.arange(self.rows)
        one = self._filled(starts).take(jnp.asarray(row, jnp.int32), self.slots)
        at = np.array([start + row])
        self._compare(self._logits(self.tokens[row:], at, one)[0], at, "Cache.take returns another row", first=row)

    def followed(self, start: int) -> None:
        """All rows go on from what the last one has just consumed."""
        last = self.rows - 1
        same = np.broadcast_to(self.tokens[last], self.tokens.shape)
        starts = np.full(self.rows, start)
        cache = self._filled(starts, same)
        drafted = np.where(np.arange(self.rows)[:, None] == last, same, self.others)
        _, cache = self._logits(drafted, starts, cache)
        at = jnp.asarray(starts, jnp.int32)
        cache = cache.follow(jnp.full((self.rows,), last, jnp.int32), at, self.width).at_length(at + self.width)
        after = starts + self.width
        message = "Cache.follow does not copy what another row has consumed"
        self._compare(self._logits(same, after, cache)[0], after, message, of=same)

    def _rows(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        return self.others[:batch], self.tokens[:batch]

    def _filled(self, starts: np.ndarray, tokens: np.ndarray | None = None) -> Any:
        """A cache of rows that have each consumed its first tokens, in single steps."""
        tokens = self.tokens if tokens is None else tokens
        cache = self.model.init_cache(len(starts), self.slots)
        for row, start in enumerate(starts):
            cache = cache.put(jnp.asarray(row, jnp.int32), self._advanced(tokens[row], start))
        return cache

    def _advanced(self, tokens: np.ndarray, start: int) -> Any:
        return self._advance(self.model, tokens[None], np.int32(start), self.model.init_cache(1, self.slots))

    def _logits(self, tokens: np.ndarray, starts: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """Those of one pass from `starts` on, `[B, width, V]`."""
        logits, cache = self._pass(self.model, self._window(tokens, starts), cache)
        return np.asarray(logits), cache

    def _window(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The tokens of a pass from `starts` on, int32 `[B, width]`."""
        return np.stack([tokens[row, start : start + self.width] for row, start in enumerate(starts)])

    def _off(self, found: np.ndarray, right: np.ndarray) -> tuple[float, int | None]:
        """How far `found` `[T, n]` is from what is right, as a share of the largest number, and the first token that is
        too far off; None where none is."""
        size = max(float(np.max(np.abs(right))), 1e-30)
        apart = np.max(np.abs(found - right), axis=-1) / size
        worst = float(np.max(apart))
        # NaN is wrong too.
        return worst, None if worst <= self.tolerance else int(np.argmax(~(apart <= self.tolerance)))

    def _compare(
        self,
        found: np.ndarray,
        starts: np.ndarray,
        message: str,
        advice: str = "",
        first: int = 0,
        of: np.ndarray | None = None,
    ) -> None:
        tokens = (self.tokens if of is None else of)[first:]
        for row, start in enumerate(starts):
            cache = self._advanced(tokens[row], start)
            right = np.asarray(self._steps(self.model, tokens[row : row + 1, start : start + self.width], cache))
            worst, token = self._off(found[row], right)
            if token is not None:
                raise InputError(
                    f"{message}: at position {start + token} logits are {worst:.2g} of the largest one off those of "
                    f"single steps{'; ' + advice if advice else ''}"
                )
            self.worst = max(self.worst, worst)


def _of(batch: int) -> str:
    return "" if batch == 1 else f", in {batch} rows of different lengths"


def _logits(model: Any, features: Features) -> jax.Array:
    return model.logits(features.hidden) if features.logits is None else features.logits


def _pass(model: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    features, cache = model(tokens, cache)
    return _logits(model, features).astype(jnp.float32), cache


def _streams(model: Any, tokens: jax.Array, cache: Any, *, layers: tuple[int, ...]) -> tuple[jax.Array, ...]:
    return tuple(x.astype(jnp.float32) for x in model(tokens, cache, layers=layers)[0].layers)


def _stream_steps(model: Any, tokens: jax.Array, cache: Any, *, layers: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Streams `[T, H]` each of tokens int32 `[1, T]`, one at a time."""

    def step(cache, token):
        features, cache = model(token[None, None], cache, layers=layers)
        return cache, tuple(x[0, 0].astype(jnp.float32) for x in features.layers)

    return jax.lax.scan(step, cache, tokens[0])[1]


def _advance(model: Any, tokens: jax.Array, count: jax.Array, cache: Any) -> Any:
    """The cache after the first `count` tokens of int32 `[1, n]`, one at a time."""

    def step(i, cache):
        return model(jax.lax.dynamic_slice_in_dim(tokens, i, 1, axis=1), cache)[1]

    return jax.lax.fori_loop(0, count, step, cache)


def _steps(model: Any, tokens: jax.Array, cache: Any) -> jax.Array:
    """Logits `[T, V]` of tokens int32 `[1, T]`, one at a time."""

    def step(cache, token):
        logits, cache = _pass(model, token[None, None], cache)
        return cache, logits[0, 0]

    return jax.lax.scan(step, cache, tokens[0])[1]


def _sizes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype) for x in leaves]
