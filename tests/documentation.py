"""README.md and the pages of the site as tests read them: their text, their code, and a pair to run it on."""

import dataclasses
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import kljudge_jax as kj
from kljudge_jax.models.shipped import shipped_folder

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs"
FILES = {"README": ROOT / "README.md"} | {path.stem: path for path in sorted((SITE / "pages").glob("*.md"))}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}

# Commands that no test runs as they stand on a page, by words that they hold, and why. They go through the parser.
ONLY_PARSED = {
    ("demo",): "it takes a minute, and has tests of its own",
    ("sweep", "none,exact,block,"): "it compiles 22 rules, one of them with a judge that is not kept",
    ("bench", "llama-3.1-8b"): "a model of eight billion parameters",
    ("bench", "smollm2-135m"): "a draft of the shape of a model of 135 million parameters",
    ("sweep", "--hosts"): "several hosts",
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


def smaller(words: list[str]) -> list[str]:
    """A command that asks for seconds of work, in place of minutes or hours."""
    words = list(words)
    for option, value in _SMALLER.get(words[0], {}).items():
        if option in words:
            words[words.index(option) + 1] = value
        elif option not in _ONLY_WHERE_NAMED:
            words += [option, value]
    return words


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
