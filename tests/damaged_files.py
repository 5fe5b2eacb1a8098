"""Damages real small files of every format, and says what their readers make of it.

`python tests/damaged_files.py [CASES]` prints a table: how many damaged files of each format are named (one line of
`InputError` with the file), harmless (read as if nothing were), wrong (read as something else, such as another digit),
or a traceback.
"""

from __future__ import annotations

import collections
import gzip
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import kljudge_jax as kj
from kljudge_jax.errors import InputError

HERE = Path(__file__).parent
OLD = HERE / "files_of_0_1_0"

ASKED = {"target": "big", "limit": 5}
HARNESS_ROW = {
    "rule": "exact", "task": "sums", "metric": "right", "filter": "none", "n": 2, "value": 0.5, "stderr": 0.1,
    "cases": {"0": 0.0, "1": 1.0}, "tokens": 20, "cycles": 9, "failed": 0,
}  # fmt: skip
PROBLEMS = {
    "humaneval": [
        {"task_id": f"HumanEval/{i}", "prompt": f"def f{i}(x):\n", "entry_point": f"f{i}", 
         "canonical_solution": "    1\n", "test": "def check(f):\n    assert f(1)"}
        for i in range(3)
    ],
    "mbpp": [{"text": f"Write {i}.", "code": "x = 1\r\n", "task_id": i, "test_list": ["assert x"]} for i in range(3)],
    "gsm8k": [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(3)],
    "math500": [{"problem": f"Find ${i}$.", "answer": str(i), "solution": "so"} for i in range(3)],
    "prompts": [{"prompt": [{"role": "user", "content": f"go {i}"}], "answer": str(i)} for i in range(3)],
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": [1, 2],
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip


def _lines(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def good_files(folder):
    """Puts a good file of every format into a folder; by its place there, what reads it."""
    from kljudge_jax.evaluation.report.write import read_metadata
    from kljudge_jax.evaluation.result_store import ResultStore
    from kljudge_jax.evaluation.sweep.claim import read_records
    from kljudge_jax.evaluation.sweep.examples import _read
    from kljudge_jax.evaluation.sweep.summary import csv_table, summarise
    from kljudge_jax.judges.dataset import read_dataset
    from kljudge_jax.judges.storage import read_manifest
    from kljudge_jax.models.manifest import check_manifest, write_manifest
    from kljudge_jax.models.named_config import named_config
    from kljudge_jax.models.tokenizer import eos_ids
    from kljudge_jax.training.trainer import _forget_after, training_seconds

    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    shipped = kj.shipped_bench().parent
    shutil.copy(kj.shipped_bench(), folder / "bench.json")
    shutil.copytree(shipped / "judge", folder / "judge")
    shutil.copytree(shipped / "draft", folder / "model")
    _lines(folder / "finished.jsonl", [ASKED, {"rule": "exact", "task": "sums", "rows": [HARNESS_ROW], "failed": 0}])
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text(json.dumps(LLAMA))
    (folder / "hf" / "generation_config.json").write_text('{"eos_token_id": [3, 5], "do_sample": true}')
    for name, problems in PROBLEMS.items():
        _lines(folder / f"{name}.jsonl", problems)
    (folder / "humaneval.jsonl.gz").write_bytes(gzip.compress((folder / "humaneval.jsonl").read_bytes(), mtime=0))
    write_manifest(folder / "judge", ["judge.json"])

    def store(path):
        found = ResultStore(path, ASKED)
        return [found[one] for one in [("exact", "sums")] if one in found]

    def data(path):
        found = read_dataset(path.parent)
        return (
            found.pair,
            found.origin,
            found.questions,
            {name: np.asarray(x).sum() for name, x in found.columns.items()},
        )

    def model(path):
        pair = kj.ModelPair.from_pretrained(path.parent, dtype="float32")
        hidden = pair.target(np.arange(4, dtype=np.int32)[None])[0].hidden
        return pair.target.config, pair.eos, float(abs(np.asarray(hidden)).sum())

    def problems(path):
        name = path.name.partition(".")[0]
        return kj.load_task(f"{name}:{path}").problems("all", None)

    def log(path):
        seconds = training_seconds(path.parent)
        _forget_after(path.parent / "log.jsonl", 1)
        return seconds, (path.parent / "log.jsonl").read_text()

    return {
        "sweep/plan.json": lambda path: vars_of(read_metadata([path.parent], "again")),
        "sweep/answers.jsonl": lambda path: csv_table(summarise(list(read_records(path)))),
        "sweep/examples.json": _read,
        "sweep/summary.json": lambda path: kj.compare(path).markdown(),
        "bench.json": lambda path: kj.compare(path).markdown(),
        "finished.jsonl": store,
        "mine/dataset.json": data,
        "mine/questions.jsonl": data,
        "judge/judge.json": read_manifest_of(read_manifest),
        "judge/SHA256SUMS": lambda path: check_manifest(path.parent),
        "model/model.json": model,
        "hf/config.json": lambda path: named_config(path.parent),
        "hf/generation_config.json": lambda path: eos_ids(path.parent),
        "run/recipe.json": log,
        "run/log.jsonl": log,
        **{f"{name}.jsonl": problems for name in PROBLEMS},
        "humaneval.jsonl.gz": problems,
    }


def vars_of(record):
    return {name: value for name, value in _plain(record).items() if name != "command"}


def read_manifest_of(read_manifest):
    return lambda path: read_manifest(path.parent)


def _plain(record):
    return record.to_dict() if hasattr(record, "to_dict") else vars(record)


# What stands in place of a value, as text, so that it may be what no program writes.
OTHERS = (
    *("null", "true", "[]", "{}", '"x"', '""', "-1", "0", "3.5", "1e400", "NaN", '[["x"]]', '{"a": 1}', '"\\ud800"'),
    *("9" * 30, "7" * 5_000, "[" * 200_000, "1" + "0" * 400),
)


def damage(data, rng, kind):
    """One damaged copy of a file's bytes."""
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "flip":
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == "bytes":
        at = rng.randrange(len(data))
        return data[:at] + rng.choice([b"\xff", b"\x00", b"\xc3", b"\xed\xa0\x80"]) + data[at:]
    if kind == "encoding":
        return rng.choice(
            [lambda t: t.encode("utf-16"), lambda t: t.encode("utf-32"), lambda t: b"\xff\xfe" + t.encode()]
        )(data.decode())
    # The rest changes a value or takes a field out: of one line, where there are several.
    lines = data.decode().splitlines(keepends=True) if _by_line(data) else [data.decode()]
    at = rng.randrange(len(lines))
    content = json.loads(lines[at])
    places = list(_places(content))
    place = rng.choice(places)
    if kind == "missing":
        place = rng.choice([one for one in places if one and isinstance(one[-1], str)] or [()])
        if place:
            del _at(content, place[:-1])[place[-1]]
        lines[at] = json.dumps(content) + "\n"
    else:
        mark = "THE VALUE"
        if place:
            _at(content, place[:-1])[place[-1]] = mark
        else:
            content = mark
        lines[at] = json.dumps(content).replace(json.dumps(mark), rng.choice(OTHERS)) + "\n"
    return "".join(lines).encode()


def _by_line(data):
    try:
        json.loads(data)
    except ValueError:
        return True
    return False


def _places(content, path=()):
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        yield from _places(value, (*path, name))


def _at(content, path):
    for name in path:
        content = content[name]
    return content


KINDS = ("cut", "flip", "bytes", "encoding", "missing", "value", "value", "value")


def outcomes(cases, seed=0, only=None):
    """Yields format, kind of damage, what came of it ("named", "harmless", "wrong" or "traceback"), and the error.

    Args:
      cases: of each format.
      seed: of the damages.
      only: names of formats; None is all.
    """
    with tempfile.TemporaryDirectory() as temporary:
        good = Path(temporary) / "good"
        good.mkdir()
        readers = good_files(good)
        for name, read in readers.items():
            if only is not None and name not in only:
                continue
            whole = {path: path.read_bytes() for path in (good / name).parent.glob("*") if path.is_file()}
            expected = repr(read(good / name))
            rng = random.Random(f"{seed} {name}")
            for case in range(cases):
                for path, data in whole.items():
                    path.write_bytes(data)
                data, kind = whole[good / name], KINDS[case % len(KINDS)]
                if name.endswith(".gz"):
                    kind = kind if kind in ("cut", "flip", "bytes") else "value"
                    if kind == "value":
                        data = gzip.compress(
                            damage(gzip.decompress(data), rng, rng.choice(["value", "missing"])), mtime=0
                        )
                    else:
                        data = damage(data, rng, kind)
                elif name.endswith("SHA256SUMS"):
                    kind = kind if kind in ("cut", "flip", "bytes", "encoding") else "flip"
                    data = damage(data, rng, kind)
                else:
                    data = damage(data, rng, kind)
                (good / name).write_bytes(data)
                yield name, kind, *_outcome(read, good / name, expected)
            for path, data in whole.items():
                path.write_bytes(data)


def _outcome(read, path, expected):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = repr(read(path))
    except InputError as error:
        said = str(error)
        if "\n" in said.strip() or len(said) > 1000:
            return "traceback", f"not one line: {said[:200]}"
        # A folder's name will do where a reader is given that.
        return "named", said
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {str(error)[:200]}"
    return ("harmless" if found == expected else "wrong"), ""


def main(cases):
    table = collections.defaultdict(collections.Counter)
    shown = collections.Counter()
    for name, kind, outcome, said in outcomes(cases):
        table[name][outcome] += 1
        table["all"][outcome] += 1
        if outcome == "traceback" and shown[name, said[:40]] < 1:
            shown[name, said[:40]] += 1
            print(f"  {name}, {kind}: {said}", file=sys.stderr)
    heads = ("named", "harmless", "wrong", "traceback")
    print(f"{'format':28}" + "".join(f"{head:>10}" for head in ("files", *heads)))
    for name, counts in table.items():
        print(f"{name:28}{sum(counts.values()):10}" + "".join(f"{counts[head]:10}" for head in heads))
    return int(table["all"]["traceback"] > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 150))
