"""`kljudge convert`."""

from __future__ import annotations

from kljudge_jax.commands.command import DIR, MODEL, OK, argument, command
from kljudge_jax.commands.options import REVISION, dtype_option, note


@command(
    "Convert a model to an Orbax folder, which loads faster.",
    [
        argument("source", "a hub id, a local folder or a .gguf file", type=MODEL),
        argument("destination", "the new folder", type=DIR),
        dtype_option("float32", "of the stored weights"),
        REVISION,
    ],
    "  kljudge convert model.gguf model-orbax --dtype bfloat16",
)
def convert(options) -> int:
    from kljudge_jax.models.convert import convert

    note(f"converting {options.source}")
    convert(options.source, options.destination, dtype=options.dtype, revision=options.revision)
    print(options.destination)
    return OK
