"""Draft lengths that follow what was accepted: what is wanted, what it costs, and that no token changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import PROMPTS, answer, forced, text_pair, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.decoding.adaptive import PROBE_INTERVAL, Pace
from kljudge_jax.decoding.arguments import plan
from kljudge_jax.decoding.sampling import Sampling
from kljudge_jax.errors import InputError

HOPEFUL = kj.Adaptive(maximum=2, cost=0.1)


@pytest.fixture(scope="module")
def small():
    return tiny_pair(vocab_size=33, num_layers=1, noise=0.4)


def pace(accepted, tested, idle=0):
    return Pace(*(jnp.asarray([x], dtype) for x, dtype in ((accepted, float), (tested, float), (idle, int))))


@pytest.mark.parametrize("minimum", [0, 1, 3])
@pytest.mark.parametrize("cost", [0.02, 0.1, 0.4, 1.5])
def test_what_is_wanted_maximises_tokens_over_cost(minimum, cost):
    adaptive = kj.Adaptive(minimum, 7, cost=cost)
    for accepted, tested in ((0, 0), (0, 3), (0, 40), (2, 4), (9, 10), (60, 60)):
        rate = (accepted + 1.4) / (tested + 2)
        speed = [sum(rate**i for i in range(n + 1)) / (1 + cost * n) for n in range(minimum, 8)]
        assert adaptive.wanted(pace(accepted, tested)).tolist() == [minimum + int(np.argmax(speed))]


def test_a_row_that_gave_up_tries_again():
    adaptive = kj.Adaptive(0, 8, cost=0.5)
    now = pace(0.0, 50.0)
    wanted = []
    for _ in range(2 * PROBE_INTERVAL + 3):
        wanted.append(int(adaptive.wanted(now)[0]))
        now = adaptive.update(now, *(jnp.asarray([n]) for n in (wanted[-1], wanted[-1], 0)))
    assert wanted == ([0] * PROBE_INTERVAL + [2]) * 2 + [0]
    assert set(wanted) <= set(adaptive.widths())


def test_evidence_fades_but_not_while_nothing_is_drafted():
    adaptive = kj.Adaptive(maximum=8)
    now = adaptive.update(pace(2.0, 4.0), *(jnp.asarray([n]) for n in (4, 4, 2)))
    np.testing.assert_allclose((now.accepted[0], now.tested[0]), (1.8 + 2, 3.6 + 3))  # the fourth was not tested
    now = adaptive.update(now, *(jnp.asarray([n]) for n in (4, 4, 4)))
    np.testing.assert_allclose((now.accepted[0], now.tested[0]), (3.42 + 4, 5.94 + 4))
    same = adaptive.update(now, *(jnp.asarray([n]) for n in (0, 0, 0)))
    assert (same.accepted, same.tested, same.idle) == (now.accepted, now.tested, now.idle + 1)


def test_a_row_of_a_batch_draws_and_wants_what_it_does_alone(small):
    """Though its company decides how far the draft goes and how wide a pass is."""
    key, sampling = jax.random.key(3), {"temperature": 1.0, "top_p": 0.9, "trace": True}
    together = answer(small, kj.KLJudge(0.5), draft_length=HOPEFUL, key=key, **sampling)
    assert {cycle.drafted for row in together.cycles for cycle in row} == {0, 1, 2}
    for i, prompt in enumerate(PROMPTS):
        own = jax.random.fold_in(key, i)[None]
        alone = answer(small, kj.KLJudge(0.5), prompt, draft_length=HOPEFUL, key=own, **sampling)
        assert tokens_of(alone)[0] == tokens_of(together)[i] and alone.origin[0] == together.origin[i]
        assert alone.cycles[0] == together.cycles[i]


def test_a_draft_that_slept_has_caught_up_when_it_is_asked_again(small):
    """An equal draft that never pays is asked every 17 cycles; were a token missing in its cache, it would err."""
    equal = dataclasses.replace(small, draft=small.target)
    out = answer(equal, "exact", draft_length=kj.Adaptive(maximum=1, cost=5.0), max_new_tokens=40, trace=True)
    assert tokens_of(out) == tokens_of(answer(equal, None, max_new_tokens=40))
    for cycles in out.cycles:
        drafted = [cycle.drafted for cycle in cycles]
        assert drafted == ([0] * PROBE_INTERVAL + [1]) * 2 + [0] * (40 - 2 * PROBE_INTERVAL - 4)
        assert all(cycle.accepted == cycle.drafted for cycle in cycles)


def test_an_unsure_draft_ends_before_the_token_it_is_unsure_of(small):
    adaptive = kj.Adaptive(1, 2, confidence=0.5, cost=0.0)
    out = answer(small, "exact", draft_length=adaptive, trace=True)
    assert tokens_of(out) == tokens_of(answer(small, None))
    seen = set()
    for prompt, tokens, cycles in zip(PROMPTS, tokens_of(out), out.cycles, strict=True):
        sequence = prompt.tolist()
        for cycle in cycles:
            own = list(sequence)
            sure = []
            for _ in range(2):
                logits = forced(small.draft, own)[0][-1]
                sure.append(jax.nn.softmax(logits).max() >= 0.5)
                own.append(int(logits.argmax()))
            left = len(prompt) + len(tokens) - len(sequence) - 1
            assert cycle.drafted == min(2, left, 2 if all(sure) else sure.index(False))
            seen.add(cycle.drafted)
            sequence += tokens[len(sequence) - len(prompt) :][: cycle.committed]
    assert seen == {0, 1, 2}


def test_the_cost_follows_the_models():
    small = {"num_layers": 1, "intermediate_size": 8}
    pair = dataclasses.replace(tiny_pair(), draft=tiny_pair(**small).target)
    costs = [drafter.cost(pair) for drafter in (kj.PromptLookup(), kj.SelfDraft(1), kj.ModelDraft())]
    assert costs[0] == 0 and 0 < costs[2] < costs[1] < 1
    assert kj.ModelDraft().cost(tiny_pair()) == 1


@pytest.mark.parametrize(
    ("rule", "drafts", "positions"), [("exact", 1, 1), ("kseq:3", 3, 3), ("kl:0.4", 1, 1), ("reflective:0.3", 1, 2)]
)
def test_the_cost_follows_what_the_rule_asks_for(rule, drafts, positions):
    pair = text_pair()
    found = plan(pair, rule, kj.ModelDraft(), kj.Adaptive(), Sampling.create(1.0)).adaptive.cost
    assert found == pytest.approx(drafts * kj.ModelDraft().cost(pair) + 0.05 * positions, abs=0.006)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum": -1}, "0 <= minimum <= maximum"),
        ({"minimum": 9}, "0 <= minimum <= maximum"),
        ({"maximum": 0}, "a maximum from 1 on"),
        ({"maximum": 2.5}, "a whole number as its maximum"),
        ({"confidence": 1.5}, "from 0 up to 1 as its confidence"),
        ({"confidence": "high"}, "from 0 up to 1 as its confidence"),
        ({"cost": -0.1}, "from 0 on as its cost"),
        ({"cost": float("nan")}, "from 0 on as its cost"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        kj.Adaptive(**options)
