"""The learning rate over a run: up from 0 over the warm-up, then down by one of four shapes.

    --schedule linear      falls evenly, to 1 / n of the rate in the last of n steps
    --schedule cosine      falls as half a cosine does
    --schedule constant    stays
    --schedule wsd         warm-up, stable, decay: stays, and falls as half a cosine over the last steps

A shape is a function of the share of the steps that is done, so that a run that goes on needs to know no more than its
step. The factors are those of transformers' schedules, to the last bit.
"""

import math
from collections.abc import Callable
from fractions import Fraction

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from engine.config import ScheduleConfig


def linear(share: Fraction) -> float:
    """1 at a share of 0, 0 at 1."""
    return float(1 - share)


def cosine(share: Fraction) -> float:
    """Half a cosine: 1 at a share of 0, 1/2 in the middle, 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * float(share)))


def constant(share: Fraction) -> float:
    """1 whatever is done."""
    return 1.0


SHAPES: dict[str, Callable[[Fraction], float]] = {
    "linear": linear, "cosine": cosine, "constant": constant, "wsd": cosine,
}  # fmt: skip
"""Of the part of a run over which the rate falls: all that follows the warm-up, in wsd the last steps."""


def factor(asked: ScheduleConfig, done: int, n_steps: int) -> float:
    """Share of the learning rate in the step after `done` others of n_steps.

    Over a warm-up of W steps it is done / W, 0 in the first step and 1 in step W + 1. With a --min-lr-ratio m the shape
    goes from 1 to m, and in wsd, as transformers has it, the warm-up begins at m too.
    """
    is_wsd, least = asked.shape == "wsd", asked.min_lr_ratio
    warmup = asked.n_warmup(n_steps)
    if done < warmup:
        risen = done / warmup
        return risen * (1 - least) + least if is_wsd else risen
    first = n_steps - asked.n_decay(n_steps) if is_wsd else warmup
    if is_wsd and done < first:
        return 1.0
    if done >= n_steps:
        return 1.0 if asked.shape == "constant" else least
    share = Fraction(done - first, max(1, n_steps - first))  # exact: its float is the quotient, rounded once
    return SHAPES[asked.shape](share) * (1 - least) + least


def schedule(optimizer: Optimizer, n_steps: int, asked: ScheduleConfig) -> LambdaLR:
    """Sets the learning rate of each step, of every group of parameters from its own on."""
    return LambdaLR(optimizer, lambda done: factor(asked, done, n_steps))
