"""Writes the JSON schema of every file format from its type when the site is built, and names them on `files.md`."""

import importlib
import inspect
import json

from mkdocs.structure.files import File

from kljudge_jax import records

# The file, and the type that says what it holds; of JSON lines, what each line holds.
FORMATS = {
    "plan.json": "evaluation.sweep.records.SweepClaim",
    "answers.jsonl": "evaluation.sweep.records.AnswerRecord",
    "examples.json": "evaluation.sweep.records.Example",
    "summary.json": "evaluation.sweep.records.SweepSummary",
    "demo/summary.json": "evaluation.demo_record.DemoSummary",
    "bench.json": "evaluation.bench.records.BenchFigures",
    "calibration.json": "evaluation.calibration.run.CalibrationSummary",
    "harness.json": "evaluation.report.harness.HarnessFile",
    "finished.jsonl": "evaluation.result_store.Finished",
    "perplexity.json": "evaluation.perplexity.PerplexityFile",
    "dataset.json": "judges.dataset.DatasetHead",
    "questions.jsonl": "judges.dataset.QuestionRecord",
    "judge.json": "judges.storage.JudgeManifest",
    "correspondence.json": "judges.correspondence.Correspondence",
    "model.json": "models.orbax.ModelManifest",
    "card.json": "training.card.Card",
    "recipe.json": "training.trainer.Recipe",
    "log.jsonl": "training.trainer.Progress",
    "draft.json": "training.train_draft.TrainedDraft",
    "corpus.json": "training.draft_corpus.CorpusHead",
    "corpus.jsonl": "training.draft_corpus.CorpusLine",
    "features.json": "training.draft_features.FeaturesHead",
    "training/recipe.json": "training.draft_head.HeadRecipe",
    "training/log.jsonl": "training.draft_head.HeadProgress",
}
# Elements of a list, where a file holds one.
LISTS = ("examples.json",)

_MARK = "<!-- schemas -->"


def type_of(name: str) -> type:
    """The type of a format."""
    module, _, own = FORMATS[name].rpartition(".")
    return getattr(importlib.import_module(f"kljudge_jax.{module}"), own)


def schema_of(name: str) -> str:
    """The JSON schema of a format, as text."""
    kind = type_of(name)
    return json.dumps(records.schema(list[kind] if name in LISTS else kind), indent=2) + "\n"


def on_files(files, config):
    """Called by MkDocs with the files of the site."""
    for name in FORMATS:
        files.append(File.generated(config, f"schemas/{name}.schema.json", content=schema_of(name)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Called by MkDocs with the Markdown of each page."""
    return markdown.replace(_MARK, "\n".join(map(_section, FORMATS))) if _MARK in markdown else markdown


def _section(name: str) -> str:
    said = " ".join((inspect.getdoc(type_of(name)) or "").partition("\n\n")[0].split())
    of = " (each line)" if name.endswith(".jsonl") else ""
    return f"- `{name}`{of}: {said} [Schema](schemas/{name}.schema.json)"
