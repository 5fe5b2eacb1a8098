"""`kljudge convert`."""

from __future__ import annotations

from kljudge_jax.commands.options import OK, command, note


def add(commands) -> None:
    parser = command(
        commands,
        "convert",
        _convert,
        "Convert a model to an Orbax folder, which loads faster.",
        "  kljudge convert model.gguf model-orbax --dtype bfloat16",
    )
    parser.add_argument("source", metavar="MODEL", help="a hub id, a local folder or a .gguf file")
    parser.add_argument("destination", metavar="DIR", help="the new folder")
    parser.add_argument(
        "--dtype", default="float32", choices=("auto", "float32", "bfloat16", "float16"), help="of the stored weights"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")


def _convert(options) -> int:
    from kljudge_jax.models.convert import convert

    note(f"converting {options.source}")
    convert(options.source, options.destination, dtype=options.dtype, revision=options.revision)
    print(options.destination)
    return OK
