"""The call `sweep`: the figures of the command's, shown in a notebook, kept where it is told to."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from sweep_records import Letters
from tiny_pairs import text_pair

import kljudge_jax as kj
from kljudge_jax.verification.specs import spec_of

SIZES = {"draft_lengths": [4], "n": 8, "batch": 4, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def pair():
    return text_pair()


@pytest.fixture(scope="module")
def kept(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, kj.sweep(pair, Letters(), ["none", "exact", "kl:4.0"], examples=1, folder=folder, **SIZES)


def test_it_compares_the_rules(kept):
    _, found = kept
    assert [row.rule for row in found.rows] == ["none", "exact", "kl:4.0"]
    assert found.rows[1].same_text == 8 and found.greedy


def test_a_notebook_shows_table_picture_and_answers(kept):
    shown = kept[1]._repr_html_()
    assert "<svg" in shown and "mean acceptance length" in shown
    assert "<td>kl:4.0</td>" in shown
    assert shown.count("<details") == 3 and 'class="draft"' in shown


def test_it_goes_on_where_it_was(pair, kept):
    folder, found = kept
    assert (folder / "report.html").exists() and (folder / "answers.jsonl").exists()
    lines = []
    again = kj.sweep(
        pair, Letters(), ["none", "exact", "kl:4.0"], examples=1, folder=folder, report=lines.append, **SIZES
    )
    assert not lines and again.rows == found.rows


def test_a_rule_itself_is_as_good_as_its_spec_string(pair, kept, tmp_path):
    rules = [None, "exact", kj.KLJudge(4.0)]
    found = kj.sweep(pair, Letters(), rules, examples=0, folder=tmp_path, **SIZES)
    assert [row.rule for row in found.rows] == ["none", "exact", "kl:4.0"]
    assert [row.right for row in found.rows] == [row.right for row in kept[1].rows]
    with pytest.raises(kj.InputError, match="or a rule such as KLJudge"):
        kj.sweep(pair, Letters(), ["none", 0.4], **SIZES)


@kj.register
@dataclasses.dataclass(frozen=True)
class Stubborn:
    """Accepts every draft token or none; without a base class, so that no spec string names it."""

    table: jax.Array

    def __call__(self, key, inputs):
        real = jnp.arange(len(inputs.draft_tokens)) < inputs.draft_count
        accepted = jnp.sum(jnp.cumprod(real & (self.table > 0)), dtype=jnp.int32)
        token = jnp.argmax(inputs.target_logits[accepted]).astype(jnp.int32)
        return kj.Verdict(accepted, token, jnp.zeros(real.shape, bool))


def test_rules_of_ones_own_that_hold_arrays_are_told_apart(pair):
    accepting, refusing = (Stubborn(jax.numpy.full(4, number, float)) for number in (1, 0))
    found = kj.sweep(pair, Letters(), ["none", accepting, refusing], examples=0, **SIZES)
    names = [row.rule for row in found.rows]
    assert len(set(names)) == 3 and all(name.startswith("Stubborn-") for name in names[1:])
    assert found.rows[1].mean_acceptance_length > found.rows[2].mean_acceptance_length == 1
    assert names[1:] == [spec_of(Stubborn(jax.numpy.full(4, number, float))) for number in (1, 0)]


@pytest.mark.slow
def test_lengths_that_adapt_stand_beside_fixed_ones(pair, tmp_path):
    sizes = SIZES | {"draft_lengths": [4, kj.Adaptive(maximum=4, cost=0.1), "adaptive:maximum=2,cost=0.1"]}
    found = kj.sweep(pair, Letters(), ["none", "exact"], folder=tmp_path, **sizes)
    lengths = [row.draft_length for row in found.rows]
    assert lengths[:2] == [0, 4] and "maximum=4" in lengths[2] and "maximum=2" in lengths[3]
    assert all(row.same_text == 8 for row in found.rows[1:])  # greedy and lossless, whatever is drafted
    again = kj.sweep(pair, Letters(), ["none", "exact"], folder=tmp_path, report=pytest.fail, **sizes)
    assert again.rows == found.rows  # which were all there
    with pytest.raises(kj.InputError, match="drafts by one length"):
        kj.sweep(pair, Letters(), ["hf:assisted"], **sizes)


def test_it_samples_and_truncates_by_a_configuration_or_by_its_fields(pair):
    fields = {"max_new_tokens": 24, "temperature": 1.5, "draft_length": 4, "seed": 3, "batch": 4}

    def figures(**decoding):
        (row,) = kj.sweep(pair, Letters(), ["none"], n=8, examples=0, **decoding).rows
        return row.right, row.tokens_per_answer

    sampled = figures(config=kj.DecodingConfig(**fields))
    assert sampled == figures(**fields) == figures(config=kj.DecodingConfig(seed=9), **fields)
    assert figures(**fields, top_k=1) == figures(**(fields | {"temperature": 0.0})) != sampled


def test_without_a_folder_nothing_is_kept(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kj.sweep(pair, Letters(), ["exact"], **SIZES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"batch": 0}, {"draft_lengths": [0]}, {"draft_lengths": []}, {"rules": []}]
)
def test_sizes_that_cannot_be_are_refused(pair, wrong):
    with pytest.raises(kj.InputError, match=r"at least one rule|starts at 1|from 1 on"):
        kj.sweep(pair, Letters(), **(SIZES | wrong))
