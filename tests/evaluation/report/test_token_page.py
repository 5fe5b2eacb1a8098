"""The page and the picture of an answer: every token is there, in the colour of its origin."""

import dataclasses
import html.parser

import numpy as np
from tiny_pairs import text_pair

import kljudge_jax as kj
from kljudge_jax.evaluation.report import token_page
from kljudge_jax.evaluation.report.token_page import COLOURS, Answer, answer_of, tokens_html, write_page, write_picture

ANSWER = Answer(
    "kl:0.4",
    ["So <b>", " 2+2", "\n", "is", "", " 4 & done"],
    ["draft", "relaxed", "target", "draft", "draft", "target"],
    np.array([0.0, 0.31, np.nan, 0.02, 0.0, np.inf], np.float32),
    "6 tokens in 2 target passes",
)


class Spans(html.parser.HTMLParser):
    """Text by the class of the span it stands in; complains about tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.found, self.titles = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "rect"):
            self.open.append((tag, dict(attributes)))
        if tag == "span" and "title" in dict(attributes):
            self.titles.append(dict(attributes)["title"])

    def handle_endtag(self, tag):
        if tag not in ("rect",):
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "span" and "class" in self.open[-1][1]:
            self.found.append((data, self.open[-1][1]["class"]))


def test_tokens_are_marked_and_escaped():
    spans = Spans()
    spans.feed(tokens_html(ANSWER))
    assert spans.open == []
    assert spans.found == [
        ("So <b>", "draft"),
        (" 2+2", "relaxed"),
        ("\u21b5\n", "target"),
        ("is", "draft"),
        (" 4 & done", "target"),
    ]
    assert "KL 0.310" in spans.titles[1] and "KL" not in spans.titles[2] and "KL" not in spans.titles[4]


def test_a_page_needs_nothing_else(tmp_path):
    write_page(tmp_path / "page.html", "A <title>", "2+2?", [ANSWER], [["rule", "right"], ["a & b", "<1"]], "foot")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    spans = Spans()
    spans.feed(text.removeprefix("<!doctype html>"))
    assert spans.open == []
    assert "src=" not in text and "href=" not in text and "http" not in text
    assert "A &lt;title&gt;" in text and "a &amp; b" in text and "&lt;1" in text
    assert text.count("<rect") == 4  # of the tokens whose divergence is finite


def pixels(path, answers):
    """How many pixels of each origin's colour the picture of some answers has."""
    import matplotlib.image

    write_picture(path, answers)
    seen = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    colours = {o: [int(colour[i : i + 2], 16) for i in (1, 3, 5)] for o, colour in COLOURS.items()}
    return {origin: int((seen == colour).all(axis=-1).sum()) for origin, colour in colours.items()}


def test_the_picture_shows_every_colour_that_occurs(tmp_path):
    legend = pixels(tmp_path / "none.png", [Answer("none", [], [], np.zeros(0), "")])
    one, two = (pixels(tmp_path / "page.png", [ANSWER] * n) for n in (1, 2))
    assert all(0 < legend[origin] < one[origin] < two[origin] for origin in COLOURS)
    drafted = dataclasses.replace(ANSWER, origin=["draft"] * 6)
    found = pixels(tmp_path / "page.png", [drafted])
    assert found["draft"] > one["draft"] and found["relaxed"] < one["relaxed"]


def test_long_answers_are_wrapped():
    answer = Answer("x", [" word"] * 40 + ["x" * 200], ["draft"] * 41, np.zeros(41), "")
    cells = token_page._lay_out(answer)
    assert all(column + len(text) <= token_page._COLUMNS for text, _, column, _ in cells)
    assert "".join(text for text, *_ in cells).replace(" ", "") == "word" * 40 + "x" * 200
    assert len({(column, line) for _, _, column, line in cells}) == len(cells)


def test_pieces_of_an_answer_add_up_to_its_text():
    pair = text_pair()
    out = kj.generate(pair, "abc", verifier="kl:0.4", draft_length=4, max_new_tokens=24, trace=True)
    answer = answer_of("kl", pair.tokenizer, out)
    assert "".join(answer.pieces) == out.text[0]
    assert len(answer.pieces) == len(answer.origin) == len(answer.kl) == out.stats.tokens
