"""Runs in this engine and in TRL's DPOTrainer on the same rows and the same weights, for the tests: a line of metrics
for every step.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from engine import train
from engine.config import TrainConfig
from tests import tiny

N_STEPS, BATCH, VOCABULARY = 20, 4, 101
N_ROWS = 48  # twelve steps to an epoch: the last eight take the reference from the table
LR, BETA = 1e-4, 0.1
TOLERANCE = 5e-4
COMPARED = ("loss", "rewards/chosen", "rewards/rejected")


def id_rows():
    """Pairs of token ids of unequal lengths: short ones in every second step, so that not every step is clipped."""
    rng = np.random.default_rng(0)

    def ids(most):
        return rng.integers(2, VOCABULARY, rng.integers(1, most)).tolist()

    most = [(3 if i // BATCH % 2 else 16) for i in range(N_ROWS)]
    return [{"prompt_ids": ids(12), "chosen_ids": ids(n), "rejected_ids": ids(n)} for n in most]


def our_lines(model, rows, folder, loss, flags=None, n_ranks=1, **hyperparameters):
    """Our run's line of metrics for every step. flags: settings beside those that every run here has. n_ranks: with
    several, as many processes of the command.
    """
    folder.mkdir(exist_ok=True)
    data = tiny.write_rows(folder / "rows.jsonl", rows)
    settings = {
        "model": str(model),
        "data": str(data),
        "loss": loss,
        "out": str(folder / "ours"),
        "beta": BETA,
        "batch_size": BATCH,
        "epochs": 2,
        "max_steps": N_STEPS,
        "shuffle": False,
        "optimizer": "rmsprop",
        "lr": LR,
        "max_grad_norm": 1.0,
        "dtype": "float32",
        "hyperparameters": {f"{loss}.{name}": str(value) for name, value in hyperparameters.items()},
    }
    settings |= flags or {}
    if n_ranks == 1:
        train.run(TrainConfig(**settings))
    else:
        _run_on_ranks(folder / "ours.yaml", settings, n_ranks)
    return [json.loads(line) for line in (folder / "ours/metrics.jsonl").read_text().splitlines()]


def _run_on_ranks(file, settings, n_ranks):
    settings = settings.copy()
    settings |= settings.pop("hyperparameters")
    file.write_text(yaml.safe_dump(settings))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_ranks)]
    command = [*launch, "-m", "engine.train", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def their_lines(model, rows, folder, loss, adapter=None, with_base=True, **settings):
    """What TRL logs for every step. adapter: a folder of PEFT's that trains in the place of all weights. with_base:
    whether the bare model is handed over as the reference, as is done here without an adapter too.
    """
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    class Trainer(trl.DPOTrainer):
        """Takes rows of token ids as they are: the collator wants nothing else."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    names = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(names, unk_token="t0")), eos_token="t1", pad_token="t0"
    )
    asked = {
        "output_dir": str(folder / "theirs"),
        "loss_type": [loss],
        "beta": BETA,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": N_STEPS,
        "train_sampling_strategy": "sequential",
        "optim": "rmsprop",  # PyTorch's own: alpha 0.99, eps 1e-8
        "learning_rate": LR,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": None,
        "disable_dropout": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    config = trl.DPOConfig(**(asked | settings))
    policy, reference = (AutoModelForCausalLM.from_pretrained(model, dtype="float32") for _ in range(2))
    if adapter is not None:
        import peft

        policy = peft.PeftModel.from_pretrained(policy, adapter, is_trainable=True)
    reference = reference if with_base else None
    trainer = Trainer(policy, reference, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    if config.optim == "rmsprop":
        made = trainer.optimizer.optimizer.param_groups[0]
        assert (made["alpha"], made["eps"], made["momentum"], made["centered"]) == (0.99, 1e-8, 0, False)
    return [line for line in trainer.state.log_history if "loss" in line]
