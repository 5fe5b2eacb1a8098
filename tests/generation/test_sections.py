"""Thinking blocks: a rule that reads sections through every public call that decodes."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from sweep_records import Letters
from tiny_hf import make_tokenizer
from tiny_pairs import DRAFT_LENGTH, PROMPTS, VOCAB_SIZE, answer, forced, tiny_pair, tokens_of

import kljudge_jax as kj
from kljudge_jax.core.sampling import Sampling
from kljudge_jax.errors import InputError
from kljudge_jax.generation import programs
from kljudge_jax.generation.prompts import tokenize
from kljudge_jax.generation.run import Run
from kljudge_jax.generation.sections import sections_for
from kljudge_jax.verification.rule import RULES

OPENS, CLOSES = 1, 5  # `PROMPTS` have both: some end inside a block, some outside


@kj.register
@dataclasses.dataclass(frozen=True)
class FreeInside:
    """Accepts every draft token that stands inside a block, and outside those that the target would write."""

    number: float = 0.0

    def __call__(self, key, inputs):
        count = len(inputs.draft_tokens)
        match = jnp.argmax(inputs.target_logits[:count], axis=-1).astype(jnp.int32) == inputs.draft_tokens
        inside = jnp.zeros((count + 1,), jnp.int32) if inputs.section is None else inputs.section
        kept = jnp.cumprod((match | (inside[:count] == 1)) & (jnp.arange(count) < inputs.draft_count))
        accepted = jnp.sum(kept, dtype=jnp.int32)
        token = jnp.argmax(inputs.target_logits[accepted]).astype(jnp.int32)
        return kj.Verdict(accepted, token, (kept == 1) & ~match)


def inside_by_hand(tokens):
    found, inside = [], False
    for token in tokens:
        found.append(inside)
        inside = (inside or token == OPENS) and token != CLOSES
    return found


def test_generate_tells_a_rule_where_a_token_would_stand(pair):
    plain = tokens_of(answer(pair, None))
    strict = answer(pair, FreeInside())
    assert tokens_of(strict) == plain and strict.stats.relaxed == 0
    out = answer(pair, FreeInside(), section_ids=(OPENS, CLOSES))
    relaxed, outside = 0, 0
    for prompt, tokens, origin in zip(PROMPTS, tokens_of(out), out.origin, strict=True):
        whole = [*prompt.tolist(), *tokens]
        right = np.argmax(forced(pair.target, whole)[0], axis=-1)[len(prompt) - 1 : -1].tolist()
        inside = inside_by_hand(whole)[len(prompt) :]
        for token, wanted, where, source in zip(tokens, right, inside, origin, strict=True):
            assert (source == "relaxed") == (token != wanted)
            assert where or token == wanted
            relaxed, outside = relaxed + (source == "relaxed"), outside + (not where)
    assert relaxed == out.stats.relaxed > 0 and outside > 0


THINKING = [kj.RelaxedThinking(20, 1.0, section="thinking"), kj.RelaxedThinkingRatio(20, 0.0, section="thinking")]


@pytest.mark.parametrize("rule", THINKING, ids=lambda rule: type(rule).__name__)
@pytest.mark.first_case
def test_relaxed_thinking_relaxes_inside_a_block_alone(pair, rule):
    out = answer(pair, rule, section_ids=(OPENS, CLOSES))
    for prompt, tokens, origin in zip(PROMPTS, tokens_of(out), out.origin, strict=True):
        whole = [*prompt.tolist(), *tokens]
        right = np.argmax(forced(pair.target, whole)[0], axis=-1)[len(prompt) - 1 : -1].tolist()
        inside = inside_by_hand(whole)[len(prompt) :]
        for token, wanted, where, source in zip(tokens, right, inside, origin, strict=True):
            assert (source == "relaxed") == (token != wanted) and (where or token == wanted)
    free = answer(pair, dataclasses.replace(rule, section="all"), section_ids=(OPENS, CLOSES))
    assert free.stats.relaxed > out.stats.relaxed > 0
    assert tokens_of(free) == tokens_of(answer(pair, dataclasses.replace(rule, section="all")))


def test_relaxed_thinking_without_the_ids_of_a_block_is_refused_before_anything_runs(pair, monkeypatch, tmp_path):
    monkeypatch.setattr("kljudge_jax.generation.programs.start", lambda *args, **options: pytest.fail("it ran"))
    for spec in ("thinking:section=thinking", "thinking_ratio:section=thinking", THINKING[0]):
        with pytest.raises(InputError, match="goes by thinking blocks, and the pair has no tokens") as error:
            answer(pair, spec)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="goes by thinking blocks, and the pair has no tokens"):
        kj.sweep(pair, Letters(), ["none", THINKING[1]], folder=tmp_path, n=1, draft_lengths=[DRAFT_LENGTH])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_others_pass_them_on(text_pair, tmp_path):
    pair = text_pair
    prompt = Letters().problems(n=1, seed=0)[0].prompt
    opens = pair.tokenizer(prompt)["input_ids"][-1]  # every answer begins inside a block
    sections = {"section_ids": (opens, 256)}
    asked = {"verifier": FreeInside(), "draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
    free = kj.generate(pair, prompt, **asked, **sections)
    assert free.stats.relaxed > 0 and free.text != kj.generate(pair, prompt, **asked).text
    config = kj.DecodingConfig(24, draft_length=DRAFT_LENGTH, **sections)
    assert kj.generate(pair, prompt, verifier=FreeInside(), config=config).text == free.text
    *_, last = kj.stream(pair, prompt, **asked, **sections)
    assert last.result.text == free.text

    sizes = {"draft_lengths": [DRAFT_LENGTH], "n": 1, "batch": 1, "max_new_tokens": 24, "examples": 0}
    swept = kj.sweep(pair, Letters(), ["none", FreeInside()], folder=tmp_path, **sizes, **sections)
    assert swept.rows[1].mean_acceptance_length == pytest.approx(free.stats.mean_acceptance_length)
    with pytest.raises(InputError, match="holds another sweep"):
        kj.sweep(pair, Letters(), ["none", FreeInside()], folder=tmp_path, **sizes)


def test_a_configuration_keeps_them():
    config = kj.DecodingConfig(section_ids=np.array([3, 4]))
    assert config.section_ids == (3, 4) and config == kj.DecodingConfig(section_ids=[3, 4])
    assert config.to_json()["section_ids"] == [3, 4] and "section_ids" not in kj.DecodingConfig().to_json()
    assert kj.DecodingConfig().section_ids == "auto" and kj.DecodingConfig(section_ids=None).section_ids is None
    for given in ([3, 4], "auto", None, ("<a>", "</a>")):
        config = kj.DecodingConfig(section_ids=given)
        assert kj.DecodingConfig(**config.to_json()) == config == dataclasses.replace(config)


WRONG = [3, (3,), (3, 4, 5), (3, 3), (-1, 3), (1.0, 2), (True, 2), "ab", {3: 4}, [[1, 2]]]
WRONG += [("a", 3), "3,4,5", "3,", "a,a", ("", "b")]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_no_two_tokens_is_refused(pair, wrong):
    with pytest.raises(InputError, match="the tokens that begin and end a thinking block, two ids"):
        kj.DecodingConfig(section_ids=wrong)
    with pytest.raises(InputError, match="the tokens that begin and end a thinking block, two ids"):
        answer(pair, "exact", section_ids=wrong)


def test_tokens_outside_the_vocabulary_are_refused(pair):
    with pytest.raises(InputError, match=r"section_ids are \(3, 999\), outside the vocabulary of 257"):
        answer(pair, "exact", section_ids=(3, 999))


@kj.register
@dataclasses.dataclass(frozen=True)
class FreeInThought(FreeInside):
    """The same, as a rule that says that it reads sections."""

    needs: ClassVar = frozenset({"section"})


@kj.register
@dataclasses.dataclass(frozen=True)
class OneOfTwo(FreeInThought):
    """A rule over several drafts that would read the sections of one."""

    scorer: ClassVar = "several drafts"
    drafts: ClassVar = 2


# A chat that is asked to think begins inside a block, which the template has opened; others close it at once.
TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %} <think>"
    "{% if enable_thinking is defined and not enable_thinking %} </think>{% endif %}"
)


@kj.register
@dataclasses.dataclass(frozen=True)
class OwnThreshold(kj.ThresholdRule):
    """A rule of somebody else, to be wrapped."""

    threshold: float = 0.5
    confidence: float = 1.0
    spec_name, source = "own-threshold", "a test"

    def passes(self, inputs):
        return jnp.zeros(inputs.draft_tokens.shape, bool)


RULES.remove(OwnThreshold)  # other tests look at all that there are


def thinking_tokenizer(kind):
    """A tokenizer with <think> and </think>: words of the vocabulary, added ones, or special ones."""
    if kind == "words":
        specials = ("<s>", "</s>", "<think>", "</think>")
        return make_tokenizer(words=VOCAB_SIZE, specials=specials, template=TEMPLATE)
    made = make_tokenizer(words=VOCAB_SIZE - 2, template=TEMPLATE)
    made.add_tokens(["<think>", "</think>"], special_tokens=kind == "special")
    return made


@pytest.fixture(scope="module")
def thinking_pair():
    """A pair that opens and closes blocks itself too."""
    return dataclasses.replace(tiny_pair(), tokenizer=thinking_tokenizer("words"))


@pytest.mark.parametrize(("kind", "ids"), [("words", (2, 3)), ("added", (255, 256)), ("special", (255, 256))])
def test_they_are_found_where_a_rule_reads_them(kind, ids):
    tokenizer = thinking_tokenizer(kind)
    for given in ("auto", ("<think>", "</think>"), "<think>,</think>", ids, f"{ids[0]}, {ids[1]}"):
        assert sections_for(given, FreeInThought(), tokenizer, VOCAB_SIZE) == ids
    for given in ("auto", None):
        assert sections_for(given, FreeInside(), tokenizer, VOCAB_SIZE) is None
    # What does not say that it reads them may all the same, but for rules whose source is known.
    assert sections_for(ids, FreeInside(), tokenizer, VOCAB_SIZE) == ids
    assert sections_for(ids, kj.Secure(OwnThreshold(0.5)), tokenizer, VOCAB_SIZE) == ids
    for ignoring in (None, kj.KLJudge(0.4), kj.GreedyExact(), kj.Secure(kj.KLJudge(0.4))):
        assert sections_for(ids, ignoring, tokenizer, VOCAB_SIZE) is None


def test_a_tokenizer_may_put_a_space_before_each_text():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", "<think>", "</think>", "a"]
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert made("<think>")["input_ids"] == [1, 2]
    assert sections_for("auto", FreeInThought(), made, VOCAB_SIZE) == (2, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("<think>", "<done>"), "the text '<done>', which is no single token of this tokenizer"),
        (("w5 w6", "</think>"), "the text 'w5 w6', which is no single token"),
        ("<think>,nothing", "the text 'nothing', which is no single token"),
        ((" <think>", "<think>"), "' <think>' and '<think>' are one token, 2: name two"),
        (None, "FreeInThought goes by thinking blocks, and is told of none: leave out section_ids, or name two tokens"),
    ],
)
def test_what_names_no_token_is_refused(thinking_pair, given, said):
    with pytest.raises(InputError, match=said) as error:
        answer(thinking_pair, FreeInThought(), section_ids=given)
    assert "\n" not in str(error.value)


def test_a_pair_without_them_is_refused_by_a_rule_that_reads_them(pair, text_pair, thinking_pair):
    said = "FreeInThought goes by thinking blocks, and the pair has no tokens <think> and </think>: name"
    for without in (pair, text_pair, dataclasses.replace(thinking_pair, tokenizer=make_tokenizer(words=VOCAB_SIZE))):
        with pytest.raises(InputError, match=said):
            answer(without, FreeInThought())
    with pytest.raises(InputError, match="the pair has no tokenizer: give token ids"):
        answer(pair, FreeInThought(), section_ids=("<think>", "</think>"))
    with pytest.raises(InputError, match="OneOfTwo chooses among several drafts"):
        answer(thinking_pair, OneOfTwo(), temperature=1.0)


def cycles_program(pair, verifier, **options):
    """The lowered cycles of a run, as text."""
    asked = DRAFT_LENGTH, kj.ModelDraft(), 24, Sampling.create(0.0), (), None, False
    run = Run(pair, PROMPTS, verifier, *asked, **options)
    given = (*run.models, run.verifier, run.state, run.numbers(), run._halted, np.int32(4), np.int32(4))
    return programs.run_cycles.lower(*given, **run.static).as_text()


def test_a_rule_that_reads_none_has_the_program_without_them(thinking_pair):
    for rule in (kj.KLJudge(0.4), FreeInside()):
        assert cycles_program(thinking_pair, rule) == cycles_program(thinking_pair, rule, section_ids=None)
    judge = kj.KLJudge(0.4)
    assert cycles_program(thinking_pair, judge, section_ids=(2, 3)) == cycles_program(thinking_pair, judge)
    # It can tell: one that reads them has another.
    told = cycles_program(thinking_pair, FreeInThought())
    assert told != cycles_program(dataclasses.replace(thinking_pair, tokenizer=None), FreeInside())
    assert told == cycles_program(thinking_pair, FreeInside(), section_ids=(9, 8))


def check_sections(pair, prompts, out, opens, closes):
    """Holds each answer to the blocks counted over prompt and answer; how many tokens stood inside, and outside."""
    inside_, outside, relaxed = 0, 0, 0
    for prompt, tokens, origin in zip(prompts, tokens_of(out), out.origin, strict=True):
        whole, inside = [*prompt, *tokens], False
        padded = np.zeros((1, -(-len(whole) // 64) * 64), np.int32)
        padded[0, : len(whole)] = whole
        right = np.argmax(np.asarray(kj.score(pair.target, padded)[0])[0], axis=-1)
        for at, token in enumerate(whole):
            if at >= len(prompt):
                mismatch = token != right[at - 1]
                assert (origin[at - len(prompt)] == "relaxed") == mismatch
                assert inside or not mismatch
                inside_, outside, relaxed = inside_ + inside, outside + (not inside), relaxed + mismatch
            inside = (inside or token == opens) and token != closes
    assert relaxed == out.stats.relaxed
    return inside_, outside, relaxed


def test_the_prompt_counts_in_a_batch_and_for_those_that_wait(thinking_pair):
    chats = [[{"role": "user", "content": " ".join(f"w{i}" for i in range(4, 4 + n))}] for n in (2, 11, 5, 1, 8)]
    found = {}
    for args in ({}, {"enable_thinking": False}):
        ids = [tokenize(chat, thinking_pair.tokenizer, VOCAB_SIZE, template_args=args).tolist() for chat in chats]
        assert all(row[-1] == (3 if args else 2) for row in ids)
        for size in (None, 2):
            out = answer(thinking_pair, FreeInThought(), chats, batch_size=size, template_args=args)
            found[bool(args), size] = check_sections(thinking_pair, ids, out, 2, 3)
        assert found[bool(args), None] == found[bool(args), 2]
    # The block that the template opened is what lets tokens pass.
    assert found[False, 2][2] > found[True, 2][2] and found[True, 2][1] > found[False, 2][1]


def test_the_prompt_counts_over_several_chunks_of_prefill(thinking_pair):
    random = np.random.default_rng(0)
    ids = [[*random.integers(4, 250, before), 2, *random.integers(4, 250, 150)] for before in (3, 140)]
    ids += [[*random.integers(4, 250, 3), 2, *random.integers(4, 250, 150), 3, 9]]
    out = answer(thinking_pair, FreeInThought(), [np.array(row) for row in ids], batch_size=2)
    inside, outside, relaxed = check_sections(thinking_pair, ids, out, 2, 3)
    assert inside > 24 and outside > 0 and relaxed > 0


def test_a_stream_tells_of_the_prompt_too(thinking_pair):
    chat = [{"role": "user", "content": "w5 w9"}]
    asked = {"verifier": FreeInThought(), "draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
    *_, last = kj.stream(thinking_pair, chat, **asked)
    assert check_sections(thinking_pair, [[5, 9, 2]], last.result, 2, 3)[2] > 0
    assert tokens_of(last.result) == tokens_of(kj.generate(thinking_pair, chat, **asked))
    *_, plain = kj.stream(thinking_pair, chat, **asked, template_args={"enable_thinking": False})
    check_sections(thinking_pair, [[5, 9, 2, 3]], plain.result, 2, 3)
