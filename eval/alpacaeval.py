"""AlpacaEval 2 and its length-controlled win rate (Dubois et al., 2024; arXiv 2404.04475), as pure functions.

    is_switched(instruction)         which of the two outputs the annotator is shown first
    messages(...)                    what it is asked
    preference(top_logprobs, ...)    1 (the reference is better) to 2 (the model is)
    mass(top_logprobs)               how sure it is that the judge says one of them at all
    win_rate(preferences)            with its standard error
    length_controlled(...)           the same, as if outputs were as long as the reference's

The template and the data are the user's own; nothing of AlpacaEval is part of this project.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from system import InputError

FIRST, SECOND = "m", "M"
"""What the annotator calls the two outputs that it is shown."""
START, END = "<|im_start|>", "<|im_end|>"
GAMED_WEIGHT = 0.2 / 2  # two gamed baselines share the regularisation
STRENGTHS = np.logspace(-4, 4, 10)
N_FOLDS = 5
TINY = 1e-15
NO_PREFERENCE = (
    "no output has a preference, so there is no win rate; use a judge that gives log-probs of m and M for its first "
    "token"
)
FEW = 0.05  # of rows on one side of the reference's length: beyond, length control extrapolates


def is_switched(instruction: str) -> bool:
    """Whether the model's output is shown first: drawn from the instruction alone, with upstream's seed 0."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True], k=1)[0]


def messages(instruction: str, output_1: str, output_2: str, template: str) -> list[dict[str, str]]:
    """A template in ChatML as messages, its slots filled, each at its first occurrence, in upstream's order.

    output_1, output_2: as they are shown. Raises InputError where the template is not of that form.
    """
    text = template
    for slot, value in (("{instruction}", instruction), ("{output_1}", output_1), ("{output_2}", output_2)):
        if slot not in template:
            raise InputError(f"the annotator's template has no {slot}; give alpaca_eval_clf.txt as it is published")
        text = text.replace(slot, value, 1)
    made = []
    for turn in text.strip().split(START)[1:]:
        role, _, content = turn.partition("\n")
        made.append({"role": role.strip(), "content": content.split(END)[0].strip()})
    if not made:
        raise InputError(f"the annotator's template has no {START}; give alpaca_eval_clf.txt as it is published")
    return made


def preference(top_logprobs: Sequence[Mapping[str, Any]], switched: bool) -> float | None:
    """How much the model's output is preferred, from 1 to 2. top_logprobs: [{"token", "logprob"}] of the first token.

    By the probability of "m" among "m" and "M"; None where neither has one. switched: see is_switched.
    """
    found = {t["token"]: float(t["logprob"]) for t in top_logprobs if t["token"] in (FIRST, SECOND)}
    found = {token: logprob for token, logprob in found.items() if math.isfinite(logprob)}
    if not found:
        return None
    first, second = (found.get(name, -math.inf) for name in (FIRST, SECOND))
    p_first = math.exp(first - np.logaddexp(first, second))
    shown = 2 - p_first
    return 3 - shown if switched else shown


def mass(top_logprobs: Sequence[Mapping[str, Any]]) -> float:
    """The probability of "m" and "M" together: far below one where the judge would rather say something else."""
    return sum(math.exp(float(t["logprob"])) for t in top_logprobs if t["token"] in (FIRST, SECOND))


def win_rate(preferences: Sequence[float | None]) -> dict[str, float]:
    """The win rate in per cent, its standard error, and counts. preferences: 1 to 2, 0 or 1.5 a draw, others missing.

    Raises InputError where none is left.
    """
    given = np.array([math.nan if p is None else p for p in preferences], dtype=float)
    n_draws = int(np.isin(given, (0.0, 1.5)).sum())
    y = _wins(given)
    y = y[~np.isnan(y)]
    if not len(y):
        raise InputError(NO_PREFERENCE)
    rounded = _wins(np.round(np.where(given == 1.5, 0.0, given)))
    rounded = rounded[~np.isnan(rounded)]
    return {
        "win_rate": 100 * float(y.mean()),
        "standard_error": 100 * _standard_error(y),
        "n_wins": int((y > 0.5).sum()),
        "n_wins_base": int((y < 0.5).sum()),
        "n_draws": n_draws,
        "n_total": len(y),
        "discrete_win_rate": 100 * float(rounded.mean()),
    }


def _wins(preferences: np.ndarray) -> np.ndarray:
    """Preferences as 0 to 1, NaN where they are missing or none."""
    p = np.where(preferences == 0, 1.5, preferences)
    return np.where((p >= 1) & (p <= 2), p, np.nan) - 1


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


# --- length control ------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """Rows of a logistic regression with soft labels."""

    x: np.ndarray
    """[n, 3]: length, difficulty, one."""
    y: np.ndarray
    """[n], 0 to 1."""
    weight: np.ndarray
    """[n]."""


def length_controlled(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    reference_lengths: Sequence[int],
    gamed_rows: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """The win rate that a logistic regression predicts for outputs as long as the reference's, in per cent.

    All in the order of the instructions; lengths in characters. gamed_rows: df_gamed.csv as dictionaries: two baselines
    that differ in their length alone, whose rows keep the fit honest, and each instruction's difficulty. The fit is
    L1-penalised, its strength the best of ten by five folds (section B4 of the specification; "length_controlled_v1").
    Raises InputError where the columns do not fit.
    """
    n = len(preferences)
    if not n == len(lengths) == len(reference_lengths):
        raise InputError(
            f"{n} preferences, {len(lengths)} and {len(reference_lengths)} lengths: there has to be one each"
        )
    if all(p is None for p in preferences):
        raise InputError(NO_PREFERENCE)
    difficulty = _difficulties(gamed_rows, n)
    delta = np.asarray(reference_lengths, dtype=float) - np.asarray(lengths, dtype=float)
    spread = delta.std(ddof=1)
    if not delta.any() and all(p in (0, 1.5) for p in preferences):  # the reference against itself
        return {"length_controlled_winrate": 50.0, "lc_standard_error": 0.0, "strength": math.nan}
    if not spread > 0:
        raise InputError(
            "all outputs differ from the reference's in length by the same amount: length cannot be controlled for"
        )
    y = _wins(np.array([math.nan if p is None else p for p in preferences], dtype=float))
    x = np.stack([np.tanh(delta / spread), difficulty, np.ones(n)], axis=1)
    known = ~np.isnan(y)
    gamed = _gamed(gamed_rows)
    train = Rows(
        np.concatenate([gamed.x, x[known]]),
        np.concatenate([gamed.y, y[known]]),
        np.concatenate([gamed.weight, np.ones(int(known.sum()))]),
    )
    strength = best_strength(train)
    _, w_difficulty, w_one = fit(train, strength)
    p = _logistic(w_difficulty * difficulty + w_one)
    return {
        "length_controlled_winrate": 100 * float(p.mean()),
        "lc_standard_error": 100 * _standard_error(p),
        "strength": float(strength),
    }


def _difficulties(gamed_rows: Sequence[Mapping[str, Any]], n: int) -> np.ndarray:
    found: dict[int, float] = {}
    for row in gamed_rows:
        found.setdefault(int(row["index"]), float(row["instruction_difficulty"]))
    if missing := [i for i in range(n) if i not in found]:
        raise InputError(
            f"df_gamed.csv has no difficulty of instruction {missing[0]}; give the file as it is published"
        )
    return np.array([found[i] for i in range(n)])


def _gamed(gamed_rows: Sequence[Mapping[str, Any]]) -> Rows:
    length = np.tanh([float(row["std_delta_len"]) for row in gamed_rows])
    difficulty = [float(row["instruction_difficulty"]) for row in gamed_rows]
    y = np.array([float(row["preference"]) for row in gamed_rows])
    x = np.stack([length, np.array(difficulty), np.zeros(len(y))], axis=1)
    return Rows(x[~np.isnan(y)], y[~np.isnan(y)], np.full(int((~np.isnan(y)).sum()), GAMED_WEIGHT))


def best_strength(rows: Rows) -> float:
    """C of the best mean score over five folds; of equals the first. Row g of N is left out in fold N - 1 - g mod 5."""
    fold = (len(rows.y) - 1 - np.arange(len(rows.y))) % N_FOLDS
    means = []
    for strength in STRENGTHS:
        scores = []
        for k in range(N_FOLDS):
            kept, left = Rows(*(a[fold != k] for a in rows)), Rows(*(a[fold == k] for a in rows))
            p = np.clip(_logistic(left.x @ fit(kept, strength)), TINY, 1 - TINY)
            scores.append(np.mean(left.weight * (left.y * np.log(p) + (1 - left.y) * np.log(1 - p))))
        means.append(float(np.mean(scores)))
    return float(STRENGTHS[int(np.argmax(means))])


def fit(rows: Rows, strength: float, *, tolerance: float = 1e-10) -> np.ndarray:
    """w [d] at the least of |w|_1 + C sum_i s_i (log(1 + e^{z_i}) - y_i z_i), z = x w: by proximal Newton steps.

    Each step solves the quadratic model with the penalty by coordinate descent, and is shortened until the objective
    falls enough. The objective is convex; it ends where no step of length above tolerance is left.
    """
    w = np.zeros(rows.x.shape[1])
    value = _objective(w, rows, strength)
    for _ in range(200):
        p = _logistic(rows.x @ w)
        gradient = strength * rows.x.T @ (rows.weight * (p - rows.y))
        curvature = strength * (rows.x.T * (rows.weight * p * (1 - p))) @ rows.x
        step = _lasso_step(w, gradient, curvature + 1e-12 * np.eye(len(w)))
        if np.abs(step).max() < tolerance:
            break
        slope = gradient @ step + np.abs(w + step).sum() - np.abs(w).sum()
        size = 1.0
        while (new := _objective(w + size * step, rows, strength)) > value + 1e-4 * size * slope and size > 1e-12:
            size /= 2
        w, value = w + size * step, new
    return w


def _objective(w: np.ndarray, rows: Rows, strength: float) -> float:
    z = rows.x @ w
    return float(np.abs(w).sum() + strength * (rows.weight * (np.logaddexp(0, z) - rows.y * z)).sum())


def _lasso_step(w: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """The step d at the least of gradient d + d' curvature d / 2 + |w + d|_1."""
    d = np.zeros_like(w)
    for _ in range(10_000):
        before = d.copy()
        for j in range(len(w)):
            h = curvature[j, j]
            target = w[j] + d[j] - (gradient[j] + curvature[j] @ d) / h
            d[j] = np.sign(target) * max(abs(target) - 1 / h, 0.0) - w[j]
        if np.abs(d - before).max() < 1e-14 * (1 + np.abs(d).max()):
            break
    return d


def _logistic(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


def is_extreme(raw: float, controlled: float) -> bool:
    """Whether length control has moved a win rate (per cent) further than a sound fit does: the rule of upstream."""
    return controlled < min(0.75 * raw, raw - 10) or controlled > max(raw + (100 - raw) / 4, raw + 10)


def warnings(table: Mapping[str, float]) -> list[str]:
    """What makes a length-controlled win rate doubtful: from win_rate, length_controlled_winrate, n_missing, n_low_mass
    and the shares of outputs that are longer and shorter than the reference's.
    """
    made = []
    if table.get("n_missing"):
        made.append(f"{table['n_missing']:.0f} rows have no preference")
    if table.get("n_low_mass"):
        made.append(f"in {table['n_low_mass']:.0f} rows the judge would rather say something else than m or M")
    if (controlled := table.get("length_controlled_winrate")) is None:
        return made
    for side in ("longer", "shorter"):
        if (share := table.get(f"share_{side}", 1.0)) < FEW:
            made.append(
                f"only {share:.1%} of the outputs are {side} than the reference's: length control has little to "
                "compare on that side (appendix D of arXiv 2408.06266)"
            )
    if "win_rate" in table and is_extreme(table["win_rate"], controlled):
        made.append("length control moves the win rate further than a sound fit does: do not trust it")
    return made
