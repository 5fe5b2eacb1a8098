"""Draft lengths that follow what was accepted: what is wanted, what it costs, and that no token changes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import PROMPTS, answer, forced, text_pair, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.core.controller import PROBE_INTERVAL, Pace
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.errors import InputError
from kljudge_jax.generation import costs as costs_room
from kljudge_jax.generation.arguments import plan
from kljudge_jax.generation.costs import draft_cost
from kljudge_jax.generation.display import pace as pace_line

HOPEFUL = kj.Adaptive(maximum=2, cost=0.1)


@pytest.fixture(scope="module")
def small():
    return tiny_pair(vocab_size=33, num_layers=1, noise=0.4)


def pace(accepted, tested, idle=0, interval=PROBE_INTERVAL):
    """What is remembered of rows that had so many draft tokens accepted of so many tested."""
    accepted, tested = (jnp.asarray(np.asarray(x, np.float32).reshape(-1)) for x in (accepted, tested))
    known = (jnp.full(tested.shape, number, jnp.int32) for number in (idle, interval))
    return Pace(accepted, tested, *known)


def linear(adaptive, cost):
    return (1 + cost * np.arange(adaptive.maximum + 1)).astype(np.float32)


_BOUND, _UPDATE = (jax.jit(method, static_argnums=0) for method in (kj.Adaptive.bound, kj.Adaptive.update))


def bound(adaptive, now, costs, left=99):
    return int(_BOUND(adaptive, now, costs, np.broadcast_to(np.asarray(left, np.int32), len(now.tested))))


def after(adaptive, now, wanted, drafted, accepted):
    """What is remembered after a cycle in which rows that wanted so many tokens drafted and accepted so many."""
    found = _UPDATE(adaptive, now, *(np.asarray(x, np.int32).reshape(-1) for x in (wanted, drafted, accepted)))
    chex.assert_trees_all_equal_shapes(found, now)
    return found


@pytest.mark.parametrize("minimum", [0, 1, 3])
@pytest.mark.parametrize("cost", [0.02, 0.1, 0.4, 1.5])
def test_the_bound_maximises_tokens_over_cost(minimum, cost):
    """Of the lengths that slow no row below 0.95 of plain decoding, where that is allowed."""
    adaptive = kj.Adaptive(minimum, 7)
    rates = [(1.4, 2), (0, 3), (0.01, 40), (2, 4), (9, 10), (60, 60)]
    for rows in [[row] for row in rates] + [rates, rates[:2], rates[3:], [(9, 10)] + [(3, 10)] * 15]:
        accepted, tested = np.array(rows, float).T
        tokens = np.cumsum((accepted / tested)[:, None] ** np.arange(8), axis=1)
        speed = tokens / (1 + cost * np.arange(8))
        allowed = (speed >= 0.95).all(axis=0) if minimum == 0 else np.arange(8) >= minimum
        assert bound(adaptive, pace(accepted, tested), linear(adaptive, cost)) == np.argmax(allowed * speed.sum(axis=0))


def test_one_hopeful_row_does_not_slow_fifteen_others_down():
    adaptive = kj.Adaptive()
    rows = [0.95] + [0.3] * 15
    assert bound(adaptive, pace(np.array(rows) * 9, np.full(16, 9.0)), linear(adaptive, 0.4)) == 0
    assert bound(adaptive, pace(9 * 0.95, 9.0), linear(adaptive, 0.4)) > 2  # alone it drafts


def test_rows_that_stopped_or_are_near_their_end_do_not_count():
    adaptive, costs = kj.Adaptive(), linear(kj.Adaptive(), 0.1)
    now = pace([9.5, 0.0], [10.0, 10.0])
    assert bound(adaptive, now, costs, [99, -1]) == 8 and bound(adaptive, now, costs, [-1, 99]) == 0
    assert bound(adaptive, now, costs, [3, -1]) == 3 and bound(adaptive, now, costs, [0, 0]) == 0
    assert bound(adaptive, now, costs, [-1, -1]) == 0


def test_a_length_that_costs_too_much_is_passed_over():
    adaptive = kj.Adaptive(maximum=4)
    for costs, best in (([1, 1.1, 9, 1.2, 9], 3), ([1, np.inf, np.inf, np.inf, 99], 0), ([np.inf] * 4 + [1], 4)):
        for idle in (0, 99):
            assert bound(adaptive, pace(8, 10, idle), np.asarray(costs, np.float32)) == best


def test_a_run_that_gave_up_tries_again_ever_more_seldom():
    adaptive = kj.Adaptive()
    costs = linear(adaptive, 0.1)
    now, tries = pace(0.0, 50.0), []
    for age in range(400):
        wanted = bound(adaptive, now, costs)
        tries += [age] if wanted else []
        assert wanted in (0, 2) and 2 in adaptive.widths()
        now = after(adaptive, now, wanted, wanted, 0)
    assert tries == [16, 16 + 1 + 64, 16 + 1 + 64 + 1 + 256]

    # One that pays again drafts at once, and waits no longer than at first when it stops once more.
    now = after(adaptive, now, 2, 2, 2)
    assert after(adaptive, now, 8, 8, 8).interval == PROBE_INTERVAL


def test_no_draft_is_tried_that_cannot_pay():
    """Two tokens and a third of the target's own: a cycle that takes three plain ones gains nothing."""
    adaptive = kj.Adaptive()
    for cost, tried in ((0.9, 2), (1.1, 0)):
        assert bound(adaptive, pace(0, 50, idle=16), linear(adaptive, cost)) == tried


def test_a_row_that_goes_on_alone_stops_no_other():
    assert bound(kj.Adaptive(), pace([9.5] * 16, [10.0] * 16), linear(kj.Adaptive(), 0.1), [0] + [99] * 15) == 8


def test_no_cycle_is_shorter_than_the_minimum():
    costs = np.array([1, np.inf, np.inf], np.float32)
    assert bound(kj.Adaptive(minimum=1, maximum=2), pace(0, 50), costs) == 1


def test_a_cost_that_is_given_holds_without_a_table():
    for cost, length in ((0.01, 8), (5.0, 0)):
        assert bound(kj.Adaptive(cost=cost), pace(9.9, 10), None) == length


def test_a_new_prompt_is_taken_for_what_the_others_were():
    now = pace([1.0, 5.0], [4.0, 6.0], interval=1024).entered(1)
    np.testing.assert_allclose(now.accepted, [1.0, 1.2])
    np.testing.assert_allclose(now.tested, [4.0, 2.0])
    assert now.interval.tolist() == [PROBE_INTERVAL] * 2


def test_evidence_fades_but_not_while_nothing_is_drafted():
    adaptive = kj.Adaptive()
    now = after(adaptive, pace(2.0, 4.0), 4, 4, 2)
    np.testing.assert_allclose((now.accepted[0], now.tested[0]), (1.8 + 2, 3.6 + 3))  # the fourth was not tested
    now = after(adaptive, now, 4, 4, 4)
    np.testing.assert_allclose((now.accepted[0], now.tested[0]), (3.42 + 4, 5.94 + 4), rtol=1e-6)
    same = after(adaptive, now, 0, 0, 0)
    assert (same.accepted, same.tested, same.idle) == (now.accepted, now.tested, now.idle + 1)
    # A draft that was too unsure for its first token was in vain, as one whose first token is rejected.
    unsure = after(adaptive, now, 4, 0, 0)
    np.testing.assert_allclose(unsure.tested, 0.9 * now.tested + 1, rtol=1e-6)


@pytest.mark.slow
def test_greedy_lossless_tokens_do_not_hang_on_company(small):
    together = answer(small, "exact", draft_length=HOPEFUL, trace=True)
    assert {cycle.drafted for row in together.cycles for cycle in row} == {0, 1, 2}
    assert tokens_of(together) == tokens_of(answer(small, None))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [kj.KLJudge(0.5), kj.FLy(0.0, window=2)], ids=str)
def test_a_row_of_a_batch_draws_what_it_does_alone_where_the_length_is_one(small, rule):
    """Though other rows may draft further, where they are surer; one of the rules reads how long a draft can be."""
    adaptive = kj.Adaptive(4, 4, confidence=0.1, cost=0.1) if rule.reads_length else kj.Adaptive(2, 2, 0.1, 0.1)
    key, sampling = jax.random.key(3), {"temperature": 1.0, "top_p": 0.9, "trace": True}
    together = answer(small, rule, draft_length=adaptive, key=key, **sampling)
    for i, prompt in enumerate(PROMPTS):
        own = jax.random.fold_in(key, i)[None]
        alone = answer(small, rule, prompt, draft_length=adaptive, key=own, **sampling)
        assert tokens_of(alone)[0] == tokens_of(together)[i] and alone.origin[0] == together.origin[i]
        assert alone.cycles[0] == together.cycles[i]


@pytest.mark.slow
def test_a_draft_that_slept_has_caught_up_when_it_is_asked_again(small):
    """An equal draft that seems too dear is tried late; were a token missing in its cache, it would err."""
    equal = dataclasses.replace(small, draft=small.target)
    out = answer(equal, "exact", draft_length=kj.Adaptive(maximum=1, cost=0.85), max_new_tokens=24, trace=True)
    assert tokens_of(out) == tokens_of(answer(equal, None, max_new_tokens=24))
    for cycles in out.cycles:
        drafted = [cycle.drafted for cycle in cycles]
        assert drafted.index(1) == PROBE_INTERVAL and all(cycle.accepted == cycle.drafted for cycle in cycles)
    assert out.stats.plain_cycles >= PROBE_INTERVAL * len(PROMPTS)
    assert "speculation does not pay here, and stopped in " in pace_line(out)


def test_a_draft_that_cannot_pay_is_never_tried(small):
    out = answer(small, "exact", draft_length=kj.Adaptive(maximum=1, cost=2.0), max_new_tokens=40)
    assert out.stats.drafted == 0 and out.stats.plain_cycles == out.stats.cycles
    assert "speculation does not pay here, and stopped in 100%" in pace_line(out)


@pytest.mark.slow
def test_a_cost_that_is_measured_changes_no_token(small, monkeypatch):
    monkeypatch.setattr(costs_room, "_known", {})
    fixed = answer(small, "exact", max_new_tokens=40)
    for _ in range(4):  # each goes on with what the others measured
        found = answer(small, "exact", draft_length=kj.Adaptive(maximum=4), max_new_tokens=40)
        assert tokens_of(found) == tokens_of(fixed)
    (costs,) = costs_room._known.values()
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
    costs = [draft_cost(pair, drafter) for drafter in (kj.PromptLookup(), kj.SelfDraft(1), kj.ModelDraft())]
    assert costs[0] == 0 and 0 < costs[2] < costs[1] < 1
    assert draft_cost(tiny_pair(), kj.ModelDraft()) == 1


@pytest.mark.parametrize(
    ("rule", "drafts", "positions"), [("exact", 1, 1), ("kseq:3", 3, 3), ("kl:0.4", 1, 1), ("reflective:0.3", 1, 2)]
)
def test_the_cost_follows_what_the_rule_asks_for(rule, drafts, positions):
    pair = text_pair()
    found = plan(pair, rule, kj.ModelDraft(), kj.Adaptive(), Sampling.create(1.0))
    assert found.cost == pytest.approx(drafts * draft_cost(pair, kj.ModelDraft()) + 0.05 * positions)


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
        ({"cost": "fast"}, "give Adaptive 'measured', 'size' or a number from 0 on as its cost"),
        ({"cost": None}, "from 0 on as its cost"),
        ({"cost": float("nan")}, "from 0 on as its cost"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        kj.Adaptive(**options)
