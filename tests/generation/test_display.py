"""What a notebook shows of an answer: every token, in the colour of its origin, and nothing of it as HTML."""

import numpy as np
import pytest
from tiny_pairs import DRAFT_LENGTH, PROMPTS, text_pair, tiny_pair

import kljudge_jax as kj
from kljudge_jax.generation.display import COLOURS, marked_html, table_html


@pytest.fixture(scope="module")
def pair():
    return text_pair()


def answer(pair, prompts="hello there", rule="kl:5.0", **options):
    return kj.generate(pair, prompts, verifier=rule, draft_length=DRAFT_LENGTH, max_new_tokens=24, **options)


def test_tokens_are_escaped_and_coloured():
    shown = marked_html(["<b>", "", " & \n"], ["relaxed", "draft", "target"], [0.25, 0.0, np.nan])
    assert "&lt;b&gt;" in shown and "<b>" not in shown and "&amp;" in shown
    assert shown.count("<span") == 2  # an empty piece has no mark
    assert COLOURS["relaxed"] in shown and COLOURS["target"] in shown and COLOURS["draft"] not in shown
    assert "KL 0.250 nats" in shown and "nan" not in shown


def test_an_answer_shows_itself(pair):
    out = answer(pair, trace=True)
    shown = out._repr_html_()
    for origin in set(out.origin[0]):
        assert f'class="{origin}"' in shown
    assert f"{out.stats.tokens} tokens in {out.stats.cycles} target passes" in shown
    assert "nats" in shown
    assert "nats" not in answer(pair)._repr_html_()  # without a trace there is no divergence to show


def test_pieces_add_up_to_the_answer(pair):
    out = answer(pair, ["hello there", "abc"])
    assert ["".join(out.pieces(row)) for row in range(2)] == out.text
    assert [len(out.pieces(row)) for row in range(2)] == [len(tokens) for tokens in out.tokens]


def test_a_large_batch_shows_its_first_answers(pair):
    shown = answer(pair, ["hello there"] * 10)._repr_html_()
    assert shown.count("<pre") == 8 and "and 2 more answers" in shown


def test_a_pair_without_a_tokenizer_shows_what_it_took():
    out = kj.generate(tiny_pair(), PROMPTS, verifier="exact", draft_length=DRAFT_LENGTH, max_new_tokens=24)
    assert out.pieces(0) == [""] * len(out.tokens[0])
    shown = out._repr_html_()
    assert "<pre" not in shown and shown.count("target passes") == len(PROMPTS)


def test_stats_show_themselves(pair):
    out = answer(pair)
    shown = out.stats._repr_html_()
    assert f"{out.stats.accepted} of {out.stats.drafted}" in shown


def test_no_rows_are_no_table():
    assert table_html([]) == ""
    assert table_html([["a"], ["<"]]) == "<table><tr><th>a</th></tr><tr><td>&lt;</td></tr></table>"
