"""The engine as a whole, on tiny random pairs."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pairs import tiny_pair, with_parameters

import kljudge_jax as kj
from kljudge_jax.errors import InputError

PROMPTS = [np.array([3, 1, 4]), np.array([1]), np.array([5, 9, 2, 6, 5, 3, 5, 8, 9]), np.array([2, 7])]


def tokens_of(out):
    return [row.tolist() for row in out.tokens]


@contextlib.contextmanager
def compilations():
    """Counts what is compiled in the block, eager operations included."""
    found = []

    def note(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def greedy_by_hand(model, prompt, steps):
    """The target's greedy answer by scoring the whole sequence again for every token."""
    sequence = list(prompt)
    for _ in range(steps):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(sequence)] = sequence
        logits, _ = kj.score(model, padded)
        sequence.append(int(jnp.argmax(logits[0, len(sequence) - 1])))
    return sequence[len(prompt) :]


def test_plain_decoding_is_the_targets_argmax(pair):
    out = kj.generate(pair, PROMPTS, verifier=None, max_new_tokens=12)
    for prompt, tokens in zip(PROMPTS, tokens_of(out), strict=True):
        assert tokens == greedy_by_hand(pair.target, prompt, 12)
    assert out.stats.mean_acceptance_length == 1
    assert out.stats.drafted == 0


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.1, 0.3, 1.0]), length=st.sampled_from([1, 3, 6]))
def test_exact_decoding_equals_plain_decoding(seed, noise, length):
    pair = tiny_pair(seed, noise, eos=(7,))
    plain = kj.generate(pair, PROMPTS, verifier=None, max_new_tokens=20)
    exact = kj.generate(pair, PROMPTS, verifier=kj.GreedyExact(), draft_length=length, max_new_tokens=20)
    assert tokens_of(exact) == tokens_of(plain)
    assert exact.stats.relaxed == 0
    if noise == 0:
        # An equal draft is always right: every cycle but the last of a row commits K + 1 tokens.
        assert exact.stats.accepted == exact.stats.drafted


def test_a_row_of_a_batch_gets_what_it_gets_alone(pair):
    for options in ({}, {"temperature": 1.0, "top_k": 9, "top_p": 0.9}):
        key = jax.random.key(5)
        rule = kj.KLJudge(0.5)
        together = kj.generate(pair, PROMPTS, verifier=rule, draft_length=4, max_new_tokens=24, key=key, **options)
        for i, prompt in enumerate(PROMPTS):
            own = jax.random.fold_in(key, i)[None]
            alone = kj.generate(pair, prompt, verifier=rule, draft_length=4, max_new_tokens=24, key=own, **options)
            assert tokens_of(alone)[0] == tokens_of(together)[i]
            assert alone.origin[0] == together.origin[i]


def test_rows_stop_where_their_own_budget_ends(pair):
    budgets = [1, 2, 9, 30]
    out = kj.generate(pair, PROMPTS, verifier="exact", draft_length=5, max_new_tokens=budgets)
    assert [len(row) for row in out.tokens] == budgets
    assert [row.finish for row in out.stats.rows] == ["length"] * 4
    whole = kj.generate(pair, PROMPTS, verifier=None, max_new_tokens=30)
    assert tokens_of(out) == [row[:n] for row, n in zip(tokens_of(whole), budgets, strict=True)]


@pytest.mark.parametrize("rule", ["exact", "kl:5.0", "all"])
def test_eos_ends_the_answer_exactly_there(rule):
    pair = tiny_pair(3, noise=0.05)
    free = kj.generate(pair, PROMPTS, verifier=rule, draft_length=6, max_new_tokens=40)
    for place in (0, 3, 10):  # at a draft's start and inside one, wherever the row's cycles fall
        eos = free.tokens[0][place].item()
        ending = dataclasses.replace(pair, eos=(eos,))
        out = kj.generate(ending, PROMPTS, verifier=rule, draft_length=6, max_new_tokens=40)
        for row, whole, counts in zip(tokens_of(out), tokens_of(free), out.stats.rows, strict=True):
            expected = whole[: whole.index(eos) + 1] if eos in whole else whole
            assert row == expected
            assert counts.finish == ("eos" if eos in whole else "length")
            assert counts.tokens == len(row)


def test_counts_agree_with_tokens_and_origins(pair):
    out = kj.generate(pair, PROMPTS, verifier=kj.KLJudge(4.0), draft_length=5, max_new_tokens=33, trace=True)
    for row, tokens, origin, cycles in zip(out.stats.rows, out.tokens, out.origin, out.cycles, strict=True):
        assert len(origin) == len(tokens) == row.tokens == sum(c.committed for c in cycles)
        assert row.cycles == len(cycles) == row.acceptance_histogram.sum()
        assert row.accepted == sum(c.accepted for c in cycles) == len(tokens) - origin.count("target")
        assert row.relaxed == origin.count("relaxed")
        assert row.drafted == sum(c.drafted for c in cycles)
        assert all(c.accepted <= c.drafted <= 5 for c in cycles)
        assert row.mean_acceptance_length == len(tokens) / len(cycles)
    assert out.stats.tokens == sum(len(t) for t in out.tokens)
    assert out.stats.relaxed > 0
    assert len(out.stats.acceptance_histogram) == 6


def test_trace_holds_the_targets_scores(pair):
    out = kj.generate(pair, PROMPTS[2], verifier=kj.KLJudge(2.0), draft_length=4, max_new_tokens=20, trace=True)
    sequence = np.concatenate([PROMPTS[2], out.tokens[0]])[None]
    first = len(PROMPTS[2]) - 1
    target = jax.nn.log_softmax(kj.score(pair.target, sequence)[0][0, first:-1])
    draft = jax.nn.log_softmax(kj.score(pair.draft, sequence)[0][0, first:-1])
    expected = np.take_along_axis(np.asarray(target), out.tokens[0][:, None], axis=1)[:, 0]
    np.testing.assert_allclose(out.logprobs[0], expected, atol=1e-4)
    divergence = np.asarray(jnp.sum(jnp.exp(target) * (target - draft), axis=-1))
    drafted = np.array([o != "target" for o in out.origin[0]])
    np.testing.assert_allclose(out.kl[0][drafted], divergence[drafted], atol=1e-4)
    assert np.isfinite(out.kl[0][drafted]).all()


def test_a_second_call_and_a_new_threshold_compile_nothing(pair):
    def run(rule, prompts, **options):
        return kj.generate(pair, prompts, verifier=rule, draft_length=3, max_new_tokens=20, **options)

    run(kj.KLJudge(0.1), PROMPTS)
    run("exact", PROMPTS, temperature=0.7, top_p=0.9)
    with compilations() as compiled:
        for threshold in (0.1, 0.5, 2, 7.5):
            run(kj.KLJudge(threshold, confidence=0.8), PROMPTS[::-1])
        run("exact", PROMPTS, temperature=1.3, top_k=5, top_p=0.5)
    assert not compiled


def test_host_transfers_do_not_grow_with_the_tokens(pair, monkeypatch):
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(1) or get(tree))
    counts = []
    for tokens in (8, 200):
        fetched.clear()
        kj.generate(pair, PROMPTS, verifier="exact", draft_length=3, max_new_tokens=tokens)
        counts.append(len(fetched))
    assert counts == [1, 1]
    with jax.transfer_guard_device_to_host("disallow_explicit"), pytest.raises(Exception, match="transfer"):
        kj.generate(pair, PROMPTS, verifier="exact", draft_length=3, max_new_tokens=8)


def poisoned(model, token):
    """The model with an embedding that turns every state that has seen `token` into NaN."""
    return with_parameters(model, lambda name, x: x.at[token].set(jnp.nan) if name == "embedding.table" else x)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_model_that_returns_nan_stops_that_row_and_no_other(which):
    pair = tiny_pair(1, noise=0.0)
    clean = kj.generate(pair, PROMPTS, verifier="exact", draft_length=4, max_new_tokens=30)
    bad = next(t for t in tokens_of(clean)[0][3:] if t not in [x for p in PROMPTS for x in p])
    broken = dataclasses.replace(pair, **{which: poisoned(getattr(pair, which), bad)})
    out = kj.generate(broken, PROMPTS, verifier="exact", draft_length=4, max_new_tokens=30)
    hit = 0
    for row, whole, counts in zip(tokens_of(out), tokens_of(clean), out.stats.rows, strict=True):
        assert row == whole[: len(row)]
        if bad in whole[:-1]:
            hit += 1
            assert counts.finish == "failed"
            if which == "target":  # everything up to the bad token, which itself was predicted by good logits
                assert len(row) == whole.index(bad) + 1
        else:
            assert row == whole and counts.finish == "length"
    assert out.stats.failed == hit > 0


def test_infinite_logits_of_the_first_step_yield_no_token():
    pair = tiny_pair(1)
    endless = with_parameters(pair.target, lambda name, x: x * jnp.inf if name == "final_norm.scale" else x)
    pair = dataclasses.replace(pair, target=endless)
    out = kj.generate(pair, PROMPTS[0], verifier="exact", draft_length=3, max_new_tokens=5)
    assert tokens_of(out) == [[]]
    assert out.stats.failed == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_length": 0}, "draft_length must be a whole number from 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_new_tokens": [1, 2]}, "2 numbers for 1 prompts"),
        ({"max_new_tokens": 5000}, "3 tokens; with 5000 new ones that is 5003, and the target takes 4096"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"verifier": "nonsense"}, "nonsense"),
        ({"verifier": kj.GreedyExact(), "temperature": 1.0}, "GreedyExact needs temperature 0"),
        ({"stop": ["x"]}, "stop strings need a tokenizer"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": np.array([], np.int32)}, "empty"),
        ({"prompts": [1, 99]}, "token id 99"),
        ({"prompts": "text"}, "no tokenizer"),
    ],
)
def test_what_cannot_be_done_is_refused(pair, options, message):
    asked = {"prompts": PROMPTS[0], "verifier": "exact", "max_new_tokens": 4} | options
    with pytest.raises(InputError, match=message):
        kj.generate(pair, asked.pop("prompts"), **asked)


def test_a_pair_without_a_draft_decodes_plainly_only(pair):
    single = dataclasses.replace(pair, draft=None)
    assert tokens_of(kj.generate(single, PROMPTS, verifier=None, max_new_tokens=9)) == tokens_of(
        kj.generate(pair, PROMPTS, verifier=None, max_new_tokens=9)
    )
    with pytest.raises(InputError, match="no draft model"):
        kj.generate(single, PROMPTS, verifier="exact")


def test_two_rules_with_as_many_fields_are_two_programs(pair):
    def rule(name, keeps):
        def call(self, key, inputs):
            kept = inputs.draft_count * keeps
            token = jnp.argmax(inputs.target_logits[kept]).astype(jnp.int32)
            return kj.Verdict(kept, token, jnp.zeros(inputs.draft_tokens.shape, bool))

        made = dataclasses.make_dataclass(name, [("number", float)], namespace={"__call__": call}, frozen=True)
        # As one would write it. In jaxlib 0.10.2 the structures of two such classes compare equal.
        return jax.tree_util.register_dataclass(made)(1.0)

    every = kj.generate(pair, PROMPTS, verifier=rule("Every", 1), draft_length=3, max_new_tokens=20)
    none = kj.generate(pair, PROMPTS, verifier=rule("None_", 0), draft_length=3, max_new_tokens=20)
    assert every.stats.accepted > 0 and none.stats.accepted == 0
