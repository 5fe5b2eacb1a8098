"""How a learned judge and KL correspond on mined data: the argument of JuDi (arXiv 2601.04766), measured.

With delta the target's logits less the draft's and D_ij = delta_i - delta_j: KL is about 1/4 sum_ij q_i q_j D_ij^2,
while a linear judge is said to be sigmoid(sum_ij beta_ij D_ij + b); both would read the same shifts. Measured here: the
judge's score by decile against mean KL, rank correlations, the share of the judge's logit that a linear map of shifts
explains on questions it was not fitted to, and KL against its second-order form.

One of these is no finding: behind the token the shifts are a linear map of the judge's own states, and one that loses
nothing once it has as many shifts as the states have numbers. The shifts before the token are those that KL reads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kljudge_jax.errors import InputError
from kljudge_jax.judges.dataset import Dataset
from kljudge_jax.judges.metrics import roc_auc
from kljudge_jax.records import named, plain, write, write_text
from kljudge_jax.results_folder import results_folder
from kljudge_jax.text_table import markdown, ranged
from kljudge_jax.verification.head import Head

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DECILES = 10
_FOLDS = 5
_DRAWS = 500  # of the bootstrap
# Ridge strengths, as a share of the mean variance of a shift; the best one out of fold is taken.
_RIDGE = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

# What the judge is compared with; each is larger for a token that the matching rule is the likelier to stop.
_RIVALS = {
    "KL(target, draft)": ("kl_target_draft", 1),
    "KL(draft, target)": ("kl_draft_target", 1),
    "target entropy": ("target_entropy", -1),
    "draft entropy": ("draft_entropy", -1),
    "target top-1 probability": ("target_top", 1),
    "target log-probability of the token": ("target_logprob", -1),
}


# Means of a decile, by the heads of their columns.
_OF_A_DECILE = {
    "kl": "KL(target, draft)",
    "second_order_kl": "second order",
    "target_entropy": "target entropy",
    "draft_entropy": "draft entropy",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, by a bootstrap over questions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return ranged(self.value, (self.low, self.high), ".3f")


@dataclasses.dataclass(frozen=True)
class Decile:
    """A tenth of the mismatches by the judge's score: means, and the share that is important."""

    rows: int
    probability: float
    kl: float
    second_order_kl: float
    target_entropy: float
    draft_entropy: float
    important: float


@dataclasses.dataclass(frozen=True)
class Correspondence:
    """What was found.

    Attributes:
      rows: mismatches of the data.
      questions: that they are of.
      important: those of them that change the answer.
      deciles: lowest scores first.
      rank_correlation: Spearman's, of the judge's score with each quantity as it is.
      auc: ROC-AUC for the labels, of the judge and of each quantity in the direction that its rule uses.
      explained: R^2 of the judge's logit by a linear map of logit-gap shifts, out of fold by question: "before" of the
        shifts that predict the token, which KL reads; "after" of those behind the token, where the judge's states are.
      shifts: how many tokens' gaps those maps read.
      second_order: "rank correlation" with KL, and the "ratio" of the mean second-order form to the mean KL.
      trained_on: the judge was fitted to these very rows, which flatters it.
      points: probability, KL, its second-order form and the label of up to 2000 mismatches, for the picture.
    """

    rows: int
    questions: int
    important: float
    deciles: list[Decile]
    rank_correlation: dict[str, Estimate]
    auc: dict[str, Estimate]
    explained: dict[str, float]
    shifts: int
    second_order: dict[str, float]
    trained_on: bool
    points: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, strings and numbers."""
        return plain(self)

    def markdown(self) -> str:
        """Tables, each with its n."""
        deciles = [["decile of the judge", "n", "P(important)", "important", *_OF_A_DECILE.values()]]
        for i, d in enumerate(self.deciles, 1):
            figures = [f"{getattr(d, name):.3f}" for name in _OF_A_DECILE]
            deciles.append([str(i), str(d.rows), f"{d.probability:.3f}", f"{d.important:.1%}", *figures])
        rivals = [["", "rank correlation with the judge", "AUC for the label"]]
        rivals += [[name, str(self.rank_correlation.get(name, "")), str(auc)] for name, auc in self.auc.items()]
        lines = [
            f"{self.rows} mismatches of {self.questions} questions, {self.important:.1%} important; intervals are "
            "95 %, by a bootstrap over questions."
            + (" The judge was trained on some of these very questions, which flatters it." if self.trained_on else ""),
            "",
            markdown(deciles),
            markdown(rivals),
            f"A linear map of {self.shifts} logit-gap shifts explains, on questions it has not seen, "
            + " and ".join(f"{share:.1%} ({where} the token)" for where, share in self.explained.items())
            + f" of the variance of the judge's logit: at the least, since {self.rows} rows fit it. After the token "
            "the map is exact where there are as many gaps as states, and a large share is no finding."
            if self.explained
            else "No logit gaps were kept in these data, so nothing is said of a linear map of their shifts.",
            "",
            f"KL's second-order form has a rank correlation of {self.second_order['rank correlation']:.3f} with KL, "
            f"and is {self.second_order['ratio']:.2f} times as large on average.",
        ]
        return "\n".join(lines) + "\n"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def correspond(data: Dataset, head: Head, seed: int = 0, trained_on: bool = False) -> Correspondence:
    """Compares a judge with KL on a dataset, preferably of questions that the judge was not trained on.

    Args:
      data: mined mismatches.
      head: the judge.
      seed: of folds and bootstrap.
      trained_on: whether the judge was fitted to these rows.

    Raises:
      InputError: the judge is for another pair than the data, or there are fewer than 10 questions with mismatches.
    """
    if head.pair is not None and head.pair != data.pair:
        raise InputError(f"this judge was trained for {head.pair}, and the data is of {data.pair}")
    features = data.features(head.setup)
    rivals = {name: np.asarray(data.primitive(source), np.float64) for name, (source, _) in _RIVALS.items()}
    second = np.asarray(data["second_order_kl"], np.float64)
    fit = np.isfinite(features).all(axis=1) & np.isfinite(second) & np.isfinite(list(rivals.values())).all(axis=0)
    questions, important = data["question"][fit], np.asarray(data["important"][fit], bool)
    if len(np.unique(questions)) < _DECILES:
        raise InputError(f"a comparison needs {_DECILES} questions with mismatches, not {len(np.unique(questions))}")
    logit = np.asarray(jax.jit(head.logit)(features[fit]), np.float64)
    probability = 1 / (1 + np.exp(-logit))
    rivals, second = {name: values[fit] for name, values in rivals.items()}, second[fit]
    kl = rivals["KL(target, draft)"]

    tenths = np.array_split(np.argsort(logit, kind="stable"), _DECILES)
    means = (kl, second, rivals["target entropy"], rivals["draft entropy"], important)
    deciles = [
        Decile(len(t), float(probability[t].mean()), *(float(values[t].mean()) for values in means)) for t in tenths
    ]

    draws = list(_resampled(questions, seed))
    directions = {"the judge": (logit, 1)} | {name: (rivals[name], sign) for name, (_, sign) in _RIVALS.items()}
    gaps = {where: data[name][fit] for where, name in (("before", "gap"), ("after", "next_gap"))}
    shown = np.random.default_rng(seed).permutation(len(kl))[:2000]
    return Correspondence(
        len(kl),
        len(np.unique(questions)),
        float(important.mean()),
        deciles,
        {
            name: _estimate(lambda rows, v=values: _spearman(logit[rows], v[rows]), draws)
            for name, values in rivals.items()
        },
        {
            name: _estimate(lambda rows, v=sign * values: roc_auc(important[rows], v[rows]), draws)
            for name, (values, sign) in directions.items()
        },
        {where: _explained(shifts, logit, questions, seed) for where, shifts in gaps.items() if shifts.shape[1]},
        gaps["before"].shape[1],
        {"rank correlation": _spearman(kl, second), "ratio": float(second.mean() / max(kl.mean(), 1e-12))},
        trained_on,
        {
            "probability": probability[shown].tolist(),
            "kl": kl[shown].tolist(),
            "second_order_kl": second[shown].tolist(),
            "important": important[shown].astype(float).tolist(),
        },
    )


def save_report(found: Correspondence, folder: str | Path) -> list[Path]:
    """Writes `correspondence.json`, `.md` and `.png`, and returns their paths."""
    folder = results_folder(folder)
    data, text, picture = written = [folder / f"correspondence.{kind}" for kind in ("json", "md", "png")]
    write(data, found)
    write_text(text, found.markdown())
    with named(picture):
        draw(found).savefig(picture, dpi=120)
    return written


def draw(found: Correspondence) -> Figure:
    """The picture: deciles against KL, the judge's score against KL, KL against its second order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    tenths = np.arange(1, len(found.deciles) + 1)
    left.plot(tenths, [d.kl for d in found.deciles], "o-", label="mean KL")
    left.plot(tenths, [d.important for d in found.deciles], "s--", label="share important")
    left.set(xlabel="decile of the judge's score", ylabel="nats; share", xticks=tenths)
    left.legend()
    points = {name: np.array(values) for name, values in found.points.items()}
    for label, colour, name in ((0, "tab:blue", "unimportant"), (1, "tab:red", "important")):
        own = points["important"] == label
        middle.scatter(
            np.maximum(points["kl"][own], 1e-6), points["probability"][own], 6, colour, alpha=0.5, label=name
        )
    middle.set(xscale="log", xlabel="KL(target, draft), nats", ylabel="the judge's P(important)")
    middle.legend()
    right.scatter(np.maximum(points["kl"], 1e-6), np.maximum(points["second_order_kl"], 1e-6), 6, alpha=0.5)
    ends = [max(points["kl"].min(), 1e-6), max(points["kl"].max(), 1.0)]
    right.plot(ends, ends, "k:", label="equal")
    right.set(xscale="log", yscale="log", xlabel="KL(target, draft), nats", ylabel="second order, nats")
    right.legend()
    return figure


def _resampled(questions: np.ndarray, seed: int):
    """Rows of as many questions drawn with replacement, again and again."""
    order = np.argsort(questions, kind="stable")
    rows = np.split(order, np.cumsum(np.unique(questions, return_counts=True)[1])[:-1])
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        yield np.concatenate([rows[i] for i in random.integers(0, len(rows), len(rows))])


def _estimate(statistic, draws: list[np.ndarray]) -> Estimate:
    found = [statistic(rows) for rows in draws]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Estimate(float(statistic(slice(None))), float(low), float(high))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(a), rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-12))


def _explained(gaps: np.ndarray, logit: np.ndarray, questions: np.ndarray, seed: int) -> float:
    """R^2 out of fold of the best ridge regression of the logit on shifts `gap - mean gap`."""
    # A common shift of all logits is no D_ij: the map sees differences only.
    shifts = np.float64(gaps) - np.float64(gaps).mean(axis=1, keepdims=True)
    different = np.unique(questions)
    fold_of = np.random.default_rng(seed).permutation(len(different)) % _FOLDS
    fold = fold_of[np.searchsorted(different, questions)]
    predicted = np.zeros((len(_RIDGE), len(logit)))
    for i in range(_FOLDS):
        known, held = fold != i, fold == i
        mean, centre = shifts[known].mean(axis=0), logit[known].mean()
        x = shifts[known] - mean
        values, vectors = np.linalg.eigh(x.T @ x)
        projected = vectors.T @ (x.T @ (logit[known] - centre))
        for j, ridge in enumerate(_RIDGE):
            weights = vectors @ (projected / (np.maximum(values, 0) + ridge * max(values.mean(), 1e-12)))
            predicted[j, held] = (shifts[held] - mean) @ weights + centre
    left = ((logit - predicted) ** 2).mean(axis=1)
    return float(1 - left.min() / max(logit.var(), 1e-12))
