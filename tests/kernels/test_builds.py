"""The products as compilers make them for this processor and for others, as far as it can run them."""

import ctypes
import functools
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.kernels import cpu_library
from kljudge_jax.kernels.product import schemes_attribute
from kljudge_jax.kernels.quantize import INT4, INT8, QuantizedTensor, Scheme, dequantize, pack, quantize, to_tiles

COMPILER = cpu_library.compiler()
_widen = jax.jit(dequantize, static_argnums=1)
# What each kind of processor has in common, and what the build says that it uses.
KINDS = {
    "x86-64": (set(), "portable"),
    "x86-64-v3": ({"avx2", "fma", "f16c", "bmi2"}, "AVX2"),
    "x86-64-v4": ({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}, "AVX-512"),
}
NATIVE = "native"  # the build that all the other tests use: it is there already

pytestmark = pytest.mark.skipif(
    COMPILER is None or platform.machine() != "x86_64" or jax.default_backend() != "cpu",
    reason="needs a C++ compiler on an x86-64 processor",
)


def flags_of_this_processor():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split())


@functools.cache
def built(kind, folder):
    path = folder / f"{kind}.so"
    cpu_library.build(COMPILER, path, tuple(flag.replace("native", kind) for flag in cpu_library.FLAGS))
    return cpu_library.register(ctypes.CDLL(str(path)), f"_{kind}")


@pytest.fixture(scope="module", params=[NATIVE, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def kind(request, tmp_path_factory):
    if request.param == NATIVE:
        if not cpu_library.library().ready:
            pytest.skip(cpu_library.library().reason)
        return NATIVE
    needed, says = KINDS[request.param]
    if not Path("/proc/cpuinfo").exists() or needed - flags_of_this_processor():
        pytest.skip(f"this processor is no {request.param}")
    assert built(request.param, tmp_path_factory.getbasetemp()) == says
    return request.param


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def target_of(name, kind):
    return f"kljudge_{name}" if kind == NATIVE else f"kljudge_{name}_{kind}"


def products(name, kind, several, *operands, outputs, **options):
    """The products of each of several `rows`, by one program: compiling takes most of the time."""

    @jax.jit
    def run(several, *operands):
        results = [(jax.ShapeDtypeStruct((len(rows), outputs), jnp.float32),) for rows in several]
        target = target_of(name, kind)
        return [
            jax.ffi.ffi_call(target, result)(rows, *operands, **options)[0]
            for rows, result in zip(several, results, strict=True)
        ]

    return [np.asarray(found) for found in run(several, *operands)]


@pytest.mark.parametrize("shape", [(7, 20), (66, 200), (41, 1100)])  # outputs and columns, no whole tiles
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_build_makes_the_product_of_any_number_of_rows(kind, dtype, shape):
    weight = draw(*shape).astype(jnp.dtype(dtype))
    several = [draw(count, shape[1], seed=count).astype(weight.dtype) for count in (1, 2, 3, 5, 7, 9, 40)]
    found = products(dtype, kind, several + [rows[:1] for rows in several], weight, outputs=shape[0])
    for rows, got, alone in zip(several, found, found[len(several) :], strict=False):
        want = rows.astype(np.float64) @ weight.astype(np.float64).T
        np.testing.assert_allclose(got, want, atol=2e-6 * shape[1])
        # A row is the same to the bit whoever stands beside it.
        np.testing.assert_array_equal(alone, got[:1])


SCHEMES = [INT8, Scheme(6), Scheme(5), INT4, Scheme(5, minimum=True), Scheme(4, minimum=True)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_build_multiplies_integers_as_exactly(kind, scheme):
    outputs, size = 35, 1100  # no whole panels, blocks or groups, and an odd number of each
    drawn = draw(outputs, size)
    drawn[3, 5] = 40.0  # an outlier: some scales are large
    weight = to_tiles(quantize(drawn, scheme))
    meant = np.asarray(_widen(weight, jnp.float32), np.float64)
    several = [draw(count, size, seed=count) for count in (1, 2, 3, 6, 9, 11, 30)]
    for rows in several:
        rows[:, 128:192] = 1e-38  # nothing, beside the others
    spoilt = several[-1].copy()
    spoilt[7, 1099] = np.nan
    *found, got_spoilt = products(
        "blocks",
        kind,
        [*several, *(rows[:1] for rows in several), spoilt],
        *jax.tree.leaves(weight),
        outputs=outputs,
        **schemes_attribute([weight]),
    )
    for rows, got, alone in zip(several, found, found[len(several) :], strict=False):
        groups = np.pad(rows.astype(np.float64), ((0, 0), (0, -size % 64))).reshape(len(rows), -1, 64)
        scale = np.abs(groups).max(-1, keepdims=True) / 127
        rounded = (np.round(groups / scale) * scale).reshape(len(rows), -1)[:, :size]
        want = rounded @ meant.T
        # Ties may round either way; each is half a step of one element.
        np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
        np.testing.assert_array_equal(alone, got[:1])
    assert np.isnan(got_spoilt[7]).all()
    np.testing.assert_array_equal(np.delete(got_spoilt, 7, 0), np.delete(got, 7, 0))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_build_meets_every_value_and_the_smallest_scales_exactly(kind, scheme):
    rng, levels = np.random.default_rng(1), 2**scheme.bits
    found = rng.permuted(np.tile(np.arange(levels), 24 * 256 // levels)).reshape(24, 256).astype(np.uint8)
    values = (found.astype(np.int32) - 128).astype(np.int8) if scheme.bits == 8 else pack(found, scheme.bits)
    scale = 2.0 ** rng.integers(-24, 3, (24, 256 // scheme.each))  # the least that float16 has is 2^-24
    least = scale * rng.integers(-8, 9, scale.shape) if scheme.minimum else None
    parts = [None if x is None else jnp.asarray(x.astype(np.float16)) for x in (scale, least)]
    weight = QuantizedTensor(jnp.asarray(values), *parts, (24, 256), scheme)
    meant = (found.astype(np.float64) - (0 if scheme.minimum else levels // 2)) * np.repeat(scale, scheme.each, 1)
    meant += np.repeat(least, scheme.each, 1) if scheme.minimum else 0
    np.testing.assert_array_equal(_widen(weight, jnp.float32), meant)
    several = []
    for block in range(8):  # one block at a time, whose sums are whole numbers of its scale: nothing is rounded
        rows = np.zeros((9, 256), np.float32)
        rows[:, 32 * block : 32 * block + 32] = rng.integers(-127, 128, (9, 32))
        rows[:, 32 * block] = 127
        rows[:, 32 * block + 16 : 32 * block + 32] *= scheme.each == 32  # of the columns of one scale
        several.append(rows)
    panels = jax.tree.leaves(to_tiles(weight))
    found = products("blocks", kind, several, *panels, outputs=24, **schemes_attribute([weight]))
    for rows, got in zip(several, found, strict=True):
        np.testing.assert_array_equal(got, rows @ meant.T)


@pytest.mark.parametrize("dim", [8, 64, 80, 128])
@pytest.mark.parametrize("window", [0, 9])
def test_every_build_attends_to_the_same(kind, dim, window):
    batch, groups, share, slots = 2, 2, 3, 150
    starts = np.asarray([120, 3], np.int32)
    keys, values = draw(batch, groups, slots, dim, seed=1), draw(batch, groups, slots, dim, seed=2)
    several = [
        (
            draw(batch, time, groups * share, dim, seed=3) * np.float32(dim**-0.5),
            draw(batch, time, groups, dim, seed=4),
            draw(batch, time, groups, dim, seed=5),
        )
        for time in (1, 4, 9)
    ]

    @jax.jit
    def run(several):
        found = []
        for given in several:
            results = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (given[0], keys, values)]
            call = jax.ffi.ffi_call(target_of("attention", kind), results)
            found.append(call(*given, starts, keys, values, window=np.int64(window), softcap=np.float32(0)))
        return found

    for (query, *_), found in zip(several, run(several), strict=True):
        got, new_keys, new_values = (np.asarray(x, np.float64) for x in found)
        for b in range(batch):
            for t in range(query.shape[1]):
                last = int(starts[b]) + t
                seen = slice(max(0, last + 1 - window) if window else 0, last + 1)
                for n in range(groups * share):
                    scores = new_keys[b, n // share, seen] @ query[b, t, n].astype(np.float64)
                    weights = np.exp(scores - scores.max())
                    want = weights / weights.sum() @ new_values[b, n // share, seen]
                    np.testing.assert_allclose(got[b, t, n], want, atol=3e-6)


@pytest.mark.parametrize("size", [20, 200])
def test_every_build_norms_a_row_alone_as_among_others(kind, size):
    x, scale = draw(9, size), draw(size, seed=1)

    @jax.jit
    def norm(x):
        call = jax.ffi.ffi_call(target_of("norm", kind), jax.ShapeDtypeStruct(x.shape, jnp.float32))
        return call(x, scale, eps=np.float32(1e-6))

    found = norm(x)
    wide = x.astype(np.float64)
    want = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(norm(x[3:4])[0], found[3])
