"""Others' models: greedy decoding is their own, token for token; what cannot be adapted is refused by name."""

import dataclasses
import functools
import re

import foreign_models as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pairs
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import kljudge_jax as kj
from kljudge_jax import core
from kljudge_jax.core.protocols import Cache, Model
from kljudge_jax.errors import InputError
from kljudge_jax.models.equal_functions import Function

K, STEPS = 3, 12
NEVER = (999,)


def tunix(seed=0, change=lambda path, x: x, **options):
    model = changed(foreign.tunix_like(seed), change)
    return foreign.recipes().from_tunix(model, foreign.VOCAB, **options)


def gemma(seed=0, change=lambda path, x: x):
    module, params = foreign.gemma_like(seed)
    return foreign.recipes().from_gemma(module, jax.tree_util.tree_map_with_path(change, params), foreign.VOCAB)


def bonsai(seed=0, change=lambda path, x: x):
    model = changed(foreign.bonsai_like(seed), change)
    return foreign.recipes().from_bonsai(model, foreign.new_bonsai_cache, foreign.run_bonsai, "now", foreign.VOCAB)


def ring(seed=0, scale=1.0, rollback=6, one_by_one=False, **options):
    model = foreign.ring_like(seed, **options)
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda x: x * np.float32(scale), params)

    def call(params, *arguments):
        return nnx.merge(graph, params)(*arguments)

    return kj.adapt(
        call,
        model.init_cache,
        params,
        vocab_size=foreign.VOCAB,
        rewind=foreign.RingLike.rewind,
        rollback=rollback,
        one_by_one=one_by_one,
    )


def changed(model, change):
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(change, params))


def negated(path, x):
    """A draft that finds likeliest what the target finds least likely."""
    name = jax.tree_util.keystr(path)
    return -x if re.search(r"\['head'\]|'sign'", name) else x


MAKE = {"tunix": tunix, "gemma": gemma, "bonsai": bonsai}


@functools.cache
def own_greedy(kind, steps=STEPS):
    """What the model answers by itself."""
    if kind == "ring":
        return [foreign.ring_greedy(foreign.ring_like(), prompt, steps) for prompt in foreign.PROMPTS]
    if kind == "gemma":
        return [foreign.gemma_greedy(*foreign.gemma_like(), prompt, steps) for prompt in foreign.PROMPTS]
    made, greedy = {
        "tunix": (foreign.tunix_like, foreign.tunix_greedy),
        "bonsai": (foreign.bonsai_like, foreign.bonsai_greedy),
    }[kind]
    return [greedy(made(), prompt, steps) for prompt in foreign.PROMPTS]


def answer(target, draft, verifier="exact", prompts=foreign.PROMPTS, **options):
    shared = {"draft_length": K, "max_new_tokens": STEPS}
    return kj.generate(kj.ModelPair(target, draft, eos=NEVER), prompts, verifier=verifier, **(shared | options))


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.first_case
def test_greedy_decoding_is_the_models_own(kind):
    """Two rows of different lengths, a third prompt that waits; a draft that is always right, and one that never is."""
    make, own = MAKE[kind], own_greedy(kind)
    prompts, want = [*foreign.PROMPTS, foreign.PROMPTS[0]], [*own, own[0]]
    target, opposed = make(), make(change=negated)
    right = answer(target, make(), prompts=prompts, batch_size=2)
    assert tiny_pairs.tokens_of(right) == want
    assert right.stats.draft_acceptance_rate == 1.0
    with tiny_pairs.compilations() as found:
        wrong = answer(target, opposed, prompts=prompts, batch_size=2)
    assert tiny_pairs.tokens_of(wrong) == want
    assert wrong.stats.draft_acceptance_rate == 0.0
    assert not found  # another instance, with other weights, runs the same programs
    assert dataclasses.replace(target, params=opposed.params).calls is target.calls


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in MAKE])
def test_a_judge_and_sampling_run(kind):
    target, draft = MAKE[kind](), MAKE[kind](change=lambda path, x: x * np.float32(0.9))
    judged = answer(target, draft, "kl:0.4", trace=True)
    assert all(len(row) == STEPS for row in judged.tokens)
    sampled = answer(target, draft, "exact", temperature=1.0)
    assert all(((row >= 0) & (row < foreign.VOCAB)).all() for row in sampled.tokens)
    # A row's draws are its own.
    alone = answer(target, draft, "exact", foreign.PROMPTS[:1], temperature=1.0)
    assert alone.tokens[0].tolist() == sampled.tokens[0].tolist()


@pytest.mark.slow
def test_one_token_at_a_time():
    """A call that is wrong for several tokens, given one by one."""
    make = functools.partial(foreign.TunixLike, window=4, several="from zero")
    own = [foreign.tunix_greedy(make(nnx.Rngs(0)), prompt, STEPS) for prompt in foreign.PROMPTS]
    adapted = foreign.recipes().from_tunix(make(nnx.Rngs(0)), foreign.VOCAB, one_by_one=True)
    assert tiny_pairs.tokens_of(answer(adapted, adapted)) == own
    at_once = foreign.recipes().from_tunix(make(nnx.Rngs(0)), foreign.VOCAB)
    assert tiny_pairs.tokens_of(answer(at_once, at_once)) != own


@pytest.mark.slow
def test_a_ring_that_goes_round():
    own = own_greedy("ring", 40)
    prompts, want = [*foreign.PROMPTS, foreign.PROMPTS[0]], [*own, own[0]]
    for scale in (1.0, -1.0):
        out = answer(ring(), ring(scale=scale), prompts=prompts, batch_size=2, max_new_tokens=40)
        assert tiny_pairs.tokens_of(out) == want
    # Prompts longer than the ring, that begin alike.
    long = [np.arange(40) % 7, np.concatenate([np.arange(40) % 7, [11, 12, 13]])]
    greedy = [foreign.ring_greedy(foreign.ring_like(), prompt, STEPS) for prompt in long]
    assert tiny_pairs.tokens_of(answer(ring(), ring(), prompts=[*long, long[0]], batch_size=2)) == [*greedy, greedy[0]]


@pytest.mark.slow
def test_caches_grow_and_rows_follow():
    """Several drafts a row, of which all go on from one; in caches whose slots are one axis, and in those of a ring."""
    for target in (tunix(), ring()):
        tokens = jnp.asarray(np.arange(9).reshape(3, 3), jnp.int32)
        _, cache = target(tokens, target.init_cache(3, 12))
        grown = cache.follow(jnp.array([2, 2, 0]), jnp.zeros((3,), jnp.int32), 3).resized(20)
        assert grown.slots == 20
        assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, target.init_cache(3, 20))
        _, again = target(tokens[jnp.array([2, 2, 0])], target.init_cache(3, 20))
        jax.tree.map(np.testing.assert_array_equal, grown, again)
    out = answer(tunix(), tunix(change=lambda path, x: x * np.float32(0.9)), "kseq:2", temperature=1.0)
    assert all(len(row) == STEPS for row in out.tokens)


def test_caches_grow_while_they_are_decoded_with():
    """Answers longer than the caches begin with: every token is the one that a whole pass finds likeliest."""
    model = bonsai()
    out = answer(model, model, max_new_tokens=300)
    for prompt, row in zip(foreign.PROMPTS, out.tokens, strict=True):
        logits, _ = kj.score(model, np.concatenate([prompt, row])[None].astype(np.int32))
        np.testing.assert_array_equal(np.argmax(np.asarray(logits)[0], axis=-1)[len(prompt) - 1 : -1], row)


@pytest.mark.slow
def test_other_drafters_and_lengths():
    adaptive = kj.Adaptive(maximum=4, cost="size")
    assert tiny_pairs.tokens_of(answer(tunix(), tunix(change=negated), draft_length=adaptive)) == own_greedy("tunix")
    looked_up = answer(ring(), None, drafter="lookup:2", max_new_tokens=40)
    assert tiny_pairs.tokens_of(looked_up) == own_greedy("ring", 40)
    with pytest.raises(InputError, match=r"draft's cache can take back 6 tokens .* a cycle takes back up to 19"):
        answer(tunix(), ring(), draft_length=adaptive)


def test_it_keeps_to_the_protocols():
    model = gemma()
    assert isinstance(model, Model) and isinstance(model.init_cache(2, 8), Cache)
    features, cache = model(jnp.zeros((2, 3), jnp.int32), model.init_cache(2, 8))
    assert features.hidden.shape == (2, 3, foreign.WIDTH) and cache.length.tolist() == [3, 3]
    assert model.logits(features.hidden).shape == (2, 3, foreign.VOCAB)
    logits, hidden = kj.score(model, np.zeros((2, 3), np.int32))
    assert logits.shape == (2, 3, foreign.VOCAB) and hidden.shape == features.hidden.shape
    assert kj.score(tunix(), np.zeros((1, 3), np.int32))[1] is None


def mesh_model(mesh, batch_axes, seed=0):
    """A Tunix-like model whose call has a part under shard_map, as those libraries have their kernels."""
    graph, params = nnx.split(foreign.tunix_like(seed))
    params = jax.device_put(params, NamedSharding(mesh, P()))
    first = foreign.tunix_like()

    def call(params, tokens, positions, cache, mask):
        logits, cache = nnx.merge(graph, params)(tokens, positions, cache, mask)
        where = P(None, None, None, "tensor")
        # Unchecked, as kernels are: mapped by `spmd_axis_name`, jax 0.8.3 takes a constant for one that varies less.
        split = jax.shard_map(lambda x: x * np.float32(1), mesh=mesh, in_specs=where, out_specs=where, check_vma=False)
        return logits, jax.tree.map(lambda x: split(x) if x.ndim == 4 else x, cache)

    def rewind(cache, n):
        return {name: layer | {"end_index": jnp.full((1,), n)} for name, layer in cache.items()}

    return kj.adapt(
        call,
        lambda slots: first.init_cache(1, slots),
        params,
        vocab_size=foreign.VOCAB,
        rewind=rewind,
        batch_axes=batch_axes,
    )


def test_the_batch_stays_split_over_a_mesh():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])

    def rows_a_device(batch_axes):
        model = mesh_model(mesh, batch_axes)
        cache = jax.device_put(model.init_cache(4, 8), NamedSharding(mesh, P("data")))
        tokens = jax.device_put(np.zeros((4, 2), np.int32), NamedSharding(mesh, P("data")))
        program = jax.jit(lambda model, tokens, cache: model(tokens, cache)).lower(model, tokens, cache).compile()
        _, after = program(model, tokens, cache)
        stored = after.stacked["layer_0"]["k"]
        return stored.sharding.shard_shape(stored.shape)[0]

    assert rows_a_device("data") == 2
    # Why it has to be said: what is mapped over rows then has all of them on every device.
    assert rows_a_device(None) == 4


@pytest.mark.slow
def test_decoding_on_a_mesh_is_decoding():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    target = mesh_model(mesh, "data")
    out = answer(target, target)
    assert tiny_pairs.tokens_of(out) == own_greedy("tunix")
    models, shape = core.Models(target, target), core.Shape(K, STEPS)
    prompts, lengths = np.array([[3, 1, 4], [1, 5, 9]], np.int32), np.array([3, 3], np.int32)

    @jax.jit
    def state(models):
        keys = jax.random.split(jax.random.key(0), 2)
        numbers = core.numbers(STEPS)
        begun = core.init(models, kj.ModelDraft(), kj.GreedyExact(), prompts, lengths, keys, numbers, shape=shape)
        return core.decode(models, kj.ModelDraft(), kj.GreedyExact(), begun, numbers, shape=shape)

    found = state(models)
    for x in (found.cache.stacked["layer_0"]["k"], found.sequence, found.cache.length):
        assert x.sharding.shard_shape(x.shape)[0] == 1


def test_functions_of_equal_closures_are_equal():
    def made(n, text="a"):
        return lambda x: (x * n, text)

    assert Function(made(2)) == Function(made(2)) and hash(Function(made(2))) == hash(Function(made(2)))
    assert Function(made(2)) != Function(made(3)) and Function(made(1)) != Function(made(1.0))
    assert Function(functools.partial(max, 1)) == Function(functools.partial(max, 1))
    array = np.ones(3)
    assert Function(made(array)) != Function(made(array))  # what it holds could change
    one = made(array)
    assert Function(one) == Function(one)

    def itself():
        return itself

    assert Function(itself) == Function(itself)


# What is refused.


def plain(**changes):
    """The arguments of a model of one number a token, in which some are changed."""
    arguments = {
        "call": lambda params, tokens, positions, cache, mask: (
            params["table"][tokens],
            cache | {"at": cache["at"] + 1},
        ),
        "init_cache": lambda slots: {"held": jnp.zeros((1, slots)), "at": jnp.zeros((), jnp.int32)},
        "params": {"table": np.eye(5, dtype=np.float32)},
        "vocab_size": 5,
        "rewind": lambda cache, n: cache | {"at": n},
    }
    return kj.adapt(**(arguments | changes))


REFUSED = {
    "call .* returns no": {"call": lambda params, tokens, *_: params["table"][tokens]},
    r"call .* returns \[2, 5\] for tokens \[1, 2\]: return \[1, 2, 5\]": {
        "call": lambda params, tokens, positions, cache, mask: (params["table"][tokens[0]], cache)
    },
    r"return \[1, 2, 6\], logits \(it has no head\), one for each of vocab_size": {"vocab_size": 6},
    r"head .* returns \[1, 2, 4\] .* one logit a token of vocab_size": {"head": lambda params, x: x[..., :4]},
    r"call .* float16 .*'held'.* was float32 \[1, 64\]": {
        "call": lambda params, tokens, positions, cache, mask: (
            params["table"][tokens],
            cache | {"held": cache["held"].astype(jnp.float16)},
        )
    },
    "call .* another structure": {
        "call": lambda params, tokens, positions, cache, mask: (params["table"][tokens], cache["held"])
    },
    r"rewind .* int32 \[1\] .*'at'": {"rewind": lambda cache, n: cache | {"at": n[None]}},
    "init_cache .* returns no arrays": {"init_cache": lambda slots: {}, "rewind": lambda cache, n: cache},
    "a function as its rewind": {"rewind": None},
    "a whole number from 1 on as its vocab_size": {"vocab_size": 0},
    "a whole number from 0 on as its rollback": {"rollback": -1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_function_returns_wrongly_is_said_at_once(message):
    plain()  # what JAX compiles of its own accord
    with pytest.raises(InputError, match=message) as raised, tiny_pairs.compilations() as found:
        plain(**REFUSED[message])
    assert "\n" not in raised.value.args[0] and not found


@pytest.mark.slow
def test_a_ring_too_short_for_a_draft_is_refused():
    short = ring(spare=2, rollback=2)
    with pytest.raises(InputError, match=r"target's cache can take back 2 tokens .* a cycle takes back up to 3"):
        answer(short, tunix())
    with pytest.raises(InputError, match=r"draft's cache can take back 2 tokens"):
        answer(tunix(), short)
    own = [foreign.ring_greedy(foreign.ring_like(spare=2), prompt, STEPS) for prompt in foreign.PROMPTS]
    assert tiny_pairs.tokens_of(answer(short, short, draft_length=2)) == own
    never = ring(spare=0, rollback=0)
    with pytest.raises(InputError, match="can take back 0 tokens"):
        answer(never, never)
    assert tiny_pairs.tokens_of(answer(never, None, None)) == own


def test_ragged_dot_is_refused_in_several_rows():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5)), jnp.float32)

    def call(params, tokens, positions, cache, mask):
        x = params["table"][tokens[0]]
        groups = jnp.array([1, 0]) * x.shape[0]
        return jax.lax.ragged_dot(x, params["weights"], groups)[None], cache

    model = plain(call=call, params={"table": jnp.eye(5), "weights": weights})
    with pytest.raises(InputError, match=r"jax\.vmap \(ragged_dot .*batch_size=1"):
        answer(model, model, prompts=[[1], [2, 3]])
    kj.check_model(model, rows=1)
    out = answer(model, model, prompts=[[1], [2, 3]], batch_size=1)
    assert [len(row) for row in out.tokens] == [STEPS] * 2


def test_another_vocabulary_is_refused():
    with pytest.raises(InputError, match=r"target has 61 tokens and the draft 5"):
        kj.ModelPair(tunix(), plain(), eos=NEVER)


def test_rules_and_drafters_that_need_more_are_refused():
    model = tunix()
    with pytest.raises(InputError, match="no layers"):
        model(jnp.zeros((1, 1), jnp.int32), model.init_cache(1, 4), layers=(0,))
    with pytest.raises(InputError, match="method 'first'"):
        answer(model, model, drafter=kj.SelfDraft(1))

    @kj.register
    @dataclasses.dataclass(frozen=True)
    class Reads:
        needs = frozenset({"target_hidden"})

        def __call__(self, key, inputs):
            raise AssertionError

    with pytest.raises(InputError, match="hidden states, and that model gives logits alone"):
        answer(model, model, Reads())


def test_batch_axes_that_the_mesh_lacks_are_refused():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with pytest.raises(InputError, match="has the axes data, and no 'rows'"):
        plain(params=jax.device_put({"table": jnp.eye(5)}, NamedSharding(mesh, P())), batch_axes="rows")


def scaled(source, names):
    """A model whose call reads a number of its module by name, as a notebook's cell would."""
    exec(source, names)
    table = jnp.asarray(np.random.default_rng(0).standard_normal((foreign.VOCAB, foreign.VOCAB)), jnp.float32)
    return kj.adapt(
        names["call"],
        lambda slots: {"stored": jnp.zeros((1, slots)), "at": jnp.zeros((), jnp.int32)},
        table,
        vocab_size=foreign.VOCAB,
        rewind=lambda cache, n: cache | {"at": n},
    )


CELL = """
def call(params, tokens, positions, cache, mask):
    fifth = (jnp.arange(params.shape[0]) == 5).astype(jnp.float32)[None, None]
    return SCALE * params[tokens] + BONUS * fifth, cache | {"at": cache["at"] + tokens.shape[1]}
"""


def test_a_cell_that_is_run_again_with_another_number_is_another_model():
    names, answers = {"jnp": jnp}, []
    for numbers in ({"SCALE": 1.0, "BONUS": 0.0}, {"SCALE": 0.01, "BONUS": 1.0}, {"SCALE": 1.0, "BONUS": 0.0}):
        names |= numbers
        pair = kj.ModelPair(scaled(CELL, names), eos=NEVER)
        answers.append(kj.generate(pair, [[3, 1, 4]], verifier=None, max_new_tokens=4).tokens[0].tolist())
    assert answers[0] == answers[2] != answers[1] == [5] * 4


def test_a_prompt_that_breaks_the_model_spoils_nothing_of_the_next_in_its_slot():
    def call(params, tokens, positions, cache, mask):
        x = jnp.where(tokens == 7, jnp.nan, params[tokens][..., 0])
        stored = jax.lax.dynamic_update_slice(cache["stored"], x, (0, cache["at"]))
        seen = jnp.sum(jnp.where(mask, 0.1, 0.0) * stored[:, None], axis=-1)  # 0 times NaN is NaN
        return params[tokens] + seen[..., None], {"stored": stored, "at": cache["at"] + tokens.shape[1]}

    target = kj.adapt(
        call,
        lambda slots: {"stored": jnp.zeros((1, slots)), "at": jnp.zeros((), jnp.int32)},
        jnp.asarray(np.random.default_rng(0).standard_normal((foreign.VOCAB, foreign.VOCAB)), jnp.float32),
        vocab_size=foreign.VOCAB,
        rewind=lambda cache, n: cache | {"at": n},
    )
    pair = kj.ModelPair(target, eos=NEVER)
    broken, sound = [1] * 99 + [7], [3, 1, 4]
    out = kj.generate(pair, [broken, sound], verifier=None, max_new_tokens=STEPS, batch_size=1)
    alone = kj.generate(pair, [sound], verifier=None, max_new_tokens=STEPS)
    assert out.stats.failed == 1 and out.tokens[1].tolist() == alone.tokens[0].tolist() and len(out.tokens[1]) == STEPS
