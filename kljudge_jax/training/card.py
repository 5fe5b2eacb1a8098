"""What a trained pair is and how it was made: `card.json`, and the same for people in `README.md`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

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
    machine: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes `card.json` and `README.md`."""
        (folder / "card.json").write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(self.to_markdown(), encoding="utf-8")

    def to_markdown(self) -> str:
        versions = self.machine["versions"]
        lines = [
            "# A target and a draft, trained from nothing",
            "",
            f"Made on {self.machine['date']} by `kljudge train-pair`, on {self.machine['cores']} cores of "
            f"{self.machine['processor']} ({self.machine['device']}, jax {versions['jax']}). "
            "Each model starts from its own random weights and sees its own data; both read the same tokenizer. "
            "`card.json` holds these figures "
            "and every setting.",
            "",
            "| | shape | parameters | steps x examples | seed | minutes | "
            + " | ".join(f"{task}, right of {self.problems}" for task in self.agreement)
            + " |",
            "|---|---|---|---|---|---|" + "---|" * len(self.agreement),
        ]
        for name, recipe in self.recipes.items():
            config = recipe.config
            row = [
                name,
                f"{config.num_layers} layers of {config.hidden_size}",
                f"{self.parameters[name]:,}",
                f"{recipe.steps:,} x {recipe.batch_size}",
                str(recipe.seed),
                f"{self.seconds[name] / 60:.0f}",
            ]
            for task in self.agreement:
                share = self.accuracy[name][task]
                low, high = binomtest(round(share * self.problems), self.problems).proportion_ci(method="wilson")
                row.append(f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
            lines.append("| " + " | ".join(row) + " |")
        lines += [
            "",
            "Right answers are counted on problems of the test split, which shares no facts with the training split, "
            "decoded greedily; intervals are 95 % (Wilson).",
            "",
            "Where the two disagree, along the target's own answers to test problems: the draft's likeliest token is "
            "another one, by kind of token. `unsure` counts those where the target's top probability is at most 0.9, "
            "and KL is the median of KL(target || draft) there, in nats.",
            "",
            "| task | kind | tokens | disagree | share of disagreements | unsure | KL |",
            "|---|---|---|---|---|---|---|",
        ]
        for task, found in self.agreement.items():
            total = max(sum(found.mismatched.values()), 1)
            for kind in KINDS:
                kl = found.median_kl[kind]
                lines.append(
                    f"| {task} | {kind} | {found.tokens[kind]:,} | {found.mismatched[kind]:,} "
                    f"| {100 * found.mismatched[kind] / total:.0f} % | {found.unsure[kind]:,} "
                    f"| {'' if kl is None else format(kl, '.2f')} |"
                )
        return "\n".join(lines) + "\n"
