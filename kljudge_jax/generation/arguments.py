"""What a caller asked for, checked and in the form that a run takes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.controller import Adaptive
from kljudge_jax.core.drafting import check_drafter
from kljudge_jax.core.protocols import Drafter
from kljudge_jax.core.rule_check import check_registered, check_rule
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.core.scorers import DraftScorer, ReflectionScorer, Scorer
from kljudge_jax.core.verify import compared_by
from kljudge_jax.drafters.heads import drafter_of
from kljudge_jax.drafters.model_draft import ModelDraft
from kljudge_jax.drafters.specs import parse_drafter
from kljudge_jax.errors import InputError
from kljudge_jax.generation.costs import estimate
from kljudge_jax.generation.sections import SectionIds, reads_sections, sections_for
from kljudge_jax.verification import GreedyExact, SpeculativeSampling, Verifier, parse_verifier
from kljudge_jax.verification.specs import called
from kljudge_jax.verification.states import state_of


class Plan(NamedTuple):
    """What a run decodes with.

    Attributes:
      verifier: the rule, its numbers as arrays.
      draft: what the drafter keeps its parameters in, or None.
      drafter: what proposes, or None.
      draft_length: K.
      adaptive: how the length adapts, or None.
      cost: what one more draft token costs by estimate, as a share of a plain cycle.
      scorer: how the target looks at a draft.
      sections: the tokens that begin and end a section, of which the rule is told, or None.
    """

    verifier: Verifier
    draft: Any
    drafter: Drafter | None
    draft_length: int
    adaptive: Adaptive | None
    cost: float
    scorer: Scorer
    sections: tuple[int, int] | None


def plan(pair, verifier, drafter, draft_length, sampling: Sampling, section_ids: SectionIds = "auto") -> Plan:
    """The rule, the drafter and the length; plain decoding is the strict rule over no draft at all.

    Arguments are those of `generate`.
    """
    if isinstance(verifier, str):
        verifier = parse_verifier(verifier, sampling.greedy)
    told = sections_for(section_ids, verifier, pair.tokenizer, pair.target.vocab_size)
    if verifier is None:
        strict = GreedyExact() if sampling.greedy else SpeculativeSampling()
        return Plan(strict, None, None, 0, None, 0.0, DraftScorer(), told)
    name = called(verifier)
    if not callable(verifier) or isinstance(verifier, type):
        raise InputError(f"a verifier is a rule such as KLJudge(0.4) or a spec such as 'kl:0.4', got {verifier!r}")
    check_registered(verifier)
    if getattr(verifier, "greedy_only", False) and not sampling.greedy:
        raise InputError(f"{name} needs temperature 0: use SpeculativeSampling, or the spec 'exact' for either")
    if isinstance(drafter, str):
        drafter = parse_drafter(drafter)
    if isinstance(drafter, type) or not hasattr(drafter, "propose"):
        raise InputError(f"a drafter is one such as ModelDraft(), got {drafter!r}; plain decoding is verifier=None")
    drafter = drafter_for(pair, drafter)
    check_drafter(drafter)
    if hasattr(drafter, "check"):
        drafter.check(pair)
    if "draft_hidden" in getattr(verifier, "needs", frozenset()) and not getattr(drafter, "has_hidden", False):
        raise InputError(f"{name} reads the draft's states, and {type(drafter).__name__} has none: draft with a model")
    check_compared(verifier, drafter)
    if hasattr(verifier, "check_pair"):
        verifier.check_pair(pair)
    adaptive = None
    if isinstance(draft_length, Adaptive):
        adaptive, draft_length = draft_length, draft_length.maximum
    if not isinstance(draft_length, int | np.integer) or isinstance(draft_length, bool) or draft_length < 1:
        raise InputError(
            f"draft_length must be a whole number from 1 on or Adaptive(), got {draft_length}; for plain decoding use "
            "verifier=None"
        )
    scorer = _scorer(verifier, drafter, pair, sampling)
    if scorer.drafts > 1 and reads_sections(verifier):
        raise InputError(f"{name} chooses among several drafts, and each would have sections of its own: read none")
    cost = 0.0
    if adaptive is not None:
        cost = estimate(pair, drafter, adaptive, scorer.drafts, scorer.positions)

    def as_data(number):
        if not isinstance(number, int | float | np.number | np.ndarray | jax.Array):
            raise InputError(
                f"{name} holds {number!r}, which is no number: write a rule as a frozen dataclass of numbers under "
                "@kljudge_jax.register"
            )
        # On the host: each conversion by jax.numpy would be a program of its own to compile.
        number = number if isinstance(number, jax.Array) else np.asarray(number)
        kinds = {jnp.floating: np.float32, jnp.integer: np.int32}
        dtype = next((ours for kind, ours in kinds.items() if jnp.issubdtype(number.dtype, kind)), number.dtype)
        return jax.device_put(number.astype(dtype))

    draft = pair.draft if getattr(drafter, "uses_draft_model", True) else None
    verifier = jax.tree.map(as_data, verifier)
    needs: frozenset[str] = getattr(verifier, "needs", frozenset())
    states = draft if draft is not None else pair.target
    if "draft_hidden" in needs and not hasattr(states, "init_cache"):
        return Plan(verifier, draft, drafter, int(draft_length), adaptive, cost, scorer, told)  # known later
    check_rule(
        verifier,
        draft_length=int(draft_length),
        vocab_size=pair.target.vocab_size,
        draft_state=state_of(states, "the rule") if "draft_hidden" in needs else None,
        target_state=state_of(pair.target, "the rule") if "target_hidden" in needs else None,
        with_sections=told is not None,
    )
    return Plan(verifier, draft, drafter, int(draft_length), adaptive, cost, scorer, told)


def drafter_for(pair: Any, drafter: Any) -> Any:
    """What drafts where that drafter is asked for: a head drafts in a way of its own."""
    return (drafter_of(pair.draft) or drafter) if isinstance(drafter, ModelDraft) else drafter


def check_compared(verifier: Any, drafter: Any) -> None:
    """Refuses a rule that reads KL(target || draft), or as much of the draft's distribution, with a drafter that has
    none: it would be the strict rule, or accept everything, and not say so."""
    if getattr(verifier, "compares_drafts", False) and not getattr(drafter, "draws", True):
        raise InputError(
            f"{called(verifier)} reads {compared_by(verifier)}, and {type(drafter).__name__} has no "
            "distribution, all is at its token: draft with a model, or use a rule such as exact, typical, topk:2 or "
            "fuzzy:divergence=js"
        )


def _scorer(verifier, drafter, pair, sampling: Sampling) -> Scorer:
    """The scorer that the rule names."""
    wanted = getattr(verifier, "scorer", "draft")
    if wanted == "draft":
        return DraftScorer()
    if wanted == "several drafts":
        # Drafts that are not drawn are all the same.
        return DraftScorer(1 if sampling.greedy or not getattr(drafter, "draws", True) else verifier.drafts)
    if wanted == "reflection":
        if pair.tokenizer is None:
            raise InputError(f"{called(verifier)} has a prompt of its own, and the pair has no tokenizer: add one")
        ids = pair.tokenizer(verifier.prompt, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"give {called(verifier)} a prompt that has tokens, not {verifier.prompt!r}")
        return ReflectionScorer(tuple(int(i) for i in ids))
    raise InputError(f"{called(verifier)} names the scorer {wanted!r}: choose one of draft, several drafts, reflection")


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


def slots(batch_size, prompts: int) -> int:
    """How many of so many prompts are decoded side by side."""
    if batch_size is None:
        return prompts
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number from 1 on, or None for all prompts, got {batch_size!r}")
    return min(int(batch_size), prompts)


def check_fit(target, draft, ids, budget, names) -> None:
    """Refuses prompts that, with their new tokens, are longer than a model was made for."""
    for model, whose in ((target, "target"), (draft, "draft")):
        for tokens, new, name in zip(ids, budget, names, strict=True):
            most = getattr(model, "max_length", None)
            if most is not None and len(tokens) + new > most:
                raise InputError(
                    f"{name} has {len(tokens)} tokens; with {new} new ones that is {len(tokens) + new}, and the "
                    f"{whose} takes {most}: shorten it or lower max_new_tokens"
                )


def check_penalty(repetition_penalty: float) -> None:
    """Refuses a repetition penalty by name, for those who carry their settings over from another library."""
    if repetition_penalty != 1:
        raise InputError(
            "repetition_penalty must be 1.0 (off): with it the target's distribution at a draft token hangs on the "
            "draft tokens before it, which one pass cannot score; lower the temperature or set min_p instead"
        )


def row_keys(key, batch: int) -> tuple[np.ndarray, Any]:
    """One PRNG key a row, on the host: their data, uint32 `[B, ...]`, and their kind, as `wrap_key_data` takes it."""
    key = jax.random.key(0) if key is None else key
    if not isinstance(key, jax.Array):
        raise InputError(f"key is a PRNG key such as jax.random.key(0), got {key!r}")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        # As many as a power of two, so that another number of prompts compiles nothing.
        keys = _folded(key, count=1 << (batch - 1).bit_length())
    elif key.shape == (batch,):
        keys = key
    else:
        raise InputError(f"key is one PRNG key or one a prompt: got shape {key.shape} for {batch} prompts")
    return np.asarray(jax.random.key_data(keys))[:batch], jax.random.key_impl(keys)


@functools.partial(jax.jit, static_argnames="count")
def _folded(key: jax.Array, *, count: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
