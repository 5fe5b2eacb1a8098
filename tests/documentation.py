"""README.md and the pages of the site as tests read them: their text, their code, and a pair to run it on."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path

from command_lines import parsed

import kljudge_jax as kj
from kljudge_jax.models.shipped import shipped_folder
from kljudge_jax.spec import split_specs
from kljudge_jax.verification.rule import RULES

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs"
FILES = {"README": ROOT / "README.md"} | {path.stem: path for path in sorted((SITE / "pages").glob("*.md"))}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}

# Commands that no test runs as they stand on a page, by words that they hold, and why. They go through the parser.
ONLY_PARSED = {
    ("demo",): "it takes a minute, and has tests of its own",
    ("train-draft",): "it takes minutes, and has tests of its own",
    ("sweep", "none,exact,block,"): "it compiles 22 rules, one of them with a judge that is not kept",
    ("bench", "llama-3.1-8b"): "a model of eight billion parameters",
    ("bench", "smollm2-135m"): "a draft of the shape of a model of 135 million parameters",
    ("sweep", "--hosts"): "several hosts",
    ("plan", "--topology"): "it takes a compiler that a test run may lack, and minutes; it has tests of its own",
    ("bench", "qwen2.5-coder", "--profile"): "its page shows `bench --profile` of another pair, and that is run",
    ("sweep", "--out results/assisted"): "another page has a sweep of these baselines, and that is run",
    ("evaluate", "gsm8k"): "the harness fetches this task from the hub",
}

# What stands in for numbers of a page, as options of the command: the same for all, so that they share programs.
_SMALLER = {
    "generate": {"--max-new-tokens": "24"},
    "sweep": {"--n": "2", "--batch": "2", "--max-new-tokens": "24"},
    "calibrate": {"--n": "16", "--check-n": "2", "--batch": "2", "--max-new-tokens": "24", "--budget": "40"},
    "bench": {"--rounds": "1", "--prompts": "1", "--max-new-tokens": "12"},
    "mine": {"--n": "30"},
    "evaluate": {"--limit": "2", "--batch": "2"},
}
_ONLY_WHERE_NAMED = {"--check-n"}

# What a plain run of the tests runs of the pages: of every kind of command one, by words that it holds, in an order in
# which each finds what it reads. A run of the tests marked `slow` runs the others too.
DAILY = [
    ("rules", ""),
    ("plan", "--device"),
    ("convert", ""),
    ("compare", ""),
    ("generate", "--file prompt.txt"),
    ("sweep", "--out results/queue"),
    ("calibrate", "--target embedded"),
    ("mine", "mined/train"),
    ("train-judge", ""),
    ("correspond", ""),
    ("bench", "--rules none"),
    ("perplexity", ""),
    ("evaluate", "--target embedded"),
]
# One answer at a time, as `generate` decodes, so that they share its programs; and no program more than has to be.
_SMALLEST = {
    "sweep": {"--batch": "1", "--examples": "0"},
    "calibrate": {"--n": "8", "--batch": "1"},
    "bench": {"--batch": "1"},
    "perplexity": {"--precisions": "float32,file"},
}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in their order: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def code(page: str, language: str) -> list[str]:
    return [text for kind, text in blocks(page) if kind == language]


def commands(block: str) -> list[list[str]]:
    """Every `kljudge` command of a block, as words without the program."""
    found = [shlex.split(line, comments=True) for line in block.splitlines() if re.search(r"\bkljudge ", line)]
    starts = [next(i for i, word in enumerate(words) if re.fullmatch(r"(.*/)?kljudge", word)) for words in found]
    return [words[start + 1 :] for words, start in zip(found, starts, strict=True)]


def only_parsed(words: list[str]) -> str | None:
    """Why no test runs a command, if none does."""
    line = " ".join(words)
    return next((why for parts, why in ONLY_PARSED.items() if all(part in line for part in parts)), None)


def daily() -> list[list[str]]:
    """The commands that `DAILY` names, of several that fit the first."""
    known = [words for page in PAGES for block in code(page, "bash") for words in commands(block)]
    runnable = [words for words in known if only_parsed(words) is None]
    return [next(words for words in runnable if words[0] == kind and part in " ".join(words)) for kind, part in DAILY]


def smaller(words: list[str], smallest: bool = False) -> list[str]:
    """A command that asks for seconds of work, in place of minutes or hours."""
    words = list(words)
    sizes = _SMALLER.get(words[0], {}) | (_SMALLEST.get(words[0], {}) if smallest else {})
    for option, value in sizes.items():
        if option in words:
            words[words.index(option) + 1] = value
        elif option not in _ONLY_WHERE_NAMED:
            words += [option, value]
    return words


def smaller_code(text: str) -> str:
    """A block of Python with one problem and short answers, decoded alone: the shapes of `_SMALLEST`."""
    for pattern, size in ((r"\bmax_new_tokens=\d+", 24), (r"\bn=\d+", 1), (r"\b(batch|batch_size)=\d+", 1)):
        text = re.sub(pattern, lambda found, size=size: f"{found[0].partition('=')[0]}={size}", text)
    return text


def check(words: list[str], said: str) -> None:
    """Fails unless a command left in the working folder, and in `said`, which it printed, what is of its kind."""
    options = parsed(words)
    rules = split_specs(options.rules) if hasattr(options, "rules") else []
    out = Path(options.out) if hasattr(options, "out") else Path()
    match words[0]:
        case "generate":
            assert len(said.split()) > 1
        case "rules":
            assert all(rule.spec_name in said for rule in RULES)
        case "plan":
            assert "GB" in said and (options.table or "on each device" in said)
        case "convert":
            assert said.strip() == options.destination and (Path(options.destination) / "model.json").exists()
        case "compare":
            assert all(f"({name}) | 1 | kl:0.4 @ 8 |" in said for name in ("laptop", "tpu"))
            assert (out / "compare.png").stat().st_size > 1000
        case "sweep":
            cells = json.loads((out / "summary.json").read_text(encoding="utf-8"))["cells"]
            assert sorted(cell["rule"] for cell in cells) == sorted(rules * len(options.task.split(",")))
            assert all(cell["n"] == options.n and cell["mean_acceptance_length"] >= 1 for cell in cells)
            assert all(f"\n| {rule.replace('none', 'plain')} |" in said for rule in rules)
        case "calibrate":
            found = json.loads((out / "calibration.json").read_text(encoding="utf-8"))
            assert len(found["tested"]) == len(options.thresholds.split(","))
            assert "\nPromised: " in said or "\nNothing is promised" in said
            assert bool(options.check_n and "\nPromised: " in said) == (f"Checked on {options.check_n} fresh" in said)
        case "mine":
            assert re.search(rf"{options.out}: [1-9]\d* mismatches", said)
        case "train-judge":
            assert "(advised)" in said and (Path(options.folder) / "judge.json").exists()
        case "correspond":
            assert "rank correlation" in said and list(Path(options.folder).glob("*.png"))
        case "bench":
            found = json.loads((out / "bench.json").read_text(encoding="utf-8"))
            assert [batch["batch"] for batch in found["batches"]] == list(options.batch)
            for batch in found["batches"]:
                timed = {rule["rule"]: rule for rule in batch["rules"]}
                assert set(timed) == {"none", *rules} and all(rule["tokens"] > 0 for rule in timed.values())
        case "perplexity":
            found = json.loads((out / "perplexity.json").read_text(encoding="utf-8"))
            assert len(found["rows"]) == len(options.precisions.split(","))
            assert all(1 < row["perplexity"] < 1000 for row in found["rows"])
        case "evaluate":
            rows = json.loads((out / "harness.json").read_text(encoding="utf-8"))["rows"]
            assert {row["rule"] for row in rows} == set(rules)
        case kind:
            raise AssertionError(f"nothing is known of what `{kind}` leaves")


def check_calls(text: str) -> int:
    """How many calls of the package a block of Python has: fails where one has arguments that its function lacks."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    found = [call for call in found if ast.unparse(call.func).startswith("kj.")]
    for call in found:
        function = eval(ast.unparse(call.func), {"kj": kj})
        inspect.signature(function).bind(*call.args, **{one.arg: one.value for one in call.keywords if one.arg})
    return len(found)


def stand_in(patch) -> None:
    """Loads the embedded pair, given a chat template, whatever model is named."""
    convert = importlib.import_module("kljudge_jax.models.convert")  # whose name in the package is a function
    load, shipped, open_checkpoint = kj.ModelPair.from_pretrained, shipped_folder(), convert.open_checkpoint
    kept = ("mesh", "axes", "draft_axes", "bits", "draft_bits")

    def from_pretrained(target, draft=None, **options):
        dtype = options.get("dtype", "float32")
        pair = load(
            shipped / "target",
            None if draft is None else shipped / "draft",
            dtype="float32" if dtype == "auto" else dtype,
            # The pair is in no file of blocks: what would be kept is rounded.
            **{name: 8 if options[name] == "file" else options[name] for name in kept if name in options},
        )
        if Path(target).parent != shipped:
            pair.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
        return dataclasses.replace(pair, target_name=str(target), draft_name=str(draft or "none"))

    patch.setattr(kj.ModelPair, "from_pretrained", staticmethod(from_pretrained))
    patch.setattr(convert, "open_checkpoint", lambda source, revision=None: open_checkpoint(shipped / "target"))


def write_files(folder: Path) -> None:
    """The files that commands of the pages name."""
    problems = kj.load_task("arithmetic").problems(n=80)
    lines = [json.dumps({"question": one.prompt.strip(), "answer": f"It is\n#### {one.answer}"}) for one in problems]
    for name in ("test.jsonl", "train.jsonl"):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "prompt.txt").write_text(problems[0].prompt, encoding="utf-8")
    (folder / "book.txt").write_text("\n".join(one.solution for one in problems[:10]), encoding="utf-8")
    for machine in ("laptop", "tpu"):
        (folder / machine).mkdir()
        shutil.copy(shipped_folder() / "bench.json", folder / machine / "bench.json")
