"""What a compiled program sends between devices, read from its text."""

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
