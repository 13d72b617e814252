"""A YAML file written for TRL: what it comes to here, and what is said."""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch

from data.rows.examples import Example
from engine.config import ALIASES, FLAGS, TrainConfig, trl_names
from engine.config.trl import adapting, defaults, draft
from engine.model.families import FAMILIES
from engine.step.loss_inputs import LossInputs
from engine.step.objective import Objective
from system import InputError, cli

TRL = """
model_name_or_path: m
dataset_name: rows.jsonl
output_dir: out
loss_type: sigmoid
beta: 0.2
learning_rate: 5.0e-7
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
num_train_epochs: 3.0
max_length: 1024
max_prompt_length: 400
truncation_mode: keep_start
optim: adamw_torch
bf16: true
precompute_ref_log_probs: true
save_total_limit: 2
lr_scheduler_type: linear
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
max_steps: -1
warmup_steps: 5
seed: 7
"""
PLAIN = "model_name_or_path: m\ndataset_name: d.jsonl\noutput_dir: o\n"
"""The least that a file for TRL has."""
OF_DPO = dict(
    model="m", data=("d.jsonl",), out="o", loss="dpo", beta=0.1, optimizer="adamw", lr=1e-6, epochs=3, batch_size=8,
    max_tokens=1024, dtype="bfloat16", seed=42,
)  # fmt: skip
"""What TRL 1.16's DPO trainer does with it (trl/trainer/dpo_config.py, base_config.py, TrainingArguments)."""


def parse(tmp_path, text, *flags):
    (tmp_path / "trl.yaml").write_text(text)
    return cli.parse(
        TrainConfig,
        ["--config", str(tmp_path / "trl.yaml"), *flags],
        command="python -m engine.train",
        example="...",
        peer=trl_names,
        aliases=ALIASES,
    )


def flat(tmp_path, text, *flags):
    """What a file comes to but for the names of files."""
    return {name: value for name, value in parse(tmp_path, PLAIN + text, *flags).flat().items() if name != "config"}


def refused(tmp_path, text, *flags):
    with pytest.raises(InputError) as fault:
        parse(tmp_path, PLAIN + text, *flags)
    place = f"{tmp_path / 'trl.yaml'}: "
    assert str(fault.value).startswith(place)
    return str(fault.value).removeprefix(place)


def said(capsys, tmp_path):
    place = f"{tmp_path / 'trl.yaml'}: "
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(place) for line in lines)
    return [line.removeprefix(place) for line in lines]


# --- defaults ------------------------------------------------------------------------------------------------------


def test_what_a_file_leaves_out_is_what_its_trainer_has(tmp_path, capsys):
    assert parse(tmp_path, PLAIN) == TrainConfig(**OF_DPO, config=str(tmp_path / "trl.yaml"))
    first, *_, last = said(capsys, tmp_path)
    assert first == (
        "read as a file of TRL's DPO trainer, since it does not say which; --trl-trainer chooses another "
        "(kto, orpo, cpo)"
    )
    assert last == (
        "not named, so that the defaults of TRL 1.16 for dpo apply: --max-tokens 1024 --loss dpo --beta 0.1 "
        "--optimizer adamw --lr 1e-06 --schedule linear --epochs 3 --batch-size 8 --seed 42 --dtype bfloat16"
    )


def test_a_file_of_ours_keeps_our_defaults(tmp_path, capsys):
    config = parse(tmp_path, "model: m\ndata: d\nout: o\nseed: 3\nmax_steps: 5\nsave_total_limit: 2\nreference: none\n")
    expected = dict(seed=3, max_steps=5, keep_checkpoints=2, reference="none")
    assert config == TrainConfig(model="m", data=("d",), out="o", **expected, config=str(tmp_path / "trl.yaml"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "flags", "trainer", "loss"),
    [
        ("", (), "DPO trainer, since it does not say which", "dpo"),
        ("", ("--trl-trainer", "kto"), "KTO trainer, as --trl-trainer says", "kto"),
        ("trl_trainer: orpo\n", (), "ORPO trainer, as --trl-trainer says", "orpo"),
        ("", ("--trl-trainer=cpo",), "CPO trainer, as --trl-trainer says", "cpo"),
        ("undesirable_weight: 1.0\n", (), "KTO trainer, since only that one has undesirable_weight", "kto"),
        ("cpo_alpha: 0.5\n", (), "CPO trainer, since only that one has cpo_alpha", "cpo"),
        ("simpo_gamma: 0.5\n", (), "CPO trainer, since only that one has simpo_gamma", "cpo"),
        ("loss_type: kto\n", (), "KTO trainer, since only that one has loss_type kto", "kto"),
        ("loss_type: apo_zero_unpaired\n", (), "KTO trainer, since only that one", "apo_zero_unpaired"),
    ],
)
def test_names_that_only_one_trainer_has_tell_which_it_is(tmp_path, capsys, text, flags, trainer, loss):
    found = flat(tmp_path, text, *flags)
    assert said(capsys, tmp_path)[0].startswith(f"read as a file of TRL's {trainer}")
    assert found["loss"] == loss
    assert found["shuffle"] == ("KTO" not in trainer)  # whose trainer takes rows as they stand


def test_the_flag_of_the_trainer_needs_a_file_of_trl(tmp_path):
    with pytest.raises(InputError, match="--trl-trainer: the file has no settings with TRL's names; leave the flag"):
        parse(tmp_path, "model: m\ndata: d\nout: o\n", "--trl-trainer", "kto")
    assert refused(tmp_path, "ld_alpha: 0.5\n", "--trl-trainer", "kto") == (
        "ld_alpha: 0.5 belongs to TRL's DPO trainer, and this file is read as one for KTO; remove it, or give "
        "--trl-trainer dpo"
    )
    with pytest.raises(InputError, match="--trl-trainer: needs --config"):
        TrainConfig(model="m", data=("d",), out="o", trl_trainer="kto")


def test_the_table_of_defaults_is_that_of_the_installed_versions(monkeypatch):
    """Reads the dataclasses again: a name or default that a newer version has fails here."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    found = [("transformers", "TrainingArguments", defaults.TRAINING_ARGUMENTS)]
    if importlib.util.find_spec("trl"):
        found += [
            ("trl.trainer.dpo_config", "DPOConfig", defaults.DPO),
            ("trl.trainer.kto_config", "KTOConfig", defaults.KTO),
            ("trl.trainer.base_config", "_BaseConfig", defaults.BASE_CONFIG),
            ("trl.experimental.cpo.cpo_config", "CPOConfig", defaults.CPO),
            ("trl.experimental.orpo.orpo_config", "ORPOConfig", defaults.ORPO),
            ("trl.trainer.model_config", "ModelConfig", defaults.MODEL_CONFIG),
            ("trl.scripts.utils", "ScriptArguments", defaults.SCRIPT_ARGUMENTS),
            ("trl.scripts.utils", "DatasetMixtureConfig", defaults.DATASET_MIXTURE),
        ]
    for module, name, table in found:
        package = importlib.import_module(module.split(".")[0])
        known = defaults.TRL_VERSION if module.startswith("trl") else defaults.TRANSFORMERS_VERSION
        if not package.__version__.startswith(f"{known}."):
            pytest.skip(f"{package.__name__} {package.__version__}: the table is of {known}")
        try:
            kind = getattr(importlib.import_module(module), name)
        except ImportError as fault:
            pytest.skip(str(fault))
        own = set(kind.__annotations__)  # what it has of its own; the rest is its base's
        for f in dataclasses.fields(kind):
            if f.name not in own or f.name.startswith("_"):
                continue
            value = f.default if f.default is not dataclasses.MISSING else _made(f)
            assert draft.same(table[f.name][0], as_yaml(value)), (name, f.name, value)
        assert set(table) <= own, set(table) - own


def _made(f):
    return None if f.default_factory is dataclasses.MISSING else f.default_factory()


def as_yaml(value):
    """A default as a file would spell it."""
    value = getattr(value, "value", value)  # of an enumeration
    if isinstance(value, list):
        return [str(part) for part in value] or "[]"
    return "null" if value in (None, {}) else str(value)


# --- what is the same, and what is translated ----------------------------------------------------------------------


def test_a_file_for_trl_means_the_same_here(tmp_path, capsys):
    config = parse(tmp_path, TRL)
    assert config == TrainConfig(
        model="m", data=("rows.jsonl",), out="out", loss="dpo", beta=0.2, lr=5e-7, batch_size=16, epochs=3,
        max_tokens=1024, max_prompt_tokens=400, keep_prompt="start", optimizer="adamw", dtype="bfloat16",
        reference="precompute", keep_checkpoints=2, warmup_steps=5, seed=7, config=str(tmp_path / "trl.yaml"),
    )  # fmt: skip
    lines = said(capsys, tmp_path)
    for line in (
        "loss_type: sigmoid is --loss dpo here",
        "learning_rate: 5.0e-7 is --lr 5.0e-7 here",
        "per_device_train_batch_size: 2 x gradient_accumulation_steps 8 x 1 processes is --batch-size 16 here",
        "max_length: 1024 is --max-tokens 1024 here",
        "changes nothing here: gradient_checkpointing, gradient_checkpointing_kwargs, max_steps",
    ):
        assert line in lines
    assert not any(line.startswith("not named") for line in lines)  # all of weight is


@pytest.mark.parametrize(
    ("lines", "loss", "beta", "hyperparameters"),
    [
        ("loss_type: [sigmoid, sft]\nloss_weights: [0.8, 0.2]", "dpo:0.8,sft:0.2", 0.1, {}),
        ("loss_type: robust\nlabel_smoothing: 0.2", "robust_dpo", 0.1, {"robust_dpo.label_smoothing": "0.2"}),
        ("loss_type: aot", "aot", 0.1, {"aot.label_smoothing": "0"}),
        ("loss_type: aot_pair", "aot_unpaired", 0.1, {"aot_unpaired.label_smoothing": "0"}),
        ("loss_type: bco_pair", "bco_pair", 0.1, {"bco_pair.shift": "false"}),
        ("loss_type: sppo_hard", "sppo", 0.1, {}),
        (
            "loss_type: kto_pair\nper_device_train_batch_size: 4",
            "kto_pair",
            0.1,
            {"kto_pair.detach": "false", "kto_pair.anchor_size": "4"},
        ),
        ("rpo_alpha: 0.5", "dpo:1,sft:0.5", 0.1, {}),
        ("ld_alpha: 0.3", "ld_dpo", 0.1, {"ld_dpo.alpha": "0.3"}),
        ("ld_alpha: 0.3\nloss_type: sigmoid\nbeta: 0.2", "ld_dpo", 0.2, {"ld_dpo.alpha": "0.3"}),
        (
            "ld_alpha: 0.0\nloss_type: [sft, sigmoid]\nloss_weights: [0.2, 1.0]",
            "sft:0.2,ld_dpo:1.0",
            0.1,
            {"ld_dpo.alpha": "0.0"},
        ),
        ("ld_alpha: null\nloss_type: ipo", "ipo", 0.1, {}),
        ("use_weighting: true", "wpo", 0.1, {}),
        ("loss_type: [sigmoid]\nuse_weighting: True", "wpo", 0.1, {}),
        ("use_weighting: false\nloss_type: ipo\nf_divergence_type: reverse_kl", "ipo", 0.1, {}),
        ("f_divergence_type: forward_kl", "f_dpo", 0.1, {"f_dpo.divergence": "forward_kl"}),
        (
            "f_divergence_type: js_divergence\nf_alpha_divergence_coef: 0.7\nloss_type: sigmoid",
            "f_dpo",
            0.1,
            {"f_dpo.divergence": "js_divergence"},
        ),
        (
            "f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 0.7",
            "f_dpo",
            0.1,
            {"f_dpo.divergence": "alpha_divergence", "f_dpo.alpha": "0.3"},
        ),
        (
            "f_divergence_type: alpha_divergence",
            "f_dpo",
            0.1,
            {"f_dpo.divergence": "alpha_divergence", "f_dpo.alpha": "0.5"},
        ),
        ("loss_type: discopop\nbeta: 0.3\ndiscopop_tau: 0.07", "discopop", 0.3, {"discopop.tau": "0.07"}),
        ("desirable_weight: 1.5", "kto", 0.1, {"kto.desirable_weight": "1.5"}),
    ],
)
def test_a_loss_of_trl_is_ours_with_its_conventions(tmp_path, lines, loss, beta, hyperparameters):
    config = parse(tmp_path, f"model: m\ndata: d\nout: o\nlearning_rate: 1e-6\n{lines}\n")
    assert (config.objective.loss, config.objective.beta, config.objective.hyperparameters) == (
        loss,
        beta,
        hyperparameters,
    )


LOGPS = [[-3.0, -4.0], [-5.0, -2.0], [-1.0, -6.5]]
LENGTHS = [[2, 3], [4, 2], [3, 5]]


def cpo_of_trl(loss_type, beta, gamma, alpha):
    """TRL's CPOTrainer: cpo_loss, plus cpo_alpha times the mean over the tokens of all winners."""
    found = []
    for row, n in zip(LOGPS, LENGTHS, strict=True):
        z = row[0] / n[0] - row[1] / n[1] if loss_type == "simpo" else row[0] - row[1]
        if loss_type == "hinge":
            found.append(max(0.0, 1 - beta * z))
        else:
            found.append(math.log1p(math.exp(-(beta * z - (gamma if loss_type == "simpo" else 0)))))
    tokens = -sum(row[0] for row in LOGPS) / sum(n[0] for n in LENGTHS)
    return sum(found) / len(found) + alpha * tokens


@pytest.mark.parametrize("loss_type", ["sigmoid", "simpo", "hinge"])
@pytest.mark.parametrize(
    ("text", "values"), [("", (0.1, 0.5, 1.0)), ("beta: 0.3\nsimpo_gamma: 1.5\ncpo_alpha: 0.25\n", (0.3, 1.5, 0.25))]
)
def test_cpos_objectives_are_those_of_its_trainer_without_a_reference(tmp_path, loss_type, text, values):
    asked = parse(tmp_path, f"{PLAIN}loss_type: {loss_type}\n{text}", "--trl-trainer", "cpo").objective
    objective = Objective(asked.loss, asked.beta, asked.hyperparameters)
    ids = torch.arange(1, 9).numpy().astype("int32")
    rows = [Example(f"r:{i}", ids[:3], tuple(ids[:n] for n in lengths), None) for i, lengths in enumerate(LENGTHS)]
    logps = torch.tensor(LOGPS, dtype=torch.float64)
    means = tuple(sum(n) / len(n) for n in zip(*LENGTHS, strict=True))
    found = objective(LossInputs.of(rows, logps, None, mean_lengths=means)).losses.mean().item()
    assert not objective.has_reference
    assert found == pytest.approx(cpo_of_trl(loss_type, *values), abs=1e-12)


def test_cpos_ipo_is_not_here_and_not_dpos(tmp_path):
    assert "loss_type: ipo is not an objective of TRL's CPO trainer that is supported here (sigmoid, simpo," in refused(
        tmp_path, "loss_type: ipo\n", "--trl-trainer", "cpo"
    )


def test_a_reference_that_follows_is_understood(tmp_path):
    lines = "sync_ref_model: true\nref_model_mixup_alpha: 0.5\nref_model_sync_steps: 64\n"
    config = parse(tmp_path, PLAIN + lines)
    assert (config.reference.update, config.reference.update_alpha) == ("soft", 0.5)
    assert config.reference.update_steps == 64
    assert flat(tmp_path, "sync_ref_model: false\nref_model_sync_steps: 64\n")["reference_update"] == "none"


def test_our_own_flags_win(tmp_path):
    config = parse(tmp_path, f"{TRL}label_smoothing: 0.0\n", "--lr", "1e-4", "--loss", "simpo", "--no-shuffle")
    assert (config.optimizer.lr, config.objective.loss, config.data.shuffle) == (1e-4, "simpo", False)
    assert flat(tmp_path, "", "--loss", "simpo")["beta"] is None  # TRL's default is none of simpo's
    assert flat(tmp_path, "loss: simpo\n")["beta"] is None


def test_the_batch_is_that_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parse(tmp_path, TRL).schedule.batch_size == 2 * 8 * 8
    assert flat(tmp_path, "gradient_accumulation_steps: 2\n")["batch_size"] == 8 * 2 * 8
    assert flat(tmp_path, "")["batch_size"] == 8 * 8


# --- lengths -------------------------------------------------------------------------------------------------------


def limits(tmp_path, text):
    found = parse(tmp_path, PLAIN + text).data.limits
    return found.tokens, found.prompt_tokens, found.response_tokens


def test_a_length_alone_is_that_of_prompt_and_response_together(tmp_path, capsys):
    assert limits(tmp_path, "max_length: 1025\ntruncation_mode: keep_start\n") == (1025, None, None)
    assert "truncation_mode: keep_start is what --max-tokens alone does here, by which" in capsys.readouterr().err
    assert "truncation_mode: keep_end is not supported with max_length alone" in refused(
        tmp_path, "max_length: 1025\ntruncation_mode: keep_end\n"
    )


def test_a_length_beside_one_of_prompts_is_the_rule_of_trl_0_9(tmp_path):
    assert limits(tmp_path, "max_length: 1024\nmax_prompt_length: 512\n") == (1024, 512, None)
    assert limits(tmp_path, "max_prompt_length: 512\n") == (1024, 512, None)  # 1024 is the default since 0.14


@pytest.mark.parametrize("none", ["null", "~", ""])
def test_a_length_of_null_is_no_limit(tmp_path, none):
    assert limits(tmp_path, f"max_length: {none}\n") == (None, None, None)
    assert limits(tmp_path, f"max_length: {none}\nmax_prompt_length: 100\n") == (None, 100, None)
    assert limits(tmp_path, f"max_length: 100\nmax_prompt_length: {none}\n") == (100, None, None)


def test_a_length_that_leaves_no_response_is_an_error_with_both(tmp_path):
    assert refused(tmp_path, "max_length: 512\nmax_prompt_length: 512\n") == (
        "max_length: 512 and max_prompt_length: 512 leave no room for a response; raise the first, or lower the second"
    )


# --- how long, and how fast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("warmup_steps: 0.1\n", {"warmup_steps": 0, "warmup_ratio": 0.1}),
        ("warmup_steps: 10\nwarmup_ratio: 0.1\n", {"warmup_steps": 10, "warmup_ratio": 0.0}),
        ("warmup_steps: 0\nwarmup_ratio: 0.1\n", {"warmup_steps": 0, "warmup_ratio": 0.1}),
        ("warmup_steps: 3.0\n", {"warmup_steps": 3, "warmup_ratio": 0.0}),
        ("num_train_epochs: 0.5\n", {"epochs": 0.5}),
        ("num_train_epochs: 2.0\n", {"epochs": 2}),
        ("max_steps: 100\nnum_train_epochs: 1\n", {"max_steps": 100, "epochs": 100}),
        ("max_steps: -1\n", {"max_steps": None, "epochs": 3}),
        ("lr_scheduler_type: cosine\nwarmup_ratio: 0.1\n", {"schedule": "cosine", "warmup_ratio": 0.1}),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0.1\n", {"schedule": "constant", "warmup_ratio": 0.0}),
        ("lr_scheduler_type: constant_with_warmup\nwarmup_steps: 7\n", {"schedule": "constant", "warmup_steps": 7}),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr_rate: 0.1\n",
            {"schedule": "cosine", "min_lr_ratio": 0.1},
        ),
        (
            "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: '{\"min_lr\": 2e-7}'\nlearning_rate: 1e-6\n",
            {"schedule": "cosine", "min_lr_ratio": 0.2},
        ),
        (
            "lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs:\n  num_decay_steps: 7\nmax_steps: 100\n",
            {"schedule": "wsd", "max_steps": 100},
        ),
        (
            "optim: adamw_torch_fused\nadam_beta2: 0.95\nweight_decay: 0.1\nmax_grad_norm: 0.2\n",
            {"optimizer": "adamw", "adam_beta2": 0.95, "weight_decay": 0.1, "max_grad_norm": 0.2},
        ),
        ("optim: rmsprop\nadam_beta2: 0.95\n", {"optimizer": "rmsprop", "adam_beta2": 0.999}),
        ("optim: paged_adamw_32bit\n", {"optimizer": "adamw"}),
        ("data_seed: 3\nseed: 5\n", {"seed": 3}),
        ("train_sampling_strategy: sequential\n", {"shuffle": False}),
    ],
)
def test_steps_and_rates_are_those_of_trl(tmp_path, text, expected):
    found = flat(tmp_path, text)
    assert {name: found[name] for name in expected} == expected


def test_the_steps_of_the_decay_are_as_many_as_there(tmp_path):
    for n_decay, n_steps in ((7, 100), (3, 10), (29, 100), (1, 3)):
        kwargs = f"lr_scheduler_kwargs:\n  num_decay_steps: {n_decay}\n  decay_type: cosine\n"
        text = f"{PLAIN}lr_scheduler_type: warmup_stable_decay\n{kwargs}max_steps: {n_steps}\n"
        schedule = parse(tmp_path, text).schedule
        assert schedule.n_decay(n_steps) == n_decay
    assert "--decay-ratio 0.1" in refused(tmp_path, "lr_scheduler_type: warmup_stable_decay\n")


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("", "bfloat16"),
        ("bf16: true\n", "bfloat16"),
        ("bf16: false\n", "float32"),
        ("bf16: true\ntorch_dtype: float32\n", "bfloat16"),  # float32 masters, as here
        ("bf16: false\ntorch_dtype: bfloat16\n", "bfloat16"),
        ("bf16: false\ntorch_dtype: auto\n", "float32"),
        ("dtype: auto\n", "bfloat16"),
        ("dtype: float32\n", "bfloat16"),
    ],
)
def test_the_precision_is_what_computes_there(tmp_path, text, dtype):
    assert flat(tmp_path, text)["dtype"] == dtype


# --- adapters ------------------------------------------------------------------------------------------------------

LORA = "use_peft: true\nlora_r: 8\nlora_alpha: 4\nlora_target_modules: [q_proj, down_proj]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LORA, {"lora_rank": 8, "lora_alpha": 4.0, "lora_targets": ("q_proj", "down_proj")}),
        ("use_peft: true\n", {"lora_rank": 16, "lora_alpha": 32.0, "lora_targets": ("q_proj", "v_proj")}),
        ("use_peft: true\nlora_target_modules: all-linear\n", {"lora_targets": ("all-linear",)}),
        (LORA + "use_rslora: true\nlora_task_type: CAUSAL_LM\n", {"lora_rslora": True}),
        (LORA + "lora_modules_to_save: [lm_head]\n", {"train_also": ("lm_head",)}),
        (LORA + "load_in_4bit: true\nbnb_4bit_quant_type: nf4\nuse_bnb_nested_quant: true\n", {"base_dtype": "nf4"}),
        (LORA + "load_in_4bit: true\nbnb_4bit_compute_dtype: bfloat16\n", {"base_dtype": "nf4", "dtype": "bfloat16"}),
        (LORA + "load_in_8bit: true\nbnb_4bit_quant_type: fp4\n", {"base_dtype": "int8"}),
        (LORA + "lora_dropout: 0.1\n", {"lora_rank": 8}),
        (LORA + "lora_dropout: 0\ndisable_dropout: false\n", {"lora_rank": 8}),
        (LORA, {"lr": 1e-6}),  # TRL's default, with adapters too
        ("lora_rank: 4\nlora_alpha: 2\n", {"lora_rank": 4, "lora_alpha": 2.0, "lora_targets": ()}),  # ours
        ("use_peft: false\nlora_alpha: 4\nlora_dropout: 1\nuse_dora: true\n", {"lora_rank": None, "lora_alpha": None}),
    ],
)  # fmt: skip
def test_an_adapter_of_trl_is_ours(tmp_path, text, expected):
    found = flat(tmp_path, text)
    assert {name: found[name] for name in expected} == expected


def test_what_is_said_of_an_adapter(tmp_path, capsys):
    flat(tmp_path, "use_peft: true\nlora_dropout: 0.1\nload_in_8bit: true\nlora_alpha: 8\n")
    lines = said(capsys, tmp_path)
    assert "lora_dropout: 0.1: left out, disable_dropout is true there by default, and sets it to 0" in lines
    assert (
        "lora_target_modules: not named, PEFT's default for Llama, Mistral, Qwen and Gemma holds: --lora-targets "
        "q_proj v_proj"
    ) in lines
    assert "load_in_8bit: true is --base-dtype int8 here" in lines
    assert any(line.startswith("load_in_8bit: is int8 by row here, for weights only, where") for line in lines)
    assert lines[-1].endswith("--dtype bfloat16 --lora-rank 16")
    flat(tmp_path, "use_peft: true\nload_in_4bit: true\nuse_bnb_nested_quant: true\n")
    lines = said(capsys, tmp_path)
    assert "load_in_4bit: true is --base-dtype nf4 here" in lines
    assert (
        "use_bnb_nested_quant: true: left out, it only saves memory: a scale for 64 numbers is a bfloat16 here" in lines
    )


def test_flags_of_an_adapter_win_over_the_file(tmp_path, capsys):
    found = flat(tmp_path, LORA, "--lora-rank", "2", "--lora-targets", "up_proj")
    assert (found["lora_rank"], found["lora_alpha"], found["lora_targets"]) == (2, 4.0, ("up_proj",))
    found = flat(tmp_path, LORA, "--adapter", "some/where")
    assert (found["adapter"], found["lora_rank"], found["lora_targets"]) == ("some/where", None, ())
    assert "lora_r: 8: left out, --adapter's own holds" in said(capsys, tmp_path)


@pytest.mark.parametrize(("kind", "has_default"), [("qwen3", True), ("gemma3_text", True), ("smollm3", False)])
def test_unnamed_targets_are_pefts_default_for_the_family(tmp_path, capsys, kind, has_default):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(f'{{"model_type": "{kind}"}}')
    text = f"use_peft: true\nmodel_name_or_path: {tmp_path}/model\ndataset_name: d\noutput_dir: o\n"
    if has_default:
        assert parse(tmp_path, text).adapters.targets == ("q_proj", "v_proj")
        assert f"PEFT's default for {kind} holds" in capsys.readouterr().err
    else:
        with pytest.raises(
            InputError, match=f"lora_target_modules: PEFT has no default for {kind}; name it, as lora_t"
        ):
            parse(tmp_path, text)
        assert parse(tmp_path, text, "--lora-targets", "q_proj").adapters.targets == ("q_proj",)


def test_the_families_with_a_default_are_pefts():
    constants = pytest.importorskip("peft.utils.constants")
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    here = {family.model_type for family in FAMILIES}
    assert {name for name in here if name in theirs} == set(adapting.WITH_DEFAULT)
    assert all(theirs[name] == adapting.TARGETS for name in adapting.WITH_DEFAULT)


# --- rows ----------------------------------------------------------------------------------------------------------

MIXTURE = """
dataset_mixture:
  datasets:
    - id: org/one
      config: Preference
      split: a_split
      columns:
        - chosen
        - rejected
      weight: 0.5
    - id: org/two
      config: default
      weight: 0.25
  test_split_size: 20
  seed: 0
"""


def test_a_mixture_is_data_with_weights_splits_and_rows_held_out(tmp_path, capsys):
    text = "model_name_or_path: m\noutput_dir: o\n" + MIXTURE
    config = parse(tmp_path, text)
    assert config.data.sources == ("org/one:Preference/a_split", "org/two")
    assert config.data.weights == (0.5, 0.25) and config.measuring.eval_pairs == 20
    lines = said(capsys, tmp_path)
    assert "dataset_mixture: 2 data sets is --data org/one:Preference/a_split org/two here" in lines
    assert "dataset_mixture: weights 0.5, 0.25 is --data-weights 0.5 0.25 here" in lines
    assert "dataset_mixture: seed 0 is left out, rows are drawn by --seed here" in lines


def test_other_mixtures_are_read_too(tmp_path):
    text = "model_name_or_path: m\noutput_dir: o\ndatasets:\n- path: org/one\n- {path: org/two, split: test}\n"
    assert parse(tmp_path, text).data.sources == ("org/one", "org/two:test")
    text = "model_name_or_path: m\noutput_dir: o\ndataset_mixer:\n  org/one: 1.0\ndataset_splits: [train_a, test_a]\n"
    config = parse(tmp_path, text + "eval_strategy: epoch\n")
    assert (config.data.sources, config.measuring.eval_data) == (("org/one:train_a",), "org/one:test_a")
    assert "dataset_mixture: a data set without id" in refused(
        tmp_path, "dataset_mixture:\n  datasets:\n  - split: a\n"
    )
    assert "datasets: fraction is not supported here" in refused(tmp_path, "datasets:\n- {path: a/b, fraction: 0.5}\n")


def test_a_revision_goes_with_a_hub_id_alone(tmp_path, capsys):
    text = "dataset_name: d\noutput_dir: o\nmodel_revision: it-SFT\n"
    assert parse(tmp_path, f"{text}model_name_or_path: org/model\n").model == "org/model@it-SFT"
    (tmp_path / "folder").mkdir()
    assert parse(tmp_path, f"{text}model_name_or_path: {tmp_path}/folder\n").model == f"{tmp_path}/folder"
    assert f"model_revision: it-SFT: left out, {tmp_path}/folder is a folder" in said(capsys, tmp_path)


def test_measuring_needs_rows_that_are_held_out(tmp_path):
    asked = "eval_strategy: epoch\n"
    mend = "name rows by --eval-data d.jsonl:test, or --eval-pairs N"
    assert refused(tmp_path, asked) == f"eval_strategy: epoch asks for measurements, and nothing is held out: {mend}"
    assert "evaluation_strategy: epoch asks for" in refused(tmp_path, "evaluation_strategy: epoch\n")
    assert flat(tmp_path, asked, "--eval-pairs", "5")["eval_pairs"] == 5
    assert flat(tmp_path, "dataset_test_split: t\n" + asked)["eval_data"] == "d.jsonl:t"
    assert flat(tmp_path, "eval_strategy: 'no'\n")["eval_data"] is None


# --- what changes nothing, and what has to change ------------------------------------------------------------------

NOTHING = """
disable_dropout: true
do_train: true
do_eval: true
adam_beta1: 0.9
adam_beta2: 0.999
adam_epsilon: 1.0e-8
weight_decay: 0.0
model_revision: main
save_only_model: true
save_safetensors: true
logging_dir: logs
logging_steps: 5
logging_first_step: true
log_level: info
run_name: mine
use_peft: false
lora_r: 32
lora_target_modules: [q_proj]
load_in_4bit: false
dataloader_num_workers: 4
dataloader_drop_last: false
dataloader_pin_memory: true
ddp_timeout: 5400
deepspeed: zero3.json
fsdp: ''
torch_compile: true
use_liger_kernel: true
padding_free: true
pad_token: <pad>
padding_value: 0
label_pad_token_id: -100
generate_during_eval: false
is_encoder_decoder: false
precompute_ref_batch_size: 4
reference_free: false
force_use_ref_model: false
f_divergence_type: reverse_kl
rpo_alpha: null
label_smoothing: 0
group_by_length: false
neftune_noise_alpha: null
fp16: false
fp16_opt_level: O1
half_precision_backend: auto
use_mps_device: false
no_cuda: false
hub_model_id: mine
hub_strategy: every_save
hub_private_repo: true
push_to_hub: false
overwrite_output_dir: true
resume_from_checkpoint: null
remove_unused_columns: false
dataset_num_proc: 12
ignore_bias_buffers: false
gradient_checkpointing_use_reentrant: false
max_target_length: 128
optim_target_modules: null
average_tokens_across_devices: true
include_num_input_tokens_seen: 'no'
router_aux_loss_coef: 0.001
"""


def test_what_changes_nothing_is_named_in_one_line_and_changes_nothing(tmp_path, capsys):
    names = re.findall(r"^(\w+):", NOTHING, flags=re.MULTILINE)
    assert len(names) > 55
    assert flat(tmp_path, NOTHING) == flat(tmp_path, "")
    lines = [line for line in said(capsys, tmp_path) if line.startswith("changes nothing here: ")]
    assert len(lines) == 1
    assert set(lines[0].removeprefix("changes nothing here: ").split(", ")) == set(names)


def test_every_setting_of_trl_at_its_default_changes_nothing(tmp_path, capsys):
    """Whole tables, as a file that TRL writes down has them, but for what has to be named."""
    whole = defaults.TRAINING_ARGUMENTS | defaults.BASE_CONFIG | defaults.MODEL_CONFIG | defaults.DPO
    left_out = ("output_dir", "model_name_or_path", "bf16", "report_to", "save_strategy", "save_steps")
    lines = [f"{name}: {values[0] or chr(39) * 2}\n" for name, values in whole.items() if name not in left_out]
    assert len(lines) > 140
    assert flat(tmp_path, "".join(lines)) == flat(tmp_path, "")


@pytest.mark.parametrize("version", range(3))
def test_defaults_of_versions_before_change_nothing_either(tmp_path, version):
    translated = {"max_length", "max_prompt_length", "gradient_checkpointing", "bf16", "learning_rate", "optim",
                  "truncation_mode", "ref_model_mixup_alpha", "dataset_name", "output_dir", "report_to"}  # fmt: skip
    tables = defaults.TRAINING_ARGUMENTS | defaults.DPO | defaults.FORMER
    old = {n: v[version] for n, v in tables.items() if len(v) > version and n not in translated}
    left_out = {"save_strategy", "save_steps", "output_dir"}
    lines = [f"{name}: {value or chr(39) * 2}\n" for name, value in old.items() if name not in left_out]
    assert flat(tmp_path, "".join(lines)) == flat(tmp_path, "")


def test_what_is_not_done_is_said(tmp_path, capsys):
    assert flat(tmp_path, "push_to_hub: true\ntrust_remote_code: true\n") == flat(tmp_path, "")
    lines = said(capsys, tmp_path)
    assert "trust_remote_code: true: left out, no code of a model folder is ever run here" in lines
    assert (
        "push_to_hub: true: left out, nothing is uploaded here; python -m engine.publish RUN/EPOCH --repo ORG/NAME does"
    ) in lines


def test_all_that_has_to_change_is_said_at_once(tmp_path):
    head, *lines = refused(
        tmp_path,
        "use_peft: true\nuse_dora: true\nlr_scheduler_type: inverse_sqrt\noptim: adamw_bnb_8bit\nfp16: true\n"
        "eval_strategy: steps\nlearning_rat: 1\nloss_type: sigmoid\nlabel_smoothing: 0.1\nwarmup_steps: many\n",
    ).split("\n")
    assert head == "8 things have to change"
    expected = {
        "use_dora: true is not supported: PEFT leaves the norm out of DoRA's gradient",
        "lr_scheduler_type: inverse_sqrt is not supported here; use one of linear, cosine",
        "optim: adamw_bnb_8bit is not supported here; use one of rmsprop, adamw",
        "fp16: true is not supported: --dtype is bfloat16 or float32 here",
        "eval_strategy: steps asks for measurements, and nothing is held out: name rows by --eval-data",
        "there is no setting 'learning_rat'; perhaps 'learning_rate'",
        "label_smoothing: 0.1 turned loss_type: sigmoid into conservative DPO before TRL 0.29",
        "warmup_steps: many is not a number",
    }
    assert len(lines) == 8 and all(line.startswith("  ") for line in lines)
    assert all(any(line.strip().startswith(start) for line in lines) for start in expected), lines


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("learning_rate: 1e-6\nlr: 1e-5", "learning_rate and lr: two names of one setting, with two values; keep one"),
        ("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", "loss_weights: 1.0 are 1 for 2 in loss_type"),
        ("loss_type: sigmoid\nlabel_smoothing: 0.1", "by loss: cdpo and cdpo.label_smoothing: 0.1 (--loss cdpo)"),
        ("loss_type: ipo\nlabel_smoothing: 0.1", "label_smoothing: 0.1 is not supported: labels of ipo are taken as"),
        ("loss_type: exo_pair", "loss_type: exo_pair needs a label_smoothing above 0; the paper has 0.001"),
        ("loss_type: dpo", "loss_type: dpo is not an objective of TRL's DPO trainer that is supported here (sigmoid,"),
        (
            "use_weighting: true\nloss_type: ipo",
            "use_weighting: true needs loss_type: sigmoid alone here, as --loss wpo; remove it, or use that",
        ),
        ("use_weighting: true\nloss_type: [sigmoid, sft]", "use_weighting: true needs loss_type: sigmoid alone"),
        (
            "ld_alpha: 0.5\nloss_type: apo_zero",
            "ld_alpha: 0.5 needs loss_type: sigmoid alone here, as --loss ld_dpo",
        ),
        ("ld_alpha: 0.5\nloss_type: [sft]", "ld_alpha: 0.5 needs loss_type: sigmoid alone"),
        (
            "f_divergence_type: forward_kl\nloss_type: [sigmoid, hinge]",
            "f_divergence_type: forward_kl needs loss_type",
        ),
        (
            "ld_alpha: 0.5\nuse_weighting: true",
            "ld_alpha and use_weighting: each is an objective of its own here; keep one",
        ),
        ("ld_alpha: 0.5\nloss: dpo", "ld_alpha and loss: two names of one setting, with two values; keep one"),
        ("f_divergence_type: chi2", "f_divergence_type: chi2 is not supported here; use one of reverse_kl, forward_kl"),
        ("f_alpha_divergence_coef: half", "f_alpha_divergence_coef: half is not a number"),
        ("use_weighting: maybe", "use_weighting: maybe is not true or false"),
        ("max_length: long", "max_length: long is not a number"),
        ("max_length: 10.5", "max_length: 10.5 has to be a whole number above 0"),
        ("per_device_train_batch_size: two", "per_device_train_batch_size: two is not a whole number"),
        ("per_device_train_batch_size: [1, 2]", "per_device_train_batch_size: 1, 2 is not a whole number"),
        ("num_train_epochs: 0", "num_train_epochs: 0 has to be above 0"),
        ("torch_dtype: float16", "torch_dtype: float16 is not supported: --dtype is bfloat16 or float32 here"),
        ('chat_template: "{% for m in messages %}"', "chat_template: a template is read from a file here"),
        (
            "resume_from_checkpoint: true",
            "resume_from_checkpoint: true is not supported: a run is resumed in its own folder",
        ),
        ("learning_rat: 1", "there is no setting 'learning_rat'"),
        (
            LORA + "use_dora: true",
            "use_dora: true is not supported: PEFT leaves the norm out of DoRA's gradient, so that",
        ),
        (
            LORA + "disable_dropout: false",
            "disable_dropout: false trains with TRL's lora_dropout of 0.05, which is not",
        ),
        (
            LORA + "disable_dropout: false\nlora_dropout: 0.1",
            "lora_dropout: 0.1 is not supported: what it drops would depend on how rows are packed, on the ranks and",
        ),
        (
            LORA + "lora_modules_to_save: [score]",
            "lora_modules_to_save: score names score, and lm_head and embed_tokens",
        ),
        (LORA + "lora_task_type: SEQ_CLS", "lora_task_type: SEQ_CLS is not supported: models here predict tokens"),
        (
            LORA + "lora_target_parameters: [a.b]",
            "lora_target_parameters: a.b is not supported: adapters are of linear",
        ),
        (LORA + "load_in_4bit: true\nbnb_4bit_quant_type: fp4", "bnb_4bit_quant_type: fp4 is not supported; use nf4"),
        (LORA + "load_in_4bit: true\nload_in_8bit: true", "load_in_4bit and load_in_8bit: are both true; keep one"),
        (
            LORA + "load_in_4bit: true\nbnb_4bit_compute_dtype: float16",
            "bnb_4bit_compute_dtype: float16 is not --dtype bfloat16, in which everything is computed here; set both",
        ),
        (
            "load_in_4bit: true",
            "load_in_4bit: true needs an adapter, in TRL and here, since all weights are trained without one; add",
        ),
        (LORA + "lora_rank: 4", "lora_r and lora_rank: two names of one setting, with two values; keep one"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, line, said):
    found = refused(tmp_path, line + "\n")
    assert said in found and "\n" not in found


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--learning_rate=1", "--learning_rate is --lr here"),
        ("--loss_type", "--loss_type is --loss here"),
        ("--max_length", "--max_length is --max-tokens here"),
        ("--ld_alpha=0.5", "--ld_alpha is --ld_dpo.alpha, of --loss ld_dpo here"),
        ("--use_weighting", "--use_weighting is --loss wpo here"),
        ("--lr_scheduler_type", "--lr_scheduler_type is --schedule here"),
        ("--report_to", "--report_to is --track here"),
        ("--eval_strategy", "--eval_strategy is --eval-data or --eval-pairs here"),
        (
            "--gradient_checkpointing",
            "--gradient_checkpointing changes nothing here: memory is bounded by --micro-tokens",
        ),
        (
            "--use_peft",
            "--use_peft is --lora-rank 16, of every layer where --lora-targets are unset, here",
        ),
        ("--lora-r", "--lora_r is --lora-rank here"),
        (
            "--lora-dropout",
            "--lora_dropout is not supported: what it drops would depend on how rows are packed",
        ),
        ("--use-dora", "--use_dora is not supported: PEFT leaves the norm out of DoRA's gradient"),
        ("--load-in-4bit", "--load_in_4bit is --base-dtype nf4 here"),
        ("--load_in_8bit", "--load_in_8bit is --base-dtype int8 here"),
        ("--dataset_mixture", "--dataset_mixture is --data with --data-weights here"),
    ],
)
def test_a_flag_of_trl_is_answered_with_ours(tmp_path, flag, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse(tmp_path, "model: m\ndata: d\nout: o\n", flag, "dpo")


def test_every_name_of_trl_is_answered():
    ours = {f.name for f in dataclasses.fields(TrainConfig)}
    assert not [name for name in draft.NAMES if trl_names.counterpart(name) is None and name not in ours]
    assert trl_names.counterpart("learning_rat") is None


def test_the_page_names_settings_that_trl_has_and_flags_that_are_here():
    page = (Path(__file__).parents[2] / "docs/trl.md").read_text(encoding="utf-8")
    table = page.split("| in the file | here |", 1)[1].split("\n\n", 1)[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if " | " in line]
    assert len(cells) > 30
    named = {name for first, *_ in cells for name in re.findall(r"`(\w+)[`:]", first)} - {"kto", "simpo", "false"}
    values = {"reduce_lr_on_plateau", "ipo"}
    assert len(named) > 80 and not {n for n in named - values if n not in draft.NAMES and n not in FLAGS}
    flags = {flag for _, *rest in cells for flag in re.findall(r"--([a-z-]+)(?![\w.])", " ".join(rest))}
    known = {*FLAGS, "no_shuffle"}
    assert len(flags) > 25 and not {flag for flag in flags if flag.replace("-", "_") not in known}
