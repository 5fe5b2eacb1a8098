"""`kj.core.init` and `kj.core.decode` inside a caller's own jit, scan and shard_map; data trace nothing anew."""

import dataclasses
import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from foreign import Scalar, begin, enter, go_on, keys, padded, rows_of
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from tiny_pairs import NEVER, forced, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.core.cycle import sections
from kljudge_jax.core.verify import verdicts
from kljudge_jax.verification.rule import NEEDS

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9], [2, 7]]
NEW, LENGTH = 16, 3
PAIR = tiny_pair()
MODELS = kj.core.Models(PAIR.target, PAIR.draft)
DRAFTER = kj.ModelDraft()
SHAPE = kj.core.Shape(LENGTH, NEW, prefill=kj.core.Prefill(8))
TRACED = dataclasses.replace(SHAPE, trace=True)
REPLICATED, DATA = PartitionSpec(), PartitionSpec("data")
SPLIT = kj.core.Numbers(REPLICATED, DATA, REPLICATED, REPLICATED, REPLICATED)
slow = pytest.mark.slow
RULES = {"exact": kj.SpeculativeSampling(), "kl": kj.KLJudge(1.0)}


@functools.cache
def generated(name, temperature=0.0):
    rule = RULES[name]
    options = {"draft_length": LENGTH, "max_new_tokens": NEW, "temperature": temperature, "key": keys(4)}
    return tokens_of(kj.generate(PAIR, [np.asarray(p) for p in PROMPTS], verifier=rule, **options))


def numbers(temperature=0.0, **options):
    return kj.core.numbers([NEW] * 4, end_ids=(NEVER,), temperature=temperature, **options)


def whole(models, rule, prompts, lengths, keys, numbers, shape=SHAPE):
    state = kj.core.init(models, DRAFTER, rule, prompts, lengths, keys, numbers, shape=shape)
    return kj.core.decode(models, DRAFTER, rule, state, numbers, shape=shape)


@pytest.mark.parametrize(
    ("name", "temperature"),
    [("exact", 0.0), *(pytest.param(*case, marks=slow) for case in (("exact", 0.8), ("kl", 0.0), ("kl", 0.8)))],
)
def test_the_loop_runs_inside_jit_scan_and_shard_map_as_in_generate(name, temperature):
    rule, arguments = RULES[name], (*padded(PROMPTS, 12), keys(4), numbers(temperature))
    wanted = generated(name, temperature)

    @jax.jit
    def inside_jit(*arguments):
        return kj.core.result(whole(*arguments))

    assert rows_of(inside_jit(MODELS, rule, *arguments)) == wanted
    over_nothing = jax.vmap(inside_jit, in_axes=None, axis_size=1)(MODELS, rule, *arguments)
    assert rows_of(jax.tree.map(lambda x: x[0], over_nothing)) == wanted

    @jax.jit
    def inside_scan(models, rule, prompts, lengths, keys, numbers):
        state = kj.core.init(models, DRAFTER, rule, prompts, lengths, keys, numbers, shape=SHAPE)

        def step(state, _):
            state = kj.core.decode(models, DRAFTER, rule, state, numbers, shape=SHAPE, max_cycles=1)
            return state, (state.count, state.finish)

        state, (count, finish) = jax.lax.scan(step, state, length=NEW)
        return kj.core.result(state), count, finish

    result, count, finish = inside_scan(MODELS, rule, *arguments)
    assert rows_of(result) == wanted
    # One cycle a step: at least one token of every row, until all are there.
    grown = np.diff(np.asarray(count), axis=0, prepend=0)
    assert (grown.max(axis=1) >= 1)[: int(np.argmax((finish == 0).all(axis=1))) + 1].all() and grown.max() > 1
    np.testing.assert_array_equal(finish, np.where(count == NEW, 0, 1))

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=Mesh(np.asarray(jax.devices()[:4]), ("data",)),
        in_specs=(REPLICATED, REPLICATED, DATA, DATA, DATA, SPLIT),
        out_specs=DATA,
        check_vma=True,
    )
    def inside_shard_map(*arguments):
        result = kj.core.result(whole(*arguments))
        return result.tokens, result.count

    tokens, count = inside_shard_map(MODELS, rule, *arguments)
    assert [row[:n].tolist() for row, n in zip(np.asarray(tokens), count, strict=True)] == wanted


TRACES = {
    "prompt lookup": (kj.PromptLookup(), kj.DivergenceThreshold("tv", 0.5), {}, {}),
    "a self-draft": (kj.SelfDraft(1), kj.KLJudge(0.5), {}, {}),
    "a draft that adapts": (DRAFTER, kj.KLJudge(0.5), {"controller": kj.Adaptive(maximum=3, cost="size")}, {}),
    "one that ends early": (
        DRAFTER,
        kj.KLJudge(0.5),
        {"controller": kj.Adaptive(minimum=1, maximum=3, confidence=0.1, cost="size")},
        {"temperature": 0.7},
    ),
    "several drafts": (
        DRAFTER,
        kj.KSequential(drafts=2),
        {"scorer": kj.core.scorers.DraftScorer(2)},
        {"temperature": 0.7},
    ),
    "a second view": (DRAFTER, kj.Reflective(0.5), {"scorer": kj.core.scorers.ReflectionScorer((1, 2))}, {}),
    "one prompt at a time": (
        DRAFTER,
        kj.BlockVerification(),
        {"prefill": kj.core.Prefill(4, True)},
        {"temperature": 1},
    ),
    "truncation and a trace": (DRAFTER, kj.SpeculativeSampling(), {"trace": True}, {"temperature": 1, "top_p": 0.9}),
    "sections": (DRAFTER, kj.KLJudge(0.5), {}, {"section_ids": (3, 4)}),
    "plain decoding": (None, kj.GreedyExact(), {"draft_length": 0}, {}),
}


# Of which a plain run traces those whose states differ most.
_DAILY = {"several drafts", "a draft that adapts", "sections", "plain decoding"}


@pytest.mark.parametrize(
    "name", [name if name in _DAILY else pytest.param(name, marks=pytest.mark.slow) for name in TRACES]
)
def test_every_way_of_decoding_traces_inside_shard_map(name):
    """Only traced: what a program does there, it does by the same operations as elsewhere."""
    drafter, rule, static, data = TRACES[name]
    shape = dataclasses.replace(SHAPE, **static)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    specs = (REPLICATED, REPLICATED, DATA, DATA, DATA, SPLIT)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=DATA, check_vma=True)
    def run(models, rule, prompts, lengths, keys, numbers):
        state = kj.core.init(models, drafter, rule, prompts, lengths, keys, numbers, shape=shape)
        state = kj.core.decode(models, drafter, rule, state, numbers, shape=shape)
        entries = kj.core.Entries(prompts, lengths, keys, numbers.budget, jnp.arange(len(prompts)))
        state = kj.core.admit(models, drafter, rule, state, entries, numbers, shape=shape, count=1)
        state = kj.core.decode(models, drafter, rule, state, numbers, shape=shape)
        result = kj.core.result(state)
        return result.tokens, result.logprobs

    tokens, _ = jax.eval_shape(run, MODELS, rule, *padded(PROMPTS, 16), keys(4), numbers(**data))
    assert tokens.shape == (4, NEW)


def example(kind):
    """A rule with some numbers, or None for one that needs a trained head."""
    given = {}
    for field in dataclasses.fields(kind):
        parameter = field.metadata.get("parameter")
        if field.default is dataclasses.MISSING:
            given[field.name] = parameter.choices[0] if parameter.choices else 1 if parameter.integer else 0.5
    try:
        return kind(**given)
    except kj.InputError:
        return None


OURS = [kind for kind in kj.verification.RULES if kind.__module__.startswith("kljudge_jax.")]
EXAMPLES = [rule for rule in map(example, OURS) if rule is not None]


@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda rule: type(rule).__name__)
def test_rules_trace_inside_shard_map_with_and_without_a_draft(rule):
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(REPLICATED, DATA, DATA), out_specs=DATA, check_vma=True)
    def run(rule, keys, logits):
        length = logits.shape[1] - 1
        drafted = jnp.argmax(logits[:, :length], axis=-1).astype(jnp.int32)
        count = jnp.full_like(drafted, length, shape=drafted.shape[:1])
        hidden = {name: logits[:, :length] if name in rule.needs else None for name in NEEDS}
        progress = {"position": count, "remaining": count}
        inputs = kj.VerifyInputs(
            drafted, count, logits[:, :length], logits, logits[:, :length], logits,
            **hidden, **progress, greedy=jnp.asarray(rule.greedy_only),  # an array to the rule, so one trace does
        )  # fmt: skip
        return verdicts(rule, keys, inputs)

    for length in (0, LENGTH):
        verdict = jax.eval_shape(run, rule, keys(4), jnp.zeros((4, length + 1, 11)))
        assert verdict.next_token.shape == (4,)


def test_other_numbers_trace_nothing_anew():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(models, rule, prompts, lengths, keys, numbers):
        return kj.core.result(whole(models, rule, prompts, lengths, keys, numbers))

    prompts, lengths = padded(PROMPTS, 12)
    seen = set()
    for tau, temperature, budget, seed in ((0.1, 0.5, NEW, 0), (2.0, 0.5, NEW, 0), (2, 1, 3, 0), (2.0, 1.3, NEW, 5)):
        rule = jax.tree.map(jnp.float32, kj.KLJudge(tau))
        data = kj.core.numbers(
            jnp.full((4,), budget), end_ids=(NEVER,), temperature=temperature, min_p=0.01 * temperature
        )
        result = run(MODELS, rule, prompts, lengths, keys(4, seed), data)
        assert result.count.tolist() == [budget] * 4
        seen.add(str(rows_of(result)))
    assert len(seen) == 4
    # Other parameters of the same architecture neither.
    other = tiny_pair(seed=5)
    run(kj.core.Models(other.target, other.draft), rule, prompts, lengths, keys(4), data)


@slow
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_threshold_a_row_decodes_each_row_as_it_would_alone(temperature):
    thresholds = [0.05, 0.4, 1.0, 3.0]
    # One prompt and one key, so that the threshold alone tells the rows apart.
    given = (*padded(PROMPTS[2:3] * 4, 12), jnp.broadcast_to(keys(1), (4,)), numbers(temperature))
    run = jax.jit(lambda *arguments: kj.core.result(whole(*arguments)))
    together = run(MODELS, kj.KLJudge(threshold=jnp.asarray(thresholds)), *given)
    alone = [run(MODELS, kj.KLJudge(threshold=jnp.float32(tau)), *given) for tau in thresholds]
    for row, one in enumerate(alone):
        chex.assert_trees_all_equal(
            *(jax.tree.map(lambda x, row=row: x[row], (r.tokens, r.origin)) for r in (together, one))
        )
    assert len({tuple(row) for row in rows_of(together)}) > 1

    # On a mesh a shard has the thresholds of its own rows.
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    specs = (REPLICATED, kj.KLJudge(DATA, REPLICATED, REPLICATED), DATA, DATA, DATA, SPLIT)
    split = jax.jit(
        jax.shard_map(lambda *a: kj.core.result(whole(*a)).tokens, mesh=mesh, in_specs=specs, out_specs=DATA)
    )
    rule = kj.KLJudge(threshold=jnp.asarray(thresholds), confidence=jnp.float32(0.9))
    np.testing.assert_array_equal(split(MODELS, rule, *given), together.tokens)


@kj.register
@dataclasses.dataclass(frozen=True)
class Counting:
    """Exact, and relaxed in every `every`-th cycle of an answer, where it accepts all; it notes what it is told."""

    every: float = 3.0
    room: int = dataclasses.field(default=48, metadata={"static": True})

    def init_carry(self):
        nothing = jnp.full((self.room,), -1, jnp.int32)
        return {"cycles": jnp.int32(0), "position": nothing, "remaining": nothing, "section": nothing}

    def __call__(self, key, inputs):
        carry, strict = inputs.carry, kj.SpeculativeSampling()(key, inputs)
        place, count = jnp.arange(self.room), inputs.draft_tokens.shape[0]
        this = place == carry["cycles"]
        at = inputs.position + jnp.arange(count + 1)
        section = jnp.zeros((count + 1,), jnp.int32) if inputs.section is None else inputs.section
        lax = (carry["cycles"] + 1) % jnp.asarray(self.every, jnp.int32) == 0
        carry = {
            "cycles": carry["cycles"] + 1,
            "position": jnp.where(this, inputs.position, carry["position"]),
            "remaining": jnp.where(this, inputs.remaining, carry["remaining"]),
            # What is past the verdict is written again by the next one.
            "section": carry["section"].at[at].set(section, mode="drop"),
        }
        accepted = jnp.where(lax, inputs.draft_count, strict.num_accepted)
        last = jnp.argmax(inputs.target_logits[accepted]).astype(jnp.int32)
        token = jnp.where(lax, last, strict.next_token)
        relaxed = lax & (jnp.arange(count) >= strict.num_accepted) & (jnp.arange(count) < accepted)
        return kj.Verdict(accepted, token, relaxed, carry)


@hypothesis.given(
    st.lists(st.lists(st.sampled_from([0, 7, 8, 9]), min_size=6, max_size=6), min_size=3, max_size=3),
    st.lists(st.integers(0, 1), min_size=3, max_size=3),
)
@hypothesis.settings(max_examples=50)
def test_sections_are_those_counted_by_hand(tokens, before):
    found = _sections(jnp.asarray(before, jnp.int32), jnp.asarray(tokens, jnp.int32), jnp.asarray([7, 8], jnp.int32))
    assert found.tolist() == [sections_by_hand(row, 7, 8, inside) for row, inside in zip(tokens, before, strict=True)]


_sections = jax.jit(sections)


def sections_by_hand(tokens, opens, closes, inside=0):
    """Whether each token, and the one after the last, stands inside a block."""
    found = []
    for token in tokens:
        found.append(inside)
        if token == opens:
            inside = 1
        if token == closes:
            inside = 0
    return [*found, inside]


def test_a_rule_with_a_memory_is_told_where_it_stands_and_keeps_what_it_returns():
    target = Scalar.random(0)
    models = kj.core.Models(target, target.noisy(1, 0.3))
    rule = jax.tree.map(jnp.float32, Counting())
    opens, closes = 13, 6  # ids that this target writes
    prompts = [[3, opens, 4], [1], [5, opens, 2, closes, 5, 3, opens, 8, 9], [opens, 7]]
    static = {"drafter": DRAFTER, "shape": SHAPE}
    budgets = jnp.asarray([NEW, 4, NEW, 9])
    data = dataclasses.replace(numbers(section_ids=(opens, closes)), budget=budgets)

    def check(state, prompts, budgets):
        carry = jax.tree.map(np.asarray, state.carry)
        for row, prompt in enumerate(prompts):
            cycles, length, count = int(state.cycles[row]), int(state.length[row]), int(state.count[row])
            assert carry["cycles"][row] == cycles
            committed = np.asarray(state.cycle_committed)[row, :cycles]
            positions = np.cumsum(committed) - committed
            assert carry["position"][row, :cycles].tolist() == positions.tolist()
            assert carry["remaining"][row, :cycles].tolist() == (budgets[row] - positions).tolist()
            assert (carry["position"][row, cycles:] == -1).all()
            sequence = np.asarray(state.sequence)[row, :length].tolist()
            assert sequence[: len(prompt)] == prompt
            told = sections_by_hand(sequence, opens, closes)[len(prompt) :]
            assert carry["section"][row, :count].tolist() == told[:count]
            assert int(state.section[row]) == told[-1]

    state = begin(models, rule, *padded(prompts, 12), keys(4), data, **static)
    assert not np.asarray(state.carry["cycles"]).any()
    for _ in range(3):
        state = go_on(models, rule, state, data, 1, **static)
        check(state, prompts, budgets)
    state = go_on(models, rule, state, data, **static)
    check(state, prompts, budgets)
    told = np.asarray(state.carry["section"])
    assert (told == 1).any() and (told == 0).any()
    # Rows stop after different numbers of cycles, and keep what they remember while others go on.
    assert len(set(state.cycles.tolist())) > 1
    relaxed = np.asarray(kj.core.result(state).origin) == 1
    assert relaxed.any()

    entries = kj.core.Entries(
        *padded([[closes, opens], [1], [1], [1]], 12), keys(4, 2), jnp.full((4,), 5), jnp.asarray([1, 0, 0, 0])
    )
    refilled = enter(models, rule, state, entries, data, 1, **static)
    fresh = rule.init_carry()
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], refilled.carry), fresh)
    for row in (0, 2, 3):
        chex.assert_trees_all_equal(*(jax.tree.map(lambda x, row=row: x[row], s.carry) for s in (refilled, state)))
    now = [prompts[0], [closes, opens], *prompts[2:]]
    refilled = go_on(models, rule, refilled, data, **static)
    check(refilled, now, budgets.at[1].set(5))


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=slow), 0.7])
def test_a_result_has_what_is_known_of_every_token(temperature):
    rule = kj.KLJudge(1.0)
    data = dataclasses.replace(numbers(temperature, min_p=0.01), budget=jnp.asarray([NEW, 5, NEW, 1]))
    state = jax.jit(functools.partial(whole, shape=TRACED))(MODELS, rule, *padded(PROMPTS, 12), keys(4), data)
    result = jax.tree.map(np.asarray, kj.core.result(state))
    assert result.count.tolist() == [NEW, 5, NEW, 1] and not result.finish.any()
    chex.assert_shape([result.tokens, result.origin, result.kl, result.logprobs, result.sampled_logprobs], (4, NEW))
    assert not (result.running | result.failed | result.alone).any()
    for row, prompt in enumerate(PROMPTS):
        count = result.count[row]
        answer = result.tokens[row, :count].tolist()
        assert not result.tokens[row, count:].any()
        logits, draft_logits = (forced(model, prompt + answer)[0][len(prompt) - 1 : -1] for model in MODELS)
        log_p, log_q = (scipy.special.log_softmax(x, axis=-1) for x in (logits, draft_logits))
        np.testing.assert_allclose(result.logprobs[row, :count], log_p[np.arange(count), answer], atol=2e-4)
        if temperature:
            hot = scipy.special.log_softmax(logits / temperature, axis=-1)
            hot = np.where(hot < hot.max(axis=-1, keepdims=True) + np.log(0.01), -np.inf, hot)
            expected = scipy.special.log_softmax(hot, axis=-1)[np.arange(count), answer]
        else:
            expected = np.zeros(count)
        np.testing.assert_allclose(result.sampled_logprobs[row, :count], expected, atol=2e-4)
        divergence = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
        drafted = ~np.isnan(result.kl[row, :count])
        np.testing.assert_allclose(result.kl[row, :count][drafted], divergence[drafted], atol=2e-3)
        assert drafted[result.origin[row, :count] != 2].all()
        for values in (result.kl, result.logprobs, result.sampled_logprobs):
            assert np.isnan(values[row, count:]).all()
        relaxed = result.origin[row, :count] == 1
        if not temperature:
            np.testing.assert_array_equal(np.asarray(answer)[relaxed] == logits.argmax(axis=-1)[relaxed], False)
    assert {0, 1, 2} <= set(result.origin[:, :NEW].ravel().tolist())
    bare = kj.core.result(jax.jit(whole)(MODELS, rule, *padded(PROMPTS, 12), keys(4), data))
    assert bare.kl is None and bare.logprobs is None and bare.sampled_logprobs is None
    np.testing.assert_array_equal(bare.tokens, result.tokens)


@pytest.mark.slow
def test_decode_says_why_it_ended():
    static = {"drafter": DRAFTER, "shape": SHAPE}
    data = numbers()
    state = begin(MODELS, kj.GreedyExact(), *padded(PROMPTS, 12), keys(4), data, **static)
    some = go_on(MODELS, kj.GreedyExact(), state, data, 2, **static)
    assert some.finish.tolist() == [1] * 4 and some.cycles.tolist() == [2] * 4
    few = jax.jit(
        lambda models, prompts, lengths, keys, data: kj.core.decode(
            models,
            DRAFTER,
            kj.GreedyExact(),
            kj.core.init(models, DRAFTER, kj.GreedyExact(), prompts, lengths, keys, data, shape=SHAPE, slots=16),
            data,
            shape=SHAPE,
        )
    )(MODELS, *padded(PROMPTS, 12), keys(4), data)
    assert set(few.finish[few.running].tolist()) == {2} and few.running.any() and few.cache.slots == 16
    wider = dataclasses.replace(few, cache=few.cache.resized(32), drafter=few.drafter.resized(32))
    done = go_on(MODELS, kj.GreedyExact(), wider, data, **static)
    assert not done.finish.any() and rows_of(kj.core.result(done)) == generated("exact")


def test_a_program_names_the_parts_of_a_cycle():
    """Profiles read them: draft, score, verify and commit, in the metadata of the compiled program's operations."""
    static = {"drafter": DRAFTER, "shape": SHAPE}
    given = (MODELS, kj.KLJudge(1.0), *padded(PROMPTS, 12), keys(4), numbers())
    state = jax.eval_shape(functools.partial(begin, **static), *given)
    lowered = go_on.lower(MODELS, kj.KLJudge(1.0), state, numbers(), **static)
    for text in (lowered.as_text(debug_info=True), lowered.compile().as_text()):
        for name in ("draft", "score", "verify", "commit"):
            assert f"/{name}/" in text, name
