"""Where the small pair, its head and its judge lie that come with the package."""

from __future__ import annotations

from pathlib import Path

from kljudge_jax.errors import InputError
from kljudge_jax.models.manifest import check_manifest

# By what `draft=` names them, and what reports call them.
_DRAFTS = {"embedded": ("draft", "embedded draft"), "embedded:head": ("head", "embedded head")}


def shipped_folder() -> Path:
    """The folder with `target/`, `draft/`, `head/`, `judge/` and `bench.json`, its files checked.

    Raises:
      InputError: this installation has none, or its files are not what was shipped.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "checkpoints", package.parent / "checkpoints"):  # a wheel, a checkout
        if (folder / "target").is_dir() and (folder / "draft").is_dir():
            check_manifest(folder)
            return folder
    raise InputError("this installation has no embedded pair: name two models with ModelPair.from_pretrained")


def shipped_draft(draft: str | Path | None) -> tuple[str | Path | None, str]:
    """Where the draft of that name lies, and what reports call it; of any other, as it is named.

    Raises:
      InputError: as `shipped_folder` does, or no draft of the package has that name.
    """
    if draft in _DRAFTS:
        folder, title = _DRAFTS[str(draft)]
        return shipped_folder() / folder, title
    if str(draft).startswith("embedded:"):
        raise InputError(f"the package has the drafts {' and '.join(_DRAFTS)}, not {draft}")
    return draft, "none" if draft is None else str(draft)


def shipped_bench() -> Path:
    """The bench of the embedded pair that comes with it, a result for `compare`: one machine to stand beside another.

    Raises:
      InputError: as `shipped_folder` does.
    """
    return shipped_folder() / "bench.json"
