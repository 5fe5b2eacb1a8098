"""The fit against another optimiser, in float64, and what the choices around it are."""

import dataclasses
import json

import numpy as np
import pytest
from judge_data import made_dataset
from scipy import optimize

from kljudge_jax.errors import InputError
from kljudge_jax.judges.metrics import roc_auc
from kljudge_jax.judges.training import C_GRID, Options, fit_judge, fit_layers, predict, split_by_question

QUICK = Options(grid=(0.01, 1.0))


def reference(rows, important, weights, C):
    """Newton steps by SciPy on scikit-learn's objective."""

    def objective(w):
        z = rows @ w[:-1] + w[-1]
        return C * np.sum(weights * (np.logaddexp(0, z) - important * z)) + w[:-1] @ w[:-1] / 2

    def gradient(w):
        residual = C * weights * (1 / (1 + np.exp(-(rows @ w[:-1] + w[-1]))) - important)
        return np.append(rows.T @ residual + w[:-1], residual.sum())

    return optimize.minimize(
        objective, np.zeros(rows.shape[1] + 1), jac=gradient, method="BFGS", options={"gtol": 1e-8, "maxiter": 5000}
    ).x


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("balanced", [False, True])
def test_coefficients_are_those_of_another_optimiser(C, balanced):
    data = made_dataset()
    features, important = np.float64(data.features("DD-DT")), np.float64(data["important"])
    features[:, 3] = features[:, 2] + 0.01 * features[:, 3]  # states are nearly dependent
    rows = (features - features.mean(0)) / features.std(0)
    share = important.mean()
    weights = np.where(important == 1, 0.5 / share, 0.5 / (1 - share)) if balanced else np.ones(len(rows))
    weights[::7] = 0  # rows that are not there
    start = ((np.zeros((rows.shape[1], 1)), np.zeros(1)),)
    ((kernel, bias),), steps, norm = fit_layers(rows, important, weights, start, C)
    expected = reference(rows[weights > 0], important[weights > 0], weights[weights > 0], C)
    np.testing.assert_allclose(np.append(kernel, bias), expected, atol=1e-4, rtol=1e-4)
    assert norm < 1e-9 and steps < 100


def test_the_judge_of_a_dataset():
    data, seen = made_dataset(), []
    judge = fit_judge(data, QUICK, seen.append)
    assert [point.C for point in judge.grid] == [0.01, 1.0] and seen == judge.grid
    assert judge.best.validation_auc == max(point.validation_auc for point in judge.grid) > 0.8
    assert all(point.converged for point in judge.grid)
    held_out = split_by_question(data["question"], 0.1, 0)
    assert (judge.validation_rows, judge.validation_questions) == (36, 3) and held_out.sum() == 36
    # The head that is kept saw everything: its coefficients are those of a fit to all rows.
    rows = np.float64(data.features("DD-DT"))
    rows = (rows - rows.mean(0)) / rows.std(0)
    expected = reference(rows, np.float64(data["important"]), np.ones(len(rows)), judge.best.C)
    np.testing.assert_allclose(judge.head.layers[0][0][:, 0], expected[:-1], atol=1e-4)
    assert json.loads(json.dumps(judge.to_json()))["best"]["C"] == judge.best.C
    assert judge.markdown().count("\n| ") in (10, 11) and "(advised)" in judge.markdown()
    assert dataclasses.asdict(judge.table[0])["recall"] == 1.0


def test_an_mlp_finds_what_a_line_cannot():
    data = made_dataset(questions=60)
    product = data["target_hidden"][:, 0] * data["target_hidden"][:, 1]
    crossed = {**data.columns, "important": (product > np.median(product)).astype(np.int8)}
    judge = fit_judge(dataclasses.replace(data, columns=crossed), Options("DT", "mlp", 16, grid=(1e-7, 0.3)))
    rows = data.features("DT")
    assert judge.best.validation_auc > 0.8 and len(judge.head.layers) == 2
    assert roc_auc(crossed["important"], predict(judge.head, rows)) > 0.9
    line, *_ = np.linalg.lstsq(rows - rows.mean(0), crossed["important"] - 0.5, rcond=None)
    assert roc_auc(crossed["important"], rows @ line) < 0.75


def test_questions_are_never_on_both_sides():
    questions = np.repeat(np.arange(20), np.arange(1, 21))
    held_out = split_by_question(questions, 0.25, 3)
    assert not set(questions[held_out]) & set(questions[~held_out]) and len(set(questions[held_out])) == 4
    assert (held_out != split_by_question(questions, 0.25, 4)).any()


@pytest.mark.parametrize(("n", "count"), [(2, 1), (9, 1), (10, 1), (19, 1), (25, 2), (40, 3), (700, 69)])
def test_as_many_questions_are_held_out_as_by_the_official_code(n, count):
    """n - int(0.9 n) - 1, and one where that is none."""
    assert split_by_question(np.arange(n), 0.1, 0).sum() == count == max(1, n - int(0.9 * n) - 1)


def test_the_grid_is_the_published_one():
    assert len(C_GRID) == 19 and C_GRID[0] == 1e-7 and C_GRID[-1] == 100


@pytest.mark.parametrize(
    "options, says",
    [
        ({"model": "tree"}, "one of linear, mlp"),
        ({"class_weight": "heavy"}, "none or balanced"),
        ({"grid": (0.0,)}, "above 0"),
        ({"validation_share": 1.0}, "between 0 and 1"),
        ({"hidden_size": 0}, "at least one"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        Options(**options)


def test_data_that_cannot_be_fitted_is_refused():
    data = made_dataset(questions=2)
    with pytest.raises(InputError, match="set-ups DT"):
        fit_judge(data, Options("TT"))
    alike = {**data.columns, "important": np.zeros(len(data), np.int8)}
    with pytest.raises(InputError, match="one kind only"):
        fit_judge(dataclasses.replace(data, columns=alike), QUICK)
    with pytest.raises(InputError, match="at least 2"):
        fit_judge(made_dataset(questions=1), QUICK)
