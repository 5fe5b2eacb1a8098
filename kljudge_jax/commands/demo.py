"""`kljudge demo`."""

from __future__ import annotations

import shutil
import textwrap
import time

import click

from kljudge_jax.commands.color import COLOR, is_coloured, legend, painted
from kljudge_jax.commands.command import DIR, EMBEDDED_HEAD, RULES, Whole, command, option
from kljudge_jax.commands.options import MESH, note, status_of
from kljudge_jax.commands.progress import Bar
from kljudge_jax.results_folder import results_folder
from kljudge_jax.spec import split_specs


@command(
    "Show judge decoding on the pair that comes with the package: one answer, a table, a picture.",
    [
        option("--task", "what is asked", type=click.Choice(("arithmetic", "conversion")), default="arithmetic"),
        option("--problems", "how many go into the table", type=Whole(), default=200),
        option("--rules", "rules, with commas", type=RULES, default="none,exact,kl:0.4"),
        option("--draft-length", "draft tokens a cycle of the small model", type=Whole(), default=8),
        option("--head-length", "the same of the head, which is in the table", type=Whole(), default=4),
        *MESH,
        option("--seed", "of the problems", default=7),
        option("--out", "where the table and the pictures go", type=DIR, default="results/demo"),
        COLOR,
    ],
    "  kljudge demo\n"
    "  kljudge demo --task conversion --rules none,exact,kl:0.1,kl:1.0\n"
    "  kljudge demo --problems 1000 --rules none,exact,kl:0.4,random:0.5 --out results/thousand",
    "the answers that were shown are in {out}, if all of them were: repeat the command for the table",
)
def demo(options) -> int:
    from kljudge_jax import ModelPair
    from kljudge_jax.evaluation import demo
    from kljudge_jax.evaluation.demo_record import DemoSummary
    from kljudge_jax.evaluation.report.token_page import write_page, write_picture
    from kljudge_jax.machine import describe_machine
    from kljudge_jax.records import write, write_text
    from kljudge_jax.tasks import load_task
    from kljudge_jax.text_table import aligned, markdown
    from kljudge_jax.verification import parse_verifier

    began = time.perf_counter()
    rules = tuple(dict.fromkeys(["none", *split_specs(options.rules)]))
    for rule in rules:
        parse_verifier(rule, True)
    folder = results_folder(options.out)
    task = load_task(options.task)
    problems = task.problems("test", options.problems, options.seed)
    prompt = problems[0].prompt
    assert isinstance(prompt, str)
    placed = {"mesh": options.mesh, "axes": options.axes, "draft_axes": options.draft_axes}
    pair, head = ModelPair.embedded(**placed), ModelPair.embedded(draft=EMBEDDED_HEAD, **placed)
    show = demo.Demo(pair, task, rules, options.draft_length, problems, head, options.head_length)

    print(f"A problem that neither model was trained on ({options.task}):\n")
    print(_indented(prompt))
    coloured = is_coloured(options)
    if coloured:
        print(f"\n{legend()}: where each token came from")
    answers = []
    for rule in rules:
        print(f"\n{demo.title(rule)}\n")
        start = "  "
        with Bar() as bar:
            for event in show.stream(rule):
                bar.stop()
                text = event.text.replace("\n", "\n  ")
                print(start + (painted(text, event.origin) if coloured else text), end="", flush=True)
                start = ""
        result = event.result
        assert result is not None  # the last event has it
        answers.append(show.explain(rule, result))
        right = "right" if task.check(problems[0], result.text[0]) else "wrong"
        print(f"\n  ({right}; {answers[-1].note})")

    machine = describe_machine()
    mesh = "".join(f" --{name.replace('_', '-')} {word}" for name, word in placed.items() if word)
    foot = (
        f"kljudge demo --task {options.task} --problems {options.problems} --rules {','.join(rules)} "
        f"--draft-length {options.draft_length} --head-length {options.head_length} --seed {options.seed}{mesh}; "
        f"{machine.date}, {machine.processor}, {machine.cores} cores, {machine.device}, "
        f"jax {machine.versions['jax']}"
    )

    def draw_page(table) -> None:
        heading = "Judge decoding, token by token"
        write_page(folder / "answer.html", heading, prompt, answers, table, foot)

    # Now, so that whoever stops here keeps them; the table joins the page when it is there.
    draw_page([])
    write_picture(folder / "answer.png", answers[1:] or answers)

    with Bar() as bar:
        speeds = show.time_one_by_one(report=bar.show)
    with Bar() as bar:
        rows = show.compare(speeds, bar.show)
    cells = demo.table(rows)
    print(f"\n{options.problems} fresh problems:\n\n{aligned(cells)}\n")
    write_text(folder / "table.md", markdown(cells))
    made = DemoSummary(task=task.name, n=len(problems), seed=options.seed, machine=machine, cells=tuple(rows))
    write(folder / "summary.json", made)
    draw_page(cells)
    print(f"Pictures: {folder / 'answer.html'}, {folder / 'answer.png'}; table: {folder / 'table.md'}")
    note(f"{time.perf_counter() - began:.0f} s in all")
    failed = sum(row.failed for row in rows)
    return status_of(options, failed)


def _indented(text: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(
        textwrap.fill(line, width, initial_indent="  ", subsequent_indent="  ") for line in text.splitlines()
    )
