"""Decoding with DFlash heads: the target's own tokens, or its own distribution, whatever the head says."""

import dataclasses
import io
from typing import ClassVar

import foreign_models as foreign
import jax
import numpy as np
import pytest
import scipy.special
from chi_square import joint_distribution, p_value
from published_heads import (
    KEPT,
    PROMPTS,
    PublishedDFlash,
    drafts_of,
    pair_of,
    target_states,
    write_dflash_folder,
    write_target,
)
from tiny_hf import hf_logits, hf_processed
from tiny_pairs import tokens_of, with_parameters

import kljudge_jax as kj
from kljudge_jax.cli import main
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.drafters.dflash_draft import DFlashDraft
from kljudge_jax.drafters.heads import drafter_of
from kljudge_jax.errors import InputError
from kljudge_jax.generation.costs import draft_cost

FEW, LEAST = 8, 7  # tokens: so few that a random head is right now and then


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By size of vocabulary: a target as Transformers has it, and the folders of it and of a head."""
    known = {}

    def get(vocab_size, family="qwen3"):
        if (vocab_size, family) not in known:
            root = tmp_path_factory.mktemp(family)
            model = write_target(root / "target", family, vocab_size)
            known[vocab_size, family] = model, root / "target", write_dflash_folder(root / "head", vocab_size)
        return known[vocab_size, family]

    return get


def few(prompts=PROMPTS):
    """Prompts of few tokens."""
    return [np.asarray(prompt) % FEW for prompt in prompts]


def answers(pair, verifier="exact", **options):
    shared = {"draft_length": 4, "max_new_tokens": 20, "prompts": [*few(), np.array([1, 2]), np.array([7, 7, 7])]}
    return kj.generate(pair, verifier=verifier, **(shared | options))


@pytest.mark.parametrize("family", ["qwen3", pytest.param("llama3", marks=pytest.mark.slow)])
def test_greedy_tokens_are_those_of_plain_decoding(made, family):
    pair = pair_of(*made(FEW, family)[1:])
    plain = tokens_of(answers(pair, None))
    out = answers(pair)
    assert tokens_of(out) == plain
    assert 0 < out.stats.accepted < out.stats.drafted
    # In slots that others leave, each with a prompt of its own, and with the whole block.
    assert tokens_of(answers(pair, batch_size=2, draft_length=5)) == plain


@pytest.mark.parametrize(
    "length", [kj.Adaptive(1, 4, cost=0.1), kj.Adaptive(0, 4, cost=0.3), kj.Adaptive(1, 4, confidence=0.5, cost=0.0)]
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


@pytest.mark.parametrize(
    ("mesh", "rule", "alone"),
    [
        ("tensor=2", "exact", None),
        pytest.param("tensor=2", "kl:0.5", "kl:0.5", marks=pytest.mark.slow),
        pytest.param("data=2", "exact", None, marks=pytest.mark.slow),
        pytest.param("data=2", "kl:0.5", "kl:0.5", marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_are_those_on_a_mesh(made, mesh, rule, alone):
    whole, spread = pair_of(*made(FEW)[1:]), pair_of(*made(FEW)[1:], mesh=mesh)
    assert tokens_of(answers(spread, rule)) == tokens_of(answers(whole, alone))


def test_a_prompt_may_begin_as_another_does(made):
    pair = pair_of(*made(FEW)[1:])
    assert pair.target.max_length == 64
    # Of a state that is nothing but a cache: a row goes on from what another has consumed.
    alone, shared = ([draft for _, draft in drafts_of(pair, alike(), KEPT[:3], 4, 4, shared=first)] for first in (0, 8))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one.raw_logits, other.raw_logits, atol=1e-5)


def alike():
    """Prompts that share their first 8 tokens."""
    start = np.arange(8) % FEW
    return [np.concatenate([start, [token]]) for token in (1, 5, 2)]


def test_streams_end_in_the_same_answer(made):
    pair = pair_of(*made(FEW)[1:])
    *_, last = kj.stream(pair, few()[0], verifier="exact", draft_length=4, max_new_tokens=20)
    assert tokens_of(last.result) == tokens_of(answers(pair, None))[:1]


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
    prompt, sampling = [3, 5, 2], {"temperature": 0.8, "top_k": 5, "top_p": 0.9}
    shared = {"verifier": "exact", "max_new_tokens": 3, "key": jax.random.key(0)}
    out = kj.generate(pair_of(target, head), np.tile(prompt, (2048, 1)), **(shared | sampling | options))
    tokens = np.stack(out.tokens)
    assert p_value(tokens, joint_distribution(model, prompt, LEAST, **sampling)) > 1e-4
    assert p_value(tokens, joint_distribution(model, prompt, LEAST, 1.5)) < 1e-6
    assert 0.05 < out.stats.draft_acceptance_rate < 0.95


def test_each_token_is_drawn_from_the_distribution_at_its_mask(made):
    model, target, head = made(LEAST)
    sampling = Sampling.create(0.9, top_k=4)
    rows = 1024
    prompts = [np.array([3, 5, 2])] * rows
    _, draft = next(drafts_of(pair_of(target, head), prompts, [[0] * rows], 2, 4, sampling))
    published = PublishedDFlash(head, model)
    raw = published.draft_logits(target_states(model, [3, 5], [0, 2, 4]), [3, 5, 2], [0, 0])
    np.testing.assert_allclose(draft.raw_logits[7], raw, atol=1e-3)
    np.testing.assert_allclose(draft.logits[7], hf_processed(raw, 0.9, top_k=4), atol=1e-3)
    first, second = scipy.special.softmax(hf_processed(raw, 0.9, top_k=4).astype(np.float64), axis=-1)
    tokens = np.asarray(draft.tokens)
    # Independent, and from keys of their own.
    joint = first[:, None] * second[None]
    assert p_value(tokens, joint) > 1e-4
    assert len(set(map(tuple, tokens))) > 4


def test_kl_reads_the_distributions_of_the_published_pass(made):
    model, target, head = made(FEW)
    pair, prompt = pair_of(target, head), few()[0]
    out = kj.generate(pair, [prompt], verifier="kl:0.7", draft_length=4, max_new_tokens=20, trace=True)
    assert {"relaxed", "target"} <= set(out.origin[0])
    published, tokens, at = PublishedDFlash(head, model), [*prompt.tolist(), *out.tokens[0].tolist()], len(prompt)
    compared = 0
    for cycle in out.cycles[0]:
        states = target_states(model, tokens[: at - 1], [0, 2, 4])
        drafted = tokens[at : at + cycle.accepted]
        logits = published.draft_logits(states, tokens[:at], drafted)
        own = hf_logits(model, [tokens])[0, at - 1 : at - 1 + len(drafted)].astype(np.float64)
        p, q = (scipy.special.log_softmax(x, axis=-1) for x in (own, logits))
        expected = np.sum(np.exp(p) * (p - q), axis=-1)
        found = out.kl[0][at - len(prompt) :][: len(drafted)]
        np.testing.assert_allclose(found, expected, atol=1e-3)
        compared, at = compared + len(drafted), at + cycle.committed
    assert compared == out.stats.accepted > 3 and at == len(tokens)


def test_it_costs_one_pass_for_a_whole_block(made):
    pair = pair_of(*made(FEW)[1:])
    drafter = drafter_of(pair.draft)
    assert drafter == DFlashDraft((1, 3, 5), 6) and hash(drafter) == hash(DFlashDraft((1, 3, 5), 6))

    def numbers(*modules):
        return sum(x.size for x in jax.tree.leaves(modules))

    # A fifth of the layers and of the target's output rows, beside all of the target but its embeddings,
    # and what the head makes of a target pass.
    read = numbers(pair.draft.layers, pair.draft.final_norm, pair.target.head)
    told = numbers(pair.draft.fc, [(block.attention.key, block.attention.value) for block in pair.draft.layers])
    plain = numbers(pair.target.layers, pair.target.final_norm, pair.target.head) + told
    assert draft_cost(pair, drafter) == pytest.approx(read / 5 / plain)


@pytest.mark.parametrize("length", [6, kj.Adaptive(1, 6, cost=0.1)])
def test_a_draft_as_long_as_the_block_is_refused(made, length):
    pair = pair_of(*made(FEW)[1:])
    with pytest.raises(InputError, match="blocks of 6 drafts at most 5 tokens: lower the draft length of 6"):
        answers(pair, draft_length=length)


@kj.register
@dataclasses.dataclass(frozen=True)
class ReadsDraft:
    """A rule that reads the draft's states, and is asked for nothing else."""

    needs: ClassVar[frozenset[str]] = frozenset({"draft_hidden"})

    def __call__(self, inputs):
        raise AssertionError("it is refused before")


def test_rules_that_read_the_drafts_states_are_refused(made):
    pair = pair_of(*made(FEW)[1:])
    with pytest.raises(InputError, match="ReadsDraft reads the draft's states, and DFlashDraft has none"):
        answers(pair, ReadsDraft())


def test_what_cannot_be_drafted_for_is_refused_with_all_that_is_wrong(made):
    pair = pair_of(*made(64)[1:])
    adapted = foreign.recipes().from_tunix(foreign.tunix_like(0), foreign.VOCAB)
    other = dataclasses.replace(
        pair.draft.config, decoder=dataclasses.replace(pair.draft.config.decoder, vocab_size=61)
    )
    head = type(pair.draft)(other, jax.random.key(0))
    with pytest.raises(InputError) as found:
        kj.generate(kj.ModelPair(adapted, head), [[1, 2]], verifier="exact", draft_length=2)
    said = str(found.value)
    assert "cannot draft for the target: it cannot be asked for layers [1, 3, 5]: it names 0; it has no method" in said
    assert "it has 61 tokens, and the mask is token 63" in said and "\n" not in said
    with pytest.raises(InputError, match="the pair's draft is no DFlash head"):
        kj.generate(kj.ModelPair(pair.target), [[1]], verifier="exact", drafter=DFlashDraft((1, 3, 5), 6))


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

    assert run("--draft-length", "5", "--verifier", "exact")[0] == 0
    status, said = run("--draft-length", "6")
    assert (status, said.count("\n")) == (2, 1) and "drafts at most 5 tokens" in said
    words[4] = write_dflash_folder(tmp_path / "other", vocab_size=70, hidden=16)
    status, said = run()
    assert (status, said.count("\n")) == (2, 1) and "is no DFlash head of this target" in said
    assert "its hidden size is 16" in said and "it was made for 70 tokens" in said
    words[2], words[4] = words[4], target
    status, said = run()
    assert (status, said.count("\n")) == (2, 1) and "is a head (DFlash)" in said
