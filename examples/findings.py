"""What arXiv 2408.06266 says of its experiment, each sentence held against numbers: "holds here" is computed.

Of trajectories on held-out pairs (section 5.4, Figure 4) for the real model and the miniature; of tables 1 and 2 for
the miniature's whole grid.
"""

from collections.abc import Mapping
from typing import NamedTuple

from eval.runs import Run, heldout

SIDES = ("chosen", "rejected")
CONTRASTIVE = ("dpo", "kto_pair", "apo_zero", "apo_down")
BETTER_WINNERS = ("clair", "judge-on-policy", "stronger-preferred")
OFF_POLICY = "judge-off-policy"
WHY_NOT: dict[str, str] = {}
"""Why a claim may fail in the miniature, for the page that says so."""


class Trajectory(NamedTuple):
    """Held-out means after each epoch."""

    logps: dict[str, list[float]]
    """Nats, of "chosen" and of "rejected"."""
    rewards: dict[str, list[float]]

    @property
    def margins(self) -> list[float]:
        """Reward of the winner over that of the loser."""
        return [won - lost for won, lost in zip(*(self.rewards[side] for side in SIDES), strict=True)]


def trajectory(run: Run) -> Trajectory:
    """A run's held-out means, those that training has measured."""
    logps, rewards = (
        {side: [value for _, value in heldout(run, f"{what}/{side}")] for side in SIDES}
        for what in ("logps", "rewards")
    )
    return Trajectory(logps, rewards)


def of_trajectories(zero: Trajectory, down: Trajectory, dpo: Trajectory) -> dict[str, bool]:
    """What section 5.4.2 says of APO-zero, APO-down and DPO on one data set, and whether it is so."""

    def last(t: Trajectory) -> list[float]:
        return [t.rewards[side][-1] for side in SIDES]

    def is_nearer_to_zero(epoch: int) -> bool:
        far = [sum(abs(dpo.rewards[s][epoch] - t.rewards[s][epoch]) for s in SIDES) for t in (zero, down)]
        return far[0] < far[1]

    return {
        "all three widen the margin between winning and losing rewards": all(
            t.margins[-1] > 0 for t in (zero, down, dpo)
        ),
        "APO-zero ends with the greatest winning and losing rewards": all(
            z > max(others) for z, *others in zip(last(zero), last(down), last(dpo), strict=True)
        ),
        "APO-down ends with the lowest of both": all(
            d < min(others) for d, *others in zip(last(down), last(zero), last(dpo), strict=True)
        ),
        "DPO is nearer to APO-zero in the first epoch": is_nearer_to_zero(0),
        "DPO is nearer to APO-down in the last": not is_nearer_to_zero(-1),
    }


def of_contrast(jaccard: Mapping[str, float], levenshtein: Mapping[str, float]) -> dict[str, bool]:
    """Table 1, by data set."""
    is_first = max(jaccard, key=lambda k: jaccard[k]) == min(levenshtein, key=lambda k: levenshtein[k]) == "clair"
    return {"CLAIR has the best contrast: the largest Jaccard similarity, the smallest Levenshtein distance": is_first}


def of_gains(gained: Mapping[tuple[str, str], float]) -> dict[str, bool]:
    """Table 2: mean gain over the base model, in points, by data set and objective."""
    sets = list(dict.fromkeys(data for data, _ in gained))

    def best(data: str) -> str:
        return max((loss for d, loss in gained if d == data), key=lambda loss: gained[data, loss])

    found = {
        "CLAIR with APO-zero has the best mean of all cells": max(gained, key=lambda c: gained[c])
        == ("clair", "apo_zero"),
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
        found["stronger-preferred can hurt: a contrastive objective loses points on it"] = any(
            gained["stronger-preferred", loss] < 0 for loss in CONTRASTIVE if ("stronger-preferred", loss) in gained
        )
    return found
