"""Others' models in all that decodes or scores: a `Model` written against the protocol alone, and adapted ones."""

import json
import math

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import SIZE, Scalar, norm
from sweep_records import Letters
from tiny_pairs import byte_tokenizer, compilations, tokens_of
from toy_task import LetterParity

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.evaluation.bench import limits
from kljudge_jax.evaluation.bench.models import random_prompts
from kljudge_jax.evaluation.loglikelihood import Continuation, log_likelihoods
from kljudge_jax.evaluation.perplexity import perplexity
from kljudge_jax.judges import passes, semi_greedy
from kljudge_jax.judges import training as judge_training
from kljudge_jax.judges.mining import mine
from kljudge_jax.judges.semi_greedy import Options
from kljudge_jax.judges.sources import Likelihood, label_mismatches
from kljudge_jax.verification.head import PairIdentity

VOCAB, NEW, LENGTH = 257, 12, 3
SIZES = {"draft_length": LENGTH, "max_new_tokens": NEW, "batch": 2}


def call(params, tokens, positions, cache, mask):
    streams, stored = Scalar(params).one(tokens[0], tuple(x[0] for x in cache["stored"]), cache["at"])
    return norm(streams[-1])[None], {"stored": tuple(x[None] for x in stored), "at": cache["at"] + tokens.shape[1]}


def init_cache(slots):
    stored = (jnp.zeros((1, slots, SIZE)),) * 2 * Scalar.num_layers
    return {"stored": stored, "at": jnp.zeros((), jnp.int32)}


def rewind(cache, n):
    return cache | {"at": n}


def head(params, states):
    return states @ params["head"]


def logits_call(params, *given):
    states, cache = call(params, *given)
    return head(params, states), cache


def adapted(scalar, **options):
    return kj.adapt(call, init_cache, scalar.parameters, vocab_size=VOCAB, rewind=rewind, head=head, **options)


def without_states(scalar, **options):
    return kj.adapt(logits_call, init_cache, scalar.parameters, vocab_size=VOCAB, rewind=rewind, **options)


KINDS = {"protocol": lambda scalar, **_: scalar, "adapted": adapted, "logits": without_states}


def made(kind, **options):
    """A pair over bytes, of which the draft is right at times."""
    target = Scalar.random(3, VOCAB)
    models = [KINDS[kind](each, **options) for each in (target, target.noisy(1, 0.1))]
    return kj.ModelPair(*models, byte_tokenizer(), eos=(256,), target_name="theirs", draft_name="theirs, less")


def slowly(*fast):
    """All kinds; those that are not named are left to the slow run."""
    return [kind if kind in fast else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture
def pair(request):
    return made(request.param)


@pytest.fixture(params=["protocol", "adapted"])
def seeing(request):
    """A pair whose models give states."""
    return made(request.param)


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch):
    """One width of passes and a small product, so that little is compiled."""
    for module in (semi_greedy, passes):
        monkeypatch.setattr(module, "WIDTHS", (32,))
    monkeypatch.setattr(limits, "matmul_size", lambda: 32)


def answers_in(folder):
    """The tokens of a sweep's answers, by rule and problem."""
    records = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return {(record["rule"], record["problem"]): record["token_ids"] for record in records}


@pytest.mark.parametrize("pair", slowly("protocol", "logits"), indirect=True)
@pytest.mark.first_case
def test_a_sweep(pair, tmp_path):
    found = kj.sweep(
        pair, Letters(), ["none", "exact"], draft_lengths=[LENGTH], n=2, batch=2, max_new_tokens=NEW,
        examples=0, folder=tmp_path,
    )  # fmt: skip
    assert found.rows[1].same_text == 2
    tokens, problems = answers_in(tmp_path), Letters().problems(n=2, seed=0)
    scalar = Scalar.random(3, VOCAB)
    for problem in problems:
        prompt = pair.tokenizer(problem.prompt)["input_ids"]
        own = foreign.greedy_by_hand(scalar, prompt, NEW)
        assert tokens["none", problem.id] == tokens["exact", problem.id] == own
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["dtype"] == "float32" and plan["mesh"] is None
    assert len(set(plan["weights"].values())) == 2
    # Other weights are another sweep.
    other = kj.ModelPair(pair.draft, pair.draft, pair.tokenizer, pair.eos, pair.target_name, pair.draft_name)
    with pytest.raises(InputError, match="its weights differs"):
        kj.sweep(
            other, Letters(), ["none", "exact"], draft_lengths=[LENGTH], n=2, batch=2, max_new_tokens=NEW,
            examples=0, folder=tmp_path,
        )  # fmt: skip


@pytest.mark.parametrize("pair", slowly("logits"), indirect=True)
def test_a_bench(pair):
    found = kj.bench(pair, Letters(), ["exact"], prompts=1, rounds=1, draft_length=LENGTH, max_new_tokens=NEW)
    plain, exact = found.figures.batches[0].rules
    assert plain.failed == exact.failed == 0 and plain.tokens == exact.tokens == NEW
    assert exact.mean_acceptance_length > 1
    target = found.figures.models["target"]
    assert target.shape["vocab_size"] == VOCAB and target.parameters == 2 * VOCAB * SIZE + 10 * SIZE**2
    assert target.bytes == 4 * target.parameters == found.figures.limits.read["target"].bytes
    # What a pass of theirs reads and computes nobody here knows; what verdicts do, one does.
    floors = {part.part: part.floor_seconds for part in exact.profile}
    assert floors["target"] is None and floors["verdicts"] > 0
    assert found.figures.batches[0].target_pass[1].bytes_per_second is None
    assert "none defined" in found.markdown(profile=True)
    assert {len(prompt) for prompt in random_prompts(pair, 2, 5, 0)} == {5}


@pytest.mark.parametrize("pair", slowly("adapted"), indirect=True)
def test_a_calibration(pair):
    asked = {"budget": 40, "without_answers": True, "n": 8, "split": "test"}
    found = kj.calibrate(pair, Letters(), "kl:confidence=1.0", [-1.0], **asked, **SIZES)
    (tested,) = found.tested
    # A divergence is never below 0, so that this threshold accepts what the target would have written, and no more.
    assert (tested.right, tested.plain_right, tested.failed) == (8, 8, 0) and tested.mean_acceptance_length > 1


@pytest.mark.first_case
def test_mining_a_judge_and_decoding_with_it(seeing, tmp_path):
    data = mine(seeing, LetterParity(), tmp_path / "data", n=12, options=Options(NEW, batch=6, gap_tokens=5))
    assert len(data) > 4 and {record.status for record in data.questions} == {"mined"}
    problem, scalar = LetterParity().problems("train", 12)[0], Scalar.random(3, VOCAB)
    prompt = seeing.tokenizer(problem.prompt)["input_ids"]
    plain = kj.generate(seeing, [prompt], verifier=None, max_new_tokens=NEW)
    assert data.questions[0].answer == plain.text[0]
    # What a row holds of the states is what one pass over the text finds.
    row = next(i for i in range(len(data)) if data["question"][i] == 0)
    text = [*prompt, *plain.tokens[0][: data["position"][row]], data["draft_token"][row]]
    features, _ = scalar(jnp.asarray([text], jnp.int32), scalar.init_cache(1, len(text)))
    np.testing.assert_allclose(data["target_hidden"][row], features.hidden[0, -1], atol=1e-5)

    judge = kj.train_judge(
        tmp_path / "data", tmp_path / "judge", judge_training.Options(grid=(1.0,), validation_share=0.4)
    )
    assert judge.head.pair == PairIdentity("theirs", "theirs, less", SIZE, SIZE, VOCAB)
    rule, asked = f"judge:{tmp_path / 'judge'}", {"draft_length": LENGTH, "max_new_tokens": NEW}
    out = kj.generate(seeing, [prompt], verifier=f"{rule},0.5", **asked)
    assert out.stats.failed == 0 and 0 < len(out.tokens[0]) <= NEW
    strict = kj.generate(seeing, [prompt], verifier=f"{rule},0.0", **asked)
    assert tokens_of(strict) == tokens_of(plain)


def test_labels_by_likelihood(seeing, tmp_path):
    data = label_mismatches(seeing, LetterParity(), tmp_path, Likelihood(NEW), n=2)
    assert {record.status for record in data.questions} == {"mined"} and np.isfinite(data["score"]).all()


def by_hand(tokens):
    """Log-probabilities of all tokens but the first under the target, f64."""
    logits = foreign.teacher_forced(Scalar.random(3, VOCAB), tokens)[0].astype(np.float64)[:-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("pair", slowly("protocol", "logits"), indirect=True)
def test_perplexity_and_log_likelihoods(pair):
    tokens = np.random.default_rng(0).integers(0, VOCAB, 20).tolist()
    found = perplexity(pair.target, tokens, prefix=7, window=64)
    assert found.value == pytest.approx(math.exp(-by_hand([7, *tokens]).mean()), rel=1e-4)
    assert found.precision == "float32" and found.weight_bytes == 4 * (2 * VOCAB * SIZE + 10 * SIZE**2)
    (_, one), *_ = log_likelihoods(pair.target, [Continuation(tokens[:5], tokens[5:9])])
    assert one.total == pytest.approx(by_hand(tokens[:9])[-4:].sum(), abs=1e-3) and not one.greedy


def test_a_limit_of_theirs_is_kept():
    short = made("adapted", max_length=16)
    with pytest.raises(InputError, match="a continuation has 17 tokens, and the target takes 16"):
        list(log_likelihoods(short.target, [Continuation([1], [2] * 17)]))
    with pytest.raises(InputError, match="more than the 16 of the models"):
        semi_greedy.Search(short, LetterParity(), LetterParity().problems(n=2), set(), Options(16), [0])


# What cannot be is said in one line, before anything compiles.


def refused(match, asked):
    with pytest.raises(InputError, match=match) as raised, compilations() as found:
        asked()
    assert "\n" not in str(raised.value) and not found


def test_mining_needs_states_and_caches_that_go_back(tmp_path):
    logits, ring = made("logits"), made("adapted", rollback=6)
    match = r"a learned judge reads hidden states, and that model gives logits alone \(Features.hidden"
    refused(match, lambda: mine(logits, LetterParity(), tmp_path / "data", n=2))
    refused(match, lambda: label_mismatches(logits, LetterParity(), tmp_path / "data", Likelihood(NEW), n=2))
    match = r"the target's cache can take back 6 tokens \(Cache.rollback\)"
    refused(match, lambda: mine(ring, LetterParity(), tmp_path / "data", n=2))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("pair", slowly("protocol"), indirect=True)
def test_cells_of_transformers_are_ours_alone(pair, monkeypatch):
    monkeypatch.setattr("kljudge_jax.evaluation.sweep.run.check_baselines", lambda *_: None)  # torch may not be here
    asked = {"draft_lengths": [LENGTH], "n": 2, "max_new_tokens": NEW}
    for cell in ("hf", "hf:assisted"):
        refused("the cells hf give", lambda cell=cell: kj.sweep(pair, Letters(), ["none", cell], **asked))


def test_a_bench_reads_parameters():
    params = Scalar.random(3, VOCAB).parameters

    def closed(_, *given):
        return logits_call(params, *given)

    target = kj.adapt(closed, init_cache, (), vocab_size=VOCAB, rewind=rewind)
    bare = kj.ModelPair(target, None, byte_tokenizer(), (256,))
    # What it decodes with is compiled before.
    with pytest.raises(InputError, match="the leaves of this AdaptedModel hold no matrix"):
        kj.bench(bare, Letters(), [], prompts=1, rounds=1, max_new_tokens=NEW)
    assert jax.tree.leaves(bare.target) == []
