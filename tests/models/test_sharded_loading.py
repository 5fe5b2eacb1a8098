"""Loading straight into shards: the same numbers, and no more read than the shards of this host's devices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gguf
from tiny_hf import make_hf_model

from kljudge_jax.models import linear, weights
from kljudge_jax.models.gguf import GGUFFile
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.orbax import OrbaxFolder, save
from kljudge_jax.models.shapes import bytes_per_device
from kljudge_jax.models.transformer import parameters
from kljudge_jax.models.weights import SafetensorsFolder, load
from kljudge_jax.parallel.placement import Placement

Q8_0 = tiny_gguf.gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(scope="module")
def sources(hf_models, tmp_path_factory):
    """A checkpoint of each format."""
    root = tmp_path_factory.mktemp("formats")
    folder = hf_models("llama2")[1]
    save(root / "ours", load(SafetensorsFolder(folder)))
    big = make_hf_model("llama2", hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    return {
        "safetensors": SafetensorsFolder(folder),
        "orbax": OrbaxFolder(root / "ours"),
        "gguf": GGUFFile(tiny_gguf.write_model(root / "f32.gguf", big)),
        "quantised gguf": GGUFFile(tiny_gguf.write_model(root / "q8.gguf", big, Q8_0)),
    }


@pytest.mark.parametrize("mesh", ["fsdp=4,tensor=2", "data=2,tensor=4"])
@pytest.mark.parametrize("scheme", ["safetensors", "orbax", "gguf", "quantised gguf"])
def test_shards_hold_what_the_whole_model_holds(sources, scheme, mesh, monkeypatch):
    source, read = sources[scheme], []
    vocab = source.config.vocab_size // 8 * 8
    whole = parameters(load(source, Storage(), vocab))

    def spy(name, part=None, inner=source.read):
        array = inner(name, part)
        if part is not None:
            read.append((name, part))
            assert array.shape == tuple(cut.stop - cut.start for cut in part)
        return array

    monkeypatch.setattr(source, "read", spy)
    layout = Placement.parse(mesh).target(source.config)
    spread = parameters(load(source, Storage(layout=layout), vocab))
    for name, x in spread.items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(whole[name]), err_msg=name)
        assert x.sharding == layout.parameter(name, x.shape)
        parts = [part for other, part in read if other == name]
        assert len(parts) == len({str(shard.index) for shard in x.addressable_shards}), name
        assert sum(np.prod([cut.stop - cut.start for cut in part]) for part in parts) == x.size
    assert any(not x.sharding.is_fully_replicated for x in spread.values())


def test_a_host_of_several_reads_a_part_of_an_orbax_tensor_alone(sources, monkeypatch):
    source, name = sources["orbax"], "layers.0.mlp.down.weight"
    whole = source.read(name)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(source, "_restore", lambda names: pytest.fail("read whole"))
    part = (slice(3, 7), slice(2, 5))
    np.testing.assert_array_equal(source.read(name, part), whole[part])


@pytest.mark.parametrize("bits", [8, 4, "file"])
@pytest.mark.parametrize("mesh", ["fsdp=4,tensor=2", pytest.param("data=2,tensor=4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["safetensors", "orbax", "quantised gguf"])
def test_rounded_shards_are_read_some_rows_at_a_time(sources, scheme, mesh, bits, monkeypatch):
    source, read = sources[scheme], []
    if bits == "file" and scheme != "quantised gguf":
        pytest.skip("has no integers of its own")
    with monkeypatch.context() as patch:
        patch.setattr(weights, "tiled_where_native", lambda weight, place: weight)  # on a mesh integers lie in rows
        whole = parameters(load(source, weights.storage_of(source, jnp.float32, bits, None)))
    at_once = 2048
    monkeypatch.setattr(weights, "_ROUNDED_AT_ONCE", at_once)

    def spy(name, part=None, inner=source.read):
        if part is not None:  # a folder of ours asks itself for whole tensors
            read.append((name, part))
        return inner(name, part)

    def spy_integers(name, rows, inner=source.read_quantized if bits == "file" else None):
        read.append((name, (rows, slice(0, source.shapes()[name][1]))))
        return inner(name, rows)

    if bits == "file":
        monkeypatch.setattr(source, "read_quantized", spy_integers)
    monkeypatch.setattr(source, "read", spy)
    layout = Placement.parse(mesh).target(source.config)
    spread = parameters(load(source, weights.storage_of(source, jnp.float32, bits, layout)))
    assert spread.keys() == whole.keys()
    for name, x in spread.items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(whole[name]), err_msg=name)
        assert x.sharding == layout.parameter(name, x.shape)
    shapes = source.shapes()
    for name in filter(linear.is_matrix, shapes):
        parts = [part for other, part in read if other == name]
        sizes = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in parts]
        assert sum(sizes) == np.prod(shapes[name]) and max(sizes) <= max(at_once, shapes[name][1]), name


@pytest.fixture(scope="module")
def q4(tmp_path_factory):
    """A file of 4 bits with minima, in which a matrix has several blocks a row."""
    big = make_hf_model("llama2", hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
    kind = tiny_gguf.gguf.GGMLQuantizationType.Q4_1
    return GGUFFile(tiny_gguf.write_model(tmp_path_factory.mktemp("q4") / "q4.gguf", big, kind))


_DAILY = [("data=2,tensor=4", 4, "gpu"), ("fsdp=2,tensor=2", 8, "tpu")]


@pytest.mark.parametrize(
    ("mesh", "bits", "platform"),
    [
        case if case in _DAILY else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(["fsdp=2,tensor=2", "data=2,tensor=4"], [8, 4, "file"], ["tpu", "gpu"])
    ],
)
def test_what_accelerators_multiply_is_loaded_in_shards(q4, mesh, bits, platform, monkeypatch):
    monkeypatch.setattr(weights, "_ROUNDED_AT_ONCE", 2048)

    def stored(layout):
        schemes = tuple(q4.schemes().items()) if bits == "file" else ()
        return Storage(jnp.float32, bits, layout, schemes, platform=platform)

    layout = Placement.parse(mesh).target(q4.config)
    # Rounded alike: on GPUs a device's part of a row has whole groups, shorter ones on more devices.
    schemes = {name: stored(layout).scheme(name, shape[-1]) for name, shape in q4.shapes().items() if len(shape) == 2}
    monkeypatch.setattr(Storage, "scheme", lambda self, name, in_size: schemes[name] if self.bits else None)
    whole, spread = load(q4, stored(None)), load(q4, stored(layout))
    bytes_per_device.cache_clear()
    assert bytes_per_device(q4.config, stored(layout)) == sum(
        bytes_of(x.addressable_shards[0].data) for x in parameters(spread).values()
    )
    for name, x in parameters(spread).items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(parameters(whole)[name]), err_msg=name)
        assert x.sharding == stored(layout).sharding(name, x.shape)
        if name.endswith(".weight"):
            assert x.dtype == (jnp.int8 if bits == 8 or (bits, platform) == ("file", "gpu") else x.dtype)
            assert not x.sharding.is_fully_replicated, name
    four = {("file", "tpu"): jnp.uint4, (4, "tpu"): jnp.int4, (4, "gpu"): jnp.int4}.get((bits, platform), jnp.int8)
    assert parameters(spread)["layers.0.mlp.down.weight"].dtype == four
    assert parameters(spread)["embedding.table"].dtype == jnp.int8
    tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
    logits = jax.jit(lambda model: model.logits(model(tokens)[0].hidden))
    np.testing.assert_allclose(logits(spread), logits(whole), rtol=0, atol=1e-4)
    # The file's own numbers, within what it is rounded by again.
    plain, got = (np.asarray(logits(model)) for model in (load(q4), whole))
    assert np.abs(got - plain).mean() < (0.5 if bits == 4 else 0.05) * np.abs(plain).mean()


def bytes_of(x):
    return -(-x.size // 2) if x.dtype in (jnp.int4, jnp.uint4) else x.nbytes


def test_a_file_that_is_rounded_again_says_so(q4, monkeypatch, caplog):
    said = {}
    for platform in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr(linear, "default_platform", lambda platform=platform: platform)
        caplog.clear()
        weights.storage_of(q4, jnp.float32, "file", None)
        said[platform] = [record.getMessage() for record in caplog.records]
    matrices = len(q4.schemes())
    assert said["cpu"] == []
    assert len(said["tpu"]) == 1 and f"on a TPU or cannot be read a row at a time, so 1 of {matrices}" in said["tpu"][0]
    assert len(said["gpu"]) == 1 and "blocks of 4 bits are slow on a GPU" in said["gpu"][0]
    assert f"so {matrices} of {matrices} are rounded again, to 8 bits" in said["gpu"][0]


def test_pieces_cover_what_intervals_cover_once():
    assert weights._pieces({(0, 8), (0, 4), (4, 8), (12, 15)}, 3) == [(0, 3), (3, 4), (4, 7), (7, 8), (12, 15)]
