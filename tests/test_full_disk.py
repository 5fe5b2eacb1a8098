"""A disk that takes no more is an `OSError` with a name, whoever writes: Orbax, safetensors, tokenizers or we."""

import contextlib
import errno
import gc
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_heads import write_head
from tiny_pairs import text_pair

from kljudge_jax.cli import main
from kljudge_jax.judges.storage import save_head
from kljudge_jax.models.orbax import save
from kljudge_jax.records import named
from kljudge_jax.training.draft_corpus import CorpusLine
from kljudge_jax.training.draft_features import compute_features
from kljudge_jax.verification.head import Head


@contextlib.contextmanager
def no_file_beyond(size):
    """The system itself refuses longer files, as it does on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_judge(folder, pair):
    layer = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), np.zeros(64, np.float32)
    save_head(folder, Head(np.zeros(64, np.float32), np.ones(64, np.float32), (layer,), "DT", None), {})


def write_features(folder, pair):
    corpus = [CorpusLine(id="a", prompt=[3, 4], answer=[5, 6])]
    compute_features(pair.target, corpus, (0, 1), folder)


WRITERS = {
    "judge": write_judge,
    "model": lambda folder, pair: save(folder, pair.target, pair.tokenizer),
    "tokenizer": lambda folder, pair: pair.tokenizer.save_pretrained(folder),
    "head": lambda folder, pair: write_head(folder, pair.target),
    "features": write_features,
}


@pytest.mark.parametrize("name", WRITERS)
def test_whoever_writes_says_the_system_s_error(name, tmp_path, caplog):
    pair, folder = text_pair(), tmp_path / "folder"
    jax.block_until_ready(pair.target.logits(jnp.zeros((1, pair.target.config.hidden_size))))
    if name == "features":
        write_features(tmp_path / "compiled", pair)
    with pytest.raises(OSError) as caught, no_file_beyond(600), named(folder):
        WRITERS[name](folder, pair)
    assert caught.value.errno == errno.EFBIG and str(folder) in str(caught.value.filename)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_is_collected_later_is_said_by_nobody(tmp_path, caplog):
    pair = text_pair()
    with pytest.raises(OSError), no_file_beyond(600):
        save(tmp_path / "failed", pair.target, pair.tokenizer)
    save(tmp_path / "kept", pair.target, pair.tokenizer)
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="of another kind"), named(tmp_path):
        raise ValueError("os errors of another kind")


def test_a_converted_model_that_does_not_fit_is_one_line_and_exit_1(capsys, tiny_folders, tmp_path):
    with no_file_beyond(600):
        status = main(["convert", str(tiny_folders.target), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert status == 1 and said.count("\n") == 1 and "File too large: make room" in said, said
    (tmp_path / "file").write_text(json.dumps({}))
    assert main(["convert", str(tiny_folders.target), str(tmp_path / "file" / "out")]) == 2
