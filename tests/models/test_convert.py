import jax.numpy as jnp
import numpy as np
import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.models.convert import convert
from kljudge_jax.models.orbax import OrbaxFolder
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.transformer import parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_model_is_the_same_model(hf_models, tmp_path, dtype):
    folder = hf_models("gemma2")[1]
    convert(folder, tmp_path / "ours", dtype)
    stored = OrbaxFolder(tmp_path / "ours")
    assert stored.read("layers.0.mlp.up.weight").dtype == jnp.dtype(dtype)
    assert stored.read("final_norm.scale").dtype == np.float32
    one = ModelPair.from_pretrained(folder, dtype=dtype)
    other = ModelPair.from_pretrained(tmp_path / "ours", dtype=dtype)
    want, got = parameters(one.target), parameters(other.target)
    assert all(np.array_equal(want[name], got[name]) for name in want) and want.keys() == got.keys()
    assert one.eos == other.eos == (1,)
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_a_full_destination_is_refused_before_reading(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        convert("./nowhere", tmp_path)
    with pytest.raises(InputError, match="no such folder or file"):
        convert("./nowhere", tmp_path / "new")
