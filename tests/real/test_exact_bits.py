"""On a CPU with native products `exact` writes what plain decoding writes, in every precision, on real weights.

`exact_against_plain.py` beside this asks as many answers as are wanted, and goes on where it ended.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import kljudge_jax as kj
from kljudge_jax.kernels.cpu_library import library

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not library().ready, reason=library().reason),
]

ANSWERS = 4


@pytest.fixture(scope="module", params=["file", "bfloat16", "float32"])
def pair(request, models_dir):
    bits = "file" if request.param == "file" else None
    return kj.ModelPair.from_pretrained(
        *(Path(models_dir) / f"qwen2.5-coder-{size}b-instruct-q4_k_m.gguf" for size in ("1.5", "0.5")),
        dtype="float32" if request.param == "float32" else "bfloat16",
        bits=bits,
        draft_bits=bits,
    )


@pytest.mark.parametrize("batch", [1, ANSWERS])
def test_exact_is_plain_token_for_token(pair, batch):
    path = os.environ.get("KLJUDGE_GSM8K")
    if not path:
        pytest.skip("set KLJUDGE_GSM8K to GSM8K's test.jsonl")
    prompts = [p.prompt for p in kj.load_task(f"gsm8k:{path}").problems(split="test", n=ANSWERS, seed=7)]
    how = {"max_new_tokens": 64, "batch_size": batch}
    plain = kj.generate(pair, prompts, verifier=None, **how)
    for length in (3, 8):
        exact = kj.generate(pair, prompts, verifier="exact", draft_length=length, **how)
        assert exact.stats.accepted > 0 and exact.stats.cycles < plain.stats.cycles, "nothing was drafted"
        for ours, theirs in zip(exact.tokens, plain.tokens, strict=True):
            np.testing.assert_array_equal(ours, theirs)
