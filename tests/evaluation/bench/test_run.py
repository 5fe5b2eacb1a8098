"""A bench of a tiny pair by the command line, and what it refuses."""

import json

import jax
import numpy as np
import pytest
from msgspec import structs
from tiny_heads import IDS, headed_pair, write_head
from tiny_pairs import DRAFT_LENGTH, PROMPTS, VOCAB_SIZE, tiny_model, tiny_pair

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.drafters.heads import drafter_of
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench import limits, timing
from kljudge_jax.evaluation.bench import models as bench_models
from kljudge_jax.evaluation.bench import table as bench_table
from kljudge_jax.evaluation.bench.batch import Batch, Plan, pass_over, widths
from kljudge_jax.evaluation.bench.cost_model import CostModel, advice, expected_tokens
from kljudge_jax.evaluation.bench.figures import _cost_model, advised, known_rate, no_advice
from kljudge_jax.evaluation.bench.records import BenchFigures
from kljudge_jax.generation.config import configured
from kljudge_jax.models.shapes import SHAPES
from kljudge_jax.parallel.placement import Placement
from kljudge_jax.records import read

TINY = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def run(capsys, *words):
    """Exit status, stdout and stderr of one call."""
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def quick(monkeypatch):
    """Samples of one repetition, and a small square product: figures of no worth, made fast."""
    monkeypatch.setattr(limits, "matmul_size", lambda: 32)
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr("kljudge_jax.evaluation.bench.run.SHORTEST_SAMPLE", 0.0)
    monkeypatch.setattr("kljudge_jax.evaluation.bench.run.load_average", lambda: None)
    monkeypatch.setitem(SHAPES, "tiny", TINY)


@pytest.fixture
def benching(tiny_folders, tmp_path, quick):
    lines = [json.dumps({"prompt": f"text {i}", "answer": "a"}) for i in range(4)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    words = ["bench", "--target", tiny_folders.target, "--draft", tiny_folders.draft, "--max-new-tokens", "24"]
    words += ["--dtype", "float32"]
    words += [
        "--task",
        f"prompts:{tmp_path / 'problems.jsonl'}",
        "--split",
        "all",
        "--rounds",
        "2",
        "--draft-length",
        DRAFT_LENGTH,
    ]
    return [*words, "--out", tmp_path / "out"]


def test_a_bench_of_two_models_has_all_its_figures(capsys, benching, tmp_path):
    status, table, err = run(capsys, *benching, "--batch", "2", "--rules", "kl:4.0", "--profile")
    assert status == 0, err
    assert (tmp_path / "out" / "table.md").read_text() == table
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert (found["schema"], found["kind"], found["dtype"]) == (1, "bench", "float32")
    assert found["command"].startswith("kljudge bench --target ") and found["command"].split()[-1] == "--profile"
    assert found["machine"]["versions"]["jax"] == jax.__version__
    assert found["models"]["target"]["shape"]["num_layers"] == 2 and found["models"]["draft"]["parameters"] > 0
    assert found["limits"]["read"]["target"]["bytes_per_second"] > 0 and found["limits"]["matmul"]["size"] == 32
    assert found["limits"]["empty_call"]["seconds"] > 0
    assert found["peak_memory"]["bytes"] > 1e6
    for batch in found["batches"]:
        assert list(batch["target_pass"]) == ["1", "2", "3", "5"]
        for part in (*batch["target_pass"].values(), batch["draft"]):
            assert 0 < part["low"] <= part["seconds"] <= part["high"] and part["rounds"] == 2
            assert part["bytes_per_second"] > 0 and part["flops_share"] > 0
        assert batch["draft"]["step"]["seconds"] == pytest.approx(batch["draft"]["seconds"] / DRAFT_LENGTH)
        assert batch["prompts"]["n"] == 4 and batch["prompts"]["seconds"] > 0
        plain, judge = batch["rules"]
        assert [plain["rule"], judge["rule"]] == ["none", "kl:4.0"]
        assert plain["speed"] is None and plain["mean_acceptance_length"] == 1.0
        assert plain["tokens"] == 2 * 4 * 24 == plain["cycles"] and plain["occupancy"] == 1.0
        assert 1 < judge["mean_acceptance_length"] <= DRAFT_LENGTH + 1
        assert 0 < judge["occupancy"] <= 1 and judge["speed"]["rounds"] == 2
        assert {part["part"] for part in judge["profile"]} == {"draft", "target", "verdicts", "commit", "host"}
        for part in judge["profile"]:
            assert part["floor_seconds"] > 0
            assert part["x_floor"] == pytest.approx(part["seconds"] / part["floor_seconds"])
        model = judge["model"]
        assert 0 < model["acceptance_rate"] < 1 and len(model["by_draft_length"]) == DRAFT_LENGTH + 1
        fastest = int(np.argmax(model["by_draft_length"]))
        assert model["best_draft_lengths"]["rounds"] == 2
        if abs(model["error"]) > 0.2:  # of models this small, the host's work is most of a cycle
            assert model["recommended_draft_length"] is None and model["advice"].startswith("no advice: the cost model")
        else:
            assert model["recommended_draft_length"] == fastest
            assert ("does not pay" in model["advice"]) == (fastest == 0)
        assert model["error"] == pytest.approx(model["tokens_per_second"] / model["measured_tokens_per_second"] - 1)
    for words in ("| 2 | kl:4.0 @ 4 |", "target pass, 5 positions", "Batch 2, plain: where a cycle goes", "x floor"):
        assert words in table


@pytest.mark.slow
def test_a_bench_of_shapes_accepts_by_a_coin(capsys, tmp_path, quick):
    words = ["bench", "--shape", "tiny", "--draft-shape", "tiny:layers=1", "--acceptance", "0.7", "--rounds", "2"]
    words += ["--max-new-tokens", "24", "--prompt-tokens", "10", "--draft-length", "2", "--batch", "8"]
    status, table, err = run(capsys, *words, "--dtype", "bfloat16", "--out", tmp_path)
    assert status == 0, err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["dtype"] == "bfloat16" and found["task"] == "random:10"
    fixed = found["batches"][0]["rules"][1]
    assert fixed["rule"] == "synthetic:0.7" and fixed["model"]["acceptance_rate"] == pytest.approx(0.7)
    assert fixed["model"]["acceptance_length"] == pytest.approx(expected_tokens(0.7, 2))
    assert fixed["mean_acceptance_length"] == pytest.approx(expected_tokens(0.7, 2), rel=0.2)
    assert "1, 2" not in table and "where a cycle goes" not in table


def test_a_draft_may_be_a_shape_beside_a_real_target(quick):
    pair = bench_models.with_random_draft(tiny_pair(), "tiny:layers=1", Placement.parse(None))
    assert pair.draft.config.vocab_size == pair.target.config.vocab_size == VOCAB_SIZE
    assert (pair.draft.config.num_layers, pair.draft_name) == (1, "tiny:layers=1")


@pytest.fixture
def alone(benching):
    """A bench of a target without a draft."""
    return [word for i, word in enumerate(benching) if word != "--draft" and benching[i - 1] != "--draft"]


def test_a_target_alone_is_timed_plain_at_every_batch_size(capsys, alone, tmp_path):
    status, table, err = run(capsys, *alone, "--batch", "1,2", "--prompts", "1")
    assert status == 0, err
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert "draft" not in found["models"]
    assert [(batch["batch"], batch["draft"]) for batch in found["batches"]] == [(1, None), (2, None)]
    assert "What the cost model recommends" not in table


@pytest.mark.slow
def test_a_draft_that_no_model_writes_has_no_bandwidth(capsys, alone, tmp_path):
    status, _, err = run(capsys, *alone, "--prompts", "1", "--rules", "exact", "--drafter", "lookup")
    assert status == 0, err
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert found["batches"][0]["draft"]["seconds"] > 0 and found["batches"][0]["draft"]["bytes"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one target"),
        (["--target", "embedded", "--shape", "tiny"], "name one target"),
        (["--shape", "huge"], "choose a shape"),
        (["--shape", "tiny", "--draft", "embedded"], "--draft-shape"),
        (["--target", "embedded", "--draft-shape", "tiny"], "brings its own draft"),
        (["--target", "x", "--draft", "y", "--draft-shape", "tiny"], "not both"),
        (["--shape", "tiny", "--rules", "exact"], "--draft-shape"),
        (["--shape", "tiny", "--draft-shape", "tiny", "--acceptance", "1.5"], "1.5"),
        (["--target", "embedded", "--rules", "magic"], "magic"),
        (["--target", "embedded", "--batch", "1,x"], "whole numbers"),
        (["--target", "embedded", "--batch", "0"], "start at 1"),
        (["--target", "embedded", "--rounds", "0"], "start at 1"),
        (["--target", "embedded", "--max-new-tokens", "9"], "at least 10"),
        (["--target", "embedded", "--draft-length", "adaptive:often"], "adaptive"),
    ],
)
def test_a_bench_that_cannot_be_is_refused(capsys, tmp_path, monkeypatch, quick, words, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "bench", *words)
    assert status == 2
    assert out == "" and message in err
    assert len(err.strip().splitlines()) == 1


def test_models_that_do_not_fit_are_refused_with_the_numbers(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_models, "usable_memory", lambda mesh: 100_000_000_000)
    words = ["--shape", "llama-3.1-70b", "--draft-shape", "llama-3.2-1b", "--dtype", "bfloat16", "--out", tmp_path]
    status, _, err = run(capsys, "bench", *words)
    assert status == 2
    assert "weights of 143.6 GB" in err and "the 100.0 GB that are free" in err and "layers" in err


def test_what_a_device_holds_of_random_models_is_counted_by_its_share(monkeypatch):
    made = []
    monkeypatch.setattr(bench_models, "random_model", lambda config, *_: made.append(config) or tiny_model())
    plan = Plan(("none", "exact"), batches=(1, 8, 32))
    pair = "llama-3.1-70b", "llama-3.1-8b", "bfloat16", Placement.parse("tensor=8"), plan, 128
    monkeypatch.setattr(bench_models, "usable_memory", lambda mesh: 80_000_000_000)
    bench_models.random_pair(*pair)
    assert len(made) == 2
    monkeypatch.setattr(bench_models, "usable_memory", lambda mesh: 10_000_000_000)
    with pytest.raises(InputError, match=r"10\.0 GB that are free"):
        bench_models.random_pair(*pair)
    assert len(made) == 2


def test_passes_are_timed_at_a_few_widths():
    assert widths(8) == [1, 2, 3, 5, 9]
    assert widths(5) == [1, 2, 3, 5, 6]
    assert widths(1) == [1, 2]
    assert widths(0) == [1]


def test_a_batch_asks_for_some_prompts_twice_where_there_are_too_few(monkeypatch):
    monkeypatch.setattr(Batch, "_start", lambda self, rule, prompts, draw, length: _NoRun())
    assert Batch(None, ["a", "b", "c"], Plan(("none",)), 2).groups == [["a", "b"]]
    assert Batch(None, ["a", "b", "c"], Plan(("none",)), 4).groups == [["a", "b", "c", "a"]]
    assert Batch(None, ["a", "b", "c"], Plan(("none",)), 1).groups == [["a"], ["b"], ["c"]]


class _NoRun:
    draft = None

    class shape:
        draft_length = 0


def test_a_busy_machine_is_said_to_be_one():
    found = read(kj.shipped_bench(), BenchFigures)
    found = structs.replace(found, load_average=(None, 3.5), machine=structs.replace(found.machine, cores=2))
    assert "load average 4 on 2 cores" in bench_table._busy(found)
    for load in ([2.9, 1.0], [None, None]):
        assert bench_table._busy(structs.replace(found, load_average=tuple(load))) == ""


def test_no_length_is_advised_on_a_busy_machine_or_by_a_model_that_is_far_off():
    assert "busy" in no_advice(0.0, True)
    assert "-31 % from what was measured" in no_advice(-0.31, False) and no_advice(0.21, False)
    assert no_advice(0.2, False) == no_advice(-0.2, False) == ""


def test_advice_comes_with_its_spread_and_with_what_was_measured():
    model = CostModel(0.1, {1: 1.0, 9: 1.2}, {0: 0.0})
    speed = {"ratio": 1.5, "low": 1.4, "high": 1.6}
    text = advised(model, 0.8, [4, 6, 5], 8, speed)
    assert text.startswith(advice(model, 0.8)) and "4 to 6 in single rounds" in text
    assert "measured with 8: 1.50 times plain (1.40 to 1.60)" in text
    assert "5 in every round" in advised(model, 0.8, [5, 5], 8, speed)


def test_only_a_coin_says_its_rate_beforehand():
    plan = Plan(("none",))
    assert known_rate("synthetic:0.25", plan) == 0.25
    assert known_rate("random:0.25", plan) is None and known_rate("none", plan) is None


def test_a_bench_with_a_head_names_it_and_times_what_it_is_told(capsys, benching, tmp_path, tiny_folders):
    target = kj.ModelPair.from_pretrained(tiny_folders.target, dtype="float32").target
    head = write_head(tmp_path / "head", target)
    words = [head if word == tiny_folders.draft else word for word in benching]
    status, table, err = run(capsys, *words, "--rules", "exact", "--profile")
    assert status == 0, err
    found = read(tmp_path / "out" / "bench.json", BenchFigures)
    rows = f"{len(IDS)} of 257 tokens"
    assert found.dtype == f"float32, draft float32, EAGLE-3 over layers 0, 1, 2, {rows}" and found.dtype in table
    draft = found.models["draft"]
    assert (draft.name, draft.family) == (str(head), "EAGLE-3")
    assert draft.shape["layers"] == [0, 1, 2] and draft.shape["draft_vocab"] == len(IDS)
    assert draft.bytes == 4 * (draft.parameters + len(IDS)) and draft.shape["num_layers"] == 1
    (batch,) = found.batches
    assert batch.draft.step.seconds > 0 and batch.draft.flops_share > 0
    assert batch.observe.seconds > 0 and batch.observe.floor_seconds > 0 and "| observe (head) |" in table
    plain, exact = batch.rules
    parts = [part.part for part in exact.profile]
    assert parts == ["draft", "target", "verdicts", "observe", "commit", "host"]
    assert all(part.floor_seconds > 0 for part in exact.profile)
    assert [part.part for part in plain.profile] == ["target", "verdicts", "commit", "host"]
    seconds = {part.part: part.seconds for part in exact.profile}
    costs = exact.model
    assert costs.draft_step_seconds == pytest.approx(batch.draft.step.seconds, rel=1e-6)
    assert costs.pass_seconds > seconds["verdicts"] + seconds["observe"]


def test_what_a_head_is_told_costs_as_much_at_any_length():
    """The cost model of a head: a constant from one draft token on, beside what grows with the draft."""
    plan = Plan(
        ("none", "exact"), config=configured("bench", None, {"max_new_tokens": 24, "draft_length": 4}), rounds=1
    )
    batch = Batch(headed_pair(), PROMPTS, plan, 1)
    seconds = {"none, verdicts": 1.0, "none, commit": 1.0, "exact, verdicts": 4.0, "exact, commit": 2.0}
    seconds |= {"draft": 8.0, "observe": 3.0} | {pass_over(width): 10.0 for width in batch.widths}
    timings = {batch.named(name): timing.Timing((value,), 1, 0.0) for name, value in seconds.items()}
    model = _cost_model(batch, "exact", timings)
    assert [model.pass_seconds(k) for k in range(5)] == [12.0, 16.0, 17.0, 18.0, 19.0]
    assert model.draft_step == 2.0


@pytest.mark.slow
def test_a_draft_may_be_the_shape_of_a_head(quick):
    pair = tiny_pair(num_layers=4)
    made = bench_models.with_random_draft(pair, "eagle3:vocab=64", Placement.parse(None), 8)
    assert made.precision == "float32, draft int8 (float32), EAGLE-3 over layers 2, 2, 1, 64 of 257 tokens"
    ids = np.asarray(made.draft.ids[...])
    assert len(set(ids.tolist())) == 64 and ids[0] == 0 and ids.max() < VOCAB_SIZE and (np.diff(ids) > 0).all()
    assert drafter_of(made.draft).layers == (2, 2, 1)
    with pytest.raises(InputError, match="an N from 1 to 257"):
        bench_models.with_random_draft(pair, "eagle3:vocab=258", Placement.parse(None))


@pytest.mark.slow
def test_a_bench_of_a_head_by_its_shape(capsys, tmp_path, quick, monkeypatch):
    monkeypatch.setitem(SHAPES, "four", TINY | {"num_hidden_layers": 4})
    words = ["bench", "--shape", "four", "--draft-shape", "eagle3:vocab=48", "--acceptance", "0.7", "--rounds", "2"]
    words += ["--max-new-tokens", "24", "--prompt-tokens", "10", "--draft-length", "2", "--batch", "8"]
    status, _, err = run(capsys, *words, "--dtype", "bfloat16", "--out", tmp_path)
    assert status == 0, err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["models"]["draft"]["family"] == "EAGLE-3" and "48 of 96 tokens" in found["dtype"]
    fixed = found["batches"][0]["rules"][1]
    assert fixed["mean_acceptance_length"] == pytest.approx(expected_tokens(0.7, 2), rel=0.2)
