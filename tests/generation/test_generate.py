"""The engine as a whole, on tiny random pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pairs import (
    DRAFT_LENGTH,
    PROMPTS,
    answer,
    compilations,
    forced,
    greedy_by_hand,
    tiny_pair,
    tokens_of,
    with_parameters,
)

import kljudge_jax as kj
from kljudge_jax.errors import InputError


def test_plain_decoding_is_the_targets_argmax(pair):
    out = answer(pair, None, max_new_tokens=12)
    for prompt, tokens in zip(PROMPTS, tokens_of(out), strict=True):
        assert tokens == greedy_by_hand(pair.target, prompt, 12)
    assert out.stats.mean_acceptance_length == 1
    assert out.stats.drafted == 0


@settings(max_examples=16)
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    length=st.sampled_from([1, DRAFT_LENGTH]),
    end=st.integers(0, 19),
)
def test_exact_decoding_equals_plain_decoding(seed, noise, length, end):
    pair = tiny_pair(seed, noise)
    eos = answer(pair, None).tokens[0][end].item()
    pair = dataclasses.replace(pair, eos=(eos,))
    plain, exact = answer(pair, None), answer(pair, "exact", draft_length=length)
    assert tokens_of(exact) == tokens_of(plain)
    assert exact.stats.relaxed == 0
    if noise == 0:
        assert exact.stats.accepted == exact.stats.drafted  # an equal draft is always right


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0, "top_k": 9, "top_p": 0.9}, pytest.param({}, marks=pytest.mark.slow)],
    ids=["sampled", "greedy"],
)
def test_a_row_of_a_batch_gets_what_it_gets_alone(pair, options):
    """Greedy ones that waited are compared daily by `test_scheduler`."""
    key = jax.random.key(5)
    together = answer(pair, kj.KLJudge(0.5), key=key, **options)
    for i, prompt in enumerate(PROMPTS):
        alone = answer(pair, kj.KLJudge(0.5), prompt, key=jax.random.fold_in(key, i)[None], **options)
        assert tokens_of(alone)[0] == tokens_of(together)[i]
        assert alone.origin[0] == together.origin[i]


def test_prompts_that_begin_alike_are_answered_as_alone(pair):
    few_shot = np.random.default_rng(4).integers(1, 200, 150)  # longer than a chunk of prefill
    prompts = [np.append(few_shot, more) for more in ([3, 1], [4, 1, 5])]
    together = answer(pair, "exact", prompts, max_new_tokens=12)
    for prompt, tokens in zip(prompts, tokens_of(together), strict=True):
        logits = kj.score(pair.target, np.append(prompt, tokens)[None])[0][0]
        assert tokens == logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist()


def test_rows_draw_from_keys_of_their_own(pair):
    same = [PROMPTS[0]] * 4
    sampling = {"temperature": 1.0, "top_k": 9, "top_p": 0.9}
    rows = tokens_of(answer(pair, kj.KLJudge(0.5), same, key=jax.random.key(1), **sampling))
    assert len({tuple(row) for row in rows}) == 4
    again = tokens_of(answer(pair, kj.KLJudge(0.5), same, key=jax.random.key(1), **sampling))
    assert rows == again


def test_rows_stop_where_their_own_budget_ends(pair):
    budgets = [1, 2, 9, 24]
    out = answer(pair, "exact", max_new_tokens=budgets)
    assert [len(row) for row in out.tokens] == budgets
    assert [row.finish for row in out.stats.rows] == ["length"] * 4
    whole = answer(pair, None)
    assert tokens_of(out) == [row[:n] for row, n in zip(tokens_of(whole), budgets, strict=True)]


@pytest.mark.parametrize("rule", ["exact", "kl:5.0", "all"])
def test_eos_ends_the_answer_exactly_there(rule):
    pair = tiny_pair(3, noise=0.05)
    free = answer(pair, rule)
    for place in (0, 3, 10):  # at a draft's start and inside one, wherever the row's cycles fall
        eos = free.tokens[0][place].item()
        out = answer(dataclasses.replace(pair, eos=(eos,)), rule)
        for row, whole, counts in zip(tokens_of(out), tokens_of(free), out.stats.rows, strict=True):
            expected = whole[: whole.index(eos) + 1] if eos in whole else whole
            assert row == expected
            assert counts.finish == ("eos" if eos in whole else "length")
            assert counts.tokens == len(row)


def test_counts_agree_with_tokens_and_origins(pair):
    out = answer(pair, kj.KLJudge(4.0), trace=True)
    for row, tokens, origin, cycles in zip(out.stats.rows, out.tokens, out.origin, out.cycles, strict=True):
        assert len(origin) == len(tokens) == row.tokens == sum(c.committed for c in cycles)
        assert row.cycles == len(cycles) == row.acceptance_histogram.sum()
        assert row.accepted == sum(c.accepted for c in cycles) == len(tokens) - origin.count("target")
        assert row.relaxed == origin.count("relaxed")
        assert row.drafted == sum(c.drafted for c in cycles)
        assert all(c.accepted <= c.drafted <= DRAFT_LENGTH for c in cycles)
        assert row.mean_acceptance_length == len(tokens) / len(cycles)
    assert out.stats.tokens == sum(len(t) for t in out.tokens)
    assert out.stats.relaxed > 0
    assert len(out.stats.acceptance_histogram) == DRAFT_LENGTH + 1


def test_trace_holds_the_targets_scores(pair):
    out = answer(pair, kj.KLJudge(4.0), trace=True)
    plain = answer(pair, kj.KLJudge(4.0))
    assert tokens_of(out) == tokens_of(plain) and plain.kl is plain.logprobs is plain.cycles is None
    for prompt, tokens, origin, kl, logprobs in zip(PROMPTS, out.tokens, out.origin, out.kl, out.logprobs, strict=True):
        sequence, rows = np.concatenate([prompt, tokens]), slice(len(prompt) - 1, -1)
        target = np.asarray(jax.nn.log_softmax(forced(pair.target, sequence)[0][rows]))
        draft = np.asarray(jax.nn.log_softmax(forced(pair.draft, sequence)[0][rows]))
        np.testing.assert_allclose(logprobs, np.take_along_axis(target, tokens[:, None], axis=1)[:, 0], atol=1e-4)
        divergence = np.sum(np.exp(target) * (target - draft), axis=-1)
        drafted = np.array([o != "target" for o in origin])
        np.testing.assert_allclose(kl[drafted], divergence[drafted], atol=1e-4)
        # A correction stands where a token was drafted, a bonus does not.
        known = np.isfinite(kl)
        np.testing.assert_allclose(kl[known], divergence[known], atol=1e-4)
        assert known[drafted].all()


def test_a_second_call_and_a_new_threshold_compile_nothing(pair):
    sampling = {"temperature": 0.7, "top_p": 0.9}
    answer(pair, kj.KLJudge(0.1))
    answer(pair, kj.KLJudge(0.1), **sampling)
    with compilations() as compiled:
        for threshold in (0.1, 0.5, 2, 7.5):
            answer(pair, kj.KLJudge(threshold, confidence=0.8), PROMPTS[::-1], max_new_tokens=40)
        answer(pair, kj.KLJudge(0), temperature=1.3, top_k=5, top_p=0.5)
        answer(pair, kj.KLJudge(0), temperature=2, top_k=5)
    assert not compiled


def test_a_first_answer_compiles_few_programs(pair):
    jax.clear_caches()
    for sampling, most in (({}, 5), ({"temperature": 0.7, "top_p": 0.9}, 2)):
        with compilations() as compiled:
            kj.generate(pair, PROMPTS[:1], verifier="kl:0.4", draft_length=3, max_new_tokens=6, **sampling)
        assert 2 <= len(compiled) <= most, compiled


def test_host_transfers_do_not_grow_with_the_tokens(pair, monkeypatch):
    fetched = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(1) or get(tree))
    for tokens in (8, 40):
        fetched.clear()
        assert answer(pair, "exact", max_new_tokens=tokens).stats.tokens == 4 * tokens
        assert len(fetched) == 1


def poisoned(model, token):
    """The model with an embedding that turns every state that has seen `token` into NaN."""

    def spoil(name, x):
        if name == "embedding.table":
            x[token] = np.nan
        return x

    return with_parameters(model, spoil)


@pytest.mark.parametrize(("which", "verifier"), [("target", "exact"), ("target", "kl:0.4"), ("draft", "kl:0.4")])
def test_a_model_that_returns_nan_stops_that_row_and_no_other(which, verifier):
    """Of a draft only where the rule is no lossless one: test_broken_models.py has those."""
    pair = tiny_pair(1, noise=0.0)
    clean = answer(pair, verifier)
    bad = next(t for t in tokens_of(clean)[0][3:] if t not in [x for p in PROMPTS for x in p])
    broken = dataclasses.replace(pair, **{which: poisoned(getattr(pair, which), bad)})
    out = answer(broken, verifier)
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
    endless = with_parameters(pair.target, lambda name, x: x * np.inf if name == "final_norm.scale" else x)
    out = answer(dataclasses.replace(pair, target=endless), "exact")
    assert tokens_of(out) == [[]] * 4
    assert out.stats.failed == 4


def test_a_token_that_is_never_written_spoils_nothing():
    pair = tiny_pair(1)
    clean = answer(pair, "exact")
    written = {t for row in [*tokens_of(clean), *PROMPTS] for t in row}
    drafted = [t for t in answer(pair, "all").tokens[0].tolist() if t not in written]
    for token in (0, drafted[0]):  # what prompts are padded with, and what only the draft proposes
        assert token not in written
        broken = dataclasses.replace(pair, target=poisoned(pair.target, token))
        out = answer(broken, "exact")
        assert tokens_of(out) == tokens_of(clean)
        assert out.stats.failed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_length": 0}, "draft_length must be a whole number from 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"max_new_tokens": [1, 2]}, "2 numbers for 1 prompts"),
        ({"max_new_tokens": 5000}, "3 tokens; with 5000 new ones that is 5003, and the target takes 4096"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty must be 1.0"),
        ({"temperature": 1.0, "top_p": 1e-50}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": float("nan")}, "top_k"),
        ({"top_k": 2**40}, "top_k"),
        ({"draft_length": 2.5}, "draft_length must be a whole number from 1"),
        ({"draft_length": "4"}, "draft_length must be a whole number from 1"),
        ({"draft_length": None}, "draft_length must be a whole number from 1"),
        ({"max_new_tokens": 2**32 + 5}, "takes 4096"),
        ({"verifier": "nonsense"}, "nonsense"),
        ({"verifier": kj.KLJudge}, "a verifier is a rule such as"),
        ({"verifier": 3}, "a verifier is a rule such as"),
        (
            {"verifier": lambda key, inputs: None},
            "function is no pytree by kljudge_jax.register: write a rule as a frozen dataclass",
        ),
        ({"drafter": None}, "a drafter is one such as"),
        ({"key": 7}, "key is a PRNG key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "one a prompt"),
        ({"verifier": kj.GreedyExact(), "temperature": 1.0}, "GreedyExact needs temperature 0"),
        ({"stop": ["x"]}, "stop strings need a tokenizer"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": np.array([], np.int32)}, "empty"),
        ({"prompts": [1, 999]}, "token id 999"),
        ({"prompts": "text"}, "no tokenizer"),
        ({"prompts": "\udcff"}, "no tokenizer"),
    ],
)
def test_what_cannot_be_done_is_refused(pair, options, message):
    asked = {"prompts": PROMPTS[0], "verifier": "exact", "max_new_tokens": 4} | options
    with pytest.raises(InputError, match=message):
        kj.generate(pair, asked.pop("prompts"), **asked)


def test_a_pair_without_a_draft_decodes_plainly_only(pair):
    single = dataclasses.replace(pair, draft=None)
    assert tokens_of(answer(single, None)) == tokens_of(answer(pair, None))
    with pytest.raises(InputError, match="no draft model"):
        answer(single, "exact")


def test_two_rules_with_as_many_fields_are_two_programs(pair):
    def rule(name, accepted, token):
        def call(self, key, inputs):
            return kj.Verdict(jnp.int32(accepted), jnp.int32(token), jnp.zeros(inputs.draft_tokens.shape, bool))

        made = dataclasses.make_dataclass(name, [("number", float)], namespace={"__call__": call}, frozen=True)
        return kj.register(made)(1.0)

    # One claims more than was drafted, the other writes a token that there is not: the loop commits no garbage.
    every = answer(pair, rule("Every", 99, 7))
    assert every.stats.accepted == every.stats.drafted > 0 and every.stats.failed == 0
    assert [len(tokens) for tokens in every.tokens] == [24] * 4
    wild = answer(pair, rule("Wild", 0, pair.target.config.vocab_size))
    assert tokens_of(wild) == [[]] * 4 and wild.stats.failed == 4


def test_a_stop_string_in_one_row_compiles_nothing(text_pair):
    free = answer(text_pair, "exact", max_new_tokens=40, stop="never there")
    stop = free.text[2][8:11]
    with compilations() as compiled:
        out = answer(text_pair, "exact", max_new_tokens=40, stop=stop)
    assert not compiled
    finishes = [row.finish for row in out.stats.rows]
    assert finishes[2] == "stop" and "length" in finishes


def test_a_configuration_stands_for_its_fields(pair):
    config = kj.DecodingConfig(max_new_tokens=24, draft_length=DRAFT_LENGTH, temperature=0.9, seed=4)
    options = {"max_new_tokens": 24, "draft_length": DRAFT_LENGTH, "temperature": 0.9}
    want = kj.generate(pair, PROMPTS, verifier="exact", key=jax.random.key(4), **options)
    assert tokens_of(kj.generate(pair, PROMPTS, verifier="exact", config=config)) == tokens_of(want)
    short = kj.generate(pair, PROMPTS, verifier="exact", config=config, max_new_tokens=3)
    assert [len(row) for row in short.tokens] == [3] * len(PROMPTS)
    assert short.stats.rows[0].cycles < want.stats.rows[0].cycles
