"""A mesh and the tables of two models, from words."""

import logging

import pytest
from tiny_pairs import tiny_config

from kljudge_jax.errors import InputError
from kljudge_jax.parallel import placement
from kljudge_jax.parallel.placement import Placement


def test_without_a_mesh_there_is_no_layout():
    nowhere = Placement.parse(None)
    assert nowhere.target(tiny_config()) is None
    assert nowhere.draft(tiny_config()) is None


def test_a_draft_may_lie_otherwise_than_its_target():
    config = tiny_config(vocab_size=256)
    both = Placement.parse("data=2,tensor=2")
    assert both.target(config) == both.draft(config)
    apart = Placement.parse("data=2,tensor=2", None, "replicated")
    assert (apart.target(config).ways("vocab"), apart.draft(config).ways("vocab")) == (2, 1)
    assert apart.target(config).mesh is apart.draft(config).mesh


def test_what_the_mesh_does_not_divide_is_said_once(caplog):
    placement._say.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Placement.parse("tensor=4").target(tiny_config(vocab_size=256, num_layers=1))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the target's 2 kv heads do not divide over tensor=4"
    ]


@pytest.mark.parametrize(
    ("rows", "how"), [(4, None), (8, None), (2, "split 2 ways"), (6, "split 2 ways"), (3, "whole")]
)
def test_rows_that_the_mesh_does_not_divide_are_said_once(caplog, rows, how):
    placement._say.cache_clear()
    layout = Placement.parse("data=4").target(tiny_config())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            placement.warn_uneven_batch(layout, rows)
    assert len(caplog.records) == (how is not None)
    assert how is None or (how in caplog.text and "a multiple of 4" in caplog.text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((None, "replicated"), "name one, such as data=2,tensor=4"),
        (("data=2", "batch=none", "replicated"), "map batch alike"),
        (("data=2", None, "batch"), "draft axes 'batch'"),
    ],
)
def test_words_that_contradict_each_other_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        Placement.parse(*words)
