"""Whole runs against TRL's DPOTrainer: the same rows, the same weights, twenty steps of each objective.

Both need one environment: pip install -e '.[dev,peer]', then pytest -m slow tests/engine/test_trl.py.
"""

import json

import pytest
import yaml

from engine import train
from tests import tiny
from tests.engine.beside_trl import (
    BATCH,
    BETA,
    COMPARED,
    N_STEPS,
    TOLERANCE,
    VOCABULARY,
    id_rows,
    our_lines,
    their_lines,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the warnings are those of the peer's packages


@pytest.mark.parametrize(("loss", "theirs"), [("dpo", "sigmoid"), ("apo_zero", "apo_zero"), ("apo_down", "apo_down")])
def test_a_run_is_that_of_trl(tmp_path, loss, theirs):
    pytest.importorskip("trl")
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    rows = id_rows()
    us, them = our_lines(model, rows, tmp_path, loss), their_lines(model, rows, tmp_path, theirs)
    assert [line["step"] for line in us] == [line["step"] for line in them] == list(range(1, N_STEPS + 1))
    apart = {name: max(abs(a[name] - b[name]) for a, b in zip(us, them, strict=True)) for name in COMPARED}
    moved = {name: max(line[name] for line in us) - min(line[name] for line in us) for name in COMPARED}
    norms = [line["grad_norm"] for line in us]
    norm_apart = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(us, them, strict=True))
    print(f"{loss}: apart {apart}; moved {moved}; norms {min(norms):.3g} to {max(norms):.3g}, apart {norm_apart:.2g}")
    assert all(difference < TOLERANCE for difference in apart.values()), apart
    assert all(distance > 0.01 for distance in moved.values()), moved  # standing still, anything would agree
    assert min(norms) < 1 < max(norms)  # the clipping is at work, in some steps
    assert norm_apart < 1e-3
    assert [line["learning_rate"] for line in us] == pytest.approx([line["learning_rate"] for line in them], rel=1e-6)


ADAMW = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
"""Of both, by the same names; far enough from the defaults that they are seen."""


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"schedule": "cosine", "warmup_ratio": 0.15}, {"lr_scheduler_type": "cosine", "warmup_steps": 0.15}),
        (
            {"schedule": "cosine", "warmup_steps": 3, "min_lr_ratio": 0.1},
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
                "warmup_steps": 3,
            },
        ),
        ({"schedule": "linear", "warmup_steps": 5}, {"lr_scheduler_type": "linear", "warmup_steps": 5}),
    ],
    ids=["cosine and warm-up ratio", "cosine to a least rate", "linear and warm-up"],
)
def test_a_run_by_adamw_with_a_schedule_is_that_of_trl(tmp_path, ours, theirs):
    """Over two epochs of the rows, ended by max_steps: twelve steps and eight."""
    pytest.importorskip("trl")
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    rows = id_rows()
    us = our_lines(model, rows, tmp_path, "dpo", {"optimizer": "adamw", "lr": 1e-3} | ADAMW | ours)
    them = their_lines(
        model, rows, tmp_path, "sigmoid", optim="adamw_torch", **({"learning_rate": 1e-3} | ADAMW | theirs)
    )
    assert [line["step"] for line in us] == [line["step"] for line in them] == list(range(1, N_STEPS + 1))
    apart = {name: max(abs(a[name] - b[name]) for a, b in zip(us, them, strict=True)) for name in COMPARED}
    rates = max(abs(a["learning_rate"] - b["learning_rate"]) for a, b in zip(us, them, strict=True))
    moved = max(line["loss"] for line in us) - min(line["loss"] for line in us)
    print(f"{ours}: apart {apart}; rates apart {rates:.2g}; the loss moved by {moved:.3g}")
    assert all(difference < TOLERANCE for difference in apart.values()), apart
    assert rates < 1e-9 and us[0]["learning_rate"] == 0.0 and moved > 0.01
    assert max(line["epoch"] for line in us) > 1.5


def test_one_file_trains_the_same_in_both(tmp_path):
    """What TRL is given is written down, and is our --config: a cosine with a warm-up that is a share, AdamW with
    weight decay, and max_steps, which repeat the rows beyond the one epoch that is named.
    """
    pytest.importorskip("trl")
    model, rows = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY), id_rows()
    settings = {
        "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.15, "optim": "adamw_torch",
        "num_train_epochs": 1, "max_steps": N_STEPS, "per_device_train_batch_size": BATCH, "beta": BETA,
        "train_sampling_strategy": "sequential", "max_length": None, "bf16": False, "report_to": "none",
    }  # fmt: skip
    settings |= ADAMW
    named = {"model_name_or_path": str(model), "dataset_name": str(tiny.write_rows(tmp_path / "rows.jsonl", rows))}
    path = tmp_path / "trl.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (settings | named).items() if key != "report_to"}))
    train.main(["--config", str(path), "--out", str(tmp_path / "ours")])
    us = [json.loads(line) for line in (tmp_path / "ours/metrics.jsonl").read_text().splitlines()]
    them = their_lines(model, rows, tmp_path, "sigmoid", **settings)
    assert [line["step"] for line in us] == [line["step"] for line in them] == list(range(1, N_STEPS + 1))
    apart = {name: max(abs(a[name] - b[name]) for a, b in zip(us, them, strict=True)) for name in COMPARED}
    rates = max(abs(a["learning_rate"] - b["learning_rate"]) for a, b in zip(us, them, strict=True))
    print(f"one file: apart {apart}; rates apart {rates:.2g}")
    assert all(difference < TOLERANCE for difference in apart.values()), apart
    assert rates < 1e-9 and max(line["epoch"] for line in us) > 1.5


OTHERS = [  # (ours, our hyperparameters, theirs, their settings)
    ("hinge", {}, "hinge", {}),
    ("ipo", {}, "ipo", {}),
    ("exo", {"label_smoothing": 0.01}, "exo_pair", {"label_smoothing": 0.01}),
    ("nca", {}, "nca_pair", {}),
    ("robust_dpo", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    ("bco_pair", {"shift": False}, "bco_pair", {}),
    ("sppo", {}, "sppo_hard", {}),
    ("discopop", {"tau": 0.07}, "discopop", {"discopop_tau": 0.07}),
    ("aot", {"label_smoothing": 0.1}, "aot", {"label_smoothing": 0.1}),
    ("aot_unpaired", {}, "aot_unpaired", {}),
    ("ln_dpo", {}, "sigmoid_norm", {}),
    ("sft", {}, "sft", {}),
    ("ld_dpo", {"alpha": 0.5}, "sigmoid", {"ld_alpha": 0.5}),
    ("wpo", {}, "sigmoid", {"use_weighting": True}),
    ("f_dpo", {"divergence": "forward_kl"}, "sigmoid", {"f_divergence_type": "forward_kl"}),
    ("f_dpo", {"divergence": "js_divergence"}, "sigmoid", {"f_divergence_type": "js_divergence"}),
    (
        "f_dpo",
        {"divergence": "alpha_divergence", "alpha": 0.3},
        "sigmoid",
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
]


@pytest.mark.parametrize(
    ("loss", "ours", "theirs", "settings"),
    OTHERS,
    ids=[" ".join([o[0], o[1].get("divergence", "")]).strip() for o in OTHERS],
)
def test_the_other_objectives_have_the_losses_of_trl(tmp_path, loss, ours, theirs, settings):
    pytest.importorskip("trl")
    model = tiny.write_model(tmp_path / "model", vocab_size=VOCABULARY)
    rows = id_rows()
    us, them = our_lines(model, rows, tmp_path, loss, **ours), their_lines(model, rows, tmp_path, theirs, **settings)
    apart = max(abs(a["loss"] - b["loss"]) / max(1.0, abs(b["loss"])) for a, b in zip(us, them, strict=True))
    norms = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(us, them, strict=True))
    moved = max(line["loss"] for line in us) - min(line["loss"] for line in us)
    print(f"{loss}: loss apart {apart:.2g}, grad_norm apart {norms:.2g}; the loss moved by {moved:.3g}")
    assert apart < TOLERANCE and norms < 1e-3 and moved > 1e-3
