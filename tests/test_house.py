"""What each room may import: data flows one way, and a room that is not named here is not there."""

import ast
import pathlib

import pytest

import kljudge_jax

ROOT = pathlib.Path(kljudge_jax.__file__).parent

# Beside what all may: errors, and what is no room of its own.
ROOMS = {
    "verification": set(),
    "kernels": set(),
    "parallel": set(),
    "core": {"verification"},
    "models": {"core.protocols", "kernels", "parallel"},
    "drafters": {"core", "models", "verification"},
    "tasks": set(),
    "generation": {"core", "drafters", "kernels", "models", "parallel", "verification"},
    "judges": {"core", "drafters", "generation", "kernels", "models", "parallel", "tasks", "verification"},
    "training": {"core", "drafters", "generation", "judges", "kernels", "models", "parallel", "tasks", "verification"},
}
ABOVE = ("evaluation", "commands")  # these may import all


def imported(path):
    """The modules of ours that a file imports, as dotted names without the package's, with the line of each."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kljudge_jax"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("kljudge_jax")]
        for name in names:
            yield name.removeprefix("kljudge_jax").removeprefix("."), node.lineno


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room):
    allowed = {room, "errors", *ROOMS[room]}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for name, line in imported(path)
        if name.partition(".")[0] in {*ROOMS, *ABOVE}
        and not any(name == each or name.startswith(f"{each}.") or each.startswith(f"{name}.") for each in allowed)
    ]
    assert not wrong


def test_every_room_is_in_the_table():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms == {*ROOMS, *ABOVE}


def test_the_core_knows_no_model_no_text_and_no_clock():
    for path in sorted((ROOT / "core").glob("*.py")):
        names = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not names & {"time", "os", "pathlib", "transformers", "tokenizers"}, path
