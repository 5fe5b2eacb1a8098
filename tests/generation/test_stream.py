"""A stream says what `generate` says, in pieces."""

import dataclasses
import itertools
import math

import jax
import pytest
from tiny_pairs import DRAFT_LENGTH, PROMPTS, answer, tokens_of

import kljudge_jax as kj
from kljudge_jax.errors import InputError
from kljudge_jax.generation import programs
from kljudge_jax.generation.detokenize import decode

SHARED = {"verifier": "kl:4.0,first=0", "draft_length": DRAFT_LENGTH, "max_new_tokens": 40}


@pytest.fixture
def blocks(monkeypatch):
    """Grows by one with every block of cycles that is run."""
    run, calls = programs.run_cycles, []
    monkeypatch.setattr(programs, "run_cycles", lambda *args, **options: calls.append(1) or run(*args, **options))
    return calls


def streamed(pair, prompt, **options):
    """The text pieces and the result of a stream."""
    *pieces, last = kj.stream(pair, prompt, **(SHARED | options))
    assert last.text == "" and all(piece.text and piece.result is None for piece in pieces)
    return pieces, last.result


def same(result, other):
    return (result.text, tokens_of(result), result.origin) == (other.text, tokens_of(other), other.origin)


@pytest.mark.parametrize("which", ["text_pair", "chunk_pair"])
def test_pieces_add_up_to_the_answer_with_and_without_stops(request, which):
    pair = request.getfixturevalue(which)
    for prompt in (PROMPTS[0], PROMPTS[2]):
        whole = answer(pair, **SHARED, prompts=prompt)
        stops = {whole.text[0][at : at + n] for n in (1, 3) for at in range(len(whole.text[0]))}
        for stop in [(), *sorted(stops)]:
            out = answer(pair, **SHARED, prompts=prompt, stop=stop)
            pieces, result = streamed(pair, prompt, stop=stop)
            assert "".join(piece.text for piece in pieces) == out.text[0]
            assert same(result, out)
            assert result.stats.rows[0].finish == out.stats.rows[0].finish


def test_characters_of_several_tokens_come_whole(text_pair):
    whole = answer(text_pair, **SHARED)
    texts = []
    for prompt in PROMPTS:
        pieces, result = streamed(text_pair, prompt)
        texts.append("".join(piece.text for piece in pieces))
        assert texts[-1] == result.text[0]
    assert texts == whole.text
    several = [text for text in texts if set("é€") & set(text)]
    assert several, "this pair should write some character of several bytes"


def test_origins_of_pieces_are_those_of_their_tokens(chunk_pair):
    pieces, result = streamed(chunk_pair, PROMPTS[2])
    by_piece = [(piece.origin, letter) for piece in pieces for letter in piece.text]
    chunks = [f"[{token}]" for token in result.tokens[0]]
    by_token = [(origin, letter) for chunk, origin in zip(chunks, result.origin[0], strict=True) for letter in chunk]
    assert by_piece == by_token
    assert {origin for origin, _ in by_token} == {"draft", "relaxed", "target"}
    # Neighbours of one origin are one piece, but where a block of cycles ends.
    repeated = sum(a.origin == b.origin for a, b in itertools.pairwise(pieces))
    assert repeated <= result.stats.cycles / 4


def test_the_host_learns_in_blocks(text_pair, blocks):
    events = kj.stream(text_pair, PROMPTS[2], **SHARED | {"verifier": None})
    first = next(events)
    assert len(blocks) == 1 and first.text
    *_, last = events
    assert len(blocks) == math.ceil(last.result.stats.cycles / 4) == 10

    for watched, expected in (({}, 1), ({"stop": "never"}, 3), ({"progress": lambda progress: None}, 3)):
        blocks.clear()
        answer(text_pair, None, max_new_tokens=40, **watched)
        assert len(blocks) == expected


def test_progress_grows_to_the_whole(text_pair):
    seen = []
    out = answer(text_pair, None, max_new_tokens=[8, 20, 40, 40], progress=seen.append)
    assert [(p.tokens, p.finished, p.answers) for p in seen] == [(56, 1, 4), (92, 2, 4), (108, 4, 4)]
    assert out.stats.tokens == 108
    assert 0 < seen[0].seconds <= seen[-1].seconds == out.stats.seconds


def test_an_end_of_text_that_has_text_is_not_streamed(text_pair):
    free = answer(text_pair, **SHARED, prompts=PROMPTS[2])
    ending = dataclasses.replace(text_pair, eos=(free.tokens[0][20].item(),))
    pieces, result = streamed(ending, PROMPTS[2])
    assert result.stats.rows[0].finish == "eos"
    assert result.tokens[0][-1] == ending.eos[0]
    assert "".join(piece.text for piece in pieces) == result.text[0]
    assert decode(text_pair.tokenizer, result.tokens[0]).startswith(
        result.text[0] + decode(text_pair.tokenizer, ending.eos)
    )


def test_options_mean_what_they_mean_to_generate(text_pair):
    options = {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "key": jax.random.key(3)}
    _, result = streamed(text_pair, PROMPTS[2], **options)
    assert same(result, answer(text_pair, **SHARED, prompts=PROMPTS[2], **options))
    assert not same(result, streamed(text_pair, PROMPTS[2])[1])
    _, short = streamed(text_pair, [PROMPTS[2]], max_new_tokens=[7])
    assert len(short.tokens[0]) == 7


def test_what_cannot_be_done_is_refused_at_the_call(text_pair):
    with pytest.raises(InputError, match="stream answers one prompt at a time, got 2"):
        kj.stream(text_pair, ["a", "b"], verifier="exact")
    with pytest.raises(InputError, match="draft_length"):
        kj.stream(text_pair, "a", verifier="exact", draft_length=0)
    with pytest.raises(TypeError, match="'progress'"):
        kj.stream(text_pair, "a", verifier="exact", progress=print)
