"""`--template-arg` and `--section-ids` of the commands: what is read, recorded, gone on with and refused."""

import json
import shutil

import pytest
from command_lines import commands, parsed

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.commands.options import decoding_config
from kljudge_jax.evaluation.sweep.claim import read_claim

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}abc{% endif %}|"
)
THINK, DIRECT = ["--template-arg", "enable_thinking=true"], ["--template-arg", "enable_thinking=false"]


@pytest.fixture(scope="module")
def models(tiny_folders, tmp_path_factory):
    """The tiny pair over bytes, whose target's tokenizer has a chat template."""
    target = tmp_path_factory.mktemp("chat") / "target"
    shutil.copytree(tiny_folders.target, target)
    (target / "chat_template.jinja").write_text(TEMPLATE)
    return ["--target", str(target), "--draft", str(tiny_folders.draft), "--max-new-tokens", "12"]


def run(capsys, *words):
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_commands_that_ask_models_have_them():
    both = {"generate", "sweep", "bench", "calibrate", "evaluate"}
    for name, command in commands().items():
        options = {param.name for param in command.params}
        assert ("section_ids" in options) == (name in both)
        assert ("template_args" in options) == (name in {*both, "mine", "train-draft"})


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], {}),
        (["--section-ids", "auto"], {}),
        (["--section-ids", "none"], {"section_ids": "none"}),
        (["--section-ids", "151667,151668"], {"section_ids": [151667, 151668]}),
        (["--section-ids", "<think>,</think>"], {"section_ids": ["<think>", "</think>"]}),
        ([*DIRECT, "--template-arg", "day=Monday"], {"template_args": {"day": "Monday", "enable_thinking": False}}),
    ],
)
def test_options_are_read_as_the_fields_they_set(words, found):
    asked = decoding_config(parsed(["generate", "--target", "big", *words])).to_json()
    assert {name: value for name, value in asked.items() if name in ("section_ids", "template_args")} == found


def test_generate_tells_the_template_and_says_so(capsys, models):
    words = ["generate", *models, "--verifier", "none", "--json", "one"]
    plain, think, direct = (json.loads(run(capsys, *words, *more)[1]) for more in ([], THINK, DIRECT))
    assert plain["tokens"] == think["tokens"] != direct["tokens"]
    assert "template_args" not in plain and direct["template_args"] == {"enable_thinking": False}
    pair = kj.ModelPair.from_pretrained(models[1], models[3])
    assert kj.generate(pair, "oneabc|", verifier=None, max_new_tokens=12).text[0] == direct["text"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*DIRECT, "--raw"], "--template-arg needs a chat model, without --raw"),
        (["--template-arg", "thinking=false"], "the tokenizer's chat template does not read thinking: leave it out"),
        (["--template-arg", "thinking"], "given as name=value, such as enable_thinking=false, not 'thinking'"),
        (["--section-ids", "<think>"], "two ids or two texts such as <think>,</think>"),
        (["--section-ids", "<think>,</think>"], "'<think>', which is no single token of this tokenizer"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, models, words, said):
    status, out, err = run(capsys, "generate", *models, "--verifier", "exact", "one", *words)
    assert (status, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_of_other_arguments_is_another(capsys, models, tmp_path):
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"question": q, "answer": "#### 2"}) + "\n" for q in "ab"))
    words = ["sweep", *models, "--task", f"gsm8k:{tmp_path / 'some.jsonl'}", "--split", "all", "--n", "2"]
    words += ["--rules", "none,exact", "--draft-lengths", "4", "--batch", "2", "--out", tmp_path / "out"]
    assert run(capsys, *words, *DIRECT)[0] == 0
    assert read_claim(tmp_path / "out" / "plan.json").plan.template_args == {"enable_thinking": False}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["plan"]["template_args"] == {"enable_thinking": False}
    records = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    pair = kj.ModelPair.from_pretrained(models[1], models[3])
    problems = kj.load_task(f"gsm8k:{tmp_path / 'some.jsonl'}").problems(split="all", n=2, seed=0)
    texts = [f"{problem.prompt[0]['content']}abc|" for problem in problems]
    by_hand = kj.generate(pair, texts, verifier=None, max_new_tokens=12).text
    assert [record["text"] for record in records if record["rule"] == "none"] == by_hand
    assert run(capsys, *words, *DIRECT)[0] == 0  # gone on with
    for other in ([], THINK):
        status, _, err = run(capsys, *words, *other)
        assert status == 2 and "holds another sweep (its plan (template_args) differs)" in err
    # A plan as it was written before there were any is that of no arguments.
    old = json.loads((tmp_path / "out" / "plan.json").read_text())
    del old["plan"]["template_args"], old["plan"]["section_ids"]
    (tmp_path / "out" / "plan.json").write_text(json.dumps(old))
    assert run(capsys, *words)[0] == 0


@pytest.mark.slow
def test_the_harness_is_told_of_chats_alone(capsys, models, tmp_path):
    words = ["evaluate", *models, "--harness-tasks", "sums", *DIRECT, "--out", tmp_path]
    status, _, err = run(capsys, *words)
    assert status == 2 and "--template-arg is read by a chat's template: add --chat" in err
