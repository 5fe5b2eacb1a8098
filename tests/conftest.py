"""Set before JAX starts: several virtual CPU devices, and no network."""

import gc
import os
import pathlib
import subprocess
import sys
import types

import compile_cache

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Eight devices on two cores may keep each other waiting: XLA ends the process after 40 seconds of that.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_timeout_seconds=600"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu" and not os.environ.get("KLJUDGE_MODELS"):
    # Much of a run of tiny models is compilation, and most programs run once. LLVM optimises less than for users, and
    # fusions are emitted by XLA's elemental emitter, in half the time. What XLA makes of a program differs in how it
    # fuses. `XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"` tests what users run,
    # and so do the tests marked `real`.
    _CHEAPER = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    _CHEAPER += compile_cache.known("--xla_cpu_use_fusion_emitters=false")
    # Split, a program compiles on all processors and takes a third more of their time, which other workers want.
    _CHEAPER += compile_cache.known("--xla_cpu_parallel_codegen_split_count=1")
    os.environ["XLA_FLAGS"] = " ".join([*_CHEAPER, os.environ["XLA_FLAGS"]])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What is compiled is kept, for the other workers and for the next run, which takes half the time. Programs are of one
# jaxlib and one processor.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compile_cache.folder()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import pytest

# Tracing makes many small objects that live, and looking through them for garbage took a tenth of a run.
gc.set_threshold(50_000, 10, 10)

# A shared machine may stall any example, and a failure of CI must come back when it is run again.
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
hypothesis.settings.load_profile("reproducible")


# What these folders test has shapes and dtypes of its own: nothing in it is promoted without a word.
_STRICT = ("core", "drafters", "generation", "models", "verification")


@pytest.fixture(autouse=True, scope="module")
def _strict(request):
    if request.path.parent.name not in _STRICT:
        yield
        return
    import jax

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


# Linux gives a process 65,530 mappings of memory, and every compiled program takes some: past them it is aborted.
_MANY_MAPPINGS = 25_000


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Lets go of the programs that modules before have compiled, once there are many."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > _MANY_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def pair():
    """A tiny pair without a tokenizer."""
    import tiny_pairs

    return tiny_pairs.tiny_pair()


@pytest.fixture(scope="session")
def text_pair():
    """A tiny pair over bytes."""
    import tiny_pairs

    return tiny_pairs.text_pair()


@pytest.fixture(scope="session")
def chunk_pair():
    """A tiny pair whose tokens have several characters each."""
    import tiny_pairs

    return tiny_pairs.tiny_pair(seed=29, noise=0.1, tokenizer=tiny_pairs.chunk_tokenizer())


@pytest.fixture(scope="session")
def models_dir():
    """The folder of real weights, for tests marked `real`."""
    folder = os.environ.get("KLJUDGE_MODELS")
    if not folder:
        pytest.skip("set KLJUDGE_MODELS to a folder of real weights")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist of this checkout."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, pathlib.Path(__file__).parents[1]]
    made = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of a tiny pair over bytes (target, draft), and of a target that returns NaN (broken)."""
    import numpy as np
    from tiny_pairs import text_pair, with_parameters

    from kljudge_jax.models.orbax import save

    root = tmp_path_factory.mktemp("tiny")
    pair = text_pair()
    broken = with_parameters(pair.target, lambda name, x: x * np.nan if name == "final_norm.scale" else x)
    for name, model in {"target": pair.target, "draft": pair.draft, "broken": broken}.items():
        save(root / name, model, pair.tokenizer, pair.eos)
    return types.SimpleNamespace(target=root / "target", draft=root / "draft", broken=root / "broken")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `first_case` the first case stays, and the others are slow."""
    seen = set()
    for item in items:
        if item.get_closest_marker("first_case") is None:
            continue
        test = item.path, item.originalname
        if test in seen:
            item.add_marker(pytest.mark.slow)
        elif item.get_closest_marker("slow") is None:
            seen.add(test)
