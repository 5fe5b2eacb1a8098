"""Spec strings: what each stands for, and which commas part them."""

import pytest

from kljudge_jax.errors import InputError
from kljudge_jax.spec import assigned, read_items, read_spec, split_specs


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("none, exact,kl:0.4", ["none", "exact", "kl:0.4"]),
        ("kl:threshold=0.4,confidence=1.0,exact", ["kl:threshold=0.4,confidence=1.0", "exact"]),
        ("kl:0.4,0.5,topk:2", ["kl:0.4,0.5", "topk:2"]),
        ("kl:0.1/0.4,exact", ["kl:0.1", "kl:0.4", "exact"]),
        ("judge:judges/a,threshold=0.5,hf:lookup:3", ["judge:judges/a,threshold=0.5", "hf:lookup:3"]),
        ("8,24", ["8", "24"]),
        ("4,adaptive:maximum=8,cost=size,adaptive", ["4", "adaptive:maximum=8,cost=size", "adaptive"]),
    ],
)
def test_commas_part_specs_and_not_their_parameters(text, specs):
    assert split_specs(text) == specs


def test_a_comma_in_quotes_is_text():
    assert read_items('a="x, y",2') == [("a", '"x, y"', 'a="x, y"'), (None, "2", "2")]
    assert split_specs('reflective:prompt="wait, check",kl:0.4') == ['reflective:prompt="wait, check"', "kl:0.4"]


def test_values_stand_in_order_and_then_by_name():
    assert read_spec(" kl : 0.4 ")[0] == "kl" and read_spec("kl") == ("kl", [])
    assert assigned("r:1, b = 2", ["a", "b"], "r:a,b") == {"a": "1", "b": "2"}
    refused = {"r:1,2,3": "'3' is no", "r:b=1,2": "'2' is no", "r:c=1": "'c=1' is no", "r:1,a=2": "its a once"}
    for wrong, said in refused.items():
        with pytest.raises(InputError, match=said):
            assigned(wrong, ["a", "b"], "r:a,b")
