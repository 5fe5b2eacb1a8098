"""Random and adversarial cases, as a rule and as its definition read them; past every draft NaN and wild ids."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from random_cases import ADVERSARIAL, as_inputs, random_cases

from oracles.base import Case
from oracles.drafts import Drafts
from oracles.learned import DRAFT, TARGET

# Where nobody says how far an answer has come, no token is among the first.
NEVER_FIRST = 1 << 20

# The fields of inputs that not every rule is given.
OPTIONAL = ("draft_hidden", "target_hidden", "position", "section", "carry", "judged_logits")

# Drafts are of one prefix, so that their logits are of a tree: what `random_cases` makes of single ones.
_KINDS = ("close", "far", "sharp", "holes", "one_hot_draft", "one_hot_target")


@functools.lru_cache(maxsize=16)
def single(seed, greedy, length, vocab, size):
    """`size` drafts: inputs with a leading axis in all fields but `greedy`, and a list of `Case`.

    Every field that a rule may look at has something in it: states, how far the answer has come, sections, what was
    spent, and a second view.
    """
    plain, rng = random_cases(seed, greedy, length=length, vocab=vocab, size=size, kinds=ADVERSARIAL), _rng(seed)
    past = np.arange(length) >= np.asarray(plain.draft_count)[:, None]
    hidden = {"draft_hidden": DRAFT, "target_hidden": TARGET}
    given = {name: rng.normal(size=(size, length, states)) for name, states in hidden.items()}
    for states in given.values():
        states[past] = rng.choice([np.nan, np.inf, -np.inf])
    given["carry"] = rng.choice([0.0, 0.7, 2.5, 3.0, 50.0], size=size)
    given["judged_logits"] = np.asarray(plain.target_logits) + rng.normal(size=plain.target_logits.shape)
    counts = {
        "position": rng.choice([0, 1, 2, 3, 50], size=size),
        "section": rng.integers(2, size=(size, length + 1)),
    }
    optional = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
    optional |= {name: jnp.asarray(value, jnp.int32) for name, value in counts.items()}
    inputs = dataclasses.replace(plain, **optional)
    return inputs, cases_of(inputs)


def cases_of(inputs) -> list[Case]:
    """The drafts of a batch of inputs, one at a time."""
    fields = {one.name: getattr(inputs, one.name) for one in dataclasses.fields(inputs) if one.name != "greedy"}
    # As float32 holds them, and from there on in float64.
    arrays = {name: np.asarray(x) for name, x in fields.items() if x is not None}
    arrays = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in arrays.items()}
    length, found = inputs.draft_tokens.shape[1], []
    for i, n in enumerate(arrays["draft_count"]):
        row = {name: x[i] for name, x in arrays.items()}
        found.append(
            Case(
                tokens=row["draft_tokens"],
                count=int(n),
                length=length,
                draft=row["draft_logits"][:n],
                target=row["target_logits"][: n + 1],
                raw_draft=row["raw_draft_logits"][:n],
                raw_target=row["raw_target_logits"][: n + 1],
                greedy=bool(inputs.greedy),
                position=int(row.get("position", NEVER_FIRST)),
                section=row.get("section"),
                carry=float(row.get("carry", 0.0)),
                judged=row["judged_logits"][: n + 1] if "judged_logits" in row else row["target_logits"][: n + 1],
                draft_hidden=row.get("draft_hidden"),
                target_hidden=row.get("target_hidden"),
            )
        )
    return found


@functools.lru_cache(maxsize=16)
def several(seed, greedy, drafts, length, vocab, size):
    """`size` sets of drafts: inputs with two leading axes in all fields but `greedy`, and a list of `Drafts`.

    In half of the sets token 0 ends a draft, so that drafts of one set have different lengths. Greedy drafts are all
    the same.
    """
    rng = _rng(seed)
    cases = [_tree(rng, _KINDS[i % len(_KINDS)], drafts, length, vocab, greedy) for i in range(size)]
    tokens = rng.integers(-3, vocab + 3, size=(size, drafts, length))
    garbage = rng.choice([np.nan, np.inf, -np.inf], size=(size, 1, 1, 1))
    q = np.broadcast_to(garbage, (size, drafts, length, vocab)).copy()
    p = np.broadcast_to(garbage, (size, drafts, length + 1, vocab)).copy()
    counts = np.array([[len(d) for d in case.tokens] for case in cases])
    for s, case in enumerate(cases):
        for j, d in enumerate(case.tokens):
            tokens[s, j, : len(d)] = d
            for n in range(len(d) + 1):
                p[s, j, n] = case.target[d[:n]]
                if n < len(d):
                    q[s, j, n] = case.draft[d[:n]]
    return as_inputs(tokens, counts, q, p, q, p, greedy), cases


def _tree(rng, kind, drafts, length, vocab, greedy):
    target, draft, found = {}, {}, []
    ends = rng.random() < 0.5

    def grow(prefix):
        if prefix not in target:
            p = rng.normal(size=vocab) * (6.0 if kind == "sharp" else 1.5)
            q = p + rng.normal(size=vocab) * (3.0 if kind == "far" else 0.6)
            if kind == "holes":
                p[1:][rng.random(vocab - 1) < 0.4] = -np.inf
                q[1:][rng.random(vocab - 1) < 0.4] = -np.inf
            if kind == "one_hot_draft":
                q = np.where(np.arange(vocab) == rng.integers(vocab), 0.0, -np.inf)
            if kind == "one_hot_target":
                p = np.where(np.arange(vocab) == rng.integers(vocab), 0.0, -np.inf)
            target[prefix], draft[prefix] = (x.astype(np.float32).astype(np.float64) for x in (p, q))
        return draft[prefix]

    for _ in range(drafts):
        prefix = found[0] if greedy and found else ()
        while not found or not greedy:
            logits = grow(prefix)
            if len(prefix) == length or (ends and prefix and prefix[-1] == 0):
                break
            prefix = (*prefix, int(np.argmax(logits + (0 if greedy else rng.gumbel(size=vocab)))))
        found.append(prefix)
    return Drafts(found, length, draft, target, greedy)


def _rng(seed):
    return np.random.default_rng([seed, 1])
