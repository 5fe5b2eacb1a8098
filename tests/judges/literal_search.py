"""The semi-greedy search, literally: one question, whole sequences scored again for every token, float64 features.

Written from the definition and not from the package, for comparison with it.
"""

import functools

import numpy as np

import kljudge_jax as kj
from kljudge_jax.generation.detokenize import decode


def forced(model, tokens, width):
    """Logits `[T, V]` and states `[T, H]` of tokens `[T]`, T up to `width`."""
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(tokens)] = tokens
    logits, hidden = map(np.asarray, kj.score(model, padded))  # of one length: JAX compiles what cuts them for each
    return logits[0, : len(tokens)], hidden[0, : len(tokens)]


def greedy(pair, tokens, limit, width):
    tokens = list(tokens)
    while len(tokens) < limit and tokens[-1] not in pair.eos:
        tokens.append(next_token(pair.target, tuple(tokens), width))
    return tokens


@functools.cache
def next_token(model, tokens, width):
    return int(forced(model, tokens, width)[0][-1].argmax())


def text_of(pair, tokens, prompt):
    new = [token for token in tokens[prompt:] if token not in pair.eos]
    return decode(pair.tokenizer, new)


def search(pair, prompt, same_answer, max_new_tokens, width=64):
    """Rows (position, important, target token, draft token, target state, draft state, p logits, q logits).

    `same_answer(reference text, text)`; `width`: texts are padded to so many tokens.
    """
    start, limit = len(prompt), len(prompt) + max_new_tokens
    y = list(prompt)
    while len(y) < limit and (len(y) == start or y[-1] not in pair.eos):
        y.append(next_token(pair.target, tuple(y), width))
    reference, left, rows = text_of(pair, y, start), start, []
    while True:
        choices = forced(pair.draft, y, width)[0].argmax(axis=-1)
        mismatches = [t for t in range(left, len(y)) if choices[t - 1] != y[t]]
        if not mismatches:
            return rows
        t = mismatches[0]
        swapped = [*y[:t], int(choices[t - 1])]
        other = greedy(pair, swapped, limit, width)
        important = not same_answer(reference, text_of(pair, other, start))
        (p, target_states), (q, draft_states) = forced(pair.target, swapped, width), forced(pair.draft, swapped, width)
        states = target_states[-1], draft_states[-1], np.float64(p[-2]), np.float64(q[-2])
        rows.append((t - start, important, y[t], swapped[-1], *states))
        if swapped[-1] in pair.eos:
            return rows
        if not important:
            y = other
        left = t + 1
