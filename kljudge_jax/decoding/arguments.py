"""What a caller asked for, checked and in the form that a run takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.verification import GreedyExact, SpeculativeSampling, parse_verifier


def rule(pair, verifier, drafter, draft_length, sampling):
    """The rule, its draft model, the drafter and K; plain decoding is the strict rule over no draft at all."""
    if isinstance(verifier, str):
        verifier = parse_verifier(verifier, sampling.greedy)
    if verifier is None:
        return (GreedyExact() if sampling.greedy else SpeculativeSampling()), None, None, 0
    if not callable(verifier) or isinstance(verifier, type):
        raise InputError(f"a verifier is a rule such as KLJudge(0.4) or a word such as 'kl:0.4', got {verifier!r}")
    if getattr(verifier, "greedy_only", False) and not sampling.greedy:
        name = type(verifier).__name__
        raise InputError(f"{name} needs temperature 0: use SpeculativeSampling, or the word 'exact' for either")
    if not isinstance(draft_length, int | np.integer) or isinstance(draft_length, bool) or draft_length < 1:
        raise InputError(
            f"draft_length must be a whole number from 1 on, got {draft_length}; for plain decoding use verifier=None"
        )
    if not hasattr(drafter, "propose"):
        raise InputError(f"a drafter is one such as ModelDraft(), got {drafter!r}; plain decoding is verifier=None")
    draft = pair.draft if drafter.uses_draft_model else None
    if drafter.uses_draft_model and draft is None:
        raise InputError("the pair has no draft model: load one, or use verifier=None for plain decoding")

    def as_data(number):
        if not isinstance(number, int | float | np.number | np.ndarray | jax.Array):
            raise InputError(
                f"{type(verifier).__name__} holds {number!r}, which is no number: make a rule a frozen dataclass of "
                "numbers, registered by jax.tree_util.register_dataclass"
            )
        number = jnp.asarray(number)
        if jnp.issubdtype(number.dtype, jnp.floating):
            return number.astype(jnp.float32)
        return number.astype(jnp.int32) if jnp.issubdtype(number.dtype, jnp.integer) else number

    return jax.tree.map(as_data, verifier), draft, drafter, int(draft_length)


def stop_strings(stop, pair) -> tuple[str, ...]:
    """The strings that end an answer."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(s, str) and s for s in stop):
        raise InputError("a stop string must be a str of at least one character")
    if stop and pair.tokenizer is None:
        raise InputError("stop strings need a tokenizer, and the pair has none")
    special = set(stop) & set(getattr(pair.tokenizer, "all_special_tokens", ()))
    if special:
        raise InputError(
            f"{min(special)!r} is a special token, which no text holds: stop at text, or add its id to eos"
        )
    return stop


def budget(max_new_tokens, batch: int) -> np.ndarray:
    """The most new tokens of every row: int64 `[B]`."""
    wanted = np.asarray(max_new_tokens)
    if not np.issubdtype(wanted.dtype, np.integer) or wanted.ndim > 1 or (wanted.size and wanted.min() < 1):
        raise InputError(f"max_new_tokens must be a whole number from 1 on, got {max_new_tokens}")
    if wanted.ndim == 1 and len(wanted) != batch:
        raise InputError(f"max_new_tokens has {len(wanted)} numbers for {batch} prompts")
    return np.broadcast_to(wanted, (batch,)).astype(np.int64)


def check_fit(target, draft, ids, budget, names) -> None:
    """Refuses prompts that, with their new tokens, are longer than a model was made for."""
    for model, whose in ((target, "target"), (draft, "draft")):
        for tokens, new, name in zip(ids, budget, names, strict=True):
            if model is not None and len(tokens) + new > model.config.max_position:
                raise InputError(
                    f"{name} has {len(tokens)} tokens; with {new} new ones that is {len(tokens) + new}, and the "
                    f"{whose} takes {model.config.max_position}: shorten it or lower max_new_tokens"
                )


def row_keys(key, batch: int) -> jax.Array:
    """One PRNG key a row `[B]`."""
    key = jax.random.key(0) if key is None else key
    if not isinstance(key, jax.Array):
        raise InputError(f"key is a PRNG key such as jax.random.key(0), got {key!r}")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise InputError(f"key is one PRNG key or one a prompt: got shape {key.shape} for {batch} prompts")
    return key
