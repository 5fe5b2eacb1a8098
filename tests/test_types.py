"""The type information that is shipped: what a type checker sees of the public calls, from outside."""

import subprocess
import sys
from pathlib import Path

import pytest

import kljudge_jax as kj

USE = """
import kljudge_jax as kj

pair = kj.ModelPair.embedded()
out = kj.generate(pair, "text", verifier=kj.KLJudge(threshold=0.4), draft_length=8)
reveal_type(out.text)
reveal_type(out.cycles)
reveal_type(out.stats.mean_acceptance_length)
reveal_type(next(kj.stream(pair, "text", verifier="exact")).origin)
task = kj.load_task("arithmetic")
reveal_type(kj.sweep(pair, task, ["none", "exact"]).rows)
reveal_type(kj.bench(pair, task).save("here"))
kj.generate(pair, "text", verifier=3)
"""


def test_the_marker_is_there():
    assert (Path(kj.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_a_type_checker_knows_the_public_calls(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(USE)
    settings = Path(__file__).parents[1] / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", settings]
    found = subprocess.run(
        [*command, tmp_path / "use.py"], capture_output=True, text=True, timeout=600, cwd=settings.parent
    )
    said = [line.partition("Revealed type is ")[2] for line in found.stdout.splitlines()]
    revealed = [kind.strip('"') for kind in said if kind]
    assert [kind.replace("builtins.", "").replace("collections.abc.", "typing.") for kind in revealed] == [
        "list[str]",
        "list[list[kljudge_jax.generation.stats.Cycle]] | None",
        "float",
        "str",
        "typing.Sequence[kljudge_jax.evaluation.sweep.records.SweepRow]",
        "pathlib.Path",
    ], found.stdout + found.stderr
    errors = [line for line in found.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1 and 'Argument "verifier" to "generate"' in errors[0], found.stdout
