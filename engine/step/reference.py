"""Where the reference's log-probs come from: a model beside the policy, and the table that replaces it.

The reference is frozen and the rows are fixed, so its log-probs are the same in every epoch: two numbers per pair,
filled in epoch 1 (or before it, by the policy's own initial weights) and read from then on. The table is written as
reference.safetensors with a fingerprint of what it was computed from, and runs that fit share it: a sweep over
objectives computes it once.
"""

# N examples, K responses of each

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data.rows import Example, digest
from engine.config import ReferenceConfig
from engine.distributed import Ranks
from engine.planning import Mode
from engine.step.objective import Objective
from engine.step.steps import Step
from system import InputError, cli, digests, whole_file


class ReferenceLogps:
    """The table of a run, [N, K] nats in float64, NaN where nothing is known yet."""

    def __init__(
        self,
        mode: Mode,
        shape: tuple[int, int],
        objective: Objective,
        cache: "Cache",
        *,
        moves: bool = False,
        keeps: bool = True,
    ) -> None:
        """shape: [N, K]. cache: where it is kept. moves: whether the reference follows the policy
        (--reference-update). keeps: whether what is computed is kept (MeasuringConfig.keeps_reference).
        """
        self.mode = mode
        self.is_kept = mode != "none" and keeps and not objective.needs_mismatched
        """Whether anything can be kept: mismatched sequences depend on the step's plan."""
        self.is_written = False
        """Whether the run has its copy on disk; the same on every rank."""
        self.values = torch.full(shape, torch.nan, dtype=torch.float64)
        self.moves = moves
        """Whether the reference follows the policy: what is kept holds until the next update."""
        self._cache = cache

    @property
    def is_used(self) -> bool:
        """Whether the run has a reference at all."""
        return self.mode != "none"

    @property
    def is_complete(self) -> bool:
        """Whether the table knows every example."""
        return self.is_kept and not self.values.isnan().any()

    @property
    def is_final(self) -> bool:
        """Whether the model that it was computed from is needed no more."""
        return self.is_complete and not self.moves

    def forget(self) -> None:
        """The reference has moved: nothing is known of it."""
        self.values.fill_(torch.nan)

    def known(self, step: Step) -> Tensor | None:
        """The log-probs of a step's examples [n, K] where the table has them all, else None."""
        if not self.is_kept:
            return None
        rows = self.values[step.ids]
        return None if rows.isnan().any() else rows

    def remember(self, step: Step, logps: Tensor | None) -> None:
        """Keeps a step's reference log-probs [n, K], gathered from all ranks."""
        if logps is not None and self.is_kept:
            self.values[step.ids] = logps

    def read(self, ranks: Ranks) -> str:
        """Fills the table from the cache where that fits, on every rank or on none; says what was done. Collective."""
        said = "not kept" if not self.is_kept else "kept until it moves"
        if self.is_kept and not self.moves:
            found, said = self._cache.read(self.values.shape)
        else:
            found = None
        if ranks.all_reduce_sum(torch.tensor(float(found is not None))).item() < ranks.size or found is None:
            return said
        self.values = found
        return said

    def write(self) -> None:
        """Writes the table, which is complete, where it is kept."""
        self._cache.write(self.values)


@dataclass(frozen=True)
class Cache:
    """Where a table is kept: in the run's folder, and where other runs find it."""

    fingerprint: Callable[[], str]
    """What the table has to be computed from; costs a read of the weights, so it is asked for when it is needed."""
    own: Path
    """The run's copy."""
    shared: Path | None
    """A folder that runs share, or another run's file."""

    @staticmethod
    def of(out: Path, shared: str | None, fingerprint: Callable[[], str]) -> "Cache":
        """The cache of a run. out: its folder. shared: what --reference-cache says."""
        return Cache(functools.cache(fingerprint), out / "reference.safetensors", Path(shared) if shared else None)

    @property
    def _path(self) -> Path | None:
        """The shared file: by its fingerprint in a folder."""
        if self.shared is None or self.shared.suffix == ".safetensors":
            return self.shared
        return self.shared / f"{self.fingerprint()[:32]}.safetensors"

    def read(self, shape: torch.Size) -> tuple[Tensor | None, str]:
        """The table where one fits, shared or left by this run before it was stopped, and what was found.

        It fits where it was computed from the same weights, rows and dtype, is whole, and was not changed since.
        """
        paths = [path for path in (self._path, self.own) if path is not None and path.exists()]
        found = [self._read(path, shape) for path in paths] or [(None, "computed in this run")]
        return next((one for one in found if one[0] is not None), found[0])

    def _read(self, path: Path, shape: torch.Size) -> tuple[Tensor | None, str]:
        try:
            with safe_open(path, framework="pt") as file:
                facts, table = file.metadata() or {}, file.get_tensor("ref_logps")
        except (OSError, SafetensorError) as fault:
            return None, f"{path} cannot be read ({fault}): computed anew"
        if facts.get("fingerprint") != self.fingerprint() or table.shape != shape or table.dtype != torch.float64:
            return None, f"{path} is of other weights, rows, limits or dtype: computed anew"
        if facts.get("sha256") != _digest(table) or not table.isfinite().all():
            return None, f"{path} is damaged: computed anew"
        return table, f"taken from {path}"

    def write(self, table: Tensor) -> None:
        """Writes the table into the run's folder, and where it is shared, if it is not there; whole or not at all.

        Other runs may be sharing theirs at the same time. A run whose table cannot be shared says so and goes on.
        """
        self._write(self.own, table)
        path = self._path
        if path is None or (path.exists() and self._read(path, table.shape)[0] is not None):
            return
        try:
            self._write(path, table, is_shared=True)
        except OSError as fault:
            cli.notify(f"{path}: cannot be written ({fault.strerror}); {self.own} is there all the same")

    def _write(self, path: Path, table: Tensor, *, is_shared: bool = False) -> None:
        metadata = {"fingerprint": self.fingerprint(), "sha256": _digest(table)}
        with whole_file(path, is_shared=is_shared) as temporary:
            temporary.write_bytes(save({"ref_logps": table}, metadata))  # save_file's faults are no OSError


def _digest(table: Tensor) -> str:
    return hashlib.sha256(table.contiguous().numpy().tobytes()).hexdigest()


def check_shared(shared: str | None) -> None:
    """Raises InputError where --reference-cache names a file that should be a folder, or the other way round."""
    path = Path(shared) if shared else None
    if path is not None and path.exists() and path.is_dir() == (path.suffix == ".safetensors"):
        raise InputError(f"--reference-cache {path}: name a folder that runs share, or a run's reference.safetensors")


def modes(asked: ReferenceConfig, objective: Objective, *, keeps: bool = True) -> list[Mode]:
    """What --reference can mean for this run, what is preferred first: of "auto" with a model that fits. keeps: whether
    what is computed is kept (--disable reference-cache).

    Raises InputError for a combination that cannot be.
    """
    wanted = asked.mode
    if wanted == "none" and objective.has_reference:
        raise InputError(f"--reference none: {objective.name} needs a reference; use auto")
    if wanted == "precompute" and objective.needs_mismatched:
        raise InputError(
            f"--reference precompute: {objective.name}'s mismatched sequences change with every step; use fused"
        )
    if wanted == "precompute" and not keeps:
        raise InputError("--reference precompute --disable reference-cache: what is computed has to be kept; use fused")
    if asked.update != "none":
        if not objective.has_reference or wanted not in ("auto", "fused"):
            why = f"with --reference {wanted}" if objective.has_reference else f"with {objective.name}, which has none"
            raise InputError(f"--reference-update {asked.update}: needs a reference model in every step, not {why}")
        return ["fused"]
    if wanted != "auto":
        return [wanted]
    if not objective.has_reference:
        return ["none"]
    needs_model = objective.needs_mismatched or not keeps
    return ["fused"] if needs_model else ["fused", "precompute"]


def fingerprint(model: Path, examples: Sequence[Example], dtype: torch.dtype) -> str:
    """SHA-256 over the weights' files, config.json, the tokenised rows (hence the limits too) and the dtype."""
    files = sorted([*model.glob("*.safetensors"), model / "config.json"])
    whole = digest(examples)
    for part in (f"{dtype}".encode(), *digests(files)):
        whole.update(part)
    return whole.hexdigest()
