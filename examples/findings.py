"""What arXiv 2408.06266 says of its experiment, each sentence held against numbers: "holds here" is computed.

Of trajectories on held-out pairs (section 5.4, Figure 4) for the real model and the miniature; of tables 1 and 2 for
the miniature's whole grid.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eval.runs import Run, heldout, heldout_rewards
from eval.tables import Table

SIDES = ("chosen", "rejected")
CONTRASTIVE = ("dpo", "kto_pair", "apo_zero", "apo_down")
BETTER_WINNERS = ("clair", "judge-on-policy", "stronger-preferred")
OFF_POLICY = "judge-off-policy"
PAPER = {  # Table 2: mean gain on MixEval-Hard of 2024-06-01 and of 2024-08-11
    ("judge-off-policy", "dpo"): (-0.74, 2.85), ("judge-off-policy", "kto_pair"): (-2.89, 1.18),
    ("judge-off-policy", "sft"): (-1.63, 0.42), ("judge-off-policy", "apo_zero"): (-1.99, 1.26),
    ("judge-off-policy", "apo_down"): (0.64, 3.52), ("judge-on-policy", "dpo"): (0.56, 2.71),
    ("judge-on-policy", "kto_pair"): (-0.51, 1.13), ("judge-on-policy", "sft"): (-0.91, 2.55),
    ("judge-on-policy", "apo_zero"): (0.02, 2.19), ("judge-on-policy", "apo_down"): (1.60, 3.06),
    ("clair", "dpo"): (-1.68, 2.77), ("clair", "kto_pair"): (0.79, 2.92), ("clair", "sft"): (-1.63, 0.92),
    ("clair", "apo_zero"): (2.93, 4.39), ("clair", "apo_down"): (-5.22, -3.61),
    ("stronger-preferred", "dpo"): (-6.94, -4.40), ("stronger-preferred", "kto_pair"): (-5.21, 0.50),
    ("stronger-preferred", "sft"): (0.49, 2.73), ("stronger-preferred", "apo_zero"): (-2.72, -12.02),
    ("stronger-preferred", "apo_down"): (-12.51, 0.16),
}  # fmt: skip
BEST_CONTRAST = "CLAIR has the best contrast: the largest Jaccard similarity, the smallest Levenshtein distance"
MARGINS = "all three widen the margin between winning and losing rewards"
BY_CONSTRUCTION = {
    BEST_CONTRAST: "a revision changes as little as it can",
    MARGINS: "each objective falls with the margin, and the pairs that are held out are made like the others",
}
"""Claims that could hardly fail, and why."""


class Trajectory(NamedTuple):
    """Held-out means after each epoch, or wherever they were measured."""

    logps: dict[str, list[float]]
    """Nats, of "chosen" and of "rejected"."""
    rewards: dict[str, list[float]]
    """Beta times the log-ratio to the reference, whatever an objective's own rewards are."""
    epochs: list[float]
    """Where that was, in epochs; 0 before the first step."""

    @property
    def margins(self) -> list[float]:
        """Reward of the winner over that of the loser."""
        return [won - lost for won, lost in zip(*(self.rewards[side] for side in SIDES), strict=True)]


def trajectory(run: Run) -> Trajectory:
    """A run's held-out means, those that training has measured."""
    logps = {side: [value for _, value in heldout(run, f"logps/{side}")] for side in SIDES}
    rewards = {side: [value for _, value in heldout_rewards(run, side)] for side in SIDES}
    return Trajectory(logps, rewards, [epoch for epoch, _ in heldout(run, f"logps/{SIDES[0]}")])


def of_trajectories(zero: Trajectory, down: Trajectory, dpo: Trajectory) -> dict[str, bool]:
    """What section 5.4.2 says of APO-zero, APO-down and DPO on one data set, and whether it is so."""

    def last(t: Trajectory) -> list[float]:
        return [t.rewards[side][-1] for side in SIDES]

    def is_nearer_to_zero(points: Sequence[int]) -> bool:
        far = [sum(abs(dpo.rewards[s][i] - t.rewards[s][i]) for s in SIDES for i in points) for t in (zero, down)]
        return far[0] < far[1]

    shared = dpo.epochs[: min(len(t.epochs) for t in (zero, down, dpo))]
    first = [i for i, epoch in enumerate(shared) if 0 < epoch <= 1]  # all that was measured in it

    return {
        MARGINS: all(t.margins[-1] > 0 for t in (zero, down, dpo)),
        "APO-zero ends with the greatest winning and losing rewards of the three": all(
            z > max(others) for z, *others in zip(last(zero), last(down), last(dpo), strict=True)
        ),
        "APO-down ends with the lowest of both of the three": all(
            d < min(others) for d, *others in zip(last(down), last(zero), last(dpo), strict=True)
        ),
        "DPO is nearer to APO-zero in the first epoch": is_nearer_to_zero(first),
        "DPO is nearer to APO-down in the last": not is_nearer_to_zero([-1]),
    }


def of_contrast(jaccard: Mapping[str, float], levenshtein: Mapping[str, float]) -> dict[str, bool]:
    """Table 1, by data set."""
    is_rank0 = max(jaccard, key=lambda k: jaccard[k]) == min(levenshtein, key=lambda k: levenshtein[k]) == "clair"
    return {BEST_CONTRAST: is_rank0}


def of_paper() -> dict[str, bool]:
    """The claims on gains, held against the paper's own means of both versions: not all of them hold there."""
    return of_gains({cell: sum(both) / 2 for cell, both in PAPER.items()})


def of_gains(gained: Mapping[tuple[str, str], float]) -> dict[str, bool]:
    """Table 2: mean gain over the base model, in points, by data set and objective."""
    sets = list(dict.fromkeys(data for data, _ in gained))

    def best(data: str) -> str:
        return max((loss for d, loss in gained if d == data), key=lambda loss: gained[data, loss])

    found = {
        "CLAIR with APO-zero has the best mean of all cells": max(gained, key=lambda c: gained[c])
        == ("clair", "apo_zero"),
        "APO has the best mean of every data set but stronger-preferred": all(
            best(data) in ("apo_zero", "apo_down") for data in sets if data != "stronger-preferred"
        ),
        "DPO is never the best objective of a data set": all(best(data) != "dpo" for data in sets),
    }
    for data in (d for d in BETTER_WINNERS if d in sets):
        found[f"winners better than the model ({data}): APO-zero beats APO-down"] = (
            gained[data, "apo_zero"] > gained[data, "apo_down"]
        )
    if OFF_POLICY in sets:
        found["winners worse than the model (judge-off-policy): APO-down beats APO-zero"] = (
            gained[OFF_POLICY, "apo_down"] > gained[OFF_POLICY, "apo_zero"]
        )
    if "stronger-preferred" in sets:
        found["stronger-preferred can hurt: a contrastive objective that gains on clair loses points on it"] = any(
            gained["stronger-preferred", loss] < 0 < gained.get(("clair", loss), 0.0)
            for loss in CONTRASTIVE
            if ("stronger-preferred", loss) in gained
        )
        if ("stronger-preferred", "sft") in gained:
            found["on stronger-preferred SFT beats every contrastive objective"] = best("stronger-preferred") == "sft"
    return found


def table(counts: Mapping[str, Sequence[tuple[str, bool]]], *, over: str) -> Table:
    """Each claim, and in how many cases it holds. counts: of each claim the cases, (data set, or "" for a claim of all
    of them; whether it holds). over: what is counted.
    """
    in_paper, rows = of_paper(), []
    for claim, cases in counts.items():
        n_held = sum(is_so for _, is_so in cases)
        here = "holds here" if n_held == len(cases) else "holds here in part" if n_held else "does not hold here"
        if claim in BY_CONSTRUCTION and n_held:
            here += ", by construction"
        not_on = ", ".join(dict.fromkeys(data for data, is_so in cases if data and not is_so))
        of_paper_ = {True: "yes", False: "no", None: ""}[in_paper.get(claim)]
        rows.append((claim, here, f"{n_held} of {len(cases)}", not_on, of_paper_))
    notes = [
        f"Counted over {over}. Last: whether the paper's own Table 2 has it by means over checkpoints and both "
        "versions of MixEval-Hard."
    ]
    notes += [
        f"By construction: {claim}; {why}."
        for claim, why in BY_CONSTRUCTION.items()
        if any(is_so for _, is_so in counts.get(claim, ()))
    ]
    header = ("the paper's claim", "here", "holds in", "not on", "in its own means")
    return Table("claims", "What the paper claims, and what holds here", header, rows, 2, notes)
