"""Results of several machines side by side, and those that cannot be."""

import copy
import json

import pytest
from sweep_records import answers

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench.call import Bench
from kljudge_jax.evaluation.bench.records import BenchFigures
from kljudge_jax.evaluation.report.compare import Comparison, differences, read_result
from kljudge_jax.evaluation.sweep.summary import summarise
from kljudge_jax.records import read

TIME = {"seconds": 0.002, "low": 0.001, "high": 0.003, "rounds": 5, "repetitions": 9, "compile_seconds": 0.1}
MACHINE = {"backend": "cpu", "device": "cpu", "devices": 1, "processor": "Made Up", "cores": 2}


def bench_file(folder, **changes):
    """A bench as the command writes it, with figures made up where they matter; changed at dotted places."""
    shipped = json.loads(kj.shipped_bench().read_text())
    batch = shipped["batches"][0]

    def rule(word, speed):
        plain = word == "none"
        return batch["rules"][0 if plain else 1] | {
            "rule": word,
            "draft_length": 0 if plain else 8,
            "tokens_per_second": speed,
            "low": 0.9 * speed,
            "high": 1.2 * speed,
            "speed": None if plain else {"ratio": 1.5, "low": 1.4, "high": 1.7, "rounds": 5},
            "mean_acceptance_length": 1.0 if plain else 5.0,
            "cycle": TIME,
            "model": None if plain else batch["rules"][1]["model"] | {"error": 0.05, "recommended_draft_length": 7},
        }

    model = {"name": "made/target", "family": "llama", "parameters": 12, "bytes": 48, "shape": {"hidden_size": 2}}
    found = shipped | {
        "schema": 1,
        "kind": "bench",
        "machine": MACHINE,
        "task": "arithmetic",
        "models": {"target": model, "draft": model | {"name": "draft", "parameters": 3}},
        "dtype": "float32",
        "plan": {"rules": ["none", "exact"], "batches": [1], "draft_length": 8, "max_new_tokens": 64, "rounds": 5},
        "load_average": [],
        "batches": [
            {
                "batch": 1,
                "capacity": 128,
                "prompts": batch["prompts"] | {"n": 4},
                "draft": batch["draft"] | {"step": TIME},
                "target_pass": {"1": TIME | {"bytes_per_second": 5e9, "bandwidth_share": 0.5}, "9": TIME},
                "rules": [rule("none", 100.0), rule("exact", 150.0)],
            }
        ],
    }
    found = copy.deepcopy(found)
    for place, value in changes.items():
        *path, last = place.split("__")
        inner = found
        for name in path:
            inner = inner[name]
        inner[last] = value
    folder.mkdir(exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(found))
    return folder / "bench.json"


def sweep_files(folder, **plan):
    (row,) = summarise(answers("exact", [True] * 9 + [False]))
    cell = row.to_dict() | {"task": "arithmetic", "accuracy_interval": [0.6, 0.98]}
    cell |= {"mean_acceptance_length": 5.0, "tokens_per_second": 50.0, "tokens_per_second_interval": None}
    folder.mkdir(exist_ok=True)
    asked = {"schema": 1, "kind": "sweep", "target": "t", "draft": "d", "dtype": "float32", "machine": MACHINE}
    asked |= {"command": "kljudge sweep"}
    asked["plan"] = {"cells": [{"rule": "exact", "draft_length": 8}], "n": 10, "split": "test", "max_new_tokens": 64}
    asked["plan"] |= plan
    (folder / "summary.json").write_text(json.dumps(asked | {"cells": [cell]}))
    return folder / "summary.json"


def test_benches_of_two_machines_stand_in_one_table_and_picture(tmp_path, capsys):
    machine = MACHINE | {"backend": "tpu", "device": "TPU v9", "devices": 4}
    files = [bench_file(tmp_path / "a"), bench_file(tmp_path / "b", machine=machine, plan__rounds=9)]
    assert main(["compare", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    table = (tmp_path / "out" / "compare.md").read_text()
    assert out.startswith(table) and "compare.png" in out
    assert table.count("| Made Up, 2 cores | 1 |") == 2 and table.count("| 4 x TPU v9 | 1 |") == 2
    assert "150.0 (135.0 to 180.0)" in table and "1.50 (1.40 to 1.70)" in table and "5.0 (50 %)" in table
    assert "differs" not in table
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_says_when_and_with_what_each_was_measured(tmp_path):
    machine = MACHINE | {"date": "2026-01-02", "driver": "9.9", "versions": {"jax": "0.10"}, "python": "3.12"}
    files = [bench_file(tmp_path / "a"), bench_file(tmp_path / "b", machine=machine, load_average=[None, 8.0])]
    results = [read_result(file) for file in [*files, sweep_files(tmp_path / "c")]]
    assert [results[i].about for i in (0, 2)] == ["", ""]
    told = "2026-01-02, driver 9.9, jax 0.10, Python 3.12, on a busy machine (load average 8)"
    assert results[1].about == told
    assert told in Comparison(results[:2], ["", ""]).markdown()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "bfloat16"}, "dtype bfloat16 and not float32"),
        ({"plan__batches": [1, 8]}, "batches [1, 8] and not [1]"),
        ({"plan__draft_length": 4}, "draft_length 4 and not 8"),
        ({"plan__rules": ["none"]}, "rules"),
        ({"plan__max_new_tokens": 65}, "max_new_tokens"),
        ({"task": "random:128"}, "task random:128"),
        ({"models__target__parameters": 13}, "target target (13 parameters) and not target (12 parameters)"),
        ({"models__draft__shape": {"hidden_size": 4}}, "draft"),
    ],
)
def test_apples_are_not_compared_with_pears_unless_forced(tmp_path, capsys, change, named):
    files = [str(bench_file(tmp_path / "a")), str(bench_file(tmp_path / "b", **change))]
    words = ["compare", *files, "--out", str(tmp_path / "out")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert named in err and files[1] in err and "--force" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert main([*words, "--force"]) == 0
    table = capsys.readouterr().out
    assert table.count("| Made Up, 2 cores (b) [differs] |") == 2 and f"not comparable: {named}" in table


def test_a_model_is_the_same_wherever_it_lies(tmp_path):
    files = [bench_file(tmp_path / "a"), bench_file(tmp_path / "b", models__target__name="elsewhere/target")]
    assert differences([read_result(file) for file in files]) == ["", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "expected object, got array"),
        ("{}", "no result of kljudge"),
        ('{"kind": "bench", "schema": 99}', "schema 99"),
        ('{"kind": "bench", "schema": 1}', "missing required field"),
        ('{"cells": [], "schema": 2, "kind": "sweep"}', "schema 2"),
        ('{"cells": [], "schema": 1}', "is no result of kljudge"),
        ('{"cells": [], "schema": 1, "kind": "sweep"}', "missing required field"),
    ],
)
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, capsys, text, message):
    (tmp_path / "odd.json").write_text(text)
    assert main(["compare", str(tmp_path / "odd.json")]) == 2
    err = capsys.readouterr().err
    assert message in err and str(tmp_path) in err and len(err.splitlines()) == 1


def test_a_damaged_bench_is_refused_by_name(tmp_path):
    path = bench_file(tmp_path / "a", batches=[{"batch": 1}])
    with pytest.raises(InputError, match=r"bench.json, field batches\[0\]: object missing required field"):
        read_result(path)


def test_sweeps_are_compared_alike(tmp_path, capsys):
    files = [str(sweep_files(tmp_path / name)) for name in "ab"]
    assert main(["compare", *files, "--out", str(tmp_path / "out")]) == 0
    assert (
        "| Made Up, 2 cores (a) | arithmetic | exact @ 8 | 9 of 10 | 60 to 98 | 5.00 | 50.0 |"
        in capsys.readouterr().out
    )
    other = str(sweep_files(tmp_path / "c", n=20))
    assert main(["compare", files[0], other, "--out", str(tmp_path / "out")]) == 2
    assert "n 20 and not 10" in capsys.readouterr().err


def test_a_bench_and_a_sweep_are_never_compared(tmp_path, capsys):
    files = [str(bench_file(tmp_path / "a")), str(sweep_files(tmp_path / "b"))]
    assert main(["compare", *files, "--force", "--out", str(tmp_path / "out")]) == 2
    assert "compare one kind" in capsys.readouterr().err


def test_what_is_saved_can_be_compared(tmp_path):
    measured = Bench(read(kj.shipped_bench(), BenchFigures))
    here = measured.save(tmp_path / "here")
    assert (tmp_path / "here" / "table.md").read_text() == measured.markdown()
    other = json.loads(here.read_text()) | {"machine": measured.figures.machine.to_dict() | {"processor": "<Other>"}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    found = kj.compare(here, tmp_path / "other.json")
    shown = found._repr_html_()
    assert "&lt;Other&gt;" in shown and "<Other>" not in shown and "<svg" in shown
    assert found.save(tmp_path / "both").stat().st_size > 1000
    assert (tmp_path / "both" / "compare.md").read_text() == found.markdown()


def test_the_shipped_bench_can_be_read():
    found = kj.compare(kj.shipped_bench())
    assert found.results[0].asked["target"]["name"] == "embedded target"


def test_nothing_is_nothing_to_compare():
    with pytest.raises(kj.InputError, match="name at least one result"):
        kj.compare()
