"""Tables of text, and a middle with its range."""

from kljudge_jax.text_table import aligned, columns, markdown, ranged


def test_rows_by_name_become_a_table():
    cells = columns([{"rule": "exact", "right": "9"}, {"rule": "kl", "right": "10"}])
    assert markdown(cells) == "| rule | right |\n|---|---|\n| exact | 9 |\n| kl | 10 |\n"
    assert aligned(cells) == "rule   right\nexact      9\nkl        10"


def test_of_nothing_there_is_no_table():
    assert columns([]) == [] and markdown([]) == ""


def test_a_middle_stands_before_its_range():
    assert ranged(1.5, (1, 2)) == "1.50 (1.00 to 2.00)" and ranged(0.5, [-1.25, 2], "+.1f") == "+0.5 (-1.2 to +2.0)"
