"""Every scheme of a product against float64, and the promises that the native one adds."""

import ctypes
import functools
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kljudge_jax.kernels import cpu_library
from kljudge_jax.kernels import product as module
from kljudge_jax.kernels.cpu_library import library
from kljudge_jax.kernels.place import Place
from kljudge_jax.kernels.product import product

needs_native = pytest.mark.skipif(not library().ready, reason=library().reason)
# Relative to the size of the terms: a few roundings of the accumulator.
TOLERANCE = 2e-6


def case(rows, outputs, size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x, weight = (rng.standard_normal(shape).astype(jnp.dtype(dtype)) for shape in ((rows, size), (outputs, size)))
    return x, weight, x.astype(np.float64) @ weight.astype(np.float64).T


@pytest.mark.skipif(
    os.environ.get("KLJUDGE_NATIVE") == "0" or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="no C++ compiler is wanted or found",
)
def test_where_there_is_a_compiler_the_products_are_ready():
    # All other tests of them would be left out without a word if they no longer compiled.
    assert library().ready, library().reason


# Outputs and columns, from one of each to several tiles, and none of them whole ones.
FEW_SHAPES = [(1, 1), (70, 199)]
ROWS = (1, 2, 3, 7, 13, 30)
PLACES = [Place("cpu"), Place("cpu", local=False), Place("tpu")]


@functools.partial(jax.jit, static_argnums=2)
def of_some_rows(x, weight, place):
    """Products of the first rows, as many as each of `ROWS`, by one program: compiling takes most of the time."""
    return [product(x[:count], weight, place) for count in ROWS]


@settings(max_examples=40)
@given(
    shape=st.sampled_from(FEW_SHAPES),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    place=st.sampled_from(PLACES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_number_of_rows_is_the_product(shape, dtype, place, seed):
    x, weight, want = case(max(ROWS), *shape, dtype, seed)
    for count, got in zip(ROWS, of_some_rows(x, weight, place), strict=True):
        assert got.dtype == jnp.float32 and got.shape == (count, shape[0])
        np.testing.assert_allclose(got, want[:count], atol=TOLERANCE * shape[1])


@pytest.mark.slow
@settings(max_examples=60)
@given(
    rows=st.integers(1, 30),
    outputs=st.integers(1, 70),
    size=st.integers(1, 200),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    place=st.sampled_from(PLACES),
)
def test_any_shape_is_the_product(rows, outputs, size, dtype, place):
    x, weight, want = case(rows, outputs, size, dtype, size)
    got = jax.jit(product, static_argnums=2)(x, weight, place)
    assert got.dtype == jnp.float32 and got.shape == (rows, outputs)
    np.testing.assert_allclose(got, want, atol=TOLERANCE * size)


@needs_native
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(130, 300), (4096, 64)])  # the second is split between threads
def test_a_row_is_the_same_to_the_bit_alone_and_beside_others(dtype, shape):
    x, weight, _ = case(64, *shape, dtype)
    counts = (1, 2, 5, 6, 7, 9, 13, 22)
    together, *some = jax.jit(lambda x, weight: [product(x[:count], weight) for count in (64, *counts)])(x, weight)
    for count, got in zip(counts, some, strict=True):
        np.testing.assert_array_equal(got, together[:count])


@needs_native
def test_the_native_product_is_in_the_program_of_one_device_alone():
    x, weight, _ = case(3, 8, 16, jnp.float32)
    assert "kljudge_float32" in jax.jit(product).lower(x, weight).as_text()
    assert (
        "kljudge_float32"
        not in jax.jit(lambda x, w: product(x, w, Place("cpu", local=False))).lower(x, weight).as_text()
    )
    many, _, _ = case(1000, 8, 16, jnp.float32)
    assert "kljudge_float32" not in jax.jit(product).lower(many, weight).as_text()
    # Of decoding, which has few tokens a sequence, however many sequences there are; and of a long text, which has not.
    assert "kljudge_float32" in jax.jit(product).lower(many.reshape(100, 10, 16), weight).as_text()
    assert "kljudge_float32" not in jax.jit(product).lower(many.reshape(10, 100, 16), weight).as_text()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_those_of_the_plain_product(dtype):
    x, weight, _ = case(5, 7, 33, dtype)

    def loss(scheme):
        return jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(scheme(x, w))), argnums=(0, 1)))(x, weight)

    plain = loss(lambda x, w: jnp.matmul(x, w.T, preferred_element_type=jnp.float32))
    for got, want in zip(loss(product), plain, strict=True):
        assert got.dtype == dtype
        atol = 1e-4 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=2e-2, atol=atol)


def test_a_batch_of_products_is_each_of_them():
    x, weight, want = case(6, 9, 20, jnp.float32)
    got = jax.jit(jax.vmap(product, (0, None)))(x.reshape(3, 2, 20), weight)
    np.testing.assert_allclose(got.reshape(6, 9), want, atol=1e-4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_no_number_stays_in_its_row(poison, dtype):
    x, weight, want = case(4, 6, 40, dtype)
    x[2, 7] = poison
    got = np.asarray(jax.jit(product)(x, weight))
    assert not np.isfinite(got[2]).any()
    np.testing.assert_allclose(got[[0, 1, 3]], want[[0, 1, 3]], atol=1e-3)


def test_without_a_compiler_or_when_switched_off_xla_does_it(tmp_path, monkeypatch):
    def said(**environment):
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            patch.delenv("KLJUDGE_NATIVE", raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            found = library.__wrapped__()
        assert not found.ready
        return found.reason

    assert "KLJUDGE_NATIVE=0" in said(KLJUDGE_NATIVE="0")
    assert "no C++ compiler" in said(PATH=str(tmp_path))
    broken = tmp_path / "c++"
    broken.write_text(
        "#!/bin/sh\necho 'In file included from x:' >&2\necho 'y: error: a broken compiler' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    assert "error: a broken compiler" in said(PATH=f"{tmp_path}:/usr/bin:/bin")
    assert not list((tmp_path / "kljudge_jax").iterdir())  # nothing half made is left


@needs_native
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(cpu_library.build, marks=pytest.mark.slow, id="compiled"),
        pytest.param(None, id="copied"),
    ],
)
def test_a_cache_that_cannot_be_written_or_is_not_ours_is_gone_around(build, tmp_path, monkeypatch):
    ready, builds = cpu_library._built(cpu_library.compiler()), []

    def copy(compiler, path, flags):
        path.unlink()  # some linkers write a file of their own in its place
        shutil.copyfile(ready, path)
        os.chmod(path, 0o777)

    def counted(*given):
        builds.append(given)
        (build or copy)(*given)

    monkeypatch.setattr(cpu_library, "build", counted)
    monkeypatch.setattr(cpu_library, "FLAGS", ("-O0", *cpu_library.FLAGS[1:]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def built():
        return cpu_library._built(cpu_library.compiler())

    path = built()
    assert path != ready and sorted(tmp_path.rglob("*")) == [path.parent, path] and len(builds) == 1
    assert not os.stat(path).st_mode & 0o077
    assert cpu_library.register(ctypes.CDLL(str(path)), f"_of_{path.stem}_{tmp_path.name}")
    assert built() == path and len(builds) == 1  # kept
    os.chmod(path, 0o777)  # as one that another user could have written
    assert built() == path and len(builds) == 2 and not os.stat(path).st_mode & 0o022
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # no folder can be made there
    elsewhere = built()
    assert elsewhere.exists() and elsewhere.parent not in (path.parent, ready.parent) and len(builds) == 3
    shutil.rmtree(elsewhere.parent)


@needs_native
@pytest.mark.parametrize("threads", ["1", "3"])
def test_any_number_of_threads_makes_the_same_sums(threads, tmp_path, monkeypatch):
    # A copy is loaded anew, with workers of its own, whose number is asked for when they first work.
    copied = shutil.copy(cpu_library._built(cpu_library.compiler()), tmp_path / "copy.so")
    monkeypatch.setenv("KLJUDGE_THREADS", threads)
    cpu_library.register(ctypes.CDLL(copied), f"_on_{threads}")
    x, weight, _ = case(9, 2100, 300, jnp.float32)
    call = jax.ffi.ffi_call(f"kljudge_float32_on_{threads}", (jax.ShapeDtypeStruct((9, 2100), jnp.float32),))
    want, program = np.asarray(jax.jit(product)(x, weight)), jax.jit(call).lower(x, weight).compile()
    running = threads_running()
    np.testing.assert_array_equal(program(x, weight)[0], want)
    assert running is None or threads_running() - running == int(threads) - 1


def threads_running():
    """How many threads it has, where the system says so."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else None


def seconds_of(patch, **seconds):
    """XLA's path, on which a product in a dtype takes so many seconds."""

    def slowly(rows, weight):
        def sleep(rows):
            time.sleep(seconds[str(rows.dtype)])
            return rows

        return jax.pure_callback(sleep, jax.ShapeDtypeStruct(rows.shape, rows.dtype), rows)

    patch.setattr(module, "library", lambda: library()._replace(ready=False))
    patch.setattr(module, "product", slowly)


@pytest.mark.parametrize(
    ("bfloat16", "float32", "faster"),
    [(0.005, 0.03, "bfloat16"), (0.03, 0.005, "float32"), (0.03, 0.033, "float32")],  # a little is not clearly
)
def test_the_faster_dtype_is_what_a_clock_says_where_xla_multiplies(bfloat16, float32, faster, monkeypatch):
    seconds_of(monkeypatch, bfloat16=bfloat16, float32=float32)
    assert module.fastest_dtype.__wrapped__() == faster


def test_hosts_that_must_agree_on_a_dtype_ask_no_clock(monkeypatch):
    seconds_of(monkeypatch)  # which knows no dtype
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert module.fastest_dtype.__wrapped__() == "float32"


@needs_native
def test_where_products_are_native_the_dtype_of_fewer_bytes_is_faster(monkeypatch):
    monkeypatch.setattr(module, "product", None)  # no clock is asked
    assert module.fastest_dtype.__wrapped__() == "bfloat16"
