import pytest
from tiny_hf import make_hf_model
from tiny_pairs import noisy

from kljudge_jax.evaluation.baselines import torch_model
from kljudge_jax.models.pair import ModelPair
from kljudge_jax.models.weights import SafetensorsFolder, load


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Torch on one core: on a busy machine the threads of tiny products wait for each other more than they compute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(torch_model, "cores", lambda: 1)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """By family name: the Transformers model, and a pair whose target was read from its file. Its EOS is id 1."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            theirs = make_hf_model(name)
            theirs.save_pretrained(folder)
            target = load(SafetensorsFolder(folder))
            made[name] = (theirs, ModelPair(target, noisy(target, 1, 0.1), eos=(1,)))
        return made[name]

    return get
