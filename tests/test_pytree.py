"""Classes as pytrees: no two are taken for one, which JAX's own registration of dataclasses does not promise."""

import dataclasses
import itertools

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from tiny_pairs import DRAFT_LENGTH, PROMPTS, tiny_pair

import kljudge_jax as kj
from kljudge_jax.generation import programs
from kljudge_jax.pytree import is_mistaken, is_registered, register_node

MANY = 100


def rules(register, count=MANY):
    """Rules with as many fields, each of which accepts nothing and writes a token of its own."""

    def one(token):
        def call(self, key, inputs):
            return kj.Verdict(jnp.int32(0), jnp.int32(token), jnp.zeros(inputs.draft_tokens.shape, bool))

        fields = [("first", float, 1.0), ("second", float, 2.0)]
        made = dataclasses.make_dataclass(f"Rule{token}", fields, namespace={"__call__": call}, frozen=True)
        return register(made)()

    return [one(token) for token in range(count)]


def test_two_registered_rules_with_as_many_fields_never_share_a_program():
    every = rules(kj.register)
    structures = [jax.tree.structure(rule) for rule in every]
    assert all(a != b for a, b in itertools.combinations(structures, 2))
    # What jit runs is each one's own: under JAX's own registration one in eight gets another's.
    token = jax.jit(lambda rule: rule(None, INPUTS).next_token)
    assert [int(token(rule)) for rule in every] == list(range(MANY))


INPUTS = kj.VerifyInputs(
    draft_tokens=jnp.zeros((2,), jnp.int32),
    draft_count=jnp.int32(2),
    draft_logits=jnp.zeros((2, 3)),
    target_logits=jnp.zeros((3, 3)),
    raw_draft_logits=jnp.zeros((2, 3)),
    raw_target_logits=jnp.zeros((3, 3)),
    draft_hidden=None,
    target_hidden=None,
    greedy=jnp.asarray(True),
)


def test_each_of_them_compiles_programs_of_decoding_of_its_own():
    pair, before = tiny_pair(), programs.run_cycles._cache_size()
    for count, rule in enumerate(rules(kj.register, 2), 1):
        asked = {"verifier": rule, "draft_length": DRAFT_LENGTH, "max_new_tokens": 24}
        out = kj.generate(pair, PROMPTS, **asked)
        assert {int(token) for row in out.tokens for token in row} == {count - 1}
        kj.generate(pair, PROMPTS, **asked)
        assert programs.run_cycles._cache_size() == before + count


def test_what_jax_takes_for_another_is_found():
    for kind in map(type, rules(jax.tree_util.register_dataclass, 2)):
        assert is_mistaken(kind()) and not is_registered(kind)

    @flax.struct.dataclass
    class Flax:
        x: float
        name: str = flax.struct.field(pytree_node=False, default="a")

    assert is_mistaken(Flax(1.0)) and is_mistaken(Flax(None)) and is_mistaken(Flax([1, 2]))


def test_other_pytrees_are_their_own():
    class Module(nnx.Module):
        def __init__(self):
            self.x = nnx.Param(jnp.ones(2))

    @jax.tree_util.register_pytree_node_class
    @dataclasses.dataclass
    class Node:
        x: float

        def tree_flatten(self):
            return (self.x,), ()

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Static:
        x: float

    @dataclasses.dataclass
    class Leaf:
        x: float

    (registered,) = rules(kj.register, 1)
    for tree in (Module(), Node(1.0), Static(1.0), Leaf(1.0), registered, {"x": 1.0}, (1.0,), 1.0, None, INPUTS.greedy):
        assert not is_mistaken(tree)


def test_a_node_goes_through_jax_as_what_it_was():
    @dataclasses.dataclass(frozen=True)
    class Refuses:
        number: float
        name: str

        def __post_init__(self):
            assert isinstance(self.number, float)

    register_node(Refuses, ["number"], ["name"])
    tree = Refuses(1.0, "a")
    (path, leaf), *_ = jax.tree_util.tree_flatten_with_path(tree)[0]
    assert (jax.tree_util.keystr(path), leaf) == (".number", 1.0)
    none = jax.tree.map(lambda _: None, tree)  # what its constructor would refuse
    assert (none.number, none.name) == (None, "a") and is_registered(Refuses)
    assert jax.tree.structure(tree) != jax.tree.structure(Refuses(1.0, "b"))
