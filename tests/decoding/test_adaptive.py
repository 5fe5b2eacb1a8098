"""Draft lengths that follow what was accepted: what is wanted, what it costs, and that no token changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import PROMPTS, answer, forced, text_pair, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.decoding import cycle_costs
from kljudge_jax.decoding.adaptive import PROBE_INTERVAL, Pace
from kljudge_jax.decoding.arguments import plan
from kljudge_jax.decoding.display import pace as pace_line
from kljudge_jax.decoding.sampling import Sampling
from kljudge_jax.errors import InputError

HOPEFUL = kj.Adaptive(maximum=2, cost=0.1)


@pytest.fixture(scope="module")
def small():
    return tiny_pair(vocab_size=33, num_layers=1, noise=0.4)


def pace(accepted, tested, age=1, interval=PROBE_INTERVAL):
    given = (accepted, float), (tested, float), (age, int), (interval, int)
    return Pace(*(jnp.asarray([x], dtype) for x, dtype in given))


def linear(adaptive, cost):
    return 1 + cost * jnp.arange(adaptive.maximum + 1)


@pytest.mark.parametrize("minimum", [0, 1, 3])
@pytest.mark.parametrize("cost", [0.02, 0.1, 0.4, 1.5])
def test_what_is_wanted_maximises_tokens_over_cost(minimum, cost):
    adaptive = kj.Adaptive(minimum, 7)
    for accepted, tested in ((1.4, 2), (0, 3), (0.01, 40), (2, 4), (9, 10), (60, 60)):
        rate = accepted / tested
        speed = [sum(rate**i for i in range(n + 1)) / (1 + cost * n) for n in range(minimum, 8)]
        found = adaptive.wanted(pace(accepted, tested), linear(adaptive, cost))
        assert found.tolist() == [minimum + int(np.argmax(speed))]


def test_a_length_that_costs_too_much_is_passed_over():
    adaptive = kj.Adaptive(maximum=4)
    for costs, best in (([1, 1.1, 9, 1.2, 9], 3), ([1, np.inf, np.inf, np.inf, 99], 0), ([np.inf] * 2 + [7] * 3, 4)):
        assert adaptive.wanted(pace(8, 10), jnp.asarray(costs)).tolist() == [best]


def test_a_row_that_gave_up_tries_again_ever_more_seldom():
    adaptive = kj.Adaptive(0, 8)
    now, tries = pace(0.0, 50.0, age=0), []
    for age in range(300):
        wanted = adaptive.wanted(now, linear(adaptive, 0.5))
        tries += [age] if wanted[0] else []
        assert wanted[0] in (0, 2) and 2 in adaptive.widths()
        now = adaptive.update(now, wanted, wanted, jnp.asarray([0]))
    assert tries == [PROBE_INTERVAL * n for n in (1, 4, 16)]

    # One that pays again drafts at once, and waits no longer than at first when it stops once more.
    now = adaptive.update(now, *(jnp.asarray([2]) for _ in range(3)))
    assert adaptive.update(now, *(jnp.asarray([8]) for _ in range(3))).interval == PROBE_INTERVAL


def test_a_draft_that_is_never_right_costs_next_to_nothing():
    """However cheap it is: what is spent on drafts is less than 3 % of plain decoding from 256 tokens on."""
    for cost in (0.05, 0.2, 1.0):
        adaptive = kj.Adaptive(0, 8)
        now, spent = Pace.start(1), 0.0
        for _ in range(256):
            wanted = adaptive.wanted(now, linear(adaptive, cost))
            spent += cost * float(wanted[0])
            now = adaptive.update(now, wanted, wanted, jnp.asarray([0]))
        assert spent < 0.03 * 256, cost


def test_evidence_fades_but_not_while_nothing_is_drafted():
    adaptive = kj.Adaptive(maximum=8)
    now = adaptive.update(pace(2.0, 4.0), *(jnp.asarray([n]) for n in (4, 4, 2)))
    np.testing.assert_allclose((now.accepted[0], now.tested[0]), (1.8 + 2, 3.6 + 3))  # the fourth was not tested
    now = adaptive.update(now, *(jnp.asarray([n]) for n in (4, 4, 4)))
    np.testing.assert_allclose((now.accepted[0], now.tested[0]), (3.42 + 4, 5.94 + 4))
    same = adaptive.update(now, *(jnp.asarray([n]) for n in (0, 0, 0)))
    assert (same.accepted, same.tested, same.age) == (now.accepted, now.tested, now.age + 1)


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
    """An equal draft that never pays is asked ever more seldom; were a token missing in its cache, it would err."""
    equal = dataclasses.replace(small, draft=small.target)
    out = answer(equal, "exact", draft_length=kj.Adaptive(maximum=1, cost=5.0), max_new_tokens=40, trace=True)
    assert tokens_of(out) == tokens_of(answer(equal, None, max_new_tokens=40))
    for cycles in out.cycles:
        drafted = [cycle.drafted for cycle in cycles]
        assert [age for age, n in enumerate(drafted) if n] == [PROBE_INTERVAL]
        assert all(cycle.accepted == cycle.drafted for cycle in cycles)
    assert out.stats.plain_cycles == out.stats.cycles - len(PROMPTS)
    assert "speculation does not pay here, and stopped in 9" in pace_line(out)


def test_a_cost_that_is_measured_changes_no_token(small, monkeypatch):
    monkeypatch.setattr(cycle_costs, "_known", {})
    fixed = answer(small, "exact", max_new_tokens=40)
    for _ in range(8):  # each goes on with what the others measured
        found = answer(small, "exact", draft_length=kj.Adaptive(maximum=4, cost="measured"), max_new_tokens=40)
        assert tokens_of(found) == tokens_of(fixed)
    (costs,) = cycle_costs._known.values()
    assert costs.measured and found.cycle_costs.shape == (5,) and found.cycle_costs[0] == 1
    assert (found.cycle_costs > 0).all() and "draft tokens" in pace_line(found)
    assert pace_line(fixed) == ""


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
    found = plan(pair, rule, kj.ModelDraft(), kj.Adaptive(), Sampling.create(1.0)).cost
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
        ({"cost": "fast"}, "from 0 on as its cost, 'measured' or None"),
        ({"cost": float("nan")}, "from 0 on as its cost"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        kj.Adaptive(**options)
