"""Small datasets made by hand: labels that follow a known rule."""

import numpy as np

from kljudge_jax.judges.dataset import Dataset, columns_of
from kljudge_jax.verification.head import PairIdentity

PAIR = PairIdentity("large", "small", 6, 4, 9)


def made_dataset(questions=40, each=12, seed=0, noise=1.0):
    """Rows of `each` tokens a question, important where a sum of states and noise is high; KL follows the same sum."""
    random = np.random.default_rng(seed)
    n = questions * each
    columns = {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in columns_of(PAIR, 9).items()}
    columns["question"] = np.repeat(np.arange(questions, dtype=np.int32), each)
    columns["position"] = np.tile(np.arange(each, dtype=np.int32), questions)
    for name in ("target_hidden", "draft_hidden", "gap", "next_gap", "primitives"):
        columns[name] = np.float32(random.normal(size=columns[name].shape) * 3 + 1)
    columns["primitives"][:, 0] = np.exp(columns["target_hidden"][:, 0] / 3)
    columns["second_order_kl"] = columns["primitives"][:, 0] * np.float32(1.5)
    columns["score"] = columns["target_hidden"][:, 0] - columns["draft_hidden"][:, 1]
    columns["score"] += np.float32(noise * random.normal(size=n) + np.repeat(random.normal(size=questions), each))
    columns["important"] = (columns["score"] > 1).astype(np.int8)
    return Dataset(PAIR, {"task": "made"}, [{"question": i} for i in range(questions)], columns)
