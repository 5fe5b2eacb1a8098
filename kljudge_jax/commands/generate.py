"""`kljudge generate`."""

from __future__ import annotations

import json
import sys
from typing import Any

from kljudge_jax.commands.color import COLOR, is_coloured, painted
from kljudge_jax.commands.command import FAILED, FILE, OK, RULE, argument, command, flag, option
from kljudge_jax.commands.options import (
    CHAT,
    SAMPLING,
    check_drafter,
    decoding_config,
    decoding_options,
    has_draft,
    load_pair,
    model_options,
    note,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError
from kljudge_jax.records import read_text


@command(
    "Answer one prompt, streamed, each token coloured by where it came from.",
    [
        argument("prompt", "the prompt; - or nothing reads standard input", required=False),
        option("--file", "read the prompt from a file", type=FILE),
        option("--system", "a system message before the prompt (chat models)"),
        flag("--raw", "complete the prompt as it is, without the chat template"),
        option(
            "--verifier",
            "the verification rule: exact, kl:0.4, none (no draft), ...; `kljudge rules` lists them",
            type=RULE,
            default="kl:0.4",
        ),
        COLOR,
        flag("--json", "print one JSON object at the end instead of text"),
        *model_options(),
        *decoding_options(*SAMPLING, "draft_length", "drafter", "stop", *CHAT),
    ],
    "  kljudge generate --target Qwen/Qwen2.5-1.5B-Instruct --draft Qwen/Qwen2.5-0.5B-Instruct "
    '"Why is the sky blue?"\n'
    "  kljudge generate --target big.gguf --draft small.gguf --verifier exact --draft-length 4 --file prompt.txt\n"
    '  echo "2 + 2 =" | kljudge generate --target big.gguf --verifier none --raw --json',
)
def generate(options) -> int:
    from kljudge_jax.verification import parse_verifier

    prompt: Any = _read_prompt(options)
    # Bad spec strings are refused before minutes go into loading a model.
    config = decoding_config(options)
    rule = parse_verifier(options.verifier, config.greedy)
    if rule is not None:
        check_drafter(config, has_draft(options), rules=[rule])
    pair = load_pair(options)
    if not options.raw and getattr(pair.tokenizer, "chat_template", None):
        system = [{"role": "system", "content": options.system}] if options.system else []
        prompt = [*system, {"role": "user", "content": prompt}]
    elif options.system or config.template_args:
        named = "--system" if options.system else "--template-arg"
        raise InputError(f"{named} needs a chat model, without --raw")

    result = _stream(options, pair, prompt, rule, config)
    if options.json:
        print(json.dumps(_as_json(options, config, pair, result)))
    else:
        print(_summary(options, result), file=sys.stderr)
    if result.stats.draft_failed:
        print("kljudge generate: the draft returned NaN or +inf: the target went on alone", file=sys.stderr)
    if result.stats.failed:
        print("kljudge generate: a model returned NaN or +inf; the answer ends before it", file=sys.stderr)
        return FAILED
    return OK


def _read_prompt(options) -> str:
    if options.prompt not in (None, "-") and options.file:
        raise InputError("give the prompt as an argument or with --file, not both")
    if options.file:
        prompt = read_text(options.file)
    elif options.prompt in (None, "-"):
        if sys.stdin is None:
            raise InputError("there is no standard input: give the prompt as an argument or with --file")
        note("reading the prompt from standard input")
        prompt = sys.stdin.read()
    else:
        prompt = options.prompt
    prompt = prompt.removesuffix("\n") if options.prompt in (None, "-") else prompt
    if not prompt.strip():
        raise InputError("the prompt is empty: there is nothing to answer")
    return prompt


def _stream(options, pair, prompt, rule, config):
    import jax

    from kljudge_jax import stream

    coloured = is_coloured(options)
    events = stream(pair, prompt, verifier=rule, **config.arguments(), key=jax.random.key(config.seed))
    with Bar() as bar:
        for event in events:
            bar.stop()
            if not options.json and event.text:
                text = painted(event.text, event.origin) if coloured else event.text
                print(text, end="", flush=True)
    if not options.json:
        print()
    return event.result


def _summary(options, result) -> str:
    stats = result.stats
    speed = f"{stats.tokens} tokens in {stats.seconds:.1f} s, {stats.tokens_per_second:.1f} tokens/s"
    if stats.compile_seconds >= 0.1:
        speed += f" (and {stats.compile_seconds:.1f} s to compile)"
    line = f"{options.verifier}: {speed}; {stats.cycles} target passes"
    if stats.drafted:
        line += (
            f", {stats.mean_acceptance_length:.2f} tokens each; "
            f"{stats.accepted} of {stats.drafted} draft tokens kept, {stats.relaxed} of them relaxed"
        )
    return "\n".join(filter(None, (line, result.pace)))


def _as_json(options, config, pair, result) -> dict:
    return {
        "schema": 1,
        "text": result.text[0],
        "tokens": result.tokens[0].tolist(),
        "origin": result.origin[0],
        "finish": result.stats.rows[0].finish,
        "stats": result.stats.to_json(),
        "verifier": options.verifier,
        "draft_length": options.draft_length,
        **{name: value for name, value in config.to_json().items() if name in CHAT},
        **({"pace": result.pace} if result.pace else {}),
        "target": pair.target_name,
        "draft": pair.draft_name,
        "dtype": str(pair.target.dtype),
    }
