"""Decoding with caches that a TPU reads as far as they are written, its kernel interpreted."""

import dataclasses

import pytest
from tiny_pairs import DRAFT_LENGTH, NEVER, answer, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.generation.buckets import cache_buckets
from kljudge_jax.kernels import tpu_attention
from kljudge_jax.models.transformer import assemble, parameters

PROMPTS = [[5, 9, 3, 7] * 50, [8, 1], [4] * 90, [2, 6, 1]]


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel on a CPU, for rows of 256 slots on: two blocks. How often it was traced."""
    traced, kernel = [], tpu_attention.written_attention

    def interpreted(*given, **options):
        traced.append(given[0].shape)
        return kernel(*given, interpret=True, **options)

    monkeypatch.setattr(tpu_attention, "written_attention", interpreted)
    monkeypatch.setattr(tpu_attention, "FEWEST_SLOTS", 256)
    return traced


def kept(pair, **storage):
    """The pair, its caches kept so."""

    def model(model):
        return assemble(model.config, parameters(model), dataclasses.replace(model.storage, **storage))

    return dataclasses.replace(pair, target=model(pair.target), draft=model(pair.draft))


@pytest.mark.parametrize(
    ("rule", "cache_bits", "options"),
    [
        ("exact", None, {"batch_size": 2}),  # rows are refilled
        pytest.param(kj.KSequential(2), None, {"temperature": 1.0}, marks=pytest.mark.slow),  # and follow others
        pytest.param("exact", 8, {"drafter": kj.SelfDraft(1)}, marks=pytest.mark.slow),
    ],
)
def test_answers_are_those_of_a_cpu(interpreted, rule, cache_bits, options):
    pair = tiny_pair(eos=(NEVER,))
    alone, on_a_tpu = (kept(pair, platform=platform, cache_bits=cache_bits) for platform in ("cpu", "tpu"))
    options = {"max_new_tokens": 30} | options
    assert cache_buckets(on_a_tpu.target, on_a_tpu.draft, 4, 256) == (256,)
    found = tokens_of(answer(on_a_tpu, rule, PROMPTS, **options))
    assert {shape[-2] for shape in interpreted} >= {1, DRAFT_LENGTH + 1}  # queries of a row
    interpreted.clear()
    assert tokens_of(answer(alone, rule, PROMPTS, **options)) == found and not interpreted
