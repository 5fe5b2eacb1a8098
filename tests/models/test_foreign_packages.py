"""The recipes on the packages that they are for, small and random; left out by default.

In an environment of their own (of 2026-11: google-tunix 0.1.7, gemma 3.3.0, kauldron 1.3.0, jax 0.9.0, flax 0.12.5):
`python -m pytest -m foreign tests/models/test_foreign_packages.py`.
"""

import foreign_models as foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pairs
from flax import nnx

import kljudge_jax as kj
from kljudge_jax.errors import InputError

pytestmark = [pytest.mark.foreign, pytest.mark.filterwarnings("ignore")]

STEPS = 20
SIZES = {"num_layers": 2, "embed_dim": 16, "hidden_dim": 24, "num_heads": 4, "head_dim": 8, "num_kv_heads": 2}


@pytest.fixture(autouse=True)
def _their_own_promotion():
    """Their code promotes as JAX does by default."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def randomized(tree, seed):
    """Weights that say something: matrices drawn, scales of norms as they are."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.4, x.shape), x.dtype) if x.ndim > 1 else x, tree)


def with_random_weights(model, seed=0):
    graph, params = nnx.split(model)
    return nnx.merge(graph, randomized(params, seed))


def qwen3():
    package = pytest.importorskip("tunix.models.qwen3.model")
    config = package.ModelConfig(
        vocab_size=foreign.VOCAB, rope_theta=10_000, norm_eps=1e-6, use_tied_embedding=False, **SIZES,
        dtype=jnp.float32, param_dtype=jnp.float32,
    )  # fmt: skip
    return with_random_weights(package.Qwen3(config, rngs=nnx.Rngs(0)))


def llama3():
    package = pytest.importorskip("tunix.models.llama3.model")
    config = package.ModelConfig(
        vocab_size=foreign.VOCAB, rope_theta=10_000, norm_eps=1e-6, weight_tying=False, **SIZES
    )
    return with_random_weights(package.Llama3(config, rngs=nnx.Rngs(0)))


def gemma3():
    package = pytest.importorskip("tunix.models.gemma3.model")
    config = package.ModelConfig(num_embed=foreign.VOCAB, sliding_window_size=8, param_dtype=jnp.float32, **SIZES)
    return with_random_weights(package.Gemma3(config, rngs=nnx.Rngs(0)))


def whole(logits_of, prompt, steps=STEPS):
    """The model's greedy answer by passes over the whole sequence, without a cache."""
    sequence = [int(token) for token in prompt]
    for _ in range(steps):
        # Of one length, so that one program does; what comes later is not seen.
        padded = np.zeros((1, foreign.SIZE), np.int32)
        padded[0, : len(sequence)] = sequence
        sequence.append(int(jnp.argmax(logits_of(padded)[0, len(sequence) - 1])))
    return sequence[len(prompt) :]


def tunix_whole(model):
    positions = np.arange(foreign.SIZE)[None]
    mask = np.tril(np.ones((1, foreign.SIZE, foreign.SIZE), bool))
    graph, params = nnx.split(model)
    run = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens, positions, None, mask)[0])
    return lambda tokens: run(params, tokens)


def check(target, own):
    """Greedy decoding is the model's own, with drafts that are always right and with some that are not."""
    drafts = [target, kj.adapt(*_parts(target), params=randomized(target.params, 7), **_options(target))]
    prompts, want = [*foreign.PROMPTS, foreign.PROMPTS[0]], [*own, own[0]]
    for draft in drafts:
        pair = kj.ModelPair(target, draft, eos=(999,))
        options = {"draft_length": 3, "max_new_tokens": STEPS, "batch_size": 2}
        assert tiny_pairs.tokens_of(kj.generate(pair, prompts, verifier="exact", **options)) == want
        judged = kj.generate(pair, prompts, verifier="kl:0.4", **options)
        assert all(len(row) == STEPS for row in judged.tokens)


def _parts(model):
    return model.calls.call.function, model.calls.rows.init_cache.function


def _options(model):
    calls = model.calls
    return {
        "vocab_size": calls.vocab_size,
        "rewind": calls.rewind.function,
        "head": calls.head and calls.head.function,
        "one_by_one": calls.one_by_one,
    }


@pytest.mark.parametrize("make", [qwen3, llama3])
def test_tunix(make):
    model = make()
    adapted = foreign.recipes().from_tunix(model, foreign.VOCAB)
    kj.check_model(adapted)
    check(adapted, [whole(tunix_whole(model), prompt) for prompt in foreign.PROMPTS])


def test_gemma_3_of_tunix_one_token_at_a_time():
    model = gemma3()
    own = [whole(tunix_whole(model), prompt) for prompt in foreign.PROMPTS]
    with pytest.raises(InputError, match=r"Model\.__call__ is wrong for 5 tokens .*one_by_one=True"):
        kj.check_model(foreign.recipes().from_tunix(model, foreign.VOCAB), window=8)
    adapted = foreign.recipes().from_tunix(model, foreign.VOCAB, one_by_one=True)
    kj.check_model(adapted, window=8)
    check(adapted, own)


def test_gemma_4_of_tunix_one_token_at_a_time_without_its_ring():
    package = pytest.importorskip("tunix.models.gemma4.model")
    config = package.ModelConfig(
        num_embed=foreign.VOCAB, sliding_window_size=8, use_sliding_window_kv_cache=False, dtype=jnp.float32,
        param_dtype=jnp.float32, **SIZES,
    )  # fmt: skip
    model = with_random_weights(package.Gemma4(config, rngs=nnx.Rngs(0)))
    own = [whole(tunix_whole(model), prompt) for prompt in foreign.PROMPTS]
    options = {"new_cache": lambda slots: model.init_cache(1, slots, jnp.float32)}
    with pytest.raises(InputError, match=r"Model\.__call__ is wrong for 5 tokens on a warm cache.*one_by_one=True"):
        kj.check_model(foreign.recipes().from_tunix(model, foreign.VOCAB, **options), window=8)
    adapted = foreign.recipes().from_tunix(model, foreign.VOCAB, one_by_one=True, **options)
    kj.check_model(adapted, window=8)
    check(adapted, own)


def test_gemma():
    pytest.importorskip("gemma")
    from gemma.gm.nn import _config, _modules, _transformer

    kinds = _modules.AttentionType
    sizes = {name: size for name, size in SIZES.items() if name != "num_layers"}
    config = _config.TransformerConfig(
        num_embed=foreign.VOCAB,
        final_logit_softcap=None,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL),
        sliding_window_size=8,
        **sizes,
    )
    module = _transformer.Transformer(config=config, dtype=jnp.float32)
    params = randomized(module.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"], 0)
    positions = np.arange(foreign.SIZE)[None]
    mask = np.tril(np.ones((1, foreign.SIZE, foreign.SIZE), bool))

    def logits_of(tokens):
        return module.apply({"params": params}, tokens, positions=positions, attention_mask=mask).logits

    adapted = foreign.recipes().from_gemma(module, params, foreign.VOCAB)
    kj.check_model(adapted, window=8)
    check(adapted, [whole(logits_of, prompt) for prompt in foreign.PROMPTS])
