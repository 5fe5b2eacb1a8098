"""Commands with a head as the draft: what they write names it, and what it cannot do is refused in one line."""

import json
import shutil

import numpy as np
import pytest
from tiny_heads import IDS, write_head
from tiny_pairs import tiny_model

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.evaluation.memory_table import planned
from kljudge_jax.generation.memory_plan import Workload, plan_memory
from kljudge_jax.models.leaves import parameter_bytes

SAID = f"float32, draft float32, EAGLE-3 over layers 0, 1, 2, {len(IDS)} of 257 tokens"


@pytest.fixture(scope="module")
def head(tiny_folders, tmp_path_factory):
    pair = kj.ModelPair.from_pretrained(tiny_folders.target, dtype="float32")
    return write_head(tmp_path_factory.mktemp("head") / "head", pair.target)


@pytest.fixture
def words(tiny_folders, head):
    return ["--target", tiny_folders.target, "--draft", head, "--dtype", "float32"]


def run(capsys, *words):
    status = main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize("length", ["4", "adaptive:maximum=4"])
@pytest.mark.first_case
def test_generate_writes_the_plain_answer(capsys, words, length):
    asked = ["generate", *words, "--max-new-tokens", "24", "--raw", "--json", "hello"]
    answers = []
    for rule in (["--verifier", "none"], ["--verifier", "exact", "--draft-length", length]):
        status, out, err = run(capsys, *asked, *rule)
        assert status == 0, err
        answers.append(json.loads(out))
    assert answers[0]["text"] == answers[1]["text"]


@pytest.mark.slow
def test_a_sweep_names_the_head_and_goes_on_with_no_other(capsys, words, tiny_folders, tmp_path):
    lines = [json.dumps({"prompt": f"text {i}", "answer": "a"}) for i in range(4)]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    asked = ["--task", f"prompts:{tmp_path / 'problems.jsonl'}", "--split", "all", "--n", "4", "--max-new-tokens", "24"]
    asked += ["--draft-lengths", "2,4", "--rules", "none,exact,kl:4.0", "--examples", "0", "--out", tmp_path / "out"]
    status, _, err = run(capsys, "sweep", *words, *asked)
    assert status == 0, err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["dtype"] == SAID and len(plan["weights"]["draft"]) == 16
    cells = json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]
    assert {(cell["rule"], cell["draft_length"]) for cell in cells} > {("exact", 2), ("exact", 4), ("kl:4.0", 4)}
    assert all(cell["same_text"] == 4 for cell in cells if cell["rule"] == "exact")
    assert SAID in (tmp_path / "out" / "report.md").read_text()
    assert run(capsys, "sweep", *words, *asked)[0] == 0
    model = [tiny_folders.draft if word == words[3] else word for word in words]
    status, _, err = run(capsys, "sweep", *model, *asked)
    assert status == 2 and "holds another sweep" in err
    status, _, err = run(capsys, "sweep", *words, *asked[:-1], tmp_path / "more", "--rules", "none,draft")
    assert status == 2 and "the cells draft decode with the draft alone, and an EAGLE-3 head cannot" in err


@pytest.mark.slow
def test_a_calibration_runs_with_a_head(capsys, words, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"text {i}\n" for i in range(8)))
    asked = ["--task", f"prompts:{tmp_path / 'prompts.txt'}", "--without-answers", "--split", "all", "--n", "8"]
    asked += ["--batch", "8", "--draft-length", "4", "--out", tmp_path / "out", "--budget", "40"]
    asked += ["--max-new-tokens", "24", "--rule", "kl:confidence=1.0", "--thresholds=-2,-1"]
    status, out, err = run(capsys, "calibrate", *words, *asked)
    assert status == 0 and "Promised: kl:confidence=1.0,threshold=-1" in out, err
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["dtype"] == SAID


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["generate", "PAIR", "--draft-vocab", "IDS", "x"], "is a head with a vocabulary of its own"),
        (["mine", "PAIR", "--task", "arithmetic", "--n", "2", "--out", "OUT"], "name a draft model of the same target"),
        (["convert", "HEAD", "OUT"], "is a head (EAGLE-3), which is no model of its own"),
        (["plan", "--target", "HEAD"], "is an EAGLE-3 head, which is no model of its own: give it as the draft"),
        (["plan", "--target", "llama-3.2-1b", "--draft", "HEAD"], "is no EAGLE-3 head of this target"),
        (["plan", "--target", "TARGET", "--draft", "HEAD", "--draft-vocab", "9"], "is a head of its own: leave it out"),
        (["generate", "--target", "TARGET", "--draft", "ABOVE", "x"], "did you mean ABOVE/head, an EAGLE-3 head?"),
        (["plan", "--target", "TARGET", "--draft", "ABOVE"], "did you mean ABOVE/head, an EAGLE-3 head?"),
        (["bench", "--target", "HEAD"], "is a head (EAGLE-3), which is no model of its own"),
    ],
)
def test_what_a_head_cannot_do_is_one_line_and_status_2(capsys, words, tiny_folders, head, tmp_path, asked, says):
    (tmp_path / "ids.txt").write_text("1\n2\n")
    names = {"HEAD": [head], "TARGET": [tiny_folders.target], "PAIR": words, "OUT": [tmp_path / "out"]}
    names["IDS"], names["ABOVE"] = [tmp_path / "ids.txt"], [tmp_path / "trained"]
    shutil.copytree(head, tmp_path / "trained" / "head")
    status, _, err = run(capsys, *(word for name in asked for word in names.get(name, [name])))
    says = says.replace("ABOVE", str(tmp_path / "trained"))
    assert status == 2 and says in err and err.count("\n") == 1


def test_the_packages_pair_is_planned_by_its_name(capsys):
    for draft in ("embedded", "embedded:head"):
        pair = kj.ModelPair.embedded(draft=draft)
        models = planned("embedded", draft, None, "float32")
        plan = plan_memory(*models, Workload(batch=1))
        assert (plan.target_weights, plan.draft_weights) == (parameter_bytes(pair.target), parameter_bytes(pair.draft))
        # The models take 512 tokens: the prompt that is planned leaves room for the answer.
        status, out, _ = run(capsys, "plan", "--target", "embedded", "--draft", draft, "--memory", "1")
        assert status == 0 and "a batch of 8 fits" in out
        asked = ["--prompt-tokens", "256", "--memory", "1"]
        assert run(capsys, "plan", "--target", "embedded", "--draft", draft, *asked)[1] == out
    status, _, err = run(capsys, "plan", "--target", "embedded", "--draft", "embedded:other")
    assert status == 2 and "the package has the drafts embedded and embedded:head" in err
    status, _, err = run(capsys, "plan", "--target", "embedded", "--max-new-tokens", "512")
    assert status == 2 and "make 513, and the models take 512" in err


def test_a_head_is_no_target_and_no_model(head, tiny_folders):
    pair = kj.ModelPair.from_pretrained(tiny_folders.target, head, dtype="float32")
    with pytest.raises(kj.InputError, match="the target is an EAGLE-3 head, which is no model of its own"):
        kj.ModelPair(pair.draft)
    with pytest.raises(kj.InputError, match="an EAGLE-3 head reads the states of a target"):
        kj.score(pair.draft, np.zeros((1, 4), np.int32))


def test_a_plan_of_a_folder_is_of_what_lies_in_it(capsys, head, tiny_folders):
    pair = kj.ModelPair.from_pretrained(tiny_folders.target, head, dtype="float32")
    models = planned(str(tiny_folders.target), str(head), None, "float32")
    assert plan_memory(*models, Workload(batch=1)).draft_weights == parameter_bytes(pair.draft)
    status, out, _ = run(capsys, "plan", "--target", tiny_folders.target, "--draft", head, "--memory", "1")
    assert status == 0 and "a batch of 8 fits" in out


def test_a_head_on_the_hub_is_planned_by_a_folder_or_a_shape(capsys, head, tiny_folders, monkeypatch):
    monkeypatch.setattr("kljudge_jax.models.named_config.download", lambda *_, **__: head)
    status, _, err = run(capsys, "plan", "--target", tiny_folders.target, "--draft", "someone/head")
    assert status == 2 and "by a folder with its weights" in err and "eagle3:vocab=32000" in err


def test_loading_is_refused_by_what_a_head_takes_and_no_more(capsys, words, monkeypatch):
    """Weights, caches and logits of a head, and not of a model with two tables of the whole vocabulary."""
    target = tiny_model()
    held = []

    def noted(ours, theirs, workload, free, **_):
        held.append(plan_memory(ours, theirs, workload))

    monkeypatch.setattr("kljudge_jax.generation.memory_plan.check_fits", noted)
    assert run(capsys, "generate", *words, "--max-new-tokens", "4", "--raw", "hello")[0] == 0
    layer = 2 * 16 * 64 + 32 * 16 + 3 * 16 * 24 + 3 * 16
    assert held[0].draft_weights == 4 * (3 * 16 * 16 + layer + len(IDS) * 16 + 16 + len(IDS))
    assert held[0].target_weights == parameter_bytes(target)


@pytest.mark.slow
def test_the_embedded_head_is_asked_for_by_name(capsys, tiny_folders):
    asked = ["generate", "--target", "embedded", "--max-new-tokens", "24", "--raw", "--json", "Tom has 3 red pens."]
    answers = []
    for words in (["--verifier", "none"], ["--draft", "embedded:head", "--verifier", "exact", "--draft-length", "4"]):
        status, out, err = run(capsys, *asked, *words)
        assert status == 0, err
        answers.append(json.loads(out))
    assert answers[0]["text"] == answers[1]["text"]
    for words, said in [
        (["--target", "embedded", "--draft", "embedded:tail"], "drafts embedded and embedded:head"),
        (["--target", tiny_folders.target, "--draft", "embedded:head"], "drafts for --target embedded alone"),
        (["--target", "embedded", "--draft", "embedded:head", "--draft-vocab", "x.txt"], "vocabulary of its own"),
        (["--target", "embedded", "--draft", "embedded:head", "--tokenizer", "x"], "brings its own tokenizer"),
        (
            ["--target", "embedded", "--draft", "embedded:head", "--verifier", "judge:embedded,threshold=0.2"],
            "draft with a model",
        ),
    ]:
        status, out, err = run(capsys, "generate", *words, "--raw", "Tom has 3 red pens.")
        assert status == 2 and said in err and err.count("\n") == 1, err


def test_a_head_of_ones_own_drafts_for_the_embedded_target(capsys, head):
    """One of another target, which is refused by all that is wrong."""
    status, _, err = run(capsys, "generate", "--target", "embedded", "--draft", head, "--raw", "Tom has 3 red pens.")
    assert status == 2 and "is no EAGLE-3 head of this target" in err and err.count("\n") == 1
