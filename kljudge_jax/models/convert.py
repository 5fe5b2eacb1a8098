"""Any model we can open, rewritten as a folder of ours."""

from __future__ import annotations

from pathlib import Path

from kljudge_jax.models.linear import Storage
from kljudge_jax.models.orbax import check_destination, save
from kljudge_jax.models.sources import open_checkpoint
from kljudge_jax.models.tokenizer import tokenizer_eos
from kljudge_jax.models.weights import load, resolve_dtype


def convert(source: str | Path, destination: str | Path, dtype: str = "float32", revision: str | None = None) -> None:
    """Writes a model with its tokenizer and end-of-text ids to a new folder of ours.

    Args:
      source: hub id, local folder or .gguf file.
      destination: a folder that does not exist or is empty.
      dtype: "float32", "bfloat16", "float16" or "auto" of the parameters on disk; norm scales stay float32.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: the source cannot be opened, or the destination cannot be made.
      OSError: it cannot be written, as on a full disk.
    """
    wanted = resolve_dtype(dtype)
    check_destination(destination)  # before minutes of reading
    checkpoint = open_checkpoint(source, revision)
    tokenizer = checkpoint.tokenizer()
    save(destination, load(checkpoint, Storage(wanted)), tokenizer, checkpoint.eos or tokenizer_eos(tokenizer))
