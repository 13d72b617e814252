"""A configuration by subject and flat: both constructors, other names of settings, and what cannot be."""

import dataclasses
import math

import pytest

from data.forest import PackingOptions
from engine.config import (
    ALIASES,
    FLAGS,
    CheckpointConfig,
    DataConfig,
    MeasuringConfig,
    MemoryConfig,
    OptimizerConfig,
    ReferenceConfig,
    ScheduleConfig,
    TrainConfig,
    world_size,
)
from engine.config.train_config import SUBJECTS
from system import InputError
from system.flags import flag_of

GIVEN = {"model": "m", "data": "d.jsonl", "out": "o"}


def made(**flags):
    return TrainConfig(**(GIVEN | flags))


def refused(call, *arguments, **named):
    with pytest.raises(InputError) as fault:
        call(*arguments, **named)
    return str(fault.value)


# --- two constructors ----------------------------------------------------------------------------------------------


def test_flat_and_by_subject_are_the_same_configuration():
    flat = made(lr=1e-6, optimizer="adamw", batch_size=8, reference="precompute", reference_cache="c", seed=3)
    nested = TrainConfig(
        model="m",
        out="o",
        data=DataConfig(sources=("d.jsonl",), seed=3),
        optimizer=OptimizerConfig(lr=1e-6, name="adamw"),
        schedule=ScheduleConfig(batch_size=8),
        reference=ReferenceConfig(mode="precompute", cache="c"),
    )
    assert flat == nested and flat.optimizer.name == "adamw" and flat.reference.mode == "precompute"
    assert flat.data.sources == ("d.jsonl",)


def test_a_flag_wins_over_its_subject_and_leaves_the_others_of_it():
    optimizer = OptimizerConfig(lr=1e-6, max_grad_norm=0.5)
    both = made(optimizer=optimizer, lr=1e-5)
    assert both.optimizer == OptimizerConfig(lr=1e-5, max_grad_norm=0.5) and optimizer.lr == 1e-6


def test_every_setting_but_model_and_out_stands_in_one_subject():
    by_hand = {(subject, f.name): f for subject, kind in SUBJECTS.items() for f in dataclasses.fields(kind) if f.init}
    assert {(flag.subject, flag.name) for flag in FLAGS.values() if flag.subject} == set(by_hand)
    assert [name for name, flag in FLAGS.items() if not flag.subject] == ["model", "out", "config", "trl_trainer"]
    named = {"sources": "data", "name": "optimizer", "mode": "reference", "update_alpha": "reference_update_alpha"}
    for name, flag in named.items():
        assert next(f for f, at in FLAGS.items() if at.name == name and at.subject) == flag
    assert (
        flag_of(ScheduleConfig, "batch_size") == "batch-size" and flag_of(ReferenceConfig, "cache") == "reference-cache"
    )


def test_what_is_flat_makes_the_same_again():
    config = made(lr=1e-6, disable=("packing",), reference_update="soft", data_weights=(2.0,), keep_checkpoints=3)
    flat = config.flat()
    assert set(flat) == set(FLAGS) and TrainConfig(**flat) == config
    assert flat["data"] == ("d.jsonl",) and flat["lr"] == 1e-6 and flat["reference"] == "auto"


def test_with_flags_changes_what_is_named_and_nothing_else():
    config = made(lr=1e-6, batch_size=8)
    other = config.with_flags(lr=1e-5, out="p")
    assert other.flat() == config.flat() | {"lr": 1e-5, "out": "p"} and config.optimizer.lr == 1e-6
    assert "lr" in refused(config.with_flags, lr=-1.0)


def test_a_configuration_is_not_changed_in_place():
    config = made()
    for held, name in ((config, "out"), (config.optimizer, "lr")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(held, name, 1)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("former", "now", "value", "becomes"),
    [
        ("without", "disable", ("packing",), ("packing",)),
        ("keep", "keep_checkpoints", 2, 2),
        ("master", "master_weights", "whole", "float32"),
        ("master", "master_weights", "split", "split"),
    ],
)
def test_a_former_name_is_understood_and_said_to_be_one(capsys, former, now, value, becomes):
    config = made(**{former: value})
    assert config.flat()[now] == becomes
    said = capsys.readouterr().err
    assert said == f"--{former} is called --{now.replace('_', '-')} now; the old name will be removed in release 0.3\n"


def test_the_fields_name_stays_and_is_said_of_nothing(capsys):
    assert made(save_total_limit=2).checkpoints.keep_checkpoints == 2
    assert not capsys.readouterr().err


def test_two_names_of_one_setting_are_refused_but_where_they_say_the_same():
    said = "--keep-checkpoints: two names of one setting; keep one"
    assert said in refused(made, keep_checkpoints=1, save_total_limit=2)
    assert said in refused(made, keep=3, save_total_limit=2)
    assert made(keep_checkpoints=2, save_total_limit=2).checkpoints.keep_checkpoints == 2


def test_typed_flags_have_the_same_names(capsys):
    typed = ["--lr", "1", "--keep=2", "--master", "whole", "--data", "keep", "whole", "--save_total_limit", "3"]
    assert "two names of one setting" in refused(ALIASES.typed, [*typed[:3], "--keep-checkpoints", "2"])
    assert ALIASES.typed(typed[:8]) == [
        "--lr", "1", "--keep-checkpoints=2", "--master-weights", "float32", "--data", "keep", "whole"
    ]  # fmt: skip
    assert ALIASES.typed(["--master=whole"]) == ["--master-weights=float32"]
    assert ALIASES.typed(typed[8:]) == ["--keep-checkpoints", "3"]
    assert capsys.readouterr().err.count("is called") == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch_sise", "TrainConfig: there is no setting 'batch_sise'; perhaps 'batch_size'"),
        ("qqqq", "TrainConfig: there is no setting 'qqqq'"),
        ("optimiser", "TrainConfig: there is no setting 'optimiser'; perhaps 'optimizer'"),
    ],
)
def test_a_name_that_is_not_there_names_the_nearest(name, said):
    assert refused(made, **{name: 1}) == said


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("model", "--model: has to be given"),
        ("out", "--out: has to be given"),
        ("data", "--data: has to be given; name the rows to train on"),
    ],
)
def test_what_has_to_be_given_is_named(missing, said):
    assert refused(TrainConfig, **{name: x for name, x in GIVEN.items() if name != missing}) == said


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lr": 0.0}, "--lr: 0.0 has to be above 0 and below 10"),
        ({"lr": math.nan}, "--lr: nan has to be above 0 and below 10"),
        ({"max_grad_norm": -1.0}, "--max-grad-norm: -1.0 has to be at least 0"),
        ({"beta": 0.0}, "--beta: 0.0 has to be above 0"),
        ({"batch_size": 0}, "--batch-size: 0 has to be above 0"),
        ({"warmup_steps": -1}, "--warmup-steps: -1 has to be at least 0"),
        ({"seed": -1}, "--seed: -1 has to be at least 0"),
        ({"data_weights": (1.0, 2.0)}, "--data-weights: 2 numbers for 1 sources; give one for each of --data"),
        ({"data_weights": (0.0,)}, "--data-weights: 0.0 has to be above 0 and at most 100"),
        ({"reference_update_steps": 3}, "--reference-update-steps: needs --reference-update"),
        ({"reference_update": "hard", "reference_update_alpha": 0.5}, "--reference-update-alpha: needs"),
        ({"reference_update": "soft", "reference_update_alpha": 1.5}, "--reference-update-alpha: 1.5 has to be"),
        ({"square_avg": "bfloat16"}, "--square-avg bfloat16: needs --master-weights split"),
        ({"master_weights": "split", "dtype": "float32"}, "--master-weights split: computes in"),
        (
            {"master_weights": "split", "optimizer": "muon"},
            "--optimizer muon: cannot be combined with --master-weights split",
        ),
        ({"weight_decay": 0.1}, "--weight-decay: needs --optimizer adamw or muon; add one of them, or leave it out"),
        ({"adam_beta2": 0.95}, "--adam-beta2: needs --optimizer adamw or muon"),
        ({"optimizer": "adamw", "adam_beta1": 1.0}, "--adam-beta1: 1.0 has to be at least 0 and below 1"),
        ({"optimizer": "adamw", "adam_epsilon": 0.0}, "--adam-epsilon: 0.0 has to be above 0"),
        ({"optimizer": "muon", "weight_decay": -0.1}, "--weight-decay: -0.1 has to be at least 0"),
        (
            {"master_weights": "split", "shard_size": 1},
            "--shard-size 1: cannot be combined with --master-weights split",
        ),
        ({"gpu_memory": 0.0}, "--gpu-memory: 0.0 has to be above 0"),
        ({"save_rounding": "stochastic", "save_dtype": "float32"}, "--save-rounding stochastic: rounds to bfloat16"),
        ({"hang_timeout": 0.5}, "--hang-timeout: 0.5 has to be between 1 second and a day"),
        ({"eval_data": "e", "eval_pairs": 3}, "--eval-data and --eval-pairs: give one of the two"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(flags, said):
    assert refused(made, **flags).startswith(said)


def test_split_masters_are_for_one_process(monkeypatch):
    assert world_size() == 1 and made(master_weights="split").can_split
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "works with one process only" in refused(made, master_weights="split")


@pytest.mark.parametrize(
    ("flags", "can"),
    [({}, True), ({"dtype": "bfloat16"}, True), ({"dtype": "float32"}, False), ({"optimizer": "muon"}, False)],
)
def test_what_was_asked_for_decides_whether_masters_can_be_split(flags, can):
    assert made(**flags).can_split is can


def test_what_is_disabled_is_put_back_into_forests_and_nothing_else_is():
    assert MeasuringConfig().packing(()) == PackingOptions(shares_prompts=True, pads=False, predicts_all=False)
    for technique, field, value in (
        ("prompt-sharing", "shares_prompts", False), ("packing", "pads", True), ("response-rows", "predicts_all", True)
    ):  # fmt: skip
        changed = dataclasses.replace(PackingOptions(), **{field: value})
        assert MeasuringConfig(disable=(technique,)).packing(()) == changed


@pytest.mark.parametrize(("asked", "on"), [("auto", (True, False)), ("yes", (True, True)), ("no", (False, False))])
def test_blocks_are_compiled_where_it_was_asked_for_or_gains(asked, on):
    assert tuple(MemoryConfig(compile=asked).compiles(device) for device in ("cuda", "cpu")) == on


def test_a_run_that_torchrun_starts_anew_resumes(monkeypatch):
    assert CheckpointConfig(resume=True).resumes and not CheckpointConfig().resumes
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not CheckpointConfig().resumes  # left over: no launcher has started this process
    monkeypatch.setenv("RANK", "0")
    assert CheckpointConfig().resumes


def test_resolved_settings_name_the_limits_that_hold_and_are_read_back_as_they_are(tmp_path):
    def again(config):
        held = {name: value for name, value in config.resolved().items() if value is not None}
        return TrainConfig(**held)

    plain = TrainConfig(model="m", data="d", out="o")
    names = ("max_prompt_tokens", "max_response_tokens", "max_tokens")
    assert [plain.resolved()[name] for name in names] == [512, 512, None]
    assert [plain.flat()[name] for name in names] == [None] * 3
    for flags in ({}, {"max_tokens": 1024}, {"max_tokens": 1024, "max_prompt_tokens": 512}):
        asked = plain.with_flags(**flags)
        assert again(asked).data.limits == asked.data.limits
