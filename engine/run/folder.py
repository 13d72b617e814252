"""What a run has to have in common with the one that it goes on with, and how its folder is brought back to a step.

state/identity.json   what the run was asked for and what it was fed: settings, digests of weights and rows
state/finished.json   written when all is done
run.lock              held by the process that writes into the folder
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from data.rows import Example, digest
from engine.config import TrainConfig
from system import InputError, digests, hold, naming, numbered, sync, write_json

FREE = {
    "out",
    "config",
    "resume",
    "stop_after",
    "state_every",
    "keep",
    "keep_state",
    "micro_tokens",
    "recompute_blocks",
    "gpu_memory",
    "reshard",
    "hang_timeout",
    "take_over",
    "shard_size",
    "save_dtype",
    "save_rounding",
}
"""Settings that --resume lets change; so may the number of ranks."""
CONTENT = {"model", "data", "eval_data", "reference_cache"}
"""Settings that name files: what is in them has to be the same."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, as far as going on with it is concerned."""

    folder: Path

    @property
    def states(self) -> Path:
        """Where its states are."""
        return self.folder / "state"

    @property
    def _identity(self) -> Path:
        return self.states / "identity.json"

    def is_finished(self) -> bool:
        """Whether the run did all that it was asked for."""
        return (self.states / "finished.json").exists()

    def master(self) -> str | None:
        """Whether the float32 masters of the run that is here are "whole" or "split"; None where there is no run."""
        try:
            return json.loads(self._identity.read_text(encoding="utf-8"))["master"]
        except (OSError, ValueError, LookupError, TypeError):
            return None  # what is damaged is told by compare

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Notes what the run is."""
        write_json(self._identity, identity)

    def holds_run(self) -> bool:
        """Whether a run began here."""
        return any((self.folder / name).exists() for name in ("config.yaml", "metrics.jsonl"))

    def compare(self, identity: Mapping[str, Any]) -> None:
        """Raises InputError where this is not the run that the folder holds, with both values of each difference."""
        try:
            before = json.loads(self._identity.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(f"{self._identity}: damaged; start anew with another --out") from None
        now = json.loads(json.dumps(identity))
        different = [f"{name}: {before.get(name)} -> {now.get(name)}" for name in now | before
                     if before.get(name) != now.get(name)]  # fmt: skip
        if different:
            raise InputError(
                f"{self.folder}: --resume would go on with another run ({'; '.join(different)}); "
                "give what it was started with, or another --out"
            )

    def cut_metrics(self, step: int) -> dict[str, float]:
        """Cuts metrics.jsonl behind the line of a step, and gives that line; {} for step 0."""
        path = self.folder / "metrics.jsonl"
        end, last = 0, {}
        if path.exists():
            with open(path, "rb") as file:
                for line in file:
                    with contextlib.suppress(ValueError):
                        found = json.loads(line)
                        if line.endswith(b"\n") and found["step"] <= step:
                            end, last = end + len(line), found
                            continue
                    break
        if last.get("step", 0) != step:
            raise InputError(f"{path}: lacks the line of step {step}, from which this would go on; restore it")
        if path.exists():
            with naming(path):
                os.truncate(path, end)
            sync(path)
        return last

    def finish(self, n_steps: int) -> None:
        """Notes that all is done."""
        write_json(self.states / "finished.json", {"steps": n_steps})

    def last_line(self) -> dict[str, float]:
        """The newest line of metrics.jsonl."""
        return json.loads((self.folder / "metrics.jsonl").read_bytes().splitlines()[-1])

    def epochs(self) -> list[Path]:
        """The epoch folders, oldest first."""
        return [path for _, path in numbered(self.folder, "epoch-")]

    def lock(self, *, takes_over: bool = False) -> AbstractContextManager[None]:
        """Holds the folder while it is entered. Raises InputError where another process does."""
        return hold(
            self.folder / "run.lock",
            self.folder,
            does="is writing here",
            otherwise="give another --out",
            takes_over=None if takes_over else "--take-over",
        )


def identity(
    config: TrainConfig,
    settings: Mapping[str, Any],
    model: Path,
    rows: Sequence[Example],
    heldout: Sequence[Example],
    *,
    dtype: torch.dtype,
    is_split: bool,
) -> dict[str, Any]:
    """What has to be the same for a run to go on: every setting, and digests of what its files hold.

    dtype, is_split: what --dtype and --master came to.
    """
    held = {f.name: getattr(config, f.name) for f in fields(config)} | dict(settings)
    held |= {"dtype": str(dtype).removeprefix("torch."), "master": "split" if is_split else "whole"}
    left_out = FREE | CONTENT | {"hyperparameters"}
    known = {name: str(value) for name, value in held.items() if name not in left_out}
    files = sorted([*model.glob("*.safetensors"), model / "config.json"])
    weights = hashlib.sha256(b"".join(digests(files)))
    return known | {
        "weights": weights.hexdigest()[:16],
        "rows": _digest(rows),
        "held-out rows": _digest(heldout),
        "torch": torch.__version__.split("+")[0],
        "program": _version(),
    }


def _version() -> str:
    try:
        return metadata.version("anchored-preference-optimization")
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest(rows: Sequence[Example]) -> str:
    """Of token ids, labels and ratings."""
    whole = digest(rows)
    for row in rows:
        whole.update(repr((row.label, row.ratings)).encode())
    return f"{len(rows)} of {whole.hexdigest()[:16]}"
