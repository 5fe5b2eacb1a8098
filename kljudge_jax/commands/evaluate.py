"""`kljudge evaluate`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kljudge_jax.commands.command import DIR, RULES, Whole, command, flag, option
from kljudge_jax.commands.options import (
    CHAT,
    check_drafter,
    decoding_config,
    decoding_options,
    has_draft,
    load_pair,
    model_options,
    status_of,
)
from kljudge_jax.commands.progress import Bar
from kljudge_jax.errors import InputError
from kljudge_jax.records import write, write_text
from kljudge_jax.results_folder import results_folder
from kljudge_jax.spec import split_specs


@command(
    "Run tasks of lm-evaluation-harness under several rules (needs the extra `harness`).",
    [
        *model_options(hosts=False),
        option("--harness-tasks", "tasks of the harness, with commas", metavar="NAMES", required=True),
        option("--include-path", "a folder of your own tasks (YAML)", type=DIR),
        option(
            "--rules",
            "spec strings of rules, with commas; the others are compared with the first. A task that compares "
            "log-likelihoods is scored by the target alone, whatever the rule",
            type=RULES,
            default="none,exact,kl:0.4",
        ),
        option("--limit", "the first documents of each task only", type=Whole()),
        option("--num-fewshot", "examples before each question, if not the task's", type=int),
        flag("--chat", "ask through the chat template"),
        # A task says the rest: its temperature, its truncation, what ends an answer, and often how long one may be.
        *decoding_options("draft_length", "drafter", "batch", "max_new_tokens", "seed", *CHAT, call="evaluate"),
        option("--out", "where harness.json and harness.md go", type=DIR, default="results/evaluate"),
    ],
    "  kljudge evaluate --target big.gguf --draft small.gguf --rules none,exact,kl:0.4 --harness-tasks gsm8k "
    "--limit 50\n"
    "  kljudge evaluate --target embedded --harness-tasks my_task --include-path my_tasks",
    "every task that a rule has finished is in {out}: repeat the command to go on",
)
def evaluate(options) -> int:
    config = decoding_config(options)
    if config.template_args and not options.chat:
        raise InputError("--template-arg is read by a chat's template: add --chat")

    from kljudge_jax.evaluation.harness import KLJudgeLM, harness_runs
    from kljudge_jax.evaluation.report.harness import (
        HarnessFile,
        HarnessRow,
        compare_with_first,
        harness_markdown,
        harness_rows,
    )
    from kljudge_jax.evaluation.result_store import ResultStore
    from kljudge_jax.progress_update import ProgressUpdate
    from kljudge_jax.verification import parse_verifier

    rules = split_specs(options.rules)
    parsed = [parse_verifier(rule, True) for rule in rules]
    if any(rule != "none" for rule in rules):
        check_drafter(config, has_draft(options), rules=parsed)
    runs = harness_runs([name.strip() for name in options.harness_tasks.split(",")], options.include_path)
    folder = results_folder(options.out)
    pair = load_pair(options)
    finished = ResultStore(folder / "finished.jsonl", _asked(options, pair))
    rows: list[HarnessRow] = []
    failed = 0
    with Bar() as bar:
        every = [(rule, name) for rule in rules for name in runs]
        before = sum(one in finished for one in every)
        for done, (rule, name) in enumerate(every):
            bar.keep(ProgressUpdate(f"{name}, {rule}", done, len(every), before))
            if (rule, name) not in finished:
                lm = KLJudgeLM(pair, rule, config=config)
                found = runs[name](
                    lm, limit=options.limit, num_fewshot=options.num_fewshot, apply_chat_template=options.chat
                )
                finished.add((rule, name), harness_rows(rule, found, lm.stats), lm.stats.failed if lm.stats else 0)
            rows += finished[rule, name].rows
            failed += finished[rule, name].failed
    compared = compare_with_first(rows)
    table = harness_markdown(compared)
    kept = HarnessFile(
        command=tuple(options.words), target=pair.target_name, draft=pair.draft_name, rows=tuple(compared)
    )
    write(folder / "harness.json", kept)
    write_text(folder / "harness.md", table)
    print(table, end="")
    return status_of(options, failed)


def _asked(options, pair) -> dict:
    """What has to be the same for a repeated command to go on."""
    from kljudge_jax.models.fingerprint import fingerprints

    names = (
        *("include_path", "draft_length", "drafter", "limit", "num_fewshot", "chat", "batch", "max_new_tokens"),
        *("seed", "mesh", "axes", "draft_axes", "revision", "draft_revision"),
    )
    models = {"target": pair.target_name, "draft": pair.draft_name, "dtype": pair.precision}
    models |= {"weights": fingerprints(pair), "files": _digests(options.include_path)}
    told = {name: value for name, value in decoding_config(options).to_json().items() if name in CHAT}
    return models | {name: getattr(options, name) for name in names} | told


def _digests(folder: str | None) -> dict[str, str]:
    """What the files of a folder of tasks hold, by name."""
    if folder is None:
        return {}
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
