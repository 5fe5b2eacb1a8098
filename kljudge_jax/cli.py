"""The command `kljudge`: one sub-command per job, each a thin layer over a function of the package."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kljudge_jax.errors import InputError

_OK, _FAILED, _BAD_INPUT = 0, 1, 2

# Terminal colours of where a token came from.
_COLOURS = {"draft": "\x1b[32m", "relaxed": "\x1b[33m", "target": "\x1b[36m"}
_PLAIN = "\x1b[0m"


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line that says what to do."""

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of every option that has one, and keeps the line breaks of examples."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False or action.default == []
        return action.help if silent else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `kljudge` and returns its exit status: 0, 1 (the work failed) or 2 (bad input)."""
    # Set before anything imports them: no advice about libraries that are not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _parser().parse_args(argv)
    try:
        _keep_compiled()
        status = options.run(options)
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return status
    except InputError as error:
        print(f"kljudge {options.command}: {error}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print(f"\nkljudge {options.command}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OK


def _keep_compiled() -> None:
    """Keeps compiled programs between calls, in the user's cache unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kljudge_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _parser() -> argparse.ArgumentParser:
    from kljudge_jax import __version__

    parser = _Parser(prog="kljudge", description="Judge decoding for JAX.", formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"kljudge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_add_generate, _add_rules, _add_sweep, _add_convert):
        add(commands)
    return parser


def _command(commands, name: str, run: Callable, summary: str, examples: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=summary, epilog=f"examples:\n{examples}", formatter_class=_Help
    )
    parser.set_defaults(run=run)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models", "a hub id, a local folder (safetensors or Orbax) or a .gguf file")
    group.add_argument("--target", metavar="MODEL", required=True, help="the large model, whose answers are wanted")
    group.add_argument("--draft", metavar="MODEL", help="the small model that proposes; not needed for `none`")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of the target on the hub")
    group.add_argument("--draft-revision", metavar="REV", help="the same for the draft")
    group.add_argument("--tokenizer", metavar="MODEL", help="where to find the tokenizer, if not with the target")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights; auto is bfloat16 on GPU and TPU, float32 on CPU",
    )
    group.add_argument("--mesh", metavar="SPEC", help="devices to spread the models over, such as data=2,tensor=4")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument("--max-new-tokens", metavar="INT", type=int, default=256, help="the most tokens of an answer")
    group.add_argument("--temperature", metavar="FLOAT", type=float, default=0.0, help="0 is greedy")
    group.add_argument("--top-k", metavar="INT", type=int, default=0, help="keep the k likeliest tokens; 0 is all")
    group.add_argument("--top-p", metavar="FLOAT", type=float, default=1.0, help="keep this much probability mass")
    group.add_argument("--seed", metavar="INT", type=int, default=0, help="of the draws when sampling")


def _check_sampling(options) -> None:
    from kljudge_jax.decoding.sampling import Sampling

    Sampling.create(options.temperature, options.top_k, options.top_p)
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens starts at 1, got {options.max_new_tokens}")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is a number from 0 to 2**63 - 1, got {options.seed}")


def _load_pair(options):
    from kljudge_jax import ModelPair

    began = time.perf_counter()
    _note(f"loading {options.target}" + (f" and {options.draft}" if options.draft else ""))
    pair = ModelPair.from_pretrained(
        options.target,
        options.draft,
        dtype=options.dtype,
        mesh=options.mesh,
        revision=options.revision,
        draft_revision=options.draft_revision,
        tokenizer=options.tokenizer,
    )
    _note(f"loaded in {time.perf_counter() - began:.0f} s")
    return pair


def _note(line: str) -> None:
    """A line for the person who waits; programs that read us see none."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _add_generate(commands) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "Answer one prompt, streamed, each token coloured by where it came from.",
        "  kljudge generate --target Qwen/Qwen2.5-1.5B-Instruct --draft Qwen/Qwen2.5-0.5B-Instruct "
        '"Why is the sky blue?"\n'
        "  kljudge generate --target big.gguf --draft small.gguf --verifier exact --draft-length 4 --file prompt.txt\n"
        '  echo "2 + 2 =" | kljudge generate --target big.gguf --verifier none --raw --json',
    )
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt; - or nothing reads standard input")
    parser.add_argument("--file", metavar="FILE", help="read the prompt from a file")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt (chat models)")
    parser.add_argument("--raw", action="store_true", help="complete the prompt as it is, without the chat template")
    _add_models(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--verifier",
        metavar="RULE",
        default="kl:0.4",
        help="the verification rule: exact, kl:0.4, none (no draft), ...; `kljudge rules` lists them",
    )
    parser.add_argument("--draft-length", metavar="INT", type=int, default=8, help="draft tokens a cycle")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="ends the answer; may be repeated")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="colour tokens by origin")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of text")


def _generate(options) -> int:
    from kljudge_jax.verification import parse_verifier

    prompt = _read_prompt(options)
    # Bad words are refused before minutes go into loading a model.
    rule = parse_verifier(options.verifier, options.temperature == 0)
    if rule is not None and options.draft is None:
        raise InputError(f"--verifier {options.verifier} needs --draft; for plain decoding use --verifier none")
    if rule is not None and options.draft_length < 1:
        raise InputError(f"--draft-length must be at least 1, got {options.draft_length}; --verifier none is plain")
    _check_sampling(options)
    if not all(options.stop):
        raise InputError("--stop needs at least one character")
    pair = _load_pair(options)
    if not options.raw and getattr(pair.tokenizer, "chat_template", None):
        system = [{"role": "system", "content": options.system}] if options.system else []
        prompt = [*system, {"role": "user", "content": prompt}]
    elif options.system:
        raise InputError("--system needs a chat model, without --raw")

    result = _stream(options, pair, prompt, rule)
    if options.json:
        print(json.dumps(_as_json(options, pair, result)))
    else:
        print(_summary(options, result), file=sys.stderr)
    if result.stats.failed:
        print("kljudge generate: a model returned NaN or +inf; the answer ends before it", file=sys.stderr)
        return _FAILED
    return _OK


def _read_prompt(options) -> str:
    if options.prompt not in (None, "-") and options.file:
        raise InputError("give the prompt as an argument or with --file, not both")
    if options.file:
        try:
            prompt = Path(options.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"cannot read {options.file}: {reason}") from error
    elif options.prompt in (None, "-"):
        if sys.stdin is None:
            raise InputError("there is no standard input: give the prompt as an argument or with --file")
        _note("reading the prompt from standard input")
        prompt = sys.stdin.read()
    else:
        prompt = options.prompt
    prompt = prompt.removesuffix("\n") if options.prompt in (None, "-") else prompt
    if not prompt.strip():
        raise InputError("the prompt is empty: there is nothing to answer")
    return prompt


def _stream(options, pair, prompt, rule):
    import jax

    from kljudge_jax import stream

    coloured = options.color == "always" or (
        options.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    events = stream(
        pair,
        prompt,
        verifier=rule,
        draft_length=options.draft_length,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        stop=options.stop,
        key=jax.random.key(options.seed),
    )
    for event in events:
        if not options.json and event.text:
            text = f"{_COLOURS[event.origin]}{event.text}{_PLAIN}" if coloured else event.text
            print(text, end="", flush=True)
    if not options.json:
        print()
    return event.result


def _summary(options, result) -> str:
    stats = result.stats
    speed = f"{stats.tokens} tokens in {stats.seconds:.1f} s, {stats.tokens_per_second:.1f} tokens/s"
    if stats.compile_seconds >= 0.1:
        speed += f" (and {stats.compile_seconds:.1f} s to compile)"
    if not stats.drafted:
        return f"{options.verifier}: {speed}; {stats.cycles} target passes"
    return (
        f"{options.verifier}: {speed}; {stats.cycles} target passes, {stats.mean_acceptance_length:.2f} tokens each; "
        f"{stats.accepted} of {stats.drafted} draft tokens kept, {stats.relaxed} of them relaxed"
    )


def _as_json(options, pair, result) -> dict:
    return {
        "schema": 1,
        "text": result.text[0],
        "tokens": result.tokens[0].tolist(),
        "origin": result.origin[0],
        "finish": result.stats.rows[0].finish,
        "stats": result.stats.to_json(),
        "verifier": options.verifier,
        "draft_length": options.draft_length,
        "target": pair.target_name,
        "draft": pair.draft_name,
        "dtype": str(pair.target.dtype),
    }


def _add_rules(commands) -> None:
    parser = _command(
        commands, "rules", _rules, "List the verification rules.", "  kljudge rules\n  kljudge rules --json"
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def _rules(options) -> int:
    from kljudge_jax.verification import describe_rules

    rows = describe_rules()
    if options.json:
        print(json.dumps(rows, indent=2))
        return _OK
    width = max(len(row["usage"]) for row in rows)
    for row in rows:
        kind = "lossless" if row["lossless"] else "relaxed"
        print(f"{row['usage']:<{width}}  {kind:<8}  {row['summary']} [{row['source']}]")
    return _OK


def _add_sweep(commands) -> None:
    parser = _command(
        commands,
        "sweep",
        _sweep,
        "Answer the problems of a task under several rules, and compare accuracy, acceptance and speed.",
        "  kljudge sweep --target big.gguf --draft small.gguf --task gsm8k:test.jsonl --rules none,exact,kl:0.3 "
        "--draft-lengths 8,24 --n 30 --out results/gsm8k",
    )
    _add_models(parser)
    parser.add_argument("--task", required=True, metavar="TASK", help="arithmetic, conversion, gsm8k:FILE, ...")
    parser.add_argument(
        "--rules",
        metavar="RULES",
        default="none,exact,kl:0.4",
        help="rules by their words, with commas",
    )
    parser.add_argument("--draft-lengths", metavar="INTS", default="8", help="draft lengths, with commas")
    parser.add_argument("--n", metavar="INT", type=int, default=100, help="problems")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test", "all"), help="of the task")
    parser.add_argument("--batch", metavar="INT", type=int, default=8, help="answers decoded side by side")
    parser.add_argument("--out", metavar="DIR", default="results/sweep", help="where answers and the table go")
    _add_sampling(parser)


def _sweep(options) -> int:
    from kljudge_jax.evaluation import sweep
    from kljudge_jax.tasks import load_task
    from kljudge_jax.verification import parse_verifier

    # A comma before a rule's word parts two rules; one before `name=` or a number belongs to a rule.
    _check_sampling(options)
    rules = [rule.strip() for rule in re.split(r",(?=\s*[a-z_]+\s*(?:[:,]|$))", options.rules)]
    for rule in rules:
        parse_verifier(rule, options.temperature == 0)
    try:
        lengths = [int(length) for length in options.draft_lengths.split(",")]
    except ValueError:
        raise InputError(f"--draft-lengths takes whole numbers with commas, got {options.draft_lengths!r}") from None
    if min(lengths) < 1 or options.n < 1 or options.batch < 1:
        raise InputError("--draft-lengths, --n and --batch start at 1")
    if options.draft is None and any(rule != "none" for rule in rules):
        raise InputError("--rules other than none need --draft")
    task = load_task(options.task)  # a bad one is refused before minutes go into loading a model
    plan = sweep.Plan(
        cells=sweep.grid(rules, lengths),
        n=options.n,
        split=options.split,
        seed=options.seed,
        batch=options.batch,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    pair = _load_pair(options)
    if not getattr(pair.tokenizer, "chat_template", None):
        task = load_task(options.task, chat=False)
    try:
        records = sweep.run_sweep(pair, task, plan, options.out, _note)
    except KeyboardInterrupt:
        print(f"\nkljudge sweep: stopped; repeat the command to go on in {options.out}", file=sys.stderr)
        return 128 + signal.SIGINT
    rows = sweep.summarise(records)
    table = sweep.markdown_table(rows)
    folder = Path(options.out)
    (folder / "summary.json").write_text(json.dumps({"schema": sweep.SCHEMA, "cells": rows}, indent=2) + "\n")
    (folder / "table.md").write_text(table)
    print(table, end="")
    failed = sum(row["failed"] for row in rows)
    if failed:
        print(f"kljudge sweep: a model returned NaN or +inf in {failed} answers", file=sys.stderr)
    return _FAILED if failed else _OK


def _add_convert(commands) -> None:
    parser = _command(
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

    _note(f"converting {options.source}")
    convert(options.source, options.destination, dtype=options.dtype, revision=options.revision)
    print(options.destination)
    return _OK


if __name__ == "__main__":
    sys.exit(main())
