"""Tiny pairs of several families, whole and spread over a mesh, and the compiled program of their cycles."""

import dataclasses

import jax
import numpy as np
from tiny_pairs import NEVER, tiny_pair

from kljudge_jax.core.loop import UNBOUNDED, Entries
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.generation import programs
from kljudge_jax.generation.run import Run
from kljudge_jax.models.transformer import assemble, parameters
from kljudge_jax.parallel.placement import Placement

VOCAB_SIZE = 768  # no share of it is as long as a row of slots
PROMPTS = [np.arange(1, 3 + i) * 7 % VOCAB_SIZE for i in range(8)]

# Heads that divide over 8 devices, that divide over some of them, and one that divides over none.
FAMILIES = {
    "llama": {"num_layers": 1, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 32},
    "qwen": {
        "num_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "intermediate_size": 48,
        "qkv_bias": True,
        "tied_head": True,
    },
    "gemma": {
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 32,
        "tied_head": True,
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_scale": 4.0,
        "query_scale": 0.3,
        "attention_softcap": 50.0,
        "final_softcap": 30.0,
        "windows": (4,),
    },
}


def family_pair(family, seed=0, noise=0.1):
    """A tiny pair of a family over `VOCAB_SIZE` tokens, of which no answer ends early."""
    return tiny_pair(seed, noise, (NEVER,), vocab_size=VOCAB_SIZE, **FAMILIES[family])


def spread(pair, mesh, axes=None, draft_axes=None):
    """The same pair on a mesh."""
    placement = Placement.parse(mesh, axes, draft_axes)

    def placed(model, layout):
        values = {
            name: jax.device_put(np.asarray(x), layout.parameter(name, x.shape))
            for name, x in parameters(model).items()
        }
        return assemble(model.config, values, dataclasses.replace(model.storage, layout=layout))

    return dataclasses.replace(
        pair,
        target=placed(pair.target, placement.target(pair.target.config)),
        draft=placed(pair.draft, placement.draft(pair.draft.config)),
    )


def cycle_program(pair, verifier, prompts=PROMPTS, draft_length=4, max_new_tokens=24, **sampling):
    """The text of the compiled loop of cycles, as `generate` runs it: so that one compilation serves both."""
    return _cycle(pair, verifier, prompts, draft_length, max_new_tokens, **sampling).as_text()


def cycle_memory(*args, **sampling):
    """Bytes that the same program takes of each device, arguments as in `cycle_program`."""
    return _bytes(_cycle(*args, **sampling))


def start_memory(*args):
    """Bytes that the program that consumes the first prompts takes of each device."""
    run = _run(*args)
    lowered = programs.start.lower(
        *run.models,
        run.verifier,
        run._prompts,
        run.lengths,
        run.state.keys,
        run.numbers(run._budget),
        run._shared,
        **run.static,
    )
    return _bytes(lowered.compile())


def _cycle(pair, verifier, prompts, draft_length, max_new_tokens, **sampling):
    run = _run(pair, verifier, prompts, draft_length, max_new_tokens, **sampling)
    lowered = programs.run_cycles.lower(
        *run.models,
        run.verifier,
        run.state,
        run.numbers(),
        run._halted,
        np.int32(9),
        np.int32(UNBOUNDED),
        **run.static,
    )
    return lowered.compile()


def _bytes(program):
    sizes = program.memory_analysis()
    kept = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + kept + sizes.temp_size_in_bytes


def refill_program(pair, prompts=PROMPTS, width=16, draft_length=4, max_new_tokens=24):
    """The text of the compiled program that puts new prompts of `width` places in slots."""
    run = _run(pair, "exact", prompts, draft_length, max_new_tokens)
    rows = np.zeros(len(prompts), np.int32)
    prompts = np.ones((len(prompts), width), np.int32)
    entries = Entries(prompts, rows + 2, run.state.keys, rows + 1, rows)
    lowered = programs.refill.lower(
        run.pair.target, run.draft, run.verifier, run.state, entries, run.numbers(), np.int32(1), np.int32(0),
        **run.static,
    )  # fmt: skip
    return lowered.compile().as_text()


def _run(pair, verifier, prompts, draft_length, max_new_tokens, **sampling):
    return Run(
        pair,
        prompts,
        verifier,
        draft_length,
        ModelDraft(),
        max_new_tokens,
        Sampling.create(**sampling),
        (),
        None,
        False,
    )
