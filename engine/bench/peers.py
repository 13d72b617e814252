"""TRL at its best: which of its settings are tried, and which of them are measured in every round.

The first round tries the reference in the walk and precomputed, one, two and four pairs at a time; then what else may
help, each on the fastest so far: compiled, and on a GPU bf16 weights in the place of autocast, and flash attention
where it is installed. The two fastest of each epoch stay; each round of ours is held against the fastest of that
round.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch

AT_A_TIME = (1, 2, 4)
Options = dict[str, Any]
Rate = Callable[[str, int], float]
"""Pairs a second of a row that was measured, by its name, in epoch 1 (0) or from epoch 2 on (1)."""


def first(*, has_adapter: bool) -> dict[str, Options]:
    """What is tried first: its name in the table, and its settings. An adapter's reference is always precomputed."""
    name = "TRL and PEFT" if has_adapter else "TRL"
    made = {} if has_adapter else {f"{name}, {n} at a time": {"micro": n, "precompute": False} for n in AT_A_TIME}
    known = "" if has_adapter else ", precomputed"
    return made | {f"{name}{known}, {n} at a time": {"micro": n, "precompute": True} for n in AT_A_TIME}


def more(tried: Mapping[str, Options], rate: Rate) -> dict[str, Options]:
    """What is tried on top of the fastest from epoch 2 on."""
    best = fastest(tried, rate, 1)
    made = {f"{best}, compiled": tried[best] | {"compile": True}}
    if torch.cuda.is_available():
        made[f"{best}, bf16 weights"] = tried[best] | {"held": "bfloat16"}
        if find_spec("flash_attn") is not None:
            made[f"{best}, flash attention"] = tried[best] | {"attention": "flash_attention_2", "held": "bfloat16"}
    return made


def fastest(tried: Mapping[str, Options], rate: Rate, epoch: int) -> str:
    """The name of the fastest in an epoch."""
    return max(tried, key=lambda name: rate(name, epoch))


def kept(tried: Mapping[str, Options], rate: Rate) -> dict[str, Options]:
    """Those that are measured in every round: the two fastest in epoch 1, and from epoch 2 on, which may be close."""
    names = (sorted(tried, key=lambda name: -rate(name, epoch))[:2] for epoch in (0, 1))
    return {name: tried[name] for two in names for name in two}
