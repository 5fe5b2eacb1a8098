"""Pictures of a sweep: which points lie on one line, and that what is drawn is what was found."""

import pytest
from sweep_records import answers

from kljudge_jax.evaluation.report.pareto import draw_positions, draw_tradeoff, family, setting, svg
from kljudge_jax.evaluation.sweep.summary import summarise


@pytest.fixture(scope="module")
def rows():
    found = answers("none", [True, True, False])
    for rule in ("exact", "kl:0.1", "kl:0.4", "judge:heads/mine,threshold=0.2"):
        found += answers(rule, [True, False, False], acceptance_histogram=[1, 2, 2])
    return summarise(found)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("exact", "exact"),
        ("kl:0.1", "kl"),
        ("kl:threshold=4e-1", "kl"),
        ("kl:0.4,confidence=1.0", "kl:confidence=1.0"),
        ("fuzzy:divergence=js,threshold=0.3", "fuzzy:divergence=js"),
        ("typical:0.3,0.09", "typical"),
        ("judge:some/folder/head,threshold=0.2", "judge:head"),
    ],
)
def test_settings_of_a_rule_lie_on_one_line(rule, line):
    assert family(rule) == line


def test_a_point_of_several_on_a_line_is_told_by_its_numbers(rows):
    assert setting("typical:epsilon=0.3,alpha=0.09") == "0.3,0.09" and setting("kl:0.4,confidence=1.0") == "0.4"
    for panel in draw_tradeoff([("letters", rows)]).axes:
        assert [text.get_text() for text in panel.texts if text.get_text()] == ["0.1", "0.4"]


def test_every_rule_has_its_points_in_both_panels(rows):
    figure = draw_tradeoff([("letters", rows)])
    by_length, by_speed = figure.axes
    kl = next(line for line in by_length.lines if len(line.get_xdata()) == 2 and line.get_marker() == "s")
    assert list(kl.get_ydata()) == pytest.approx([100 / 3, 100 / 3])
    assert by_speed.get_xlabel().endswith("plain decoding")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["plain decoding, 95 %", "exact", "kl", "judge:mine"]


def test_speed_is_absolute_without_plain_decoding(rows):
    alone = summarise(answers("exact", [True]))
    assert draw_tradeoff([("letters", alone)]).axes[1].get_xlabel() == "tokens/s"


def test_positions_are_drawn_for_every_rule_that_drafts(rows):
    axes = draw_positions([("letters", rows), ("other", rows)]).axes
    assert len(axes) == 2 and all(len(panel.lines) == 4 for panel in axes)
    assert list(axes[0].lines[0].get_ydata()) == [0.8, 0.4]


def test_a_picture_is_an_element_of_a_page(rows):
    drawn = svg(draw_tradeoff([("letters", rows)]))
    assert drawn.startswith("<svg") and "judge:mine" in drawn
