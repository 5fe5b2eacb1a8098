"""Every form of a product against float64, and the promises that the native one adds."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.product import product

needs_native = pytest.mark.skipif(not library().ready, reason=library().reason)
# Relative to the size of the terms: a few roundings of the accumulator.
TOLERANCE = 2e-6


def case(rows, outputs, size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    draw = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((rows, size), (outputs, size))]
    return draw[0], draw[1], np.asarray(draw[0], np.float64) @ np.asarray(draw[1], np.float64).T


@pytest.mark.skipif(
    os.environ.get("KLJUDGE_NATIVE") == "0" or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="no C++ compiler is wanted or found",
)
def test_where_there_is_a_compiler_the_products_are_ready():
    # All other tests of them would be left out without a word if they no longer compiled.
    assert library().ready, library().reason


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    outputs=st.integers(1, 70),
    size=st.integers(1, 200),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    local=st.booleans(),
)
def test_any_shape_is_the_product(rows, outputs, size, dtype, local):
    x, weight, want = case(rows, outputs, size, dtype, size)
    got = product(x, weight, local=local)
    assert got.dtype == jnp.float32 and got.shape == (rows, outputs)
    np.testing.assert_allclose(got, want, atol=TOLERANCE * size)


@needs_native
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(130, 300), (4096, 64)])  # the second is split between threads
def test_a_row_is_the_same_to_the_bit_alone_and_beside_others(dtype, shape):
    x, weight, _ = case(64, *shape, dtype)
    together = np.asarray(jax.jit(product)(x, weight))
    for count in (1, 2, 5, 6, 7, 9, 13, 22):
        np.testing.assert_array_equal(jax.jit(product)(x[:count], weight), together[:count])


@needs_native
def test_the_native_product_is_in_the_program_of_one_device_alone():
    x, weight, _ = case(3, 8, 16, jnp.float32)
    assert "kljudge_float32" in jax.jit(product).lower(x, weight).as_text()
    assert "kljudge_float32" not in jax.jit(lambda x, w: product(x, w, local=False)).lower(x, weight).as_text()
    many, _, _ = case(1000, 8, 16, jnp.float32)
    assert "kljudge_float32" not in jax.jit(product).lower(many, weight).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_those_of_the_plain_product(dtype):
    x, weight, _ = case(5, 7, 33, dtype)

    def loss(form):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(form(x, w))), argnums=(0, 1))(x, weight)

    plain = loss(lambda x, w: jnp.matmul(x, w.T, preferred_element_type=jnp.float32))
    for got, want in zip(loss(product), plain, strict=True):
        assert got.dtype == dtype
        atol = 1e-4 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=2e-2, atol=atol)


def test_a_batch_of_products_is_each_of_them():
    x, weight, want = case(6, 9, 20, jnp.float32)
    got = jax.vmap(product, (0, None))(x.reshape(3, 2, 20), weight)
    np.testing.assert_allclose(got.reshape(6, 9), want, atol=1e-4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_no_number_stays_in_its_row(poison, dtype):
    x, weight, want = case(4, 6, 40, dtype)
    got = np.asarray(product(x.at[2, 7].set(poison), weight))
    assert not np.isfinite(got[2]).any()
    np.testing.assert_allclose(got[[0, 1, 3]], want[[0, 1, 3]], atol=1e-3)


def test_without_a_compiler_or_when_switched_off_xla_does_it(tmp_path):
    say = "from kljudge_jax.kernels.cpu_library import library; print(library())"

    def said(**environment):
        ran = subprocess.run(
            [sys.executable, "-c", say], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return ran.stdout

    assert "ready=False" in said(KLJUDGE_NATIVE="0") and "KLJUDGE_NATIVE=0" in said(KLJUDGE_NATIVE="0")
    assert "no C++ compiler" in said(PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    broken = tmp_path / "c++"
    broken.write_text(
        "#!/bin/sh\necho 'In file included from x:' >&2\necho 'y: error: a broken compiler' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    assert "error: a broken compiler" in said(PATH=f"{tmp_path}:/usr/bin:/bin", XDG_CACHE_HOME=str(tmp_path))


@needs_native
def test_a_cache_that_cannot_be_written_or_is_not_ours_is_gone_around(tmp_path):
    cache = tmp_path / "kljudge_jax"
    cache.mkdir()
    say = (
        "import os, pathlib; from kljudge_jax.kernels import cpu_library as c; c.FLAGS = ('-O0', *c.FLAGS[1:])\n"
        "print(c.library().ready, *sorted(str(p) for p in pathlib.Path(os.environ['XDG_CACHE_HOME']).rglob('*.so')))"
    )

    def said():
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", say], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    ready, built = said()
    assert ready == "True"
    stamp = os.stat(built).st_mtime_ns
    assert said() == ["True", built] and os.stat(built).st_mtime_ns == stamp  # kept
    os.chmod(built, 0o777)  # as one that another user could have written
    assert said() == ["True", built] and os.stat(built).st_mtime_ns != stamp and not os.stat(built).st_mode & 0o022


@needs_native
@pytest.mark.parametrize("threads", ["1", "3"])
def test_any_number_of_threads_makes_the_same_sums(threads, tmp_path):
    code = (
        "import sys, numpy as np, jax.numpy as jnp; from kljudge_jax.kernels.product import product\n"
        "rng = np.random.default_rng(0); x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in "
        "((9, 300), (2100, 300)))\nnp.save(sys.argv[1], product(x, w))"
    )
    path = tmp_path / "product.npy"
    environment = os.environ | {"KLJUDGE_THREADS": threads}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((9, 300), (2100, 300)))
    np.testing.assert_array_equal(np.load(path), product(x, w))


@pytest.mark.parametrize("slow", ["bfloat16", "float32"])
def test_the_faster_dtype_is_what_a_clock_says_where_xla_multiplies(slow, monkeypatch):
    from kljudge_jax.kernels import product as module

    assert module.fastest_dtype() == "bfloat16" or not library().ready
    at, running = 0.0, None

    def jit(function):
        def run(rows, weight):
            nonlocal running
            running = str(rows.dtype)
            return rows

        return run

    def clock():
        nonlocal at
        at += 2.0 if running == slow else 1.0
        return at

    monkeypatch.setattr(module, "library", lambda: library()._replace(ready=False))
    monkeypatch.setattr(module.jax, "jit", jit)
    monkeypatch.setattr(module.time, "perf_counter", clock)
    assert module.fastest_dtype.__wrapped__() == {"bfloat16": "float32", "float32": "bfloat16"}[slow]
