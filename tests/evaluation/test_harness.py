"""Tasks of lm-evaluation-harness on our decoding: local ones, with no network."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
from tiny_pairs import byte_tokenizer, tiny_pair

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.errors import InputError

# Read when `datasets` is imported.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# What the harness and the packages it stands on complain of is not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def needs_harness():
    pytest.importorskip("lm_eval")
    from kljudge_jax.evaluation import harness

    return harness


def instance(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def pair():
    """A tiny pair over bytes."""
    return tiny_pair(tokenizer=byte_tokenizer(), eos=(256,))


@pytest.fixture(scope="module")
def problems():
    return kj.load_task("arithmetic").problems(n=20)


@pytest.fixture(scope="module")
def folder(problems, tmp_path_factory):
    """Two tasks as the harness reads them: one that writes, and one that chooses among answers."""
    root = tmp_path_factory.mktemp("tasks")
    lines = [
        {"question": p.prompt, "answer": p.answer, "choices": [p.solution, "#### 0", "no"], "right": 0}
        for p in problems
    ]
    (root / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {root / "sums.jsonl"}}}, cache_dir: {tmp_path_factory.mktemp("cache")}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
    (root / "sums.yaml").write_text(
        f"task: sums{shared}"
        r"""output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n\n", "<eos>"], max_gen_toks: 160, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: '(-?\d+)', group_select: -1}, {function: take_first}]
"""
    )
    (root / "choices.yaml").write_text(
        f"task: choices{shared}"
        """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
    )
    return root


def test_both_tasks_run_and_agree_with_our_own_checker(folder, problems, tmp_path, capsys, monkeypatch):
    needs_harness()
    words = ["evaluate", "--target", "embedded", "--harness-tasks", "sums,choices", "--include-path", str(folder)]
    assert main([*words, "--rules", "none,kl:0.4", "--batch", "20", "--out", str(tmp_path)]) == 0
    assert "| sums | exact_match (last) | kl:0.4 | 20 |" in capsys.readouterr().out
    rows = {(row["task"], row["rule"]): row for row in json.loads((tmp_path / "harness.json").read_text())["rows"]}
    embedded, task = kj.ModelPair.embedded(), kj.load_task("arithmetic")
    for rule in ("none", "kl:0.4"):
        out = kj.generate(embedded, [p.prompt for p in problems], verifier=rule, max_new_tokens=160, stop="\n\n")
        right = [task.check(p, text) for p, text in zip(problems, out.text, strict=True)]
        row = rows["sums", rule]
        assert row["value"] == sum(right) / 20 and list(row["cases"].values()) == right
        assert (row["tokens"], row["cycles"]) == (out.stats.tokens, out.stats.cycles)
    assert rows["sums", "kl:0.4"]["p"] is not None
    assert rows["choices", "none"]["value"] == rows["choices", "kl:0.4"]["value"] > 0.9
    assert rows["choices", "kl:0.4"]["cycles"] == 0
    table = (tmp_path / "harness.md").read_text()
    monkeypatch.setattr("kljudge_jax.evaluation.harness.KLJudgeLM", None)  # what is finished is not answered again
    assert main([*words, "--rules", "none,kl:0.4", "--batch", "20", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "harness.md").read_text() == table


def test_a_choice_is_scored_by_the_target_whatever_the_order(pair):
    lm = needs_harness().KLJudgeLM(pair, batch_size=3)
    asked = [("ab", "cde"), ("", "xyz"), ("a longer context", " q"), ("b", "long continuation")]
    answers = lm.loglikelihood([instance("loglikelihood", *one) for one in asked], disable_tqdm=True)
    encode = byte_tokenizer()
    for (context, continuation), (total, _) in zip(asked, answers, strict=True):
        before = encode(context)["input_ids"] or [256]
        after = encode(continuation)["input_ids"]
        logits = np.asarray(kj.score(pair.target, np.array([before + after]))[0][0], np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = sum(logprobs[len(before) - 1 + i, token] for i, token in enumerate(after))
        assert total == pytest.approx(wanted, abs=2e-4)


def test_rolling_windows_are_the_harness_own(pair):
    harness = needs_harness()
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for count in (0, 1, 7, 8, 9, 23):
        own = harness.windows(list(range(count)), 99, 8)
        theirs = get_rolling_token_windows(list(range(count)), prefix_token=99, max_seq_len=8, context_len=1)
        assert [(list(a), list(b)) for a, b in own] == [make_disjoint_window(window) for window in theirs]

    lm = harness.KLJudgeLM(pair, max_length=16)
    text = "a text of more than one window, and another that is short"
    whole, short = lm.loglikelihood_rolling([instance("x", text), instance("x", "tiny")], disable_tqdm=True)
    assert whole < 3 * short < 0
    ((alone, _),) = lm.loglikelihood([instance("loglikelihood", "", "tiny")], disable_tqdm=True)
    assert short == pytest.approx(alone, abs=1e-4)


def test_answers_come_back_in_their_order_each_with_its_settings(pair):
    lm = needs_harness().KLJudgeLM(pair, "exact", draft_length=4, batch_size=2)
    greedy, sampled = {"max_gen_toks": 9}, {"max_gen_toks": 9, "do_sample": True, "temperature": 1.5}
    asked = [("ab", greedy), ("ab", sampled), ("a much longer one", greedy), ("ab", sampled), ("c", greedy)]
    answers = lm.generate_until([instance("generate_until", *one) for one in asked], disable_tqdm=True)
    for i in (0, 2, 4):
        assert answers[i] == kj.generate(pair, asked[i][0], verifier=None, max_new_tokens=9).text[0]
    assert answers[1] != answers[3]  # the same request twice is two draws
    assert lm.stats.tokens == sum(row.tokens for row in lm.stats.rows) and len(lm.stats.rows) == 5
    other = needs_harness().KLJudgeLM(pair, "exact", draft_length=4, batch_size=5)
    assert other.generate_until([instance("generate_until", *one) for one in asked], disable_tqdm=True) == answers


def test_a_long_prompt_loses_its_beginning(pair):
    lm = needs_harness().KLJudgeLM(pair, max_length=20)
    (answer,) = lm.generate_until([instance("x", "0123456789abcdef", {"max_gen_toks": 8})], disable_tqdm=True)
    assert answer == kj.generate(pair, "456789abcdef", verifier=None, max_new_tokens=8).text[0]
    with pytest.raises(InputError, match="max_gen_toks"):
        lm.generate_until([instance("x", "0", {"max_gen_toks": 20})], disable_tqdm=True)


def test_a_chat_is_filled_into_the_template(pair):
    lm = needs_harness().KLJudgeLM(pair)
    with pytest.raises(InputError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "hi"}])
    lm.tokenizer = byte_tokenizer()
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]"
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]) == "[user]hi[answer]"
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    assert isinstance(lm.tokenizer_name, str)


def test_template_arguments_without_a_template_are_refused(pair):
    with pytest.raises(InputError, match=r"the tokenizer has none: leave them out$"):
        needs_harness().KLJudgeLM(pair, template_args={"enable_thinking": False})


def test_template_arguments_are_read_by_the_chat(pair):
    told = dataclasses.replace(pair, tokenizer=byte_tokenizer())
    told.tokenizer.chat_template = "{{ messages[0].content }}{% if brief %}ab{% endif %}"
    lm = needs_harness().KLJudgeLM(told, template_args="brief=true")
    filled = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert filled == "hiab" and lm.get_model_info()["template_args"] == "{'brief': True}"
    (answer,) = lm.generate_until([instance("x", filled, {"max_gen_toks": 8})], disable_tqdm=True)
    assert answer == kj.generate(pair, "hiab", verifier=None, max_new_tokens=8).text[0]
    with pytest.raises(InputError, match="does not read enable_thinking"):
        needs_harness().KLJudgeLM(told, template_args={"enable_thinking": False}).apply_chat_template(
            [{"role": "user", "content": "hi"}]
        )


def test_the_harness_makes_it_by_name(tiny_folders):
    needs_harness()
    from lm_eval.api.registry import get_model

    words = f"target={tiny_folders.target},draft={tiny_folders.draft},verifier=kl:0.4,draft_length=4"
    lm = get_model("kljudge").create_from_arg_string(words, {"batch_size": 2, "device": None})
    assert lm.batch_size == 2 and lm.get_model_info()["verifier"] == "kl:0.4"
    placed = {"target": "embedded", "mesh": "data=2,tensor=2", "draft_axes": "replicated", "bits": 8}
    spread = get_model("kljudge").create_from_arg_obj(placed).pair
    assert spread.target.layout.ways("vocab") == 2 and spread.draft.layout.ways("vocab") == 1
    assert spread.precision.startswith("int8")
    with pytest.raises(InputError, match="'speed' is no argument"):
        get_model("kljudge").create_from_arg_string(words + ",speed=1")
    with pytest.raises(InputError, match="must name the target"):
        get_model("kljudge").create_from_arg_obj({})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch"), ({"max_length": 1}, "max_length"), ({"max_new_tokens": 0}, "max_new_tokens")],
)
def test_numbers_out_of_range_are_refused(pair, options, message):
    with pytest.raises(InputError, match=message):
        needs_harness().KLJudgeLM(pair, **options)


def test_an_unknown_task_is_one_line_and_exit_2(capsys, folder):
    needs_harness()
    words = ["evaluate", "--target", "embedded", "--harness-tasks", "no_such_task", "--include-path", str(folder)]
    assert main(words) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no task 'no_such_task'" in err


def test_without_the_harness_one_line_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "kljudge_jax.evaluation.harness", raising=False)
    assert main(["evaluate", "--target", "embedded", "--harness-tasks", "gsm8k"]) == 2
    err = capsys.readouterr().err
    assert "kljudge-jax[harness]" in err and len(err.strip().splitlines()) == 1


def test_others_models_are_scored_and_asked():
    """A model with neither a configuration nor a longest text, which gives logits alone."""
    from test_others_models import made

    harness, theirs = needs_harness(), made("logits")
    lm = harness.KLJudgeLM(theirs, "exact", batch_size=2, draft_length=3)
    assert lm.max_length == sys.maxsize
    until = {"until": ["\n"], "max_gen_toks": 8}
    (text,) = lm.generate_until([instance("generate_until", "abc", until)], disable_tqdm=True)
    plain = kj.generate(theirs, "abc", verifier=None, max_new_tokens=8, stop="\n")
    assert text == plain.text[0]
    ((total, _),) = lm.loglikelihood([instance("loglikelihood", "abc", "de")], disable_tqdm=True)
    assert np.isfinite(total) and total < 0
    (rolling,) = lm.loglikelihood_rolling([instance("loglikelihood_rolling", "abcde")], disable_tqdm=True)
    assert np.isfinite(rolling) and rolling < total
    short = harness.KLJudgeLM(made("logits", max_length=40), "exact")
    assert short.max_length == 40
