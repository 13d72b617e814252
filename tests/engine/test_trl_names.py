"""A YAML file written for TRL: what it comes to here, and what is said."""

import pytest

from engine.config import TrainConfig, trl_names
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
        max_tokens=1024, max_prompt_tokens=400, keep_prompt="start", optimizer="adamw", dtype="bfloat16",
        reference="precompute", keep_checkpoints=2, warmup_steps=5, seed=7, config=str(tmp_path / "trl.yaml"),
    )  # fmt: skip
    said = capsys.readouterr().err
    place = f"{tmp_path / 'trl.yaml'}: "
    for line in (
        "loss_type: sigmoid is --loss dpo here",
        "learning_rate: 5.0e-7 is --lr 5.0e-7 here",
        "per_device_train_batch_size: 2 x gradient_accumulation_steps 8 x 1 processes is --batch-size 16 here",
        "max_length: 1024 is --max-tokens 1024 here",
        "gradient_checkpointing: left out, memory is bounded by --micro-tokens here",
    ):
        assert place + line + "\n" in said


@pytest.mark.parametrize(
    ("lines", "loss", "beta", "hyperparameters"),
    [
        ("loss_type: [sigmoid, sft]\nloss_weights: [0.8, 0.2]", "dpo:0.8,sft:0.2", None, {}),
        ("loss_type: robust\nlabel_smoothing: 0.2", "robust_dpo", None, {"robust_dpo.label_smoothing": "0.2"}),
        ("loss_type: aot", "aot", None, {"aot.label_smoothing": "0"}),
        ("loss_type: bco_pair", "bco_pair", None, {"bco_pair.shift": "false"}),
        ("loss_type: sppo_hard", "sppo", 0.1, {}),
        ("ld_alpha: 0.3", "ld_dpo", None, {"ld_dpo.alpha": "0.3"}),
        ("ld_alpha: 0.3\nloss_type: sigmoid\nbeta: 0.2", "ld_dpo", 0.2, {"ld_dpo.alpha": "0.3"}),
        (
            "ld_alpha: 0.0\nloss_type: [sft, sigmoid]\nloss_weights: [0.2, 1.0]",
            "sft:0.2,ld_dpo:1.0",
            None,
            {"ld_dpo.alpha": "0.0"},
        ),
        ("ld_alpha: null\nloss_type: ipo", "ipo", None, {}),
        ("use_weighting: true", "wpo", None, {}),
        ("loss_type: [sigmoid]\nuse_weighting: True", "wpo", None, {}),
        ("use_weighting: false\nloss_type: ipo\nf_divergence_type: reverse_kl", "ipo", None, {}),
        ("f_divergence_type: forward_kl", "f_dpo", None, {"f_dpo.divergence": "forward_kl"}),
        (
            "f_divergence_type: js_divergence\nf_alpha_divergence_coef: 0.7\nloss_type: sigmoid",
            "f_dpo",
            None,
            {"f_dpo.divergence": "js_divergence"},
        ),
        (
            "f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 0.7",
            "f_dpo",
            None,
            {"f_dpo.divergence": "alpha_divergence", "f_dpo.alpha": "0.3"},
        ),
        (
            "f_divergence_type: alpha_divergence",
            "f_dpo",
            None,
            {"f_dpo.divergence": "alpha_divergence", "f_dpo.alpha": "0.5"},
        ),
        ("loss_type: discopop\nbeta: 0.3\ndiscopop_tau: 0.07", "discopop", 0.3, {"discopop.tau": "0.07"}),
    ],
)
def test_a_loss_of_trl_is_ours_with_its_conventions(tmp_path, lines, loss, beta, hyperparameters):
    config = parse(tmp_path, f"model: m\ndata: d\nout: o\n{lines}\n")
    assert (config.objective.loss, config.objective.beta, config.objective.hyperparameters) == (
        loss,
        beta,
        hyperparameters,
    )


def test_a_reference_that_follows_is_understood(tmp_path):
    lines = "sync_ref_model: true\nref_model_mixup_alpha: 0.5\nref_model_sync_steps: 64\n"
    config = parse(tmp_path, f"model: m\ndata: d\nout: o\n{lines}")
    assert (config.reference.update, config.reference.update_alpha) == ("soft", 0.5)
    assert config.reference.update_steps == 64


def test_our_own_flags_win(tmp_path):
    assert parse(tmp_path, TRL, "--lr", "1e-4", "--loss", "apo_zero").optimizer.lr == 1e-4


def test_the_batch_is_that_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parse(tmp_path, TRL).schedule.batch_size == 2 * 8 * 8
    assert (
        parse(tmp_path, "gradient_accumulation_steps: 2\nmodel: m\ndata: d\nout: o\n").schedule.batch_size == 8 * 2 * 8
    )


def test_a_length_alone_is_that_of_prompt_and_response_together(tmp_path):
    config = parse(tmp_path, "max_length: 1025\ntruncation_mode: keep_start\nmodel: m\ndata: d\nout: o\n")
    limits = config.data.limits
    assert (limits.tokens, limits.prompt_tokens, limits.response_tokens) == (1025, None, None)
    with pytest.raises(InputError, match="truncation_mode: keep_end is not to be had with max_length alone"):
        parse(tmp_path, "max_length: 1025\ntruncation_mode: keep_end\nmodel: m\ndata: d\nout: o\n")


def test_names_that_agree_and_empty_ones_are_no_fault(tmp_path):
    same = "bf16: True\ntorch_dtype: bfloat16\ndtype: auto\nuse_peft: no\nweight_decay: 0.00\nwarmup_ratio: 0.0\n"
    empty = "max_prompt_length: null\nloss_type: []\nmax-length: 100\nmax-prompt-tokens: 30\n"
    config = parse(tmp_path, f"model: m\ndata: d\nout: o\n{same}{empty}skip_bad_rows: True\n")
    assert (config.memory.dtype, config.data.max_prompt_tokens, config.data.max_tokens) == ("bfloat16", 30, 100)
    assert config.data.skip_bad_rows and config.objective.loss == "apo_zero"


def test_what_such_a_file_does_not_name_is_said(tmp_path, capsys):
    parse(tmp_path, "output_dir: o\nmodel: m\ndata: d\nloss_type: dpo\n")
    assert "not named there, so that our defaults hold: optimizer, epochs, lr, batch_size" in capsys.readouterr().err


def test_weights_of_kto_go_to_its_own_hyperparameter(tmp_path):
    config = parse(tmp_path, "desirable_weight: 1.5\nmodel: m\ndata: d\nout: o\n")
    assert config.objective.hyperparameters == {"kto.desirable_weight": "1.5"} and config.objective.loss == "kto"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("use_peft: true", "use_peft: true is not to be had, all parameters are trained here; take it out"),
        ("lr_scheduler_type: cosine", "lr_scheduler_type: cosine is not to be had, the rate falls linearly here"),
        ("fp16: true", "fp16: true is not to be had"),
        ("optim: paged_adamw_8bit", "optim: paged_adamw_8bit is not to be had here; one of rmsprop, adamw_torch"),
        ("learning_rate: 1e-6\nlr: 1e-5", "learning_rate and lr: two names of one setting, with two values; keep one"),
        ("loss_type: [sigmoid, sft]\nloss_weights: [1.0]", "loss_weights: 1.0 are 1, of 2 in loss_type"),
        ("loss_type: sigmoid\nlabel_smoothing: 0.1", "label_smoothing: 0.1 is not to be had, labels are taken as they"),
        (
            "use_weighting: true\nloss_type: ipo",
            "use_weighting: true goes with loss_type: sigmoid alone here, as --loss wpo; take it out, or take that",
        ),
        ("use_weighting: true\nloss_type: [sigmoid, sft]", "use_weighting: true goes with loss_type: sigmoid alone"),
        (
            "ld_alpha: 0.5\nloss_type: apo_zero",
            "ld_alpha: 0.5 goes with loss_type: sigmoid alone here, as --loss ld_dpo",
        ),
        ("ld_alpha: 0.5\nloss_type: [sft]", "ld_alpha: 0.5 goes with loss_type: sigmoid alone"),
        (
            "f_divergence_type: forward_kl\nloss_type: [sigmoid, hinge]",
            "f_divergence_type: forward_kl goes with loss_type",
        ),
        (
            "ld_alpha: 0.5\nuse_weighting: true",
            "ld_alpha and use_weighting: each is an objective of its own here, keep one",
        ),
        ("ld_alpha: 0.5\nloss: dpo", "ld_alpha and loss: two names of one setting, with two values; keep one"),
        ("f_divergence_type: chi2", "f_divergence_type: chi2 is not to be had here; one of reverse_kl, forward_kl"),
        ("f_alpha_divergence_coef: half", "f_alpha_divergence_coef: half is not a number"),
        ("use_weighting: maybe", "use_weighting: maybe is not true or false"),
        ("max_length: long", "max_length: long is not a whole number"),
        ("per_device_train_batch_size: two", "per_device_train_batch_size: two is not a whole number"),
        ("per_device_train_batch_size: [1, 2]", "per_device_train_batch_size: 1, 2 is not a whole number"),
        (
            "warmup_ratio: 0.1",
            "warmup_ratio: 0.1 is not to be had, the warm-up is counted in steps",
        ),
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
    [
        ("--learning_rate=1", "--learning_rate is --lr here"),
        ("--loss_type", "--loss_type is --loss here"),
        ("--max_length", "--max_length is --max-tokens here"),
        ("--ld_alpha=0.5", "--ld_alpha is --ld_dpo.alpha, of --loss ld_dpo here"),
        ("--use_weighting", "--use_weighting is --loss wpo here"),
    ],
)
def test_a_flag_of_trl_is_answered_with_ours(tmp_path, flag, said):
    with pytest.raises(InputError, match=said):
        parse(tmp_path, "model: m\ndata: d\nout: o\n", flag, "dpo")
