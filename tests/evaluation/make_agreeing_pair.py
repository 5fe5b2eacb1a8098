"""A target that agrees with a draft as often as wanted: `python tests/evaluation/make_agreeing_pair.py MODEL DIR`.

Speed at a given acceptance cannot be compared between engines by a fixed rate that one lacks. Here acceptance is in the
weights: the draft is the first layers of a model, and the target is all of it, with what the later layers add made
smaller. Exact decoding of the pair then keeps the same tokens in every engine, at the whole cost of both models. What
such a target writes means nothing.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from kljudge_jax.models.linear import Storage
from kljudge_jax.models.orbax import save
from kljudge_jax.models.sources import open_checkpoint
from kljudge_jax.models.tokenizer import tokenizer_eos
from kljudge_jax.models.transformer import assemble, parameters
from kljudge_jax.models.weights import load

LAST = ("attention.out.weight", "mlp.down.weight")  # of what a layer adds


def agreeing(whole, layers, factor):
    """A target and a draft: the model with what its layers from `layers` on add times `factor`, and its first layers.

    The two share the arrays of those.
    """

    def layer(name):
        return int(name.split(".")[1]) if name.startswith("layers.") else -1

    values = dict(parameters(whole))
    smaller = {
        name: value * factor if layer(name) >= layers and name.endswith(LAST) else value
        for name, value in values.items()
    }
    assert sum(smaller[name] is not values[name] for name in values) == 2 * (whole.config.num_layers - layers)
    config = dataclasses.replace(whole.config, num_layers=layers, windows=whole.config.windows[:layers])
    first = {name: value for name, value in values.items() if layer(name) < layers}
    return assemble(whole.config, smaller, whole.storage), assemble(config, first, whole.storage)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a hub id, a local folder or a .gguf file")
    parser.add_argument("folder", type=Path, help="where target/ and draft/ go")
    parser.add_argument("--layers", type=int, default=4, help="of the draft")
    parser.add_argument("--factor", type=float, default=0.1, help="of what the target's later layers add")
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    tokenizer = checkpoint.tokenizer()
    whole = load(checkpoint, Storage(jnp.float32))
    eos = checkpoint.eos or tokenizer_eos(tokenizer)
    target, draft = agreeing(whole, options.layers, options.factor)
    save(options.folder / "target", target, tokenizer, eos)
    save(options.folder / "draft", draft, tokenizer, eos)
    print(options.folder)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
