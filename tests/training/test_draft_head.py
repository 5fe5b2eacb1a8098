"""A head's training: what it computes is what a draft computes, it learns, and a killed run comes to the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_pairs import PROMPTS, tiny_model

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.models.eagle3 import Eagle3Head, abstract
from kljudge_jax.models.eagle3_files import described_for, write_eagle3
from kljudge_jax.models.fingerprint import weights_digest
from kljudge_jax.models.linear import Storage
from kljudge_jax.models.transformer import fill
from kljudge_jax.records import write
from kljudge_jax.training.draft_corpus import CorpusLine
from kljudge_jax.training.draft_features import Features, compute_features
from kljudge_jax.training.draft_head import HeadData, train_head
from kljudge_jax.training.draft_rollout import HeadBatch, chains
from kljudge_jax.training.draft_start import output_rows, starting_values

LAYERS = (0, 1, 2)
IDS = np.arange(0, 257, 2)
RECIPE = kj.HeadRecipe(
    batch_size=2, passes=3, rate=3e-3, held_out=2, evaluate_every=4, checkpoint_every=4, warmup=2, evaluate_ahead=3
)
ONE = jax.devices()[:1]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="llama", marks=pytest.mark.slow),
        pytest.param({"tied_head": True, "qkv_bias": True}, id="qwen2"),
    ],
)
def target(request):
    return tiny_model(**request.param)


@pytest.fixture(scope="module")
def corpus(target):
    pair = kj.ModelPair(target, eos=(999,))
    prompts = [(PROMPTS[i % 4] + i) % 257 for i in range(10)]
    out = kj.generate(pair, prompts, verifier=None, max_new_tokens=24)
    return [
        CorpusLine(id=str(i), prompt=prompt.tolist(), answer=np.asarray(tokens).tolist())
        for i, (prompt, tokens) in enumerate(zip(prompts, out.tokens, strict=True))
    ]


@pytest.fixture(scope="module")
def features(target, corpus, tmp_path_factory):
    return compute_features(target, corpus, LAYERS, tmp_path_factory.mktemp("features"), batch_size=4)


@pytest.fixture(scope="module")
def start(target):
    return starting_values(target, described_for(target.config, len(IDS), layers=LAYERS), IDS, seed=1)


def data_of(target, features, recipe=RECIPE):
    return HeadData(features, recipe, lambda tokens: np.asarray(target.embed(jnp.asarray(tokens)), np.float32))


def test_features_are_the_models_states(target, corpus, features):
    for index in (0, 5, 9):
        line, learnt = corpus[index], features[index]
        tokens = [*line.prompt, *line.answer]
        assert learnt.tokens.tolist() == tokens and learnt.answer == len(line.prompt)
        seen, _ = target(jnp.asarray([tokens]), layers=LAYERS)
        expected = np.concatenate([*(np.asarray(x[0]) for x in seen.layers), np.asarray(seen.hidden[0])], axis=-1)
        np.testing.assert_allclose(learnt.states.astype(np.float32), expected, rtol=0.01, atol=0.02)


def test_features_go_on_and_refuse_another_corpus(target, corpus, features, tmp_path, monkeypatch):
    whole = [features[index] for index in range(len(corpus))]
    monkeypatch.setattr("kljudge_jax.training.draft_features._SHARD", 4)

    class Killed(Exception):
        pass

    def kill(done, total):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:  # killed before it has a file, of which another call need not be
        patch.setattr("kljudge_jax.training.draft_features._states", lambda *_: kill(0, 0))
        with pytest.raises(Killed):
            compute_features(target, corpus[:5], (1,), tmp_path)
    with pytest.raises(Killed):
        compute_features(target, corpus, LAYERS, tmp_path, report=kill)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(before) == 1
    found = compute_features(target, corpus, LAYERS, tmp_path, batch_size=4)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "what was done is not done again"
    for index, expected in enumerate(whole):
        np.testing.assert_array_equal(found[index].tokens, expected.tokens)
        np.testing.assert_allclose(
            found[index].states.astype(np.float32), expected.states.astype(np.float32), atol=0.05
        )
    with pytest.raises(InputError, match="features that differ in "):
        compute_features(target, corpus[:5], LAYERS, tmp_path)
    next(iter(before)).write_bytes(b"{}")
    with pytest.raises(InputError, match="compute the features again"):
        Features(tmp_path)


def test_a_chain_in_training_is_a_draft(target, features, start):
    config = described_for(target.config, len(IDS), layers=LAYERS)
    values = {name: jnp.asarray(x) for name, x in start.items()} | {"ids": jnp.asarray(IDS, jnp.int32)}
    head = fill(abstract(config, Storage(jnp.float32)), values)
    assert isinstance(head, Eagle3Head)
    batch, embeddings, anchors = data_of(target, features).at(0)
    batch = HeadBatch(*(jnp.asarray(x) for x in dataclasses.astuple(batch)))
    rolled = jax.jit(lambda *given: list(chains(*given, anchors, 3)))
    steps = rolled(head, jnp.asarray(embeddings), batch)
    own = len(LAYERS) * target.config.hidden_size
    passed = jax.jit(lambda head, *given: head(*given))
    for row in range(2):
        first, end = int(batch.starts[row]), int(batch.ends[row])
        tokens = batch.tokens[row : row + 1]
        read = head.features((batch.states[row : row + 1, :, :own],))
        embedded = target.embed(tokens)
        for anchor in (0, 7):
            at = first - 2 + anchor
            cache = head.init_cache(1, 128)
            outputs, cache = passed(head, read[:, : at + 1], embedded[:, 1 : at + 2], cache)
            state = outputs[:, -1:]
            for j, step in enumerate(steps):
                np.testing.assert_allclose(step.logits[row, anchor], head.draft_logits(state)[0, 0], atol=2e-4)
                goal = at + 2 + j
                assert step.tokens[row, anchor] == tokens[0, goal] and step.valid[row, anchor] == (goal < end)
                wanted = target.logits(batch.states[row, goal - 1, own:].astype(jnp.float32))[IDS]
                np.testing.assert_allclose(step.target_logits[row, anchor], wanted, atol=2e-3)
                state, cache = passed(head, state, embedded[:, goal : goal + 1], cache)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole_run(target, features, start, tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("whole"), []
    config = described_for(target.config, len(IDS), layers=LAYERS)
    values = train_head(config, start, IDS, data_of(target, features), folder, seen.append, 4, ONE)
    return config, values, seen


def test_it_learns_and_leaves_the_targets_rows(target, whole_run, start):
    _, values, seen = whole_run
    assert [line.step for line in seen] == [4, 8, 12]
    assert seen[-1].loss < seen[0].loss
    assert all(len(line.held_out) == 3 for line in seen), "an evaluation at every fourth step"
    assert all(1 >= a >= b >= c >= 0 for a, b, c in [line.held_out for line in seen])
    np.testing.assert_array_equal(values["head.weight"], output_rows(target, IDS))
    assert any(np.any(values[name] != start[name]) for name in values)


def test_what_a_run_counts_is_read_off_the_record(target, features, monkeypatch):
    """And is what the batches hold: states are read for the batch of a step alone."""
    data = data_of(target, features)
    assert data.used.tolist() == sorted({token for i in range(len(features)) for token in features[i].tokens.tolist()})
    counts = [int(np.maximum(batch.ends - batch.starts, 0).sum()) for batch, *_ in map(data.at, range(data.steps))]
    monkeypatch.setattr(Features, "_open", lambda *_: pytest.fail("a file was opened"))
    again = data_of(target, features)
    assert [again.answer_tokens(step) for step in range(data.steps + 1)] == [0, *np.cumsum(counts).tolist()]


def test_features_of_an_early_version_go_on_and_are_noted_anew(target, corpus, tmp_path, monkeypatch):
    made = compute_features(target, corpus, LAYERS, tmp_path, batch_size=4)
    path = tmp_path / "features.json"
    new = json.loads(path.read_text())
    old = {name: value for name, value in new.items() if name != "ids"} | {"target": weights_digest(target)}
    path.write_text(json.dumps(old))
    assert Features(tmp_path).ids.tolist() == made.ids.tolist() == new["ids"]
    monkeypatch.setattr("kljudge_jax.training.draft_features._states", lambda *_: pytest.fail("computed again"))
    compute_features(target, corpus, LAYERS, tmp_path)
    assert json.loads(path.read_text()) == new
    # From then on, and of a new folder, a target of the same weights and another rope is another one.
    rope = dataclasses.replace(target.config.rope, theta=5e5)
    monkeypatch.setattr(target, "config", dataclasses.replace(target.config, rope=rope))
    with pytest.raises(InputError, match="features that differ in target: choose an empty folder"):
        compute_features(target, corpus, LAYERS, tmp_path)


@pytest.mark.parametrize("killed_at", [4, 8])
def test_resumes_to_the_same_head(target, features, start, whole_run, tmp_path, killed_at):
    config, expected, seen = whole_run

    def kill(progress):
        if progress.step == killed_at:
            raise Killed

    data = data_of(target, features)
    with pytest.raises(Killed):
        train_head(config, start, IDS, data, tmp_path, kill, 4, ONE)
    again = []
    values = train_head(config, start, IDS, data, tmp_path, again.append, 4, ONE)
    for name, array in expected.items():
        np.testing.assert_array_equal(values[name], array)
    assert [(line.step, line.tokens, line.held_out) for line in again] == [
        (line.step, line.tokens, line.held_out) for line in seen if line.step > killed_at - 4
    ]


def test_a_folder_of_another_recipe_and_too_few_answers_are_refused(target, features, start, tmp_path):
    config = described_for(target.config, len(IDS), layers=LAYERS)
    data = data_of(target, features)
    write(tmp_path / "recipe.json", dataclasses.replace(RECIPE, rate=1.0))  # of a run that came to no checkpoint
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)  # killed as it wrote its first
    train_head(
        config, start, IDS, data_of(target, features, dataclasses.replace(RECIPE, passes=0.3)), tmp_path, devices=ONE
    )
    with pytest.raises(InputError, match="another recipe"):
        train_head(config, start, IDS, data, tmp_path, devices=ONE)
    with pytest.raises(InputError, match="10 sequences leave no batch"):
        data_of(target, features, dataclasses.replace(RECIPE, held_out=10))
    with pytest.raises(InputError, match="multiple of 2"):
        train_head(config, start, IDS, data_of(target, features, dataclasses.replace(RECIPE, batch_size=3)), tmp_path,
                   devices=jax.devices()[:2])  # fmt: skip


def test_a_loss_that_is_no_number_ends_the_run_before_a_head_is_kept(target, features, start, tmp_path):
    config = described_for(target.config, len(IDS), layers=LAYERS)
    broken = {**start, "fc.weight": np.full_like(start["fc.weight"], np.nan)}
    with pytest.raises(InputError, match=f"the loss is no number at step 4: delete {tmp_path} and choose a lower rate"):
        train_head(config, broken, IDS, data_of(target, features), tmp_path, report_every=4, devices=ONE)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_chain_in_bfloat16_has_its_softmax_in_float32(target, features, start):
    config = described_for(target.config, len(IDS), layers=LAYERS)
    values = {name: jnp.asarray(x, jnp.bfloat16) for name, x in start.items()} | {"ids": jnp.asarray(IDS, jnp.int32)}
    head = fill(abstract(config, Storage(jnp.bfloat16)), values)
    batch, embeddings, anchors = data_of(target, features).at(0)
    batch = HeadBatch(*(jnp.asarray(x) for x in dataclasses.astuple(batch)))
    traced = jax.make_jaxpr(lambda e, b: [step.logits for step in chains(head, e, b, anchors, 2)])(embeddings, batch)
    softmax = [line for line in str(traced).splitlines() if f",{embeddings.shape[1]}" in line and " = exp " in line]
    assert softmax and not [line for line in softmax if "bf16" in line]


def test_two_devices_learn_what_one_does(target, features, start, whole_run, tmp_path):
    config, expected, _ = whole_run
    values = train_head(config, start, IDS, data_of(target, features), tmp_path, devices=jax.devices()[:2])
    # bfloat16 products are summed in another order.
    moved = [np.abs(values[name] - array).max() / (np.abs(array - start[name]).max() + 1e-9)
             for name, array in expected.items() if name != "head.weight"]  # fmt: skip
    assert np.median(moved) < 0.2


def test_a_trained_head_is_written_and_drafts(target, whole_run, tmp_path):
    config, values, _ = whole_run
    write_eagle3(tmp_path / "head", config, values, IDS.tolist())
    from kljudge_jax.models.draft_heads import open_head

    source = open_head(tmp_path / "head")
    fitted = source.fitted(target.config)
    assert fitted == dataclasses.replace(config, decoder=fitted.decoder)
    head = source.load(fitted, Storage(jnp.float32))
    pair = kj.ModelPair(target, head, eos=(999,))
    plain = kj.generate(pair, PROMPTS, verifier=None, max_new_tokens=24)
    drafted = kj.generate(pair, PROMPTS, verifier="exact", draft_length=3, max_new_tokens=24)
    for a, b in zip(plain.tokens, drafted.tokens, strict=True):
        np.testing.assert_array_equal(a, b)
    assert drafted.stats.drafted > 0
