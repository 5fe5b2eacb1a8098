"""What `kljudge evaluate` takes for the same work."""

import pytest
from command_lines import parsed
from tiny_pairs import tiny_pair

from kljudge_jax.commands.evaluate import _asked

WORDS = ["evaluate", "--target", "big", "--draft", "small", "--harness-tasks", "sums", "--mesh", "data=2,tensor=2"]


@pytest.mark.parametrize("other", [["--axes", "vocab=none"], ["--draft-axes", "replicated"], ["--mesh", "data=4"]])
def test_models_that_lie_otherwise_are_other_work(other):
    pair = tiny_pair()
    one, again, placed = (_asked(parsed(words), pair) for words in (WORDS, WORDS, WORDS + other))
    assert one == again != placed


def test_other_template_arguments_are_other_work():
    pair, told = tiny_pair(), ["--chat", "--template-arg", "enable_thinking=false"]
    one, other = (_asked(parsed(words), pair) for words in ([*WORDS, "--chat"], WORDS + told))
    assert one != other and other["template_args"] == {"enable_thinking": False}
    assert "template_args" not in one and "section_ids" not in one  # as files have it that were begun without


def test_other_weights_of_one_name_and_other_files_of_tasks_are_other_work(tmp_path):
    (tmp_path / "task.yaml").write_text("task: a")
    options = parsed([*WORDS, "--include-path", str(tmp_path)])
    one = _asked(options, tiny_pair())
    assert _asked(options, tiny_pair()) == one != _asked(options, tiny_pair(1))
    (tmp_path / "task.yaml").write_text("task: b")
    assert _asked(options, tiny_pair()) != one
