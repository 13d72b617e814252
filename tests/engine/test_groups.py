"""Parameters in groups of their own options, and what a run's files and its plan say of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.model import read_config
from engine.optim.groups import describe, group, largest_share
from engine.planning.memory import MemoryInputs, needs
from system import InputError
from tests import tiny


def parameters():
    """(name, parameter) of 2, 3, 5 and 10 numbers."""
    sizes = {"embed.weight": 2, "norm.weight": 3, "blocks.0.norm.weight": 5, "head.weight": 10}
    return [(name, nn.Parameter(torch.zeros(n))) for name, n in sizes.items()]


def options(name):
    if "norm" in name:
        return {"weight_decay": 0.0, "lr": 3e-4}
    return {"lr": 1e-3} if name.startswith("head") else {}


def test_parameters_with_the_same_options_are_one_group_in_the_order_of_their_first():
    named = parameters()
    made = group(named, options, optimizer="adamw")
    assert [[id(p) for p in one["params"]] for one in made] == [
        [id(named[0][1])], [id(named[1][1]), id(named[2][1])], [id(named[3][1])]
    ]  # fmt: skip
    assert [{key: x for key, x in one.items() if key != "params"} for one in made] == [
        {}, {"lr": 3e-4, "weight_decay": 0.0}, {"lr": 1e-3}
    ]  # fmt: skip


def test_the_order_in_which_options_are_named_makes_no_group():
    made = group(
        parameters(),
        lambda name: {"lr": 1.0, "weight_decay": 0.5} if "norm" in name else {"weight_decay": 0.5, "lr": 1.0},
        optimizer="adamw",
    )
    assert len(made) == 1 and len(made[0]["params"]) == 4


def test_without_options_all_are_one_group():
    (one,) = group(parameters(), None, optimizer="rmsprop")
    assert set(one) == {"params"} and len(one["params"]) == 4


@pytest.mark.parametrize(
    ("own", "optimizer", "said"),
    [
        (
            {"momentum": 0.9},
            "adamw",
            "parameter_options('head.weight'): there is no option 'momentum'; the options are",
        ),
        ({"lr": -1e-3}, "adamw", "parameter_options('head.weight'): lr = -0.001 has to be a number, 0 or above"),
        ({"lr": math.nan}, "rmsprop", "parameter_options('head.weight'): lr = nan has to be a number, 0 or above"),
        ({"lr": math.inf}, "rmsprop", "parameter_options('head.weight'): lr = inf has to be a number, 0 or above"),
        ({"lr": "1e-3"}, "rmsprop", "parameter_options('head.weight'): lr = '1e-3' has to be a number, 0 or above"),
        (
            {"weight_decay": 0.1},
            "rmsprop",
            "parameter_options('head.weight'): weight_decay = 0.1, and rmsprop has none",
        ),
    ],
)
def test_options_that_cannot_be_are_said_in_a_sentence(own, optimizer, said):
    with pytest.raises(InputError) as fault:
        group(parameters(), lambda name: own if name == "head.weight" else {}, optimizer=optimizer)
    assert str(fault.value).startswith(said)


def test_a_decay_of_0_is_every_optimizers_and_a_rate_of_0_holds_still():
    (one,) = group(parameters(), lambda _: {"weight_decay": 0, "lr": 0}, optimizer="rmsprop")
    assert one["weight_decay"] == 0.0 and one["lr"] == 0.0


def test_each_group_is_described_with_its_options_and_its_size():
    assert describe(parameters(), options, optimizer="adamw") == [
        "the run's options: 1 parameters, 2 numbers",
        "lr 0.0003, weight_decay 0: 2 parameters, 8 numbers",
        "lr 0.001: 1 parameters, 10 numbers",
    ]


def test_the_largest_share_is_that_of_the_group_with_most_numbers():
    assert largest_share(parameters(), options, optimizer="adamw") == 10 / 20
    assert largest_share(parameters(), None, optimizer="adamw") == 1.0
    norms = largest_share(parameters(), lambda name: {"lr": 1.0} if "norm" not in name else {}, optimizer="adamw")
    assert norms == 12 / 20
    matrices = [*parameters(), ("blocks.0.mlp.up.weight", nn.Parameter(torch.zeros(5, 4)))]
    assert largest_share(matrices, None, optimizer="muon") == 20 / 40  # its matrices one by one
    assert largest_share(matrices, None, optimizer="adamw") == 1.0


def test_the_plan_gives_an_optimizer_that_steps_a_group_at_once_the_largest_groups_numbers():
    """Where the optimizer's own moment is the peak: 4 bytes a number of the group, of each shard."""
    shape = read_config(tiny.raw_config(hidden_size=256, num_hidden_layers=8, intermediate_size=1024), "f")
    asked = MemoryInputs(
        shape=shape, device="cpu", dtype=torch.float32, optimizer="adamw", pass_tokens=1, has_several_passes=True
    )
    whole, half = needs(asked), needs(replace(asked, group_share=0.5))
    assert whole["the optimizer's own"] == 4 * shape.n_parameters
    assert half["the optimizer's own"] == 2 * shape.n_parameters
    assert "the optimizer's own" not in needs(replace(asked, is_split=True, dtype=torch.bfloat16))
    assert "the optimizer's own" not in needs(replace(asked, device="cuda", dtype=torch.bfloat16))  # one kernel
