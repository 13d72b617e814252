"""A YAML file written for TRL: what it comes to here, and what is said."""

import pytest

from data import InputError, cli
from engine import trl_names
from engine.config import TrainConfig

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


def parse(tmp_path, text, *flags):
    (tmp_path / "trl.yaml").write_text(text)
    return cli.parse(
        TrainConfig,
        ["--config", str(tmp_path / "trl.yaml"), *flags],
        command="python -m engine.train",
        example="...",
        peer=trl_names,
    )


def test_a_file_for_trl_means_the_same_here(tmp_path, capsys):
    config = parse(tmp_path, TRL)
    assert config == TrainConfig(
        model="m", data=("rows.jsonl",), out="out", loss="dpo", beta=0.2, lr=5e-7, batch_size=16, epochs=3,
        max_prompt_tokens=400, max_response_tokens=624, keep_prompt="start", optimizer="adamw", dtype="bfloat16",
        reference="precompute", keep=2, warmup_steps=5, seed=7, config=str(tmp_path / "trl.yaml"),
    )  # fmt: skip
    said = capsys.readouterr().err
    place = f"{tmp_path / 'trl.yaml'}: "
    for line in (
        "loss_type: sigmoid is --loss dpo here",
        "learning_rate: 5.0e-7 is --lr 5.0e-7 here",
        "per_device_train_batch_size: 2 x gradient_accumulation_steps 8 x 1 processes is --batch-size 16 here",
        "max_length: 1024 is --max-response-tokens 624 here",
        "gradient_checkpointing: left out, memory is bounded by --micro-tokens here",
    ):
        assert place + line + "\n" in said


def test_our_own_flags_win(tmp_path):
    assert parse(tmp_path, TRL, "--lr", "1e-4", "--loss", "apo_zero").lr == 1e-4


def test_the_batch_is_that_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parse(tmp_path, TRL).batch_size == 2 * 8 * 8
    assert parse(tmp_path, "gradient_accumulation_steps: 2\nmodel: m\ndata: d\nout: o\n").batch_size == 8 * 2 * 8


def test_a_length_alone_is_shared_by_prompt_and_response(tmp_path):
    config = parse(tmp_path, "max_length: 1025\nmodel: m\ndata: d\nout: o\n")
    assert (config.max_prompt_tokens, config.max_response_tokens) == (512, 513)


def test_weights_of_kto_go_to_its_own_hyperparameter(tmp_path):
    config = parse(tmp_path, "loss_type: kto\ndesirable_weight: 1.5\nmodel: m\ndata: d\nout: o\n")
    assert config.hyperparameters == {"kto.desirable_weight": "1.5"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("use_peft: true", "use_peft: true is not to be had, all parameters are trained here; take it out"),
        ("lr_scheduler_type: cosine", "lr_scheduler_type: cosine is not to be had, the rate falls linearly here"),
        ("fp16: true", "fp16: true is not to be had"),
        ("optim: paged_adamw_8bit", "optim: paged_adamw_8bit is not to be had here; one of rmsprop, adamw_torch"),
        ("learning_rate: 1e-6\nlr: 1e-6", "learning_rate and lr: two names of one setting; keep one"),
        ("loss_type: [sigmoid, sft]", "loss_type: sigmoid, sft are several; give one"),
        ("max_length: none", "max_length: none is not a number; give max_prompt_tokens and max_response_tokens"),
        ("per_device_train_batch_size: two", "have to be whole numbers"),
        ("learning_rat: 1", "there is no setting 'learning_rat'"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, line, said):
    with pytest.raises(InputError) as fault:
        parse(tmp_path, f"model: m\ndata: d\nout: o\n{line}\n")
    assert said in str(fault.value) and str(fault.value).startswith(str(tmp_path / "trl.yaml"))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--learning_rate=1", "--learning_rate is --lr here"), ("--loss_type", "--loss_type is nothing of that name")],
)
def test_a_flag_of_trl_is_answered_with_ours(tmp_path, flag, said):
    with pytest.raises(InputError, match=said):
        parse(tmp_path, "model: m\ndata: d\nout: o\n", flag, "dpo")
