"""Rows for runs on a tiny model: token ids of unequal lengths, with the numbers that some objectives ask for."""

import numpy as np

from data.text import Message


def answers(*texts):
    """Responses of one assistant message each, as records hold them."""
    return tuple((Message("assistant", text),) for text in texts)


def ratings(i):
    """What some objectives ask of a row, in numbers."""
    scores = {
        "chosen_score": 3 + i % 4,
        "rejected_score": 1 + i % 2,
        "own_score": (0, 2.5, 9)[i % 3],
        "quantile": i % 11 / 10,
    }
    return scores | {"chosen_prob": 0.9, "rejected_prob": 0.2, "value": i % 5 / 4}


def id_rows(n, seed=0, vocabulary=101, form="pairs", *, weigh=False):
    """Rows of token ids of unequal lengths. weigh: whether each has a weight."""
    rng = np.random.default_rng(seed)

    def ids(most):
        return rng.integers(2, vocabulary, rng.integers(1, most)).tolist()

    rows = [{"prompt_ids": ids(9), "chosen_ids": ids(14), "rejected_ids": ids(14)} for _ in range(n)]
    rows = [row | ratings(i) | ({"weight": 0.5 + i % 3} if weigh else {}) for i, row in enumerate(rows)]
    if form == "unpaired":
        return [
            {"prompt_ids": r["prompt_ids"], "completion_ids": r["chosen_ids"], "label": bool(i % 3)}
            for i, r in enumerate(rows)
        ]
    return rows
