"""The schemas of the site are those of the package's files: every format has one, and real files fit it."""

import importlib
import importlib.util
import json
import pkgutil
import typing
from pathlib import Path

import pytest

import kljudge_jax
from kljudge_jax.records import Record

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def schemas():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "docs" / "schemas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def subclasses(kind):
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_format_with_a_version_has_a_schema(schemas):
    for module in pkgutil.walk_packages(kljudge_jax.__path__, "kljudge_jax."):
        room = module.name.split(".")[1]
        if room not in ("__main__", "cli", "commands") and module.name != "kljudge_jax.evaluation.harness":  # an extra
            importlib.import_module(module.name)
    named = {schemas.type_of(name) for name in schemas.FORMATS}
    versioned = {
        kind for kind in subclasses(Record) if kind.__module__.startswith("kljudge_jax.")
        and {"schema", "version"} & typing.get_type_hints(kind).keys()
    }  # fmt: skip
    assert versioned and versioned <= named


def test_a_schema_is_json_and_describes_real_files(schemas):
    real = {
        "plan.json": "tests/files_of_0_1_0/sweep/plan.json",
        "summary.json": "tests/files_of_0_1_0/sweep/summary.json",
        "bench.json": "checkpoints/bench.json",
        "judge.json": "checkpoints/judge/judge.json",
        "model.json": "checkpoints/draft/model.json",
        "recipe.json": "tests/files_of_0_1_0/run/recipe.json",
        "dataset.json": "tests/files_of_0_1_0/mine/dataset.json",
    }
    for name in schemas.FORMATS:
        schema = json.loads(schemas.schema_of(name))
        assert schema["$defs"]
        if name in real:
            own = schema["$defs"][schemas.type_of(name).__name__]
            found = json.loads((ROOT / real[name]).read_text())
            assert set(own["required"]) <= found.keys() <= own["properties"].keys()


def test_the_page_names_every_format_and_links_its_schema(schemas):
    page = schemas.on_page_markdown((ROOT / "docs" / "pages" / "files.md").read_text())
    for name in schemas.FORMATS:
        assert f"- `{name}`" in page and f"(schemas/{name}.schema.json)" in page
