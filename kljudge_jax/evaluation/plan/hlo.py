"""A compiled program's own text: what it moves through a chip's memory, exchanges with others, and loops over.

The text is XLA's optimised, scheduled HLO. Memory other than HBM is marked there by a space S(n); on a TPU S(1) is
VMEM. Bytes that stay in VMEM are not counted.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from kljudge_jax.kernels.written_blocks import share_read

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_SPACE = re.compile(r"S\((\d+)\)")

# Bytes of an element; those of other types have a byte for every 8 bits that their name ends in.
_BYTES = {"pred": 1.0, "s4": 0.5, "u4": 0.5}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# What names a value and moves nothing.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"async-update", "optimization-barrier"}
_ASYNCHRONOUS = ("copy-start", "slice-start", "dynamic-slice-start", "async-start")
_PARTS = ("dynamic-slice", "slice", "gather")
# What writes a part of its first operand in place, and which operand that part is.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
# What a fusion may hold that gives an array another name and nothing else.
_NAMES = {"parameter", "bitcast", "copy"}


class Shape(NamedTuple):
    """An array's type as the text has it: bytes of all of it, and the memory space that it lies in; 0 is HBM."""

    element: str
    sizes: tuple[int, ...]
    bytes: int
    space: int


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction."""

    name: str
    code: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """The name that an attribute such as `calls=%fused` gives."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found and found[1]

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        if listed:
            return re.findall(r"%?([\w.\-]+)", listed[1])
        return [name for name in map(self.attribute, ("true_computation", "false_computation")) if name]

    @property
    def source(self) -> str:
        """What of the program it came from."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one run through a computation takes of each device.

    Attributes:
      read, written: bytes of HBM.
      blocks: of what is read, the blocks of caches that a kernel reads as far as rows are written.
      collectives: how many of each kind, and their bytes.
      copies: bytes of each whole array that is copied or transposed, and how often.
      loops: turns of each loop, and what of the program it came from.
      custom_calls: how often each target is called.
      cycles: the compiler's estimates, where it has them. They leave out collectives, asynchronous copies and kernels.
    """

    read: int = 0
    written: int = 0
    blocks: int = 0
    collectives: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    collective_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    copies: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    loops: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    custom_calls: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    cycles: int = 0

    @property
    def moved(self) -> int:
        return self.read + self.written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self)))

    def times(self, count: int) -> Traffic:
        def scaled(value):
            if isinstance(value, collections.Counter):
                return collections.Counter({key: count * number for key, number in value.items()})
            return count * value

        return Traffic(*(scaled(getattr(self, field.name)) for field in dataclasses.fields(self)))


class Program:
    """A compiled program, read from its text.

    Args:
      text: the optimised, scheduled HLO.
      written: slots that each row's caches hold when a pass has written its own. A kernel that reads as far as that is
        taken to read so much; None is all slots.
    """

    def __init__(self, text: str, written: int | None = None):
        self._held = written
        self._computations: dict[str, dict[str, Operation]] = {}
        current: dict[str, Operation] = {}
        for line in text.splitlines():
            line = re.sub(r"/\*index=\d+\*/", "", line.rstrip())
            opened = _COMPUTATION.match(line)
            if opened:
                current = self._computations[opened[2]] = {}
                if opened[1]:
                    self.entry = opened[2]
                continue
            found = _INSTRUCTION.match(line)
            if found:
                operation = _operation(found[2], found[3], bool(found[1]))
                if operation is not None:
                    current[operation.name] = operation
        if not hasattr(self, "entry"):
            raise ValueError("the text is no program: it has no ENTRY")

    def operations(self, computation: str) -> Iterator[Operation]:
        yield from self._computations[computation].values()

    def cycle(self) -> Traffic:
        """One turn of the outermost loop: a decoding cycle of `run_cycles`."""
        loops = [op for op in self.operations(self.entry) if op.code == "while"]
        if not loops:
            raise ValueError("the program has no loop of cycles")
        largest = max(loops, key=lambda op: op.bytes)
        return self.traffic(largest.attribute("body") or "")

    def entry_copies(self) -> collections.Counter:
        """Bytes of the arrays that are copied or transposed once, before or after all cycles."""
        return collections.Counter(
            op.shapes[0].bytes for op in self.operations(self.entry) if op.code in ("copy", "transpose", "copy-start")
        )

    def traffic(self, computation: str | None = None) -> Traffic:
        """What one run through a computation takes; None is all of the program, loops of unknown turns once."""
        total = Traffic()
        for operation in self.operations(computation or self.entry):
            total = total + self._of(operation, self._computations[computation or self.entry])
        return total

    def _of(self, operation: Operation, around: dict[str, Operation]) -> Traffic:
        code = operation.code
        if code == "while":
            turns = self.turns(operation)
            body, condition = operation.attribute("body") or "", operation.attribute("condition") or ""
            inside = self.traffic(body) + self.traffic(condition)
            return inside.times(turns or 1) + Traffic(loops=collections.Counter({(turns, operation.source): 1}))
        if code == "conditional":
            return max(map(self.traffic, operation.branches), key=lambda traffic: traffic.moved, default=Traffic())
        if code == "call":
            return self.traffic(operation.attribute("to_apply") or "")
        estimate = re.search(r'"estimated_cycles":"(\d+)"', operation.text)
        found = Traffic(cycles=int(estimate[1]) if estimate else 0)
        kind = code.removesuffix("-start")
        if kind in COLLECTIVES:
            found.collectives[kind] += 1
            # One that is started names its operand and its result; several that were combined are all results.
            sizes = [shape.bytes for shape in operation.shapes]
            found.collective_bytes[kind] += max(sizes, default=0) if code != kind else sum(sizes)
        if code == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', operation.text)
            found.custom_calls[target[1] if target else ""] += 1
        if code in _FREE or code.endswith("-done"):
            return found
        if code in _ASYNCHRONOUS:
            return found + self._asynchronous(operation)
        shares = share_read(operation.source, self._held or 0) if code == "custom-call" else None
        if shares is not None:
            return found + self._kernel(operation, around, *shares)
        if code in ("copy", "transpose") and operation.shapes and not operation.shapes[0].space:
            found.copies[operation.shapes[0].bytes] += 1
        read = sum(
            self._read(operation, i, around[name]) for i, name in enumerate(operation.operands) if name in around
        )
        return found + Traffic(read=read, written=self._written(operation, around))

    def _kernel(self, operation: Operation, around: dict[str, Operation], part: int, slots: int) -> Traffic:
        """What attention moves that reads `part` of the slots of caches, and all of what else it is given."""
        read = blocks = 0
        for i, name in enumerate(operation.operands):
            if name not in around:
                continue
            whole = self._read(operation, i, around[name])
            if whole and slots in around[name].shapes[0].sizes[2:]:
                whole = whole if self._held is None else whole * part // slots
                blocks += whole
            read += whole
        return Traffic(read, self._written(operation, around), blocks)

    def _asynchronous(self, operation: Operation) -> Traffic:
        """A transfer between HBM and VMEM, by what arrives."""
        arrays = [shape for shape in operation.shapes if shape.sizes]
        if len(arrays) < 2:
            return Traffic()
        # A copy names its result first, a slice its source.
        to, source = (arrays[0], arrays[1]) if operation.code == "copy-start" else (arrays[1], arrays[0])
        moved = min(to.bytes, source.bytes)
        copies = collections.Counter({moved: 1}) if not to.space and not source.space else collections.Counter()
        return Traffic(0 if source.space else moved, 0 if to.space else moved, copies=copies)

    def _read(self, operation: Operation, index: int, operand: Operation) -> int:
        """Bytes of HBM that an operation reads of an operand."""
        if operand.code in ("tuple", "while", "conditional") or len(operand.shapes) != 1 or operand.shapes[0].space:
            return 0
        whole = operand.shapes[0].bytes
        if operation.code in _PARTS and index == 0:
            return min(whole, operation.bytes)
        if operation.code in _UPDATES and index == 0:
            return 0
        if operation.code == "fusion":
            return self._read_inside(operation.attribute("calls") or "", index, whole)
        return whole

    def _read_inside(self, computation: str, index: int, whole: int) -> int:
        """Bytes that a fusion reads of its parameter of that index: of a slice, those of the slice."""
        inside = self._computations.get(computation, {})
        named = {op.name for op in inside.values() if op.code == "parameter" and f"parameter({index})" in op.text}
        read, again = 0, True
        while again:  # other names of the same array
            again = False
            for op in inside.values():
                if op.name not in named and self._renames(op) and op.operands[0] in named:
                    named.add(op.name)
                    again = True
        for op in inside.values():
            if op.name in named:
                continue
            for position, operand in enumerate(op.operands):
                if operand not in named:
                    continue
                if op.code in _PARTS and position == 0:
                    read += op.bytes
                elif op.code == "fusion":
                    read += self._read_inside(op.attribute("calls") or "", position, whole)
                elif not (op.code in _UPDATES and position == 0):
                    return whole
        return min(whole, read)

    def _renames(self, operation: Operation) -> bool:
        if operation.code == "fusion":
            inside = self._computations.get(operation.attribute("calls") or "", {})
            return {op.code for op in inside.values()} <= _NAMES
        return operation.code in _NAMES and operation.code != "parameter"

    def _written(self, operation: Operation, around: dict[str, Operation]) -> int:
        """Bytes of HBM that an operation writes."""
        whole = sum(shape.bytes for shape in operation.shapes if not shape.space)
        if operation.code in _UPDATES:
            update = around.get(operation.operands[_UPDATES[operation.code]])
            return min(whole, update.bytes) if update else whole
        if operation.code == "fusion" and len(operation.shapes) == 1:
            return min(whole, self._written_inside(operation.attribute("calls") or "", whole))
        return whole

    def _written_inside(self, computation: str, whole: int) -> int:
        inside = self._computations.get(computation, {})
        result = next((op for op in inside.values() if op.root), None)
        while result is not None and result.code in ("bitcast", "copy") and result.operands[0] in inside:
            result = inside[result.operands[0]]
        if result is None:
            return whole
        place = _UPDATES.get(result.code, 0)
        if place and result.operands[place] in inside:
            return inside[result.operands[place]].bytes
        if result.code == "fusion":
            return self._written_inside(result.attribute("calls") or "", whole)
        return whole

    def turns(self, loop: Operation) -> int | None:
        """How often a loop runs, where its condition compares with a constant; None where only the data say."""
        inside = self._computations.get(loop.attribute("condition") or "", {})
        constants = [_constant(op) for op in inside.values() if op.code == "constant"]
        compares = [op for op in inside.values() if op.code == "compare"]
        for op in inside.values():
            if op.code == "fusion":
                nested = self._computations.get(op.attribute("calls") or "", {})
                compares += [each for each in nested.values() if each.code == "compare"]
                constants += [_constant(each) for each in nested.values() if each.code == "constant"]
        known = {number for number in constants if number is not None and number > 0}
        return known.pop() if len(compares) == 1 and len(known) == 1 and len(inside) <= 6 else None


def _constant(operation: Operation) -> int | None:
    found = re.search(r"constant\((-?\d+)\)", operation.text)
    return int(found[1]) if found else None


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for element, listed, layout in _SHAPE.findall(text):
        digits = re.search(r"\d+", element)
        each = _BYTES.get(element) or (int(digits[0]) / 8 if digits else 0)
        sizes = tuple(int(size) for size in listed.split(",") if size)
        space = _SPACE.search(layout)
        # A scalar is the core's own, and moves nothing.
        size = math.ceil(each * math.prod(sizes)) if sizes else 0
        found.append(Shape(element, sizes, size, int(space[1]) if space else 0))
    return tuple(found)


def _operation(name: str, rest: str, root: bool) -> Operation | None:
    """`TYPE code(operands), attributes`, where the type of a tuple has parentheses of its own."""
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    found = re.match(r"\s*([a-z][\w\-]*)\(", rest[end:]) if end > 0 else None
    if found is None:
        return None
    opening = end + found.end() - 1
    operands = rest[opening : opening + _closing(rest[opening:])]
    return Operation(name, found[1], _shapes(rest[:end]), tuple(re.findall(r"%([\w.\-]+)", operands)), rest, root)


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the first one."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place + 1
    return len(text)
