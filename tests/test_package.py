"""What is published: sdist and wheel build, and the wheel alone runs the embedded pair from another folder."""

import subprocess
import sys
import zipfile

import pytest

USE = """
import kljudge_jax as kj
assert "unpacked" in kj.__file__, kj.__file__
pair = kj.ModelPair.embedded()
out = kj.generate(pair, "Tom has 3 red pens.\\n", verifier="kl:0.4", max_new_tokens=8)
assert out.stats.tokens
kj.ModelPair.embedded(draft="embedded:head")
kj.parse_verifier("judge:embedded,threshold=0.2", True)
kj.compare(kj.shipped_bench())
"""


def test_the_wheel_holds_what_it_needs_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kljudge_jax"}
    for name in ("py.typed", "checkpoints/SHA256SUMS", "checkpoints/bench.json", "checkpoints/target/model.json",
                 "checkpoints/head/config.json", "checkpoints/head/model.safetensors"):  # fmt: skip
        assert f"kljudge_jax/{name}" in names
    assert len(list(built.glob("*.tar.gz"))) == 1


@pytest.mark.slow
def test_the_wheel_alone_runs_from_another_folder(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    (tmp_path / "elsewhere").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r})\n{USE}"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=tmp_path / "elsewhere"
    )
    assert ran.returncode == 0, ran.stderr
