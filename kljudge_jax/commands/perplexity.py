"""`kljudge perplexity`."""

from __future__ import annotations

from kljudge_jax.commands.command import DIR, EMBEDDED, FILE, MODEL, OK, Whole, command, option
from kljudge_jax.commands.options import MESH, REVISION, dtype_option, note
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError
from kljudge_jax.records import read_text, write, write_text
from kljudge_jax.results_folder import results_folder

_BITS: dict[str, int | str] = {"int8": 8, "int4": 4, "file": "file"}
_PRECISIONS = ("float32", "bfloat16", "float16", *_BITS)


@command(
    "Say what a model loses in fewer bits: the perplexity of a text, in each of several precisions.",
    [
        option("--target", "as for generate; `embedded` is its target", type=MODEL, required=True),
        REVISION,
        option("--text", "UTF-8 text, such as models were not trained on", type=FILE, required=True),
        option(
            "--precisions",
            f"of {', '.join(_PRECISIONS)}, where file is the integers of a .gguf file as they are; the others stand "
            "beside the first",
            metavar="NAMES",
            default="float32,bfloat16,int8,int4",
        ),
        dtype_option(help="of what int8, int4 and file leave whole"),
        *MESH[:2],
        option("--tokens", "the most of the text that is read", type=Whole(), default=20_000),
        option("--window", "tokens that the model reads at a time", type=Whole(), default=512),
        option("--batch", "windows of a pass", type=Whole(), default=4),
        option("--out", "where perplexity.json and .md go", type=DIR, default="results/perplexity"),
    ],
    "  kljudge perplexity --target big.gguf --text book.txt\n"
    "  kljudge perplexity --target embedded --text problems.txt --precisions float32,int8,int4",
)
def perplexity(options) -> int:
    from kljudge_jax.evaluation.perplexity import PerplexityFile, perplexity, perplexity_table
    from kljudge_jax.machine import describe_machine
    from kljudge_jax.progress_update import ProgressUpdate
    from kljudge_jax.text_table import aligned, markdown

    names = [name.strip() for name in options.precisions.split(",")]
    wrong = [name for name in names if name not in _PRECISIONS]
    if wrong:
        raise InputError(f"--precisions are of {', '.join(_PRECISIONS)}, not {wrong[0]!r}")
    text = read_text(options.text, "give the path of a local file")
    folder = results_folder(options.out)
    found = []
    with Bar() as bar:
        for done, name in enumerate(names):
            bar.keep(ProgressUpdate(name, done, len(names)))
            pair = _load(options, name)
            window = min(options.window, pair.target.config.max_position)
            tokens = pair.tokenizer(text, add_special_tokens=False)["input_ids"][: options.tokens]
            prefix = pair.tokenizer.bos_token_id
            found.append(
                perplexity(pair.target, tokens, pair.eos[0] if prefix is None else prefix, window, options.batch)
            )
            del pair  # before the next is loaded
    table = perplexity_table(found)
    count = int(found[0].tokens.sum())
    kept = PerplexityFile(
        command=tuple(options.words),
        target=options.target,
        machine=describe_machine(),
        tokens=count,
        rows=tuple(one.to_record() for one in found),
    )
    write(folder / "perplexity.json", kept)
    write_text(folder / "perplexity.md", markdown(table))
    print(aligned(table))
    note(f"{count} tokens in windows of {window}; {folder / 'perplexity.json'}")
    return OK


def _load(options, name: str):
    from kljudge_jax import ModelPair

    dtype, bits = (options.dtype, _BITS[name]) if name in _BITS else (name, None)
    placed = {"mesh": options.mesh, "axes": options.axes}
    if options.target == EMBEDDED:
        return ModelPair.embedded(dtype="float32" if dtype == "auto" else dtype, bits=bits, **placed)
    return ModelPair.from_pretrained(options.target, dtype=dtype, bits=bits, revision=options.revision, **placed)
