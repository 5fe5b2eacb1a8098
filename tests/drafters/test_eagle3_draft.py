"""Decoding with EAGLE-3 heads: the target's own tokens, or its own distribution, whatever the head says."""

import dataclasses
import io

import foreign_models as foreign
import jax
import numpy as np
import pytest
from chi_square import joint_distribution, p_value
from published_heads import KEPT, PROMPTS, drafts_of, pair_of, write_eagle3_folder, write_target
from tiny_pairs import tokens_of, with_parameters

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.drafters.eagle3_draft import Eagle3Draft
from kljudge_jax.drafters.heads import drafter_of
from kljudge_jax.errors import InputError
from kljudge_jax.generation.costs import draft_cost
from kljudge_jax.models.eagle3 import Eagle3Head

FEW, LEAST = 8, 7  # tokens: so few that a random head is right now and then
SOME = [5, 0, 3, 2, 6]  # what the head can draft, in an order of its own


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By size of vocabulary: a target as Transformers has it, and the folders of it and of a head over some tokens."""
    known = {}

    def get(vocab_size, family="llama3"):
        if (vocab_size, family) not in known:
            root = tmp_path_factory.mktemp(family)
            model = write_target(root / "target", family, vocab_size)
            head = write_eagle3_folder(root / "head", vocab_size, SOME, embedding=family == "llama3")
            known[vocab_size, family] = model, root / "target", head
        return known[vocab_size, family]

    return get


def few(prompts=PROMPTS):
    """Prompts of few tokens."""
    return [np.asarray(prompt) % FEW for prompt in prompts]


def answers(pair, verifier="exact", **options):
    shared = {"draft_length": 4, "max_new_tokens": 20, "prompts": [*few(), np.array([1, 2]), np.array([7, 7, 7])]}
    return kj.generate(pair, verifier=verifier, **(shared | options))


@pytest.mark.parametrize("family", ["llama3", "qwen2", pytest.param("qwen3", marks=pytest.mark.slow)])
@pytest.mark.first_case
def test_greedy_tokens_are_those_of_plain_decoding(made, family):
    pair = pair_of(*made(FEW, family)[1:])
    plain = tokens_of(answers(pair, None))
    out = answers(pair)
    assert tokens_of(out) == plain
    assert 0 < out.stats.accepted < out.stats.drafted
    # Tokens that it cannot draft are among them.
    assert not set(np.concatenate(plain)) <= set(SOME)
    # In slots that others leave, each with a prompt of its own.
    assert tokens_of(answers(pair, batch_size=2)) == plain


@pytest.mark.parametrize(
    "length", [kj.Adaptive(0, 4, cost=0.3), kj.Adaptive(1, 4, confidence=0.5, cost=0.0)], ids=["plain-too", "confident"]
)
@pytest.mark.first_case
def test_greedy_tokens_are_those_of_any_length(made, length):
    pair = pair_of(*made(FEW)[1:])
    out = answers(pair, draft_length=length)
    assert tokens_of(out) == tokens_of(answers(pair, None))
    assert out.stats.drafted > 0


def test_a_head_that_breaks_leaves_the_target_alone(made):
    pair = pair_of(*made(FEW)[1:])
    broken = with_parameters(pair.draft, lambda name, x: x * np.nan if name == "final_norm.scale" else x)
    out = answers(dataclasses.replace(pair, draft=broken))
    assert tokens_of(out) == tokens_of(answers(pair, None))
    assert out.stats.draft_failed == 5 and not out.stats.failed


@pytest.mark.parametrize("mesh", ["tensor=2", pytest.param("data=2", marks=pytest.mark.slow)])
def test_greedy_tokens_are_those_on_a_mesh(made, mesh):
    whole, spread = pair_of(*made(FEW)[1:]), pair_of(*made(FEW)[1:], mesh=mesh)
    assert tokens_of(answers(spread)) == tokens_of(answers(whole, None))


def test_an_answer_is_the_same_in_a_batch_and_in_a_slot(made):
    pair = pair_of(*made(FEW)[1:])
    keys = jax.random.split(jax.random.key(5), 5)
    options = {"temperature": 1.0, "max_new_tokens": 12}
    batch = tokens_of(answers(pair, key=keys, **options))
    assert tokens_of(answers(pair, key=keys, batch_size=2, **options)) == batch
    assert tokens_of(answers(pair, key=keys[:1], prompts=few()[:1], **options)) == batch[:1]


@pytest.mark.parametrize(
    "options",
    [
        {"draft_length": 2},
        pytest.param({"draft_length": kj.Adaptive(1, 2, confidence=0.4, cost=0.1)}, marks=pytest.mark.slow),
        pytest.param({"draft_length": 2, "verifier": "block"}, marks=pytest.mark.slow),
        {"draft_length": 2, "verifier": kj.KSequential(2)},
    ],
    ids=["exact", "adaptive", "block", "several"],
)
@pytest.mark.first_case
def test_sampling_draws_from_the_target(made, options):
    model, target, head = made(LEAST)
    prompt, sampling = [3, 5, 2], {"temperature": 0.8, "top_k": 6, "top_p": 0.95}
    shared = {"verifier": "exact", "max_new_tokens": 3, "key": jax.random.key(0)}
    out = kj.generate(pair_of(target, head), np.tile(prompt, (2048, 1)), **(shared | sampling | options))
    tokens = np.stack(out.tokens)
    assert p_value(tokens, joint_distribution(model, prompt, LEAST, **sampling)) > 1e-4
    assert p_value(tokens, joint_distribution(model, prompt, LEAST, 1.5)) < 1e-6
    assert 0.05 < out.stats.draft_acceptance_rate < 0.95
    assert not set(tokens.ravel().tolist()) <= set(SOME)


def test_what_it_cannot_draft_is_never_drawn(made):
    pair = pair_of(*made(LEAST)[1:])
    prompts = [np.array([3, 5, 2])] * 256
    _, draft = next(drafts_of(pair, prompts, [[0] * 256], 3, 4, Sampling.create(2.0)))
    tokens = np.asarray(draft.tokens)
    assert set(tokens.ravel().tolist()) == set(SOME)
    others = [i for i in range(LEAST) if i not in SOME]
    assert np.all(np.asarray(draft.raw_logits)[..., others] == -np.inf)
    assert np.all(np.asarray(draft.logits)[..., others] == -np.inf)


def test_a_rejected_draft_leaves_nothing_behind(made):
    pair = pair_of(*made(64)[1:])
    # The same rows, after drafts that were kept in part and after none at all.
    *_, (rows, after) = drafts_of(pair, PROMPTS, KEPT, 4, 4)
    (again, fresh), *_ = drafts_of(pair, [np.asarray(row) for row in rows], [[0, 0, 0]], 4, 4)
    assert again == rows
    long = [i for i, prompt in enumerate(PROMPTS) if len(prompt) > 1]
    np.testing.assert_allclose(np.asarray(after.raw_logits)[long], np.asarray(fresh.raw_logits)[long], atol=1e-3)


def test_a_draft_token_costs_the_head(made):
    pair = pair_of(*made(FEW)[1:])
    drafter = drafter_of(pair.draft)
    assert drafter == Eagle3Draft((2, 3, 3)) and not drafter.has_hidden

    def numbers(*modules):
        return sum(x.size for x in jax.tree.leaves(modules))

    # Its layer and its output rows, and not its embeddings, beside all of the target but its own,
    # and what the head makes of a target pass.
    read = numbers(pair.draft.layers, pair.draft.final_norm, pair.draft.head)
    told = numbers(pair.draft.fc, pair.draft.layers)
    whole = numbers(pair.target.layers, pair.target.final_norm, pair.target.head) + told
    assert pair.draft.embedding is not None and draft_cost(pair, drafter) == pytest.approx(read / whole)
    assert drafter_of(pair.target) is None


def test_what_cannot_be_drafted_for_is_refused_with_all_that_is_wrong(made):
    pair = pair_of(*made(FEW, "qwen3")[1:])
    adapted = foreign.recipes().from_tunix(foreign.tunix_like(0), foreign.VOCAB)
    decoder = dataclasses.replace(pair.draft.config.decoder, vocab_size=foreign.VOCAB)
    head = Eagle3Head(dataclasses.replace(pair.draft.config, decoder=decoder), jax.random.key(0))
    with pytest.raises(InputError) as found:
        kj.generate(kj.ModelPair(adapted, head), [[1, 2]], verifier="exact", draft_length=2)
    said = str(found.value)
    assert "cannot draft for the target: it cannot be asked for layers [2, 3, 3]: it names 0; it has no method" in said
    assert "\n" not in said
    with pytest.raises(InputError, match="the pair's draft is no EAGLE-3 head"):
        kj.generate(kj.ModelPair(pair.target), [[1]], verifier="exact", drafter=Eagle3Draft((2, 3, 3)))


def test_mining_refuses_what_cannot_read_an_answer(made, tmp_path):
    pair, task = pair_of(*made(64)[1:]), kj.load_task("arithmetic")
    with pytest.raises(InputError, match="is a head, and has no states but those that it makes of the target"):
        kj.mine(pair, task, tmp_path / "mined", n=1)


def test_the_command_line_decodes_with_a_head_and_refuses_in_one_line(made, tmp_path, capsys, monkeypatch):
    _, target, head = made(64)
    words = ["generate", "--target", target, "--draft", head, "--max-new-tokens", "8", "--dtype", "float32"]

    def run(*more):
        monkeypatch.setattr("sys.stdin", io.StringIO("w5 w7"))
        status = main([*map(str, [*words, *more])])
        return status, capsys.readouterr().err

    assert run("--draft-length", "4", "--verifier", "exact")[0] == 0
    words[4] = write_eagle3_folder(tmp_path / "other", vocab_size=70, target=16, ids=[69, 2])
    status, said = run()
    assert (status, said.count("\n")) == (2, 1) and "is no EAGLE-3 head of this target" in said
    assert "its fc reads 3 states of 16" in said and "it was made for 70 tokens" in said
    words[2], words[4] = words[4], target
    status, said = run()
    assert (status, said.count("\n")) == (2, 1) and "is a head (EAGLE-3)" in said
