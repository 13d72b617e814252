"""The learning rate of every step: transformers' schedules, and the shapes written out."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from engine.config import OptimizerConfig, ScheduleConfig, TrainConfig
from engine.optim import build, schedule
from engine.optim.schedules import cosine, factor, linear
from system import InputError

LR = 3e-4


def ours(n_steps, **asked):
    """The rate of each step, as an optimizer sees it."""
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = build([("norm.weight", parameter)], OptimizerConfig(name="adamw", lr=LR))
    return rates(optimizer, schedule(optimizer, n_steps, ScheduleConfig(**asked)), n_steps)


def theirs(make, n_steps, *arguments, **named):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(3))], lr=LR)
    return rates(optimizer, make(optimizer, *arguments, **named), n_steps)


def rates(optimizer, scheduler, n_steps):
    found = []
    for _ in range(n_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# steps, warm-up, as --warmup-steps and as --warmup-ratio
WARMUPS = [
    (30, 0, {}), (30, 7, {"warmup_steps": 7}), (30, 3, {"warmup_ratio": 0.1}), (31, 4, {"warmup_ratio": 0.1}),
    (100, 8, {"warmup_ratio": 0.07}),  # 0.07 of 100 is 7.000000000000001 in floats, and so there
    (5, 5, {"warmup_steps": 5}), (5, 9, {"warmup_steps": 9}), (1, 1, {"warmup_ratio": 0.1}), (1, 0, {}),
]  # fmt: skip


@pytest.mark.parametrize(("n_steps", "warmup", "asked"), WARMUPS)
@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize("shape", ["linear", "cosine", "constant", "wsd"])
def test_every_step_has_the_rate_of_transformers(shape, least, n_steps, warmup, asked):
    from transformers import optimization as peer

    if least and (shape == "constant" or (shape == "linear" and warmup >= n_steps)):
        pytest.skip("a constant rate does not fall; their polynomial divides by 0 where all is warm-up")
    n_decay = math.ceil(0.2 * n_steps)
    expected = {
        "linear": lambda: theirs(
            peer.get_polynomial_decay_schedule_with_warmup, n_steps, warmup, n_steps, lr_end=least * LR, power=1.0
        ) if least else theirs(peer.get_linear_schedule_with_warmup, n_steps, warmup, n_steps),
        "cosine": lambda: theirs(
            peer.get_cosine_with_min_lr_schedule_with_warmup, n_steps, warmup, n_steps, min_lr_rate=least
        ) if least else theirs(peer.get_cosine_schedule_with_warmup, n_steps, warmup, n_steps),
        "constant": lambda: theirs(peer.get_constant_schedule_with_warmup, n_steps, warmup),
        "wsd": lambda: theirs(
            peer.get_wsd_schedule, n_steps, warmup, n_decay, num_training_steps=n_steps, min_lr_ratio=least
        ),
    }[shape]()  # fmt: skip
    more = {"decay_ratio": 0.2} if shape == "wsd" else {}
    found = ours(n_steps, shape=shape, min_lr_ratio=least, **asked, **more)
    # A polynomial of power 1 is a line, whose end they round twice.
    assert found == (pytest.approx(expected, rel=1e-12, abs=0) if shape == "linear" and least else expected)
    assert len(set(found)) > 1 or n_steps == 1 or shape == "constant"


def test_without_a_warm_up_a_line_falls_to_one_share_in_the_last_step():
    assert [factor(ScheduleConfig(), done, 4) for done in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant", "wsd"])
def test_the_first_step_of_a_warm_up_moves_nothing_and_the_first_after_it_has_the_whole_rate(shape):
    asked = ScheduleConfig(shape=shape, warmup_steps=4)
    assert [factor(asked, done, 40) for done in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_shapes_are_functions_of_the_share_that_is_done():
    assert [linear(Fraction(k, 4)) for k in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [cosine(Fraction(k, 3)) for k in range(4)] == pytest.approx([1.0, 0.75, 0.25, 0.0], abs=1e-15)
    for shape in ("linear", "cosine", "constant"):
        asked = ScheduleConfig(shape=shape)
        assert [factor(asked, k, 10) for k in range(10)] == [factor(asked, 7 * k, 70) for k in range(10)]


def test_wsd_stays_and_then_falls_over_its_last_steps():
    asked = ScheduleConfig(shape="wsd", warmup_steps=2, decay_ratio=0.3, min_lr_ratio=0.2)
    found = [factor(asked, done, 10) for done in range(11)]
    assert found == pytest.approx([0.2, 0.6, *[1.0] * 6, 0.2 + 0.8 * 0.75, 0.2 + 0.8 * 0.25, 0.2])


def test_a_line_has_the_bits_that_it_had_before_there_were_other_shapes():
    for n_steps in (3, 7, 288, 32_600):
        found = [factor(ScheduleConfig(warmup_steps=2), done, n_steps) for done in range(2, n_steps + 1)]
        assert found == [(n_steps - done) / (n_steps - 2) for done in range(2, n_steps + 1)]


# --- the flags -----------------------------------------------------------------------------------------------------


GIVEN = {"model": "m", "data": "d", "out": "o"}


def test_schedule_is_a_flag_by_its_shape_and_a_subject_by_its_settings():
    flat = TrainConfig(**GIVEN, schedule="cosine", warmup_ratio=0.1, epochs=3)
    nested = TrainConfig(**GIVEN, schedule=ScheduleConfig(shape="cosine", warmup_ratio=0.1, epochs=3))
    assert flat == nested and flat.schedule.shape == "cosine" and flat.flat()["schedule"] == "cosine"
    assert flat.with_flags(schedule="wsd").schedule == ScheduleConfig(shape="wsd", warmup_ratio=0.1, epochs=3)
    assert TrainConfig(**GIVEN, schedule=ScheduleConfig(batch_size=3), epochs=2).schedule.epochs == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "--warmup-steps and --warmup-ratio: give one of the two"),
        ({"warmup_ratio": 1.5}, "--warmup-ratio: 1.5 has to be between 0 and 1; it is a share"),
        ({"warmup_ratio": math.nan}, "--warmup-ratio: nan has to be between 0 and 1"),
        ({"min_lr_ratio": -0.1}, "--min-lr-ratio: -0.1 has to be between 0 and 1"),
        ({"min_lr_ratio": 0.1, "schedule": "constant"}, "--min-lr-ratio: --schedule constant does not decay"),
        ({"decay_ratio": 0.2}, "--decay-ratio: needs --schedule wsd; add it, or leave this flag out"),
        ({"decay_ratio": 0.0, "schedule": "wsd"}, "--decay-ratio: 0.0 has to be above 0 and at most 1"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(flags, said):
    with pytest.raises(InputError) as fault:
        TrainConfig(**GIVEN, **flags)
    assert str(fault.value).startswith(said)
