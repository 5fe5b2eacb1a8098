"""`kljudge perplexity` on the embedded target."""

import json
import math

import pytest
from gguf import GGMLQuantizationType
from tiny_gguf import byte_tokenizer, write_model
from tiny_hf import make_hf_model

from kljudge_jax.cli import main
from kljudge_jax.tasks import load_task


def test_precisions_stand_beside_the_first(tmp_path, capsys):
    text = tmp_path / "text.txt"
    problem = load_task("arithmetic").problems(n=1)[0]
    text.write_text(problem.prompt + problem.solution, encoding="utf-8")
    words = ["perplexity", "--target", "embedded", "--text", str(text), "--precisions", "float32,int8,int4"]
    assert main([*words, "--tokens", "100", "--window", "256", "--out", str(tmp_path / "out")]) == 0
    kept = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    first, eight, four = kept["rows"]
    assert 10 < kept["tokens"] <= 100 and kept["target"] == "embedded" and "jax" in json.dumps(kept["machine"])
    assert first["weight_bytes"] > eight["weight_bytes"] > four["weight_bytes"]
    for row in kept["rows"]:
        assert row["perplexity"] == pytest.approx(math.exp(sum(row["nats"]) / kept["tokens"]))
    assert 0 < abs(eight["perplexity"] / first["perplexity"] - 1) < 0.1 and four["perplexity"] != eight["perplexity"]
    shown = capsys.readouterr().out
    assert "int4 (float32)" in shown and "float32" in (tmp_path / "out" / "perplexity.md").read_text()


@pytest.mark.slow
def test_the_bits_of_a_file_stand_beside_its_floats(tmp_path, capsys):
    model = make_hf_model("qwen2", vocab_size=257, hidden_size=64, intermediate_size=96)
    path = write_model(tmp_path / "tiny.gguf", model, GGMLQuantizationType.Q5_0, byte_tokenizer())
    text = tmp_path / "text.txt"
    text.write_text("Ann has 3 apples and buys 4 more. " * 4, encoding="utf-8")
    words = ["perplexity", "--text", str(text), "--window", "64", "--out", str(tmp_path / "out")]
    assert main([*words, "--target", str(path), "--precisions", "float32,file"]) == 0
    wide, kept = json.loads((tmp_path / "out" / "perplexity.json").read_text())["rows"]
    assert kept["weight_bytes"] < 0.3 * wide["weight_bytes"]
    assert 0 < abs(kept["perplexity"] / wide["perplexity"] - 1) < 0.2
    assert "the file's bits (" in capsys.readouterr().out
    assert main([*words, "--target", "embedded", "--precisions", "file"]) == 2
    assert "has no quantized matrix" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mesh_changes_no_figure(tmp_path):
    text, found = tmp_path / "text.txt", []
    text.write_text("Ann has 3 apples and buys 4 more. " * 20, encoding="utf-8")
    for mesh in ([], ["--mesh", "data=2,tensor=2", "--axes", "vocab=none"]):
        out = tmp_path / str(len(mesh))
        words = ["perplexity", "--target", "embedded", "--text", str(text), "--precisions", "float32", "--tokens"]
        assert main([*words, "60", "--window", "32", "--out", str(out), *mesh]) == 0
        found.append([row["perplexity"] for row in json.loads((out / "perplexity.json").read_text())["rows"]])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_what_cannot_be_done_is_said(tmp_path, capsys):
    text = tmp_path / "text.txt"
    for options, said in (
        (["--precisions", "int3"], "--precisions are of"),
        (["--window", "0"], "start at 1"),
        ([], "cannot be read"),
    ):
        assert main(["perplexity", "--target", "embedded", "--text", str(text), *options]) == 2
        assert said in capsys.readouterr().err
    text.write_text("", encoding="utf-8")
    assert main(["perplexity", "--target", "embedded", "--text", str(text), "--out", str(tmp_path)]) == 2
    assert "the text is empty" in capsys.readouterr().err
