"""What a rule keeps to, checked on abstract inputs before a run: its result, shapes and dtypes, and its purity."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljudge_jax.core.verify import row_axes
from kljudge_jax.errors import InputError
from kljudge_jax.pytree import is_registered
from kljudge_jax.verification.base import Verdict, Verifier, VerifyInputs
from kljudge_jax.verification.rule import NEEDS
from kljudge_jax.verification.secure import Secure

_ASKED_FOR_A_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def check_registered(rule: Any) -> None:
    """Refuses a rule that `kljudge_jax.register` has not made a pytree of: JAX may run another's program for it."""
    if not is_registered(type(rule)):
        raise InputError(
            f"{type(rule).__name__} is no pytree by kljudge_jax.register: write a rule as a frozen dataclass of "
            "numbers under @kljudge_jax.register, in place of jax.tree_util.register_dataclass or any other"
        )


def check_rule(
    verifier: Verifier,
    *,
    draft_length: int,
    vocab_size: int,
    draft_state: Any,
    target_state: Any,
    with_sections: bool = False,
) -> None:
    """Traces a rule that is not of this package twice, the first time that it is met in these shapes.

    Args:
      verifier: the rule, its numbers as arrays.
      draft_length, vocab_size: K and V.
      draft_state, target_state: size and dtype `(Hd, dtype)`, `(Ht, dtype)` of the states that the rule needs; None
        where it needs none.
      with_sections: it is told where each token would stand.

    Raises:
      InputError: the rule returns something else than a `Verdict` of the right shapes and dtypes, asks for the value
        of a traced array, lets one out, or is another function each time it is traced.
    """
    if isinstance(verifier, Secure):
        verifier = verifier.rule  # which may be another's
    if is_ours(verifier):
        return  # their tests hold them to it, and a trace that is watched for leaks takes a second
    leaves, structure = jax.tree.flatten(verifier)
    # A rule sees its own row's number of those that are one a row.
    axes = row_axes(verifier)
    numbers = tuple((leaf.shape[axis == 0 :], leaf.dtype) for leaf, axis in zip(leaves, axes, strict=True))
    _check(type(verifier), structure, numbers, draft_length, vocab_size, draft_state, target_state, with_sections)


@functools.lru_cache(maxsize=1024)
def _check(
    rule: type, structure, numbers, length: int, vocab: int, draft_state, target_state, with_sections: bool
) -> None:
    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    def first_carry(leaves):
        return jax.tree.map(jnp.asarray, jax.tree.unflatten(structure, leaves).init_carry())

    leaves = [array(dtype, *shape) for shape, dtype in numbers]
    inputs = VerifyInputs(
        draft_tokens=array(jnp.int32, length),
        draft_count=array(jnp.int32),
        draft_logits=array(jnp.float32, length, vocab),
        target_logits=array(jnp.float32, length + 1, vocab),
        raw_draft_logits=array(jnp.float32, length, vocab),
        raw_target_logits=array(jnp.float32, length + 1, vocab),
        draft_hidden=None if draft_state is None else array(draft_state[1], length, draft_state[0]),
        target_hidden=None if target_state is None else array(target_state[1], length, target_state[0]),
        greedy=array(jnp.bool_),
        position=array(jnp.int32),
        remaining=array(jnp.int32),
        section=array(jnp.int32, length + 1) if with_sections else None,
        carry=jax.eval_shape(first_carry, leaves) if hasattr(rule, "init_carry") else None,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    first, answer = _traced(rule, structure, leaves, key, inputs)
    _check_verdict(rule.__name__, answer, length)
    again, _ = _traced(rule, structure, leaves, key, inputs)
    if str(first.jaxpr) != str(again.jaxpr) or not all(map(_equal, first.consts, again.consts)):
        raise InputError(
            f"{rule.__name__} is another function each time it is traced: let it depend on its arguments alone, and "
            "draw with its key"
        )


def _traced(rule: type, structure, leaves, key, inputs):
    """The program of a rule, and the shapes that it answers with."""

    # A function of its own each time: JAX would hand back what it traced before.
    def call(leaves, key, inputs):
        return jax.tree.unflatten(structure, leaves)(key, inputs)

    try:
        with jax.checking_leaks():
            return jax.make_jaxpr(call, return_shape=True)(leaves, key, inputs)
    except InputError:
        raise  # says all that there is to say
    except _ASKED_FOR_A_VALUE as error:
        raise InputError(
            f"{rule.__name__} asks for the value of an array that is only traced: write jnp.where or jax.lax.cond in "
            f"place of if, and jnp in place of NumPy ({str(error).splitlines()[0]})"
        ) from error
    except TypeError as error:
        if "is not a valid JAX type" not in str(error):
            error.add_note(f"while {rule.__name__} was traced with {_inputs_of(inputs)}")
            raise
        raise InputError(
            f"{rule.__name__} returns what is no tree of arrays: return a kljudge_jax.Verdict ({error})"
        ) from error
    except Exception as error:
        if not str(error).startswith("Leaked"):
            error.add_note(f"while {rule.__name__} was traced with {_inputs_of(inputs)}")
            raise
        raise InputError(
            f"{rule.__name__} lets an array out of its trace: keep nothing of what it computes outside its result"
        ) from error


def _check_verdict(name: str, answer: Any, length: int) -> None:
    if not isinstance(answer, Verdict):
        raise InputError(f"{name} returns a {type(answer).__name__}: return a kljudge_jax.Verdict")
    expected = {"num_accepted": ((), jnp.int32), "next_token": ((), jnp.int32), "relaxed": ((length,), jnp.bool_)}
    for field, (shape, dtype) in expected.items():
        got = getattr(answer, field)
        if not isinstance(got, jax.ShapeDtypeStruct):
            raise InputError(f"{name} returns a {type(got).__name__} as {field}: return {_spelled(shape, dtype)}")
        if (got.shape, got.dtype) != (shape, dtype):
            raise InputError(
                f"{name} returns {_spelled(got.shape, got.dtype)} as {field}: return {_spelled(shape, dtype)}"
            )


def _spelled(shape: tuple[int, ...], dtype) -> str:
    return f"{np.dtype(dtype).name}[{','.join(map(str, shape))}]"


def _inputs_of(inputs: VerifyInputs) -> str:
    """The inputs as a rule's author has to know them."""

    def spelled(name, value):
        if value is None:
            return "None (name it in `needs`)" if name in NEEDS else "None"
        return _spelled(value.shape, value.dtype) if hasattr(value, "shape") else "as init_carry() has it"

    given = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
    return ", ".join(f"{name} {spelled(name, value)}" for name, value in given.items())


def _equal(a, b) -> bool:
    return a is b or (np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f"))


def is_ours(plug: Any) -> bool:
    """Whether a model, a drafter or a rule is of this package; of a rule that wraps one, whether that is."""
    plug = plug.rule if isinstance(plug, Secure) else plug
    return type(plug).__module__.startswith(__name__.partition(".")[0] + ".")
