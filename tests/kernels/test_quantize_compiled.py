"""What XLA's own TPU and GPU compilers make of products with quantized weights, on a machine that has neither."""

import dataclasses
import functools
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from kljudge_jax.kernels.place import Place
from kljudge_jax.kernels.product import product, products
from kljudge_jax.kernels.quantize import quantize, rows_of, scheme_for

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]
OUTPUTS, SIZE = 14336, 4096
WEIGHTS = OUTPUTS * SIZE
_BITS = {"s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "f32": 32, "s32": 32}
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]\{[^{}]*\}")


@pytest.fixture(scope="module")
def chip():
    """One device of a v5e that is not here."""
    from jax.experimental import topologies

    known = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (known | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}).items():
            patch.setitem(os.environ, name, value)
        found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=[1, 1, 1])
    return SingleDeviceSharding(found.devices[0])


def compiled(function, chip, *arguments):
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), arguments)
    return jax.jit(function).lower(*placed).compile()


@functools.cache
def weight(bits, shape=(OUTPUTS, SIZE)):
    scheme = scheme_for(bits, shape[1], "tpu")
    return jax.eval_shape(lambda x: quantize(x, scheme), jax.ShapeDtypeStruct(shape, jnp.float32))


def rows(count, size=SIZE):
    return jax.ShapeDtypeStruct((count, size), jnp.bfloat16)


def bytes_of(text):
    """Of the first array that is written in a line."""
    kind, sizes = _ARRAY.search(text).groups()
    return math.prod(int(size) for size in sizes.split(",") if size) * _BITS[kind] / 8


def bytes_read(program):
    """Of the parameters, by the operations of the scheduled program that have one as an operand; slices in part."""
    lines = program.as_text().split("\nENTRY ", 1)[1].splitlines()
    parameters = {
        match[1]: bytes_of(match[2])
        for line in lines
        if (match := re.match(r"\s+%?([\w.-]+) = (.*) parameter\(", line))
    }
    # What is no more than another name for it.
    found = 0.0
    for line in lines:
        match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", line)
        if match is None or match[3] == "parameter":
            continue
        name, kind, operation, rest = match.groups()
        used = [operand for operand in re.findall(r"%([\w.-]+)", rest.split(")", 1)[0]) if operand in parameters]
        if operation == "bitcast" and used:
            parameters[name] = parameters[used[0]]
        elif operation == "slice-start" and used:
            found += bytes_of(kind.split("), ", 1)[1])
        else:
            found += sum(parameters[operand] for operand in used)
    return found


@pytest.mark.parametrize(("bits", "most"), [(8, 1.1), (4, 0.6)])
@pytest.mark.parametrize("count", [1, 8])
def test_integers_are_read_once_and_never_written_wider(bits, most, count, chip):
    program = compiled(lambda x, w: product(x, w, Place("tpu")), chip, rows(count), weight(bits))
    assert 0.9 * bits / 8 * WEIGHTS <= bytes_read(program) <= most * WEIGHTS
    memory = program.memory_analysis()
    assert memory.argument_size_in_bytes <= most * WEIGHTS and memory.temp_size_in_bytes <= 0.05 * WEIGHTS


@pytest.mark.parametrize("bits", [8, 4])
def test_a_single_row_reaches_the_matrix_unit(bits, chip):
    program = compiled(lambda x, w: product(x, w, Place("tpu")), chip, rows(1), weight(bits))
    assert " convolution(" in program.as_text()


@pytest.mark.parametrize("bits", [8, 4])
def test_several_products_of_the_same_rows_read_no_more(bits, chip):
    some = [weight(bits), weight(bits, (1024, SIZE)), weight(bits, (1024, SIZE))]
    program = compiled(lambda x, w: products(x, w, Place("tpu")), chip, rows(72), some)
    total = sum(math.prod(one.shape) for one in some)
    assert bytes_read(program) <= (1.1 if bits == 8 else 0.6) * total + 3 * 72 * SIZE * 2
    assert program.memory_analysis().temp_size_in_bytes <= 0.2 * total


def test_four_bits_are_stored_as_a_loop_reads_them(chip):
    """In another order XLA copies a weight into its own before the loop, and holds it twice."""

    def repeated(x, w):
        return jax.lax.fori_loop(0, 4, lambda i, x: x + jnp.sum(product(x, w, Place("tpu"))).astype(x.dtype), x)

    def copies(order):
        one = scheme_for(4, SIZE, "tpu")
        stored = jax.eval_shape(
            lambda x: quantize(x, dataclasses.replace(one, order=order or one.order)),
            jax.ShapeDtypeStruct((OUTPUTS // 4, SIZE), jnp.float32),
        )
        text = compiled(repeated, chip, rows(9), stored).as_text().split("\nENTRY ", 1)[1]
        return [line for line in text.splitlines() if re.search(r" = s4\S* (copy|transpose|fusion)\(", line)]

    assert not copies(None) and copies("gko")


def test_rows_of_a_table_are_gathered_alone(chip):
    table, tokens = weight(8, (32000, SIZE)), jax.ShapeDtypeStruct((8,), jnp.int32)
    program = compiled(lambda w, tokens: rows_of(w, tokens, jnp.bfloat16), chip, table, tokens)
    text, memory = program.as_text(), program.memory_analysis()
    assert re.search(rf"s8\[8,{SIZE}\]\S* gather\(", text) and memory.temp_size_in_bytes <= 1e6
    assert not re.search(r"\w+\[32000,4096\]\S* (copy|convert|transpose|multiply)\(", text)
