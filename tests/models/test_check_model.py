"""`check_model` passes models that are right, and names the method of those that are wrong."""

import dataclasses

import foreign_models as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pairs
from flax import nnx
from foreign import VOCAB, Scalar
from test_adapt import bonsai, gemma, plain, ring, tunix

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.models.adapted_cache import AdaptedCache
from kljudge_jax.models.equal_functions import Function


def tunix_like(several, **options):
    model = foreign.TunixLike(nnx.Rngs(0), window=16, several=several)
    return foreign.recipes().from_tunix(model, foreign.VOCAB, **options)


@pytest.mark.parametrize(
    "make",
    [tunix, *(pytest.param(make, marks=pytest.mark.slow) for make in (gemma, bonsai))],
    ids=["tunix", "gemma", "bonsai"],
)
def test_models_that_are_right_pass(make):
    found = kj.check_model(make())
    assert found.window == 0 and found.difference < 1e-5


def test_our_own_model_passes():
    found = kj.check_model(tiny_pairs.tiny_model(windows=(6, 0)), window=6)
    assert found.window == 6 and found.difference < 1e-5


@pytest.mark.slow
def test_a_ring_is_looked_past():
    found = kj.check_model(ring())
    assert found.window == 14 and found.length > 14 and found.difference < 1e-5


def test_a_ring_that_takes_back_less_than_it_says_is_found():
    with pytest.raises(InputError, match=r"Model\.__call__ is wrong for 5 tokens .*its ring needs 4 slots more"):
        kj.check_model(ring(spare=2, rollback=6))
    with pytest.raises(InputError, match=r"Cache\.at_length does not take back 2 rejected tokens"):
        kj.check_model(ring(spare=0, rollback=2, one_by_one=True))
    with pytest.raises(InputError, match=r"Cache\.rollback is 0: .* decodes without a draft alone"):
        kj.check_model(ring(spare=0, rollback=0))


@pytest.mark.parametrize(
    ("several", "window", "place"),
    [("alone", None, "on a warm cache"), ("from zero", 16, "past the window")],
    ids=["as in an empty cache", "Gemma 3 in Tunix"],
)
def test_a_call_that_is_wrong_for_several_tokens_is_found(several, window, place):
    with pytest.raises(InputError, match=rf"Model\.__call__ is wrong for 5 tokens {place}: .*one_by_one=True"):
        kj.check_model(tunix_like(several), window=window)
    kj.check_model(tunix_like(several, one_by_one=True), window=window)


def test_a_position_that_is_not_set_is_found():
    model = tunix()
    still = dataclasses.replace(model, calls=dataclasses.replace(model.calls, rewind=Function(lambda cache, n: cache)))
    with pytest.raises(InputError, match=r"Cache\.at_length does not take back 4 rejected tokens on an empty cache"):
        kj.check_model(still)


@jax.tree_util.register_pytree_node_class
class Broken:
    """A model whose caches have one method that does nothing, or another's work."""

    def __init__(self, model, method):
        self.model, self.method = model, method

    def tree_flatten(self):
        return (self.model,), self.method

    @classmethod
    def tree_unflatten(cls, method, children):
        return cls(children[0], method)

    vocab_size, num_layers, max_length = foreign.VOCAB, 0, None

    def init_cache(self, batch, slots):
        return self._broken(self.model.init_cache(batch, slots))

    def __call__(self, tokens, cache):
        features, cache = self.model(tokens, cache)
        return features, self._broken(cache)

    def logits(self, hidden):
        return self.model.logits(hidden)

    def _broken(self, cache):
        kind = BROKEN[self.method]
        return kind(cache.stacked, cache.length, cache.slots, cache.rows)


class Resized(AdaptedCache):
    def resized(self, slots):
        other = super().resized(slots)
        return dataclasses.replace(other, stacked=jax.tree.map(jnp.zeros_like, other.stacked))


class Taken(AdaptedCache):
    def take(self, row, slots):
        return dataclasses.replace(super().take(row * 0, slots), length=super().take(row, slots).length)


class Followed(AdaptedCache):
    def follow(self, source, start, count):
        return self


BROKEN = {"resized": Resized, "take": Taken, "follow": Followed}
for kind in BROKEN.values():
    jax.tree_util.register_pytree_node(
        kind,
        lambda x: ((x.stacked, x.length), (x.slots, x.rows)),
        lambda choices, children, kind=kind: kind(*children, *choices),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", BROKEN)
def test_a_method_of_the_cache_that_is_wrong_is_named(method):
    with pytest.raises(InputError, match=rf"Cache\.{method} "):
        kj.check_model(Broken(gemma(), method))


@kj.register
@dataclasses.dataclass(frozen=True)
class Streams:
    """A model that gives its layers, as `wrong` gets them wrong."""

    model: Scalar
    wrong: str = dataclasses.field(metadata={"static": True})

    vocab_size, num_layers, max_length = VOCAB, Scalar.num_layers, None

    def init_cache(self, batch, slots):
        return self.model.init_cache(batch, slots)

    def __call__(self, tokens, cache, *, layers=()):
        if self.wrong == "sorted":
            layers = tuple(sorted(layers))
        if self.wrong == "always":
            layers = (0,)
        features, after = self.model(tokens, cache, layers=layers)
        streams = features.layers
        if self.wrong == "the last token's":
            streams = tuple(x[:, -1:] for x in streams)
        if self.wrong == "by place":  # of the pass, as a model would that begins at 0 in every pass
            streams = tuple(x + jnp.arange(x.shape[1], dtype=x.dtype)[None, :, None] for x in streams)
        if self.wrong == "too few":
            streams = streams[:1]
        return features._replace(layers=streams), after

    def logits(self, hidden):
        return self.model.logits(hidden)


@kj.register
@dataclasses.dataclass(frozen=True)
class Deaf(Streams):
    def __call__(self, tokens, cache):
        return super().__call__(tokens, cache)


@pytest.fixture(scope="module")
def scalar():
    return Scalar.random(0)


def test_layers_that_are_right_pass(scalar):
    found = kj.check_model(Streams(scalar, "nothing"))
    assert found.difference < 1e-5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("always", r"Model\.__call__ returns 1 layers, and none were asked for"),
        ("the last token's", r"returns \[2, 1, 16\] as layer 0 for tokens \[2, 5\]: return \[2, 5, 16\]"),
        ("too few", r"returns 1 layers for layers=\(0, 2\): return one each, in a tuple"),
        ("sorted", r"another layer 0 for 5 tokens with layers=\(0, 2\) than for single steps with layers=\(2, 0\)"),
        ("by place", r"another layer 0 for 5 tokens .*: at position 6 it is .* off; layer i is the residual stream"),
    ],
)
def test_layers_that_are_wrong_are_found(scalar, wrong, message):
    with pytest.raises(InputError, match=message):
        kj.check_model(Streams(scalar, wrong))


def test_a_model_that_says_it_has_layers_and_cannot_be_asked_is_found(scalar):
    with pytest.raises(InputError, match=r"num_layers is 2, and Model\.__call__ cannot be asked for layers=\(0, 2\)"):
        kj.check_model(Deaf(scalar, "nothing"))


def test_what_can_be_seen_without_running_is_named():
    class Nothing:
        vocab_size = 5

    with pytest.raises(InputError, match="Nothing has no 'num_layers'"):
        kj.check_model(Nothing())
    wide = dataclasses.replace(gemma(), calls=dataclasses.replace(gemma().calls, vocab_size=62))
    with pytest.raises(InputError, match=r"Model\.logits are \[2, 5, 61\] .* return \[2, 5, 62\]"):
        kj.check_model(wide)
    with pytest.raises(InputError, match=r"check_model needs 117 positions: max_length is 64"):
        kj.check_model(plain(max_length=64), window=100)
    weights = jnp.asarray(np.full((2, 5, 5), np.nan), jnp.float32)
    broken = plain(
        params={"table": jnp.eye(5), "weights": weights},
        call=lambda params, tokens, positions, cache, mask: (params["table"][tokens] @ params["weights"][0], cache),
    )
    with pytest.raises(InputError, match="nan"):
        kj.check_model(broken)
