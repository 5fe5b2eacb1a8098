import pytest
from tiny_hf import make_hf_model, make_tokenizer


@pytest.fixture(scope="session")
def hf_models(tmp_path_factory):
    """By family name: the Transformers model, and the folder it is saved in. Built when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = make_hf_model(name)
            model.save_pretrained(folder)
            make_tokenizer().save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return get
