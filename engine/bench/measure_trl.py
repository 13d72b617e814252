# The peer is an extra, absent from most machines, and does not declare what it exports.
# pyright: reportMissingImports=false, reportPrivateImportUsage=false, reportIncompatibleMethodOverride=false
"""The same rows, weights and settings through TRL's DPOTrainer, timed step by step. Needs the extra `peer`.

Started by engine/bench/bench.py in a process of its own, with the settings of engine/bench/peers.py. What precomputing
the reference's log-probs takes is part of the first epoch, as the reference is of ours. An adapter is PEFT's.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from engine.bench.measure import resident

TRL_LOSSES = {"dpo": "sigmoid", "apo_zero": "apo_zero", "apo_down": "apo_down"}


def main() -> None:
    """The process: runs the job in the file that is named, writes the result beside it."""
    warnings.simplefilter("ignore")
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(job["result"]).write_text(json.dumps(measure(job)))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and pairs of each epoch but its first step, and the peak of memory above the interpreter's own."""
    import torch
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    class Trainer(trl.DPOTrainer):
        """Takes rows of token ids as they are (the collator wants nothing else), and times what it precomputes."""

        seconds = 0.0
        """For the reference's log-probs of all rows."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = super()._precompute_ref_logps(*given, **named)
            self.seconds += time.perf_counter() - start
            return found

    class Clock(TrainerCallback):
        """When each optimizer step began and ended."""

        def __init__(self) -> None:
            self.steps: list[float] = []
            self._start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self._start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.steps.append(time.perf_counter() - self._start)

    before = resident()
    has_cuda = torch.cuda.is_available()
    dtype = job["dtype"] or ("bfloat16" if has_cuda else "float32")
    rank = job.get("lora_rank")
    names = {"t0": 0, "t1": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(names, unk_token="t0")), eos_token="t1", pad_token="t0"
    )
    config = trl.DPOConfig(**_settings(job, dtype, has_cuda=has_cuda))
    held = job.get("held") or ("float32" if rank is None else job["base_dtype"] or dtype)
    named = {"dtype": held} | ({"attn_implementation": job["attention"]} if job.get("attention") else {})
    policy = AutoModelForCausalLM.from_pretrained(job["model"], **named)
    reference = None if job["precompute"] else AutoModelForCausalLM.from_pretrained(job["model"], **named)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    clock = Clock()
    trainer = Trainer(
        policy, reference, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock],
        peft_config=None if rank is None else _adapter(rank, job["lora_alpha"]),
    )  # fmt: skip
    trainer.train()
    peak = torch.cuda.max_memory_reserved() if has_cuda else resident(peak=True) - before
    n = job["steps"]
    epochs = [{"pairs": (n - 1) * job["batch_size"], "seconds": sum(clock.steps[i + 1 : i + n])} for i in (0, n)]
    epochs[0]["seconds"] += trainer.seconds * (n - 1) / n  # it was of all steps' rows
    return {"epochs": epochs, "peak_bytes": peak}


def _settings(job: dict[str, Any], dtype: str, *, has_cuda: bool) -> dict[str, Any]:
    """DPOConfig's."""
    rank = job.get("lora_rank")
    return {
        "output_dir": job["out"], "loss_type": [TRL_LOSSES[job["loss"]]], "beta": 0.1, "max_length": None,
        "per_device_train_batch_size": job["micro"],
        "gradient_accumulation_steps": job["batch_size"] // job["micro"], "num_train_epochs": 2, "optim": "rmsprop",
        "learning_rate": 2e-7 if rank is None else 2e-6, "lr_scheduler_type": "linear", "warmup_steps": 0,
        "weight_decay": 0.0, "max_grad_norm": job["max_grad_norm"], "disable_dropout": True,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": job["precompute"], "torch_compile": job.get("compile", False),
        "bf16": dtype == "bfloat16" and "held" not in job, "use_cpu": not has_cuda,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def _adapter(rank: int, alpha: float | None) -> Any:
    """PEFT's, on every linear layer of a block."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules="all-linear", lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )  # fmt: skip
