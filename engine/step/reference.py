"""Where the reference's log-probs come from: a model beside the policy, and the table that replaces it.

The reference is frozen and the rows are fixed, so its log-probs are the same in every epoch: two numbers per pair,
filled in epoch 1 (or before it, by the policy's own initial weights) and read from then on. For objectives that see
tokens the table has a number for each predicted token. It is written as reference.safetensors with a fingerprint of
what it was computed from, and runs that fit share it: a sweep over objectives computes it once.
"""

# N examples, K responses of each, T predicted tokens of all of them

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
from engine.step.loss_inputs import REFERENCE_VALUES, ReferenceValues, sums_of
from engine.step.objective import Objective
from engine.step.steps import Step
from engine.weights import file_digests
from system import InputError, cli, whole_file

NAME = "reference.safetensors"

Table = Mapping[str, Tensor]
"""What is kept, float64: "ref_logps" [N, K], or [T] for objectives that see tokens; for some of these "ref_entropy" [T]
too."""


class ReferenceLogps:
    """The table of a run; NaN where nothing is known yet."""

    def __init__(
        self,
        mode: Mode,
        examples: Sequence[Example],
        n_responses: int,
        objective: Objective,
        cache: "Cache",
        *,
        moves: bool = False,
        keeps: bool = True,
        is_other: bool = False,
    ) -> None:
        """n_responses: K, of each example in a step. cache: where it is kept. moves: whether the reference follows the
        policy (--reference-update). keeps: whether what is computed is kept; not keeping it is for measuring what that
        buys. is_other: whether it is another model than the start (--reference-model).
        """
        self.mode = mode
        self.is_kept = mode != "none" and keeps and not objective.needs_divergence
        """Whether anything can be kept: whole distributions are too large."""
        self._why_not_kept = "not kept"
        if mode != "none" and objective.needs_divergence:
            self._why_not_kept = "computed in every step, for a divergence of whole distributions"
        self._stays = objective.needs_reference_model
        self._also = "; mismatched sequences in every step" if objective.needs_mismatched and self.is_kept else ""
        self.is_written = False
        """Whether the run has its copy on disk; the same on every rank."""
        names = [name for name in REFERENCE_VALUES if name in objective.token_values] if self.is_kept else []
        self._lengths = torch.tensor([e.lengths for e in examples]) if names else None
        """[N, K] tokens, where the table is of tokens."""
        shape = (len(examples), n_responses) if self._lengths is None else (int(self._lengths.sum()),)
        self.values: dict[str, Tensor] = {
            name: torch.full(shape, torch.nan, dtype=torch.float64) for name in names or ["ref_logps"]
        }
        """The table; what a state keeps."""
        self.moves = moves
        """Whether the reference follows the policy: what is kept holds until the next update."""
        self.is_other = is_other
        """Whether the reference is another model than what the policy starts from."""
        self.heldout: ReferenceValues | None = None
        """What such a one gives for the held-out rows, where it was computed before the policy was read."""
        self._cache = cache

    @property
    def is_used(self) -> bool:
        """Whether the run has a reference at all."""
        return self.mode != "none"

    @property
    def is_complete(self) -> bool:
        """Whether the table knows every example."""
        return self.is_kept and not any(values.isnan().any() for values in self.values.values())

    @property
    def is_final(self) -> bool:
        """Whether the model that it was computed from is needed no more: mismatched sequences are other ones in every
        step.
        """
        return self.is_complete and not self.moves and not self._stays

    def forget(self) -> None:
        """The reference has moved: nothing is known of it."""
        for values in self.values.values():
            values.fill_(torch.nan)

    def known(self, step: Step) -> ReferenceValues | None:
        """What the table has of a step's examples, where it has all of it, else None."""
        if not self.is_kept:
            return None
        rows = self._rows(step)
        found = {name: values[rows] for name, values in self.values.items()}
        if any(values.isnan().any() for values in found.values()):
            return None
        if self._lengths is None:
            return ReferenceValues(found["ref_logps"])
        lengths = self._lengths[step.ids]
        return ReferenceValues(sums_of(found["ref_logps"], lengths), found)

    def remember(self, step: Step, found: ReferenceValues | None) -> None:
        """Keeps what the reference gave for a step's examples, gathered from all ranks."""
        if found is None or not self.is_kept:
            return
        rows = self._rows(step)
        for name, values in self.values.items():
            values[rows] = found.logps if self._lengths is None else found.tokens[name]

    def _rows(self, step: Step) -> Tensor:
        """Which rows of the table a step's examples have, in the step's order."""
        ids = torch.as_tensor(step.ids)
        if self._lengths is None:
            return ids
        ends = self._lengths.sum(dim=1).cumsum(0)
        starts = ends - self._lengths.sum(dim=1)
        return torch.cat([torch.arange(int(starts[i]), int(ends[i])) for i in ids])

    def read(self, ranks: Ranks) -> str:
        """Fills the table from the cache where that fits, on every rank or on none; says what was done. Collective."""
        found, said = None, "kept until it moves" if self.is_kept else self._why_not_kept
        if self.is_kept and not self.moves:
            found, said = self._cache.read(self.values)
        if ranks.all_reduce_sum(torch.tensor(float(found is not None))).item() < ranks.size or found is None:
            return said + self._also
        self.values = dict(found)
        return said + self._also

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
    before: Path | None = None
    """The copy of the run that this one goes on with: read where it fits, and never written."""

    @staticmethod
    def of(out: Path, shared: str | None, fingerprint: Callable[[], str], before: Path | None = None) -> "Cache":
        """The cache of a run. out: its folder. shared: what --reference-cache says. before: the folder of the run that
        it goes on with.
        """
        own, others = out / NAME, Path(shared) if shared else None
        return Cache(functools.cache(fingerprint), own, others, before and before / NAME)

    def _path(self, table: Table) -> Path | None:
        """The shared file: by its fingerprint in a folder, tables of tokens apart from those of sums."""
        if self.shared is None or self.shared.suffix == ".safetensors":
            return self.shared
        kind = (
            "-".join(["", "tokens", *(name for name in table if name != "ref_logps")]) if _is_of_tokens(table) else ""
        )
        return self.shared / f"{self.fingerprint()[:32]}{kind}.safetensors"

    def read(self, empty: Table) -> tuple[Table | None, str]:
        """The table where one fits, shared, left by this run before it was stopped, or by the one that it goes on with,
        and what was found.

        It fits where it was computed from the same weights, rows and dtype, is whole, and was not changed since. empty:
        what it has to hold, by name and shape.
        """
        places = (self._path(empty), self.own, self.before)
        paths = [path for path in places if path is not None and path.exists()]
        found = [self._read(path, empty) for path in paths] or [(None, "computed in this run")]
        return next((one for one in found if one[0] is not None), found[0])

    def _read(self, path: Path, empty: Table) -> tuple[Table | None, str]:
        try:
            with safe_open(path, framework="pt") as file:
                facts, table = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as fault:
            return None, f"{path} cannot be read ({fault}): computed again"
        other = f"{path} was computed from other weights, rows, limits or dtype: computed again"
        if facts.get("fingerprint") != self.fingerprint():
            return None, other
        if "ref_logps" not in table:
            return None, f"{path} cannot be read (it has no ref_logps): computed again"
        if facts.get("sha256") != _digest(table) or not all(x.isfinite().all() for x in table.values()):
            return None, f"{path} is damaged: computed again"
        if _is_of_tokens(table) != _is_of_tokens(empty) or not empty.keys() <= table.keys():
            kept, wanted = (_kind(x) for x in (table, empty))
            return None, f"{path} has {kept}, and this objective takes {wanted}: computed again"
        if any(table[name].shape != x.shape or table[name].dtype != x.dtype for name, x in empty.items()):
            return None, other
        return {name: table[name] for name in empty}, f"taken from {path}"

    def write(self, table: Table) -> None:
        """Writes the table into the run's folder, and where it is shared, if it is not there; whole or not at all.

        Other runs may be sharing theirs at the same time. A run whose table cannot be shared says so and goes on.
        """
        self._write(self.own, table)
        path = self._path(table)
        if path is None or (path.exists() and self._read(path, table)[0] is not None):
            return
        try:
            self._write(path, table, is_shared=True)
        except OSError as fault:
            cli.notify(f"{path}: cannot be written ({fault.strerror}); the run keeps its own copy, {self.own}")

    def _write(self, path: Path, table: Table, *, is_shared: bool = False) -> None:
        metadata = {"fingerprint": self.fingerprint(), "sha256": _digest(table)}
        with whole_file(path, is_shared=is_shared) as temporary:
            temporary.write_bytes(_ordered(save(dict(table), metadata)))  # save_file's faults are no OSError


def _ordered(file: bytes) -> bytes:
    """A safetensors file with its metadata in the order of their names: the library writes them in any, and the same
    table would have other bytes.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def _is_of_tokens(table: Table) -> bool:
    return all(values.ndim == 1 for values in table.values())


def _kind(table: Table) -> str:
    if not _is_of_tokens(table):
        return "sums over responses"
    return "log-probs of tokens" + " and entropies" * ("ref_entropy" in table)


def _digest(table: Table) -> str:
    whole = hashlib.sha256()
    for _, values in sorted(table.items(), reverse=True):  # of a table of sums, what it always was
        whole.update(values.contiguous().numpy().tobytes())
    return whole.hexdigest()


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
    if wanted == "precompute" and objective.needs_divergence:
        raise InputError(
            f"--reference precompute: {objective.name} takes a divergence of whole distributions, which no table can "
            "hold; use fused"
        )
    if wanted == "precompute" and not keeps:
        raise InputError("--reference precompute: cannot be combined with --disable reference-cache; use fused")
    if asked.model is not None and (wanted == "none" or (wanted == "auto" and not objective.has_reference)):
        why = f"{objective.name} takes no reference" if wanted == "auto" else "cannot be combined with --reference none"
        raise InputError(
            f"--reference-model: {why}; leave it out"
            + (", or add --reference fused to log rewards relative to it" if wanted == "auto" else "")
        )
    if asked.update != "none":
        if not objective.has_reference or wanted not in ("auto", "fused"):
            why = f"--reference {wanted} has none" if objective.has_reference else f"{objective.name} uses none"
            raise InputError(
                f"--reference-update {asked.update}: needs a reference model in every step, and {why}; leave it out"
            )
        return ["fused"]
    if wanted != "auto":
        return [wanted]
    if not objective.has_reference:
        return ["none"]
    needs_model = objective.needs_reference_model or not keeps
    return ["fused"] if needs_model else ["fused", "precompute"]


def fingerprint(
    model: Path,
    examples: Sequence[Example],
    dtype: torch.dtype,
    read: Callable[[Path], Sequence[bytes]] = file_digests,
) -> str:
    """SHA-256 over the weights' files, config.json, the tokenised rows (hence the limits too) and the dtype.

    read: gives the digests of a folder's files.
    """
    whole = digest(e._replace(token_weights=None) for e in examples)  # which the reference does not see
    for part in (f"{dtype}".encode(), *read(model)):
        whole.update(part)
    return whole.hexdigest()
