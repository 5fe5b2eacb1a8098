"""What a product of some rows costs in units of one row, as the compiler makes it for several kinds of processor.

    python tests/kernels/bench_products.py --march native,x86-64-v3

Kinds take turns, and each figure is the least of the rounds: on a busy machine what a product takes at best says most.
With KLJUDGE_THREADS=1 it is processor time.
"""

import argparse
import ctypes
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.kernels import cpu_library
from kljudge_jax.kernels.cpu_library import compiler
from kljudge_jax.kernels.product import schemes_attribute
from kljudge_jax.kernels.quantize import QuantizedTensor, Scheme, quantize, to_tiles

# The matrices of a layer of Qwen2.5 1.5B, [O, I]; four layers lie in no cache.
SHAPES = [(1536, 1536), (256, 1536), (256, 1536), (1536, 1536), (8960, 1536), (8960, 1536), (1536, 8960)] * 4
STORED = {
    "float32": lambda weight: weight,
    "bfloat16": lambda weight: weight.astype(jnp.bfloat16),
    "int8": lambda weight: to_tiles(quantize(weight, Scheme(8))),
    "6 bits": lambda weight: to_tiles(quantize(weight, Scheme(6))),
    "5 bits": lambda weight: to_tiles(quantize(weight, Scheme(5))),
    "int4": lambda weight: to_tiles(quantize(weight, Scheme(4))),
    "int4, with minima": lambda weight: to_tiles(quantize(weight, Scheme(4, minimum=True))),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--march", default="native,x86-64-v3", help="what -march= of the compiler takes")
    parser.add_argument("--stored", help=f"of {'; '.join(STORED)}, with semicolons; all if not given")
    parser.add_argument("--rows", default="1,2,5,8,9,24,72")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kinds = options.march.split(",")
    counts = [int(word) for word in options.rows.split(",")]
    threads = os.environ.get("KLJUDGE_THREADS", "all")
    clock = time.process_time if threads == "1" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            path = Path(folder) / f"{kind}.so"
            began = time.perf_counter()
            cpu_library.build(compiler(), path, tuple(f.replace("native", kind) for f in cpu_library.FLAGS))
            said = cpu_library.register(ctypes.CDLL(str(path)), f"_{kind}")
            print(f"{kind}: {said}, compiled in {time.perf_counter() - began:.0f} s, threads: {threads}")
        for name in options.stored.split(";") if options.stored else STORED:
            store = STORED[name.strip()]
            weights = [store(jax.random.normal(jax.random.key(i), shape)) for i, shape in enumerate(SHAPES)]
            calls = {(kind, count): product(name, kind, count, weights) for kind in kinds for count in counts}
            least = dict.fromkeys(calls, float("inf"))
            for _ in range(options.rounds):
                for key, call in calls.items():
                    began = clock()
                    jax.block_until_ready(call())
                    least[key] = min(least[key], clock() - began)
            read = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(weights))
            for kind in kinds:
                one = least[kind, counts[0]]
                ratios = ", ".join(f"{count}: {least[kind, count] / one:.2f}" for count in counts)
                print(f"{name} {kind}: {counts[0]} row {one * 1e3:.1f} ms ({read / one / 1e9:.1f} GB/s); {ratios}")


def product(name, kind, count, weights):
    """A call that multiplies as many rows by every weight."""
    dtype = jnp.bfloat16 if name == "bfloat16" else jnp.float32
    rows = {size: jnp.ones((count, size), dtype) for _, size in SHAPES}

    def run(rows, weights):
        total = jnp.float32(0)
        for (outputs, size), weight in zip(SHAPES, weights, strict=True):
            result = (jax.ShapeDtypeStruct((count, outputs), jnp.float32),)
            # Each product waits for the one before, as in a model.
            x = rows[size] + (0 * total).astype(dtype)
            target, given = name, {}
            if isinstance(weight, QuantizedTensor):
                target, given = "blocks", schemes_attribute([weight])
            call = jax.ffi.ffi_call(f"kljudge_{target}_{kind}", result)
            total = call(x, *jax.tree.leaves(weight), **given)[0][0, 0]
        return total

    compiled = jax.jit(run).lower(rows, weights).compile()
    return lambda: compiled(rows, weights)


if __name__ == "__main__":
    main()
