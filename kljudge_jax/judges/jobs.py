"""What the commands `train-judge` and `correspond` run: from folders to folders. `mine` is `judges.mining.mine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kljudge_jax.judges import correspondence
from kljudge_jax.judges.dataset import Dataset, read_dataset
from kljudge_jax.judges.storage import load_head, read_manifest, save_judge
from kljudge_jax.judges.training import GridPoint, Options, TrainedJudge, fit_judge
from kljudge_jax.models.orbax import check_destination


def train_judge(
    data: str | Path,
    folder: str | Path,
    options: Options = Options(),  # noqa: B008 - frozen
    report: Callable[[GridPoint], None] = lambda point: None,
) -> TrainedJudge:
    """Trains a judge on a dataset and saves it.

    Args:
      data: folder that `mine` or a function of `judges.sources` wrote.
      folder: a new one for the judge, what `judge:FOLDER,threshold=...` names.
      options: how.
      report: called after each point of the grid.

    Raises:
      InputError: the data cannot be trained on, or the folder holds something.
    """
    check_destination(folder)  # before the work, not after it
    dataset = read_dataset(data)
    judge = fit_judge(dataset, options, report)
    save_judge(folder, judge, {**dataset.origin, "asked": asked_in(dataset)})
    return judge


def asked_in(dataset: Dataset) -> list[str]:
    """Digests of the questions of a dataset."""
    return sorted({record.asked for record in dataset.questions if record.asked})


def shares_questions(fitted_to: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether a judge whose manifest says what it was fitted to has seen questions of this dataset.

    Where one of the two does not say which questions it holds, those of one task, split and seed count as the
    same.
    """
    ours, theirs = set(asked_in(dataset)), set(fitted_to.get("asked", ()))
    if ours and theirs:
        return bool(ours & theirs)
    return all(fitted_to.get(name) == dataset.origin.get(name) for name in ("task", "split", "seed"))


def correspond(
    data: str | Path, judge: str | Path, folder: str | Path, seed: int = 0
) -> tuple[correspondence.Correspondence, list[Path]]:
    """Compares a saved judge with KL on a dataset; writes the tables and the picture.

    Args:
      data: folder that `mine` wrote, of questions that the judge was not trained on.
      judge: folder that `train_judge` wrote.
      folder: for the report.
      seed: of folds and bootstrap.

    Returns:
      what was found, and the files written.

    Raises:
      InputError: a folder is not what it should be, or judge and data are of different pairs.
    """
    dataset = read_dataset(data)
    trained_on = shares_questions(read_manifest(judge).data or {}, dataset)
    found = correspondence.correspond(dataset, load_head(judge), seed, trained_on)
    return found, correspondence.save_report(found, folder)
