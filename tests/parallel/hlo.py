"""What a compiled program sends between devices, copies and writes in place, read from its text."""

import dataclasses
import re

_COLLECTIVE = re.compile(
    r"= (?P<types>\(?[^=]*?\)?) (?P<kind>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\(.*?(?:op_name=\"(?P<op>[^\"]*)\")?$"
)
_ANY = re.compile(r" (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
_SHAPE = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<sizes>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One of them: its kind, and the shapes `(dtype, sizes)` that it gives."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    op: str

    @property
    def largest(self) -> int:
        """Elements of its largest result."""
        sizes = []
        for _, shape in self.shapes:
            total = 1
            for size in shape:
                total *= size
            sizes.append(total)
        return max(sizes)


def collectives(text: str) -> list[Collective]:
    """All collectives of an HLO module."""
    found = []
    for line in text.splitlines():
        line = re.sub(r"/\*index=\d+\*/", "", line.strip())  # XLA counts the results of long tuples
        match = _COLLECTIVE.search(line)
        if match is None:
            assert not _ANY.search(line), line
            continue
        shapes = tuple(
            (shape["dtype"], tuple(int(size) for size in shape["sizes"].split(",") if size))
            for shape in _SHAPE.finditer(match["types"].split("{")[0] if "(" not in match["types"] else match["types"])
        )
        operator = re.search(r'op_name="([^"]*)"', line)
        found.append(Collective(match["kind"], shapes, operator[1] if operator else ""))
    return found


_INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.-]+ = (?P<types>\(.*?\)|\S+) (?P<kind>[a-z][\w-]*)\(")
_COPYING = {"copy", "copy-start", "transpose"}
_MOVING = _COPYING | {"bitcast", "reshape", "parameter", "tuple", "get-tuple-element", "copy-done"}


def shapes(arrays) -> set[tuple[str, tuple[int, ...]]]:
    """Those of arrays, as XLA names them: `(dtype, sizes)`."""
    names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "int8": "s8", "uint8": "u8"}
    return {(names[str(x.dtype)], tuple(x.shape)) for x in arrays}


def copies(text: str, held: set[tuple[str, tuple[int, ...]]]) -> list[str]:
    """The instructions that only move an array of such a shape, its axes in any order; a fusion of nothing else too."""
    wanted = {(dtype, tuple(sorted(sizes))) for dtype, sizes in held}
    bodies = _computations(text)
    found = []
    for lines in bodies.values():
        for line in lines:
            kind, given = _read(line)
            called = re.search(r"calls=%?([\w.-]+)", line)
            if kind == "fusion" and called is not None:
                inside = {_read(inner)[0] for inner in bodies[called[1]]}
                moves = inside <= _MOVING and bool(inside & _COPYING)
            else:
                moves = kind in _COPYING
            if moves and any((dtype, tuple(sorted(sizes))) in wanted for dtype, sizes in given):
                found.append(line.removeprefix("ROOT "))
    return found


def entry_parameters(text: str) -> dict[int, tuple[str, tuple[int, ...]]]:
    """The shapes of what a program is given, by number."""
    entry = next(lines for name, lines in _computations(text).items() if name.startswith("ENTRY"))
    numbers = ((re.search(r" parameter\((\d+)\)", line), line) for line in entry)
    return {int(number[1]): _read(line)[1][0] for number, line in numbers if number}


def aliased(text: str) -> set[int]:
    """The numbers of what a program is given that it returns in the same memory."""
    header = text.splitlines()[0]
    return {int(number) for number in re.findall(r"\{[\d, ]*\}: \((\d+), \{[\d, ]*\}, (?:may|must)-alias\)", header)}


def _computations(text):
    """The instructions of each computation; the name of the first to run begins with "ENTRY"."""
    found, lines = {}, []
    for line in text.splitlines():
        opened = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if opened:
            lines = found[(opened[1] or "") + opened[2]] = []
        elif _INSTRUCTION.match(line.strip()):
            lines.append(line.strip())
    return found


def _read(line):
    match = _INSTRUCTION.match(line)
    given = [
        (shape["dtype"], tuple(int(size) for size in shape["sizes"].split(",") if size))
        for shape in _SHAPE.finditer(match["types"])
    ]
    return match["kind"], given
