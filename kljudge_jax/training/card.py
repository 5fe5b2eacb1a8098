"""What a trained pair is and how it was made: `card.json`, and the same for people in `README.md`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from kljudge_jax.machine import Machine
from kljudge_jax.records import plain, write, write_text
from kljudge_jax.text_table import columns, markdown
from kljudge_jax.training.agreement import KINDS, Agreement
from kljudge_jax.training.trainer import Recipe


@dataclasses.dataclass(frozen=True)
class Card:
    """Beside the two models of a pair.

    Attributes:
      parameters: of "target" and "draft".
      recipes: theirs.
      accuracy: by model and task, the share of unseen test problems answered right by greedy decoding.
      problems: how many test problems of each task that is.
      seconds: of training, by model, examinations left out.
      agreement: by task, where the draft disagrees along the target's answers.
      machine: what it ran on, and with which versions.
    """

    parameters: dict[str, int]
    recipes: dict[str, Recipe]
    accuracy: dict[str, dict[str, float]]
    problems: int
    seconds: dict[str, float]
    agreement: dict[str, Agreement]
    machine: Machine

    def write(self, folder: Path) -> None:
        """Writes `card.json` and `README.md`."""
        write(folder / "card.json", self)
        write_text(folder / "README.md", self.to_markdown())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        return plain(self)

    def to_markdown(self) -> str:
        return "\n".join(
            [
                "# A target and a draft, trained from nothing",
                "",
                f"Made on {self.machine.date} by `kljudge train-pair`, on {self.machine.cores} cores of "
                f"{self.machine.processor} ({self.machine.device}, jax {self.machine.versions['jax']}). "
                "Each model starts from its own random weights and sees its own data; both read the same tokenizer. "
                "`card.json` holds these figures and every setting.",
                "",
                markdown(columns([self._model(name) for name in self.recipes])),
                "Right answers are counted on problems of the test split, which shares no facts with the training "
                "split, decoded greedily; intervals are 95 % (Wilson).",
                "",
                "Where the two disagree, along the target's own answers to test problems: the draft's likeliest token "
                "is another one, by kind of token. `unsure` counts those where the target's top probability is at most "
                "0.9, and KL is the median of KL(target || draft) there, in nats.",
                "",
                markdown(columns([_disagreement(t, k, found) for t, found in self.agreement.items() for k in KINDS])),
            ]
        )

    def _model(self, name: str) -> dict[str, str]:
        from scipy.stats import binomtest

        recipe, n = self.recipes[name], self.problems

        def right(share: float) -> str:

            interval = binomtest(round(share * n), n).proportion_ci(method="wilson")
            return f"{100 * share:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"

        return {
            "": name,
            "shape": f"{recipe.config.num_layers} layers of {recipe.config.hidden_size}",
            "parameters": f"{self.parameters[name]:,}",
            "steps x examples": f"{recipe.steps:,} x {recipe.batch_size}",
            "seed": str(recipe.seed),
            "minutes": f"{self.seconds[name] / 60:.0f}",
            **{f"{task}, right of {n}": right(self.accuracy[name][task]) for task in self.agreement},
        }


def _disagreement(task: str, kind: str, found: Agreement) -> dict[str, str]:
    kl = found.median_kl[kind]
    return {
        "task": task,
        "kind": kind,
        "tokens": f"{found.tokens[kind]:,}",
        "disagree": f"{found.mismatched[kind]:,}",
        "share of disagreements": f"{found.mismatched[kind] / max(sum(found.mismatched.values()), 1):.0%}",
        "unsure": f"{found.unsure[kind]:,}",
        "KL": "" if kl is None else f"{kl:.2f}",
    }
