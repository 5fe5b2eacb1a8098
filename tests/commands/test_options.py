"""What options of several commands are read as."""

import pytest
from command_lines import parsed

from kljudge_jax.commands.options import least_workload

MODELS = ["--target", "big", "--draft", "small"]


@pytest.mark.parametrize(
    ("words", "batch", "draft_length", "max_new_tokens"),
    [
        (["generate", *MODELS, "--draft-length", "4"], 1, 4, 256),
        (["generate", *MODELS, "--draft-length", "adaptive:maximum=16"], 1, 16, 256),
        (["sweep", *MODELS, "--task", "arithmetic", "--batch", "16", "--draft-lengths", "8,24"], 16, 24, 256),
        (["bench", *MODELS, "--batch", "1,32,8", "--max-new-tokens", "32"], 32, 8, 32),
        (["calibrate", *MODELS, "--task", "arithmetic", "--rule", "kl", "--thresholds", "0.1"], 8, 8, 256),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_a_pair_is_checked_for_the_largest_of_what_it_will_decode(words, batch, draft_length, max_new_tokens):
    workload = least_workload(parsed(words), drafts=True)
    assert (workload.batch, workload.draft_length, workload.max_new_tokens) == (batch, draft_length, max_new_tokens)
    assert least_workload(parsed(words), drafts=False).draft_length == 0
