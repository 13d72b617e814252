"""Where the reference's log-probs come from: a model that walks along, and the table that replaces it.

The reference is frozen and the rows are fixed, so its log-probs are the same in every epoch: two numbers per pair,
filled in epoch 1 (or before it, by the policy's own initial weights) and read from then on. The table is written as
reference.safetensors with a fingerprint of what it was computed from.
"""

# N examples, K responses of each

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data import InputError
from data.examples import Example
from engine.config import TrainConfig
from engine.files import whole_file
from engine.llama import LlamaConfig
from engine.objective import Objective
from engine.parallel import Ranks
from engine.steps import Step

Mode = Literal["none", "fused", "precompute"]


class Reference:
    """The table of a run, [N, K] nats in float64, NaN where nothing is known yet."""

    def __init__(self, mode: Mode, n_examples: int, objective: Objective) -> None:
        self.mode = mode
        self.moves = objective.needs_mismatched
        """Whether its sequences depend on the step's plan, so that nothing can be kept."""
        self.is_written = False
        """Whether the run has its copy on disk; the same on every rank."""
        self._table = torch.full((n_examples, objective.n_branches), torch.nan, dtype=torch.float64)

    @property
    def is_used(self) -> bool:
        """Whether the run has a reference at all."""
        return self.mode != "none"

    @property
    def is_complete(self) -> bool:
        """Whether the table knows every example."""
        return self.is_used and not self.moves and not self._table.isnan().any()

    def known(self, step: Step) -> Tensor | None:
        """The log-probs of a step's examples [n, K] where the table has them all, else None."""
        if not self.is_used or self.moves:
            return None
        rows = self._table[step.ids]
        return None if rows.isnan().any() else rows

    def remember(self, step: Step, logps: Tensor | None) -> None:
        """Keeps a step's reference log-probs [n, K], gathered from all ranks."""
        if logps is not None and not self.moves:
            self._table[step.ids] = logps

    def write(self, path: Path, fingerprint: str) -> None:
        """Writes the table, whole or not at all."""
        with whole_file(path) as temporary:
            save_file({"ref_logps": self._table}, temporary, metadata={"fingerprint": fingerprint})
            temporary.chmod(path.parent.stat().st_mode & 0o666)  # save_file makes 0600 whatever the umask is

    def read(self, path: Path, fingerprint: str) -> None:
        """Takes the table of another run. Raises InputError unless it was computed from the same things."""
        try:
            with safe_open(path, framework="pt") as file:
                found, table = file.metadata().get("fingerprint"), file.get_tensor("ref_logps")
        except (OSError, SafetensorError, AttributeError) as fault:
            raise InputError(
                f"{path}: not a reference cache ({fault}); leave --reference-cache out to compute it"
            ) from None
        if found != fingerprint or table.shape != self._table.shape or table.dtype != self._table.dtype:
            raise InputError(
                f"{path}: computed from other weights, rows, limits or dtype; leave --reference-cache out to compute it"
            )
        self._table = table


def choose_mode(config: TrainConfig, objective: Objective, shape: LlamaConfig, ranks: Ranks) -> Mode:
    """What --reference means for this run. Raises InputError for a combination that cannot be."""
    wanted = config.reference
    if wanted == "none" and objective.loss.reference:
        raise InputError(f"--reference none: {objective.loss.name} needs a reference; use auto")
    if wanted == "precompute" and objective.needs_mismatched:
        raise InputError(
            f"--reference precompute: {objective.loss.name}'s mismatched sequences change with every step; use fused"
        )
    if wanted != "auto":
        return wanted
    if not objective.loss.reference:
        return "none"
    return "fused" if objective.needs_mismatched or _second_model_fits(shape, ranks) else "precompute"


def _second_model_fits(shape: LlamaConfig, ranks: Ranks) -> bool:
    """A rough plan: float32 weights, gradients, optimizer state; the reference; a quarter for everything else."""
    per_rank = shape.n_parameters * (4 + 4 + 8 + ranks.dtype.itemsize) / ranks.size
    fits = torch.tensor(float(1.25 * per_rank < ranks.free_memory()))
    return ranks.sum(fits).item() == ranks.size  # all or none: a rank that chose otherwise would wait for ever


def fingerprint(model: Path, examples: Sequence[Example], dtype: torch.dtype) -> str:
    """SHA-256 over the weights' files, config.json, the tokenised rows (hence the limits too) and the dtype."""
    files = sorted([*model.glob("*.safetensors"), model / "config.json"])
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        digests = list(pool.map(_file_digest, files))
    whole = hashlib.sha256(f"{dtype}".encode())
    for digest in digests:
        whole.update(digest)
    for ids in _all_ids(examples):
        whole.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return whole.hexdigest()


def _all_ids(examples: Sequence[Example]) -> Iterable[np.ndarray]:
    for example in examples:
        yield example.prompt
        yield from example.responses


def _file_digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
