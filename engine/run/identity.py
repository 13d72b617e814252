"""What a run has to have in common with the one that it goes on with (state/identity.json)."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import engine
from data.rows import Example, digest
from engine.config import TrainConfig
from engine.model import name_of
from engine.weights import file_digests
from system import InputError

FREE = {
    "out",
    "config",
    "trl_trainer",
    "resume",
    "stop_after",
    "state_every",
    "save_every",
    "keep_checkpoints",
    "keep_state",
    "keep_final_state",
    "micro_tokens",
    "recompute_blocks",
    "gpu_memory",
    "reshard",
    "hang_timeout",
    "take_over",
    "shard_size",
    "save_dtype",
    "save_rounding",
    "beyond_context",
    "track",
}
"""Settings that --resume lets change; so may the number of ranks."""
CONTENT = {
    *("model", "reference_model", "data", "eval_data", "reference_cache", "continue_from"),
    *("chat_template", "template_date", "adapter"),
}
"""Settings that name files: what is in them has to be the same; and the day, which is that of the run's beginning."""
LATER: dict[str, Any] = {
    "chat_template_kwargs": None, "max_tokens": None,
    "schedule": "linear", "min_lr_ratio": 0.0, "warmup_ratio": 0.0, "decay_ratio": 0.1,
    "eval_every": None, "early_stop": None, "keep_best": None,
    "lora_rank": None, "lora_alpha": None, "lora_rslora": False, "lora_targets": (),
    "train_also": (), "base_dtype": None,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0,
}  # fmt: skip
"""Settings that release 0.1 had not, and at which value it computed: they are here where they have another, so that
runs begun by it go on."""
LATER_ARGUMENTS = {"kto_pair.anchor_size": None}
"""The same of objectives' hyperparameters."""
OF_ROWS = {"ignore_columns", "roles", "keep_json_text", "max_row_mb"}
"""Settings of how files are read: what they come to is in the rows' digest, and older runs had none of them but the
last, which was another one."""
KEYS = {"disable": "without", "master_weights": "master"}
"""Settings that the file calls by the names of release 0.1, so that runs begun by it go on."""
DAY = "template date"
"""The day that the run's template writes."""
WARMUP = "warm-up"
"""How the warm-up goes, where there is one: release 0.1 began it at lr / (W + 1), and wrote nothing down of it."""
SAME_NUMBERS = {"0.1.0", "not installed"}
"""What `program` says where a version began a run that computes as this one does: such runs are gone on with."""


def identity(
    config: TrainConfig,
    settings: Mapping[str, Any],
    model: Path,
    rows: Sequence[Example],
    heldout: Sequence[Example],
    *,
    dtype: torch.dtype,
    is_split: bool,
    reference: Path | None = None,
    read: Callable[[Path], Sequence[bytes]] = file_digests,
) -> dict[str, Any]:
    """What has to be the same for a run to go on: every setting, and digests of what its files hold.

    settings: the objective's hyperparameters. dtype, is_split: what --dtype and --master-weights came to. reference:
    the folder of --reference-model, where it is another than the model's. read: gives the digests of a folder's files.
    """
    held = config.resolved() | dict(settings)
    held |= {"dtype": name_of(dtype), "master_weights": "split" if is_split else "whole"}
    later = LATER | LATER_ARGUMENTS
    left_out = FREE | CONTENT | OF_ROWS | {"hyperparameters"}
    known = {
        KEYS.get(name, name): str(value)
        for name, value in held.items()
        if name not in left_out and not (name in later and value == later[name])
    }
    if config.schedule.warmup_steps or config.schedule.warmup_ratio:
        known[WARMUP] = "from 0"
    weights, other = (hashlib.sha256(b"".join(read(folder))).hexdigest()[:16] for folder in (model, reference or model))
    known |= {} if other == weights else {"reference weights": other}
    return known | {
        "weights": weights,
        "rows": _digest(rows),
        "held-out rows": _digest(heldout),
        "torch": torch.__version__.split("+")[0],
        "program": engine.__version__,
    }


def compare(path: Path, folder: Path, found: Mapping[str, Any]) -> None:
    """Raises InputError where the identity in a file is another than the one found, with the values that differ.

    folder: the run's, for the message.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}: damaged; start again with another --out") from None
    now = json.loads(json.dumps(found))
    before = {name: value for name, value in before.items() if name not in OF_ROWS}
    if before.get("program") in SAME_NUMBERS:
        before["program"] = now.get("program")
    if DAY not in before:  # of a release that wrote no day down; the rows' ids tell whether it was the same
        now.pop(DAY, None)
    if WARMUP in now and WARMUP not in before and before.get("warmup_steps", "0") != "0":
        raise InputError(
            f"{folder}: was begun by a release whose warm-up started at lr / (steps + 1), and it starts at 0 now; "
            "resume with that release, or start again with another --out"
        )
    different = [
        f"{name}: {before.get(name)} -> {now.get(name)}" for name in now | before if before.get(name) != now.get(name)
    ]
    if different:
        raise InputError(
            f"{folder}: --resume would resume another run ({'; '.join(different)}); "
            "give the settings that it was started with, or another --out"
        )


def _digest(rows: Sequence[Example]) -> str:
    """Of token ids, labels and what rows say in numbers."""
    whole = digest(rows)
    for row in rows:
        whole.update(_spelled(row).encode())
    return f"{len(rows)} of {whole.hexdigest()[:16]}"


def _spelled(row: Example) -> str:
    """A row's label and numbers.

    Without fields that an objective asks for, it is the text that was counted before there were such: a run that was
    begun then goes on.
    """
    known = row.ratings._asdict()
    fields = known.pop("fields")
    said = ", ".join(f"{name}={number!r}" for name, number in known.items())
    return f"({row.label!r}, Ratings({said}))" + (repr(fields) if fields else "")
