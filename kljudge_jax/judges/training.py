"""Fits a judge's head to labelled tokens, the way AutoJudge does (arXiv 2504.20039, code).

Features are standardised; logistic regression with an L2 penalty is fitted by L-BFGS; the strength C is the one of a
grid with the best ROC-AUC on questions held out; the head that is kept is fitted again on everything.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljudge_jax.errors import InputError
from kljudge_jax.judges.dataset import Dataset
from kljudge_jax.judges.metrics import ThresholdRow, advised, roc_auc, threshold_table
from kljudge_jax.text_table import markdown
from kljudge_jax.verification.head import Head

# AutoJudge's: 10^(-k/2) for k = 1 to 14, and five larger ones.
C_GRID = tuple(sorted([10 ** (-k / 2) for k in range(1, 15)] + [1.0, 3.0, 10.0, 50.0, 100.0]))

# Of the gradient in the coordinates of `_minimise`. Below it the coefficients of a linear fit no longer change in the
# fifth digit, even at the weakest penalty.
_GRADIENT_NORM = 1e-9
_MOST_STEPS = {"linear": 1000, "mlp": 300}  # an MLP is fitted by how far it comes, not to a stationary point
_ROWS_SHOWN = 9  # of the threshold table, for people


@dataclasses.dataclass(frozen=True)
class Options:
    """How a head is fitted.

    Attributes:
      setup: what it reads, a key of `verification.features.SETUPS`.
      model: "linear", or "mlp" with one hidden layer of ReLU.
      hidden_size: units of that layer.
      class_weight: "none", or "balanced": both labels weigh as much in total (Judge Decoding, arXiv 2501.19309).
      grid: values of C, the weight of the data against the penalty.
      validation_share: share of the questions held out.
      seed: of the split, and of an MLP's first weights.
    """

    setup: str = "DD-DT"
    model: str = "linear"
    hidden_size: int = 32
    class_weight: str = "none"
    grid: tuple[float, ...] = C_GRID
    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.model not in _MOST_STEPS:
            raise InputError(f"choose a model, one of {', '.join(_MOST_STEPS)}, not {self.model!r}")
        if self.class_weight not in ("none", "balanced"):
            raise InputError(f"choose a class weight, none or balanced, not {self.class_weight!r}")
        if not self.grid or not all(math.isfinite(c) and c > 0 for c in self.grid):
            raise InputError(f"give a grid of numbers above 0, not {self.grid}")
        if not 0 < self.validation_share < 1:
            raise InputError(f"hold out a share of questions between 0 and 1, not {self.validation_share}")
        if self.seed < 0:
            raise InputError(f"a seed starts at 0, got {self.seed}")
        if self.hidden_size < 1:
            raise InputError(f"give the MLP at least one hidden unit, not {self.hidden_size}")


@dataclasses.dataclass(frozen=True)
class GridPoint:
    """One fit of the grid: its ROC-AUC on the questions fitted to and on those held out, L-BFGS steps, and whether the
    gradient's norm fell below the criterion."""

    C: float
    train_auc: float
    validation_auc: float
    steps: int
    converged: bool


@dataclasses.dataclass(frozen=True)
class TrainedJudge:
    """A fitted head and what is known about it.

    Attributes:
      head: fitted on every row with the best C.
      options: what it was fitted with.
      best: the chosen point of the grid; its AUC is that of a head that has not seen the validation questions.
      grid: all points.
      table: thresholds on the validation questions, by that same head.
      advised_threshold: the most permissive one with a recall of 90 %.
      rows: mismatches of the data.
      important: those of them that change the answer.
      questions: that they are of.
      validation_rows: mismatches held out.
      validation_questions: that those are of.
      left_out: rows with a feature that is no finite number, which nothing was fitted to.
    """

    head: Head
    options: Options
    best: GridPoint
    grid: list[GridPoint]
    table: list[ThresholdRow]
    advised_threshold: float
    rows: int
    important: int
    questions: int
    validation_rows: int
    validation_questions: int
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights, as plain JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, head=cast(Any, None)))
        return {name: value for name, value in plain.items() if name != "head"}

    def markdown(self) -> str:
        """Some rows of the threshold table, the advised one among them, under one line about the fit."""
        evenly = {round(i) for i in np.linspace(0, len(self.table) - 1, _ROWS_SHOWN)}
        rows = [["threshold", "recall of important", "precision", "passed"]]
        for i, row in enumerate(self.table):
            mark = " (advised)" if row.threshold == self.advised_threshold else ""
            if i in evenly or mark:
                shares = [f"{share:.1%}" for share in (row.recall, row.precision, row.passed)]
                rows.append([f"{row.threshold:.2g}{mark}", *shares])
        said = (
            f"{self.options.setup} {self.options.model}, C {self.best.C:.3g}: validation AUC "
            f"{self.best.validation_auc:.3f} on {self.validation_rows} mismatches of {self.validation_questions} "
            f"questions ({self.best.train_auc:.3f} on the other {self.rows - self.validation_rows}); "
            f"{self.important / self.rows:.1%} of all {self.rows} important"
            + (f"; {self.left_out} rows without finite features left out" if self.left_out else "")
        )
        return f"{said}\n\n{markdown(rows)}"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def fit_judge(
    data: Dataset, options: Options = Options(), report: Callable[[GridPoint], None] = lambda point: None
) -> TrainedJudge:
    """Fits a head to a dataset.

    Args:
      data: labelled tokens of any source.
      options: how.
      report: called after each point of the grid.

    Raises:
      InputError: there are too few questions to hold some out, or one part has labels of one kind only.
    """
    every = data.features(options.setup)
    keep = np.isfinite(every).all(axis=1)  # one-hot drafts have infinite divergences; the rule rejects those
    features, important, questions = every[keep], data["important"][keep].astype(bool), data["question"][keep]
    held_out = split_by_question(questions, options.validation_share, options.seed)
    for name, part in (("held out", held_out), ("fitted to", ~held_out)):
        if len(set(important[part].tolist())) < 2:
            raise InputError(
                f"the {int(part.sum())} rows {name} have labels of one kind only: mine more questions, or change the "
                "seed of the split"
            )
    known = _Problem(features, important, ~held_out, options)
    points, fits, layers = [], [], None
    for C in sorted(options.grid):
        # A line's fit starts from the one before it, whose penalty was a little stronger. An MLP that a strong penalty
        # has brought to zero would never leave it: it starts anew.
        layers, steps, norm = known.fit(C, layers if options.model == "linear" else None)
        head = known.head(layers, data)
        train, validation = (roc_auc(important[part], predict(head, features[part])) for part in (~held_out, held_out))
        points.append(GridPoint(C, train, validation, steps, norm < _GRADIENT_NORM))
        fits.append(layers)
        report(points[-1])
    chosen = max(range(len(points)), key=lambda i: points[i].validation_auc)  # the stronger penalty among equals
    table = threshold_table(important[held_out], predict(known.head(fits[chosen], data), features[held_out]))
    everything = _Problem(features, important, np.ones_like(held_out), options)
    return TrainedJudge(
        everything.head(everything.fit(points[chosen].C, fits[chosen])[0], data),
        options,
        points[chosen],
        points,
        table,
        advised(table).threshold,
        len(features),
        int(important.sum()),
        len(np.unique(questions)),
        int(held_out.sum()),
        len(np.unique(questions[held_out])),
        len(data) - len(features),
    )


def split_by_question(questions: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which rows are held out, bool `[n]`: all rows of a random `share` of the questions, at least one of them.

    Rows of one question are alike, so that a split by row would leak. As in AutoJudge's code, of n questions
    n - int((1 - share) n) - 1 are held out; where that is none, which is an error there, one is.

    Raises:
      InputError: fewer than two questions.
    """
    different = np.unique(questions)
    if len(different) < 2:
        raise InputError(f"hold out whole questions of at least 2, and the data has {len(different)}: mine more")
    count = max(1, len(different) - int((1 - share) * len(different)) - 1)
    return np.isin(questions, np.random.default_rng(seed).permutation(different)[:count])


def predict(head: Head, features: np.ndarray) -> np.ndarray:
    """P(important) f32 `[n]` of features f32 `[n, F]`."""
    return np.asarray(_predict(head, features))


@jax.jit
def _predict(head, features):
    return jax.nn.sigmoid(head.logit(features))


class _Problem:
    """Rows, those of them that a fit may see, and the fits to them.

    The others are there with no weight: every fit of a dataset then has one shape, and compiles once.
    """

    def __init__(self, features: np.ndarray, important: np.ndarray, seen: np.ndarray, options: Options):
        wide = np.asarray(features, np.float64)
        self.mean = wide[seen].mean(axis=0)
        scale = wide[seen].std(axis=0)
        self.scale = np.where(scale > 1e-9 * np.maximum(np.abs(self.mean), 1.0), scale, 1.0)  # a constant stays 0
        self.rows = (wide - self.mean) / self.scale
        self.important = important.astype(np.float64)
        self.weights = seen.astype(np.float64)
        if options.class_weight == "balanced":
            share = important[seen].mean()
            self.weights *= np.where(important, 0.5 / share, 0.5 / (1 - share))
        self.options = options

    def fit(self, C: float, layers: Any = None) -> tuple[Any, int, float]:
        """Layers in float64, steps, and the gradient's norm at the end."""
        return fit_layers(
            self.rows,
            self.important,
            self.weights,
            self._start() if layers is None else layers,
            C,
            _MOST_STEPS[self.options.model],
        )

    def head(self, layers: Any, data: Dataset) -> Head:
        mean, scale, narrow = jax.tree.map(np.float32, (self.mean, self.scale, layers))
        return Head(mean, scale, narrow, self.options.setup, data.pair)

    def _start(self) -> Any:
        size, hidden = self.rows.shape[1], self.options.hidden_size
        if self.options.model == "linear":
            return ((np.zeros((size, 1)), np.zeros(1)),)
        random = np.random.default_rng(self.options.seed)
        return tuple(
            (random.normal(size=(i, o)) * (2 / i) ** 0.5, np.zeros(o)) for i, o in ((size, hidden), (hidden, 1))
        )


def fit_layers(
    rows: np.ndarray, important: np.ndarray, weights: np.ndarray, layers: Any, C: float, most_steps: int = 1000
) -> tuple[Any, int, float]:
    """Minimises C sum_i weights_i loss_i + |kernels|^2 / 2, the objective of scikit-learn's LogisticRegression.

    In float64 and on the CPU, so that coefficients do not depend on the accelerator and the weakest penalties converge.

    Args:
      rows: standardised features `[n, F]`.
      important: labels `[n]`, 1 or 0.
      weights: of the rows, `[n]`; those of weight 0 are not there.
      layers: where to start: (kernel `[I, O]`, bias `[O]`) each; biases bear no penalty.
      C: as above.
      most_steps: of L-BFGS, if the gradient's norm (of the objective over C n, in the coordinates it is
        done in) does not fall below 1e-9 before.

    Returns:
      layers, steps taken, and the gradient's norm.
    """
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        found = _minimise(*(jnp.asarray(x, jnp.float64) for x in (rows, important, weights)), layers, C, most_steps)
        layers, steps, norm = jax.device_get(found)
    return layers, int(steps), float(norm)


@functools.partial(jax.jit, static_argnames="most_steps")
def _minimise(rows, important, weights, layers, C, most_steps):
    count = jnp.sum(weights > 0)
    if len(layers) == 1:
        # States of a model are nearly dependent on each other. In the coordinates in which the curvature at its largest
        # is the identity, a fit takes tens of steps; in their own, thousands.
        curvature = (rows * weights[:, None]).T @ rows / (4 * count) + jnp.eye(rows.shape[1]) / (C * count)
        root = jnp.linalg.cholesky(curvature)
        ((kernel, bias),) = layers
        layers = ((root.T @ kernel, bias),)

    def plain(layers):
        if len(layers) == 1:
            ((kernel, bias),) = layers
            return ((jax.scipy.linalg.solve_triangular(root.T, kernel), bias),)
        return layers

    def objective(layers):
        x = rows
        for i, (kernel, bias) in enumerate(plain(layers)):
            x = (jax.nn.relu(x) if i else x) @ kernel + bias
        losses = optax.sigmoid_binary_cross_entropy(x[:, 0], important)
        penalty = sum(jnp.sum(kernel**2) for kernel, _ in plain(layers)) / 2
        return jnp.sum(weights * losses) / count + penalty / (C * count)

    optimizer = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unfinished(carry):
        _, _, step, norm = carry
        return (step < most_steps) & (norm >= _GRADIENT_NORM)

    def descend(carry):
        layers, state, step, _ = carry
        value, gradient = value_and_grad(layers, state=state)
        updates, state = optimizer.update(gradient, state, layers, value=value, grad=gradient, value_fn=objective)
        layers = optax.apply_updates(layers, updates)
        return layers, state, step + 1, optax.tree.norm(optax.tree.get(state, "grad"))

    norm = optax.tree.norm(jax.grad(objective)(layers))
    carry = layers, optimizer.init(layers), jnp.int32(0), norm
    layers, _, steps, norm = jax.lax.while_loop(unfinished, descend, carry)
    return plain(layers), steps, norm
