"""An adapter's run: where it starts, how its base is held, and which adapter the reference has on the same base.

--lora-rank 16                          a fresh adapter; the reference is the base
--adapter DIR                           starts there; the reference is that adapter
--adapter DIR --reference-model base    starts there; the reference is the base
--reference-model ADAPTER               the reference is the base with that adapter
--reference-model MODEL                 another model, as in any run
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.rows import find_model, is_copy, known_base, open_model
from data.text import Chat, TemplateSettings, has_tokenizer
from engine import weights
from engine.config import LORA_RATE, MOST_RANK, AdapterConfig, TrainConfig
from engine.distributed import Ranks
from engine.model import Quantisation, Transformer, adapters, name_of
from engine.planning import OnBase, asked_adapter
from engine.run.adapter_card import AdapterCard
from engine.run.folder import check_apart
from engine.run.metrics_log import say
from engine.step import Step
from engine.weights import AdapterFolder
from system import InputError, cli

FAR = 10.0
"""Nats of a mean log-ratio before the first step that are said."""
LEAST_RATE = 1e-6
"""Below it an adapter's rate is taken for one of all parameters."""


@dataclass(frozen=True, kw_only=True)
class Adapting:
    """What a run knows of its adapter before weights are read."""

    folder: Path
    """The base's."""
    asked: AdapterConfig
    dtype: torch.dtype
    """Of compute."""
    start: AdapterFolder | None
    """Where the adapter starts; None: a fresh one."""
    reference_adapter: AdapterFolder | None
    """The reference's on the base; None: the base alone."""
    shares_base: bool
    """Whether the reference computes with the policy's base; else it is another model."""
    moves: bool
    """Whether the reference follows the policy."""
    seed: int

    @staticmethod
    def of(config: TrainConfig, folder: Path) -> "Adapting | None":
        """What a run asks for; None where all weights train. folder: the model's. Raises InputError, where that is an
        adapter itself too.
        """
        if weights.is_adapter(folder):
            raise InputError(
                f"--model {config.model}: is an adapter; name its base by --model and the adapter by --adapter to "
                f"train it further"
            )
        if not config.adapters.is_used:
            return None
        _check_precision(config.adapters, compute_dtype(config))
        start = None
        if config.adapters.start is not None:
            start = weights.read_adapter(find_model(config.adapters.start))
            if config.out:  # none is planned for
                check_apart(Path(config.out), start.folder, "adapter")
            weights.say_if_of_another(start, config.model, folder)
        own, shares_base = _of_reference(config, folder, start)
        if config.reference.update != "none" and not shares_base:
            raise InputError(
                f"--reference-update {config.reference.update}: with an adapter the policy's A and B are copied to a "
                f"reference on the same base, and {config.reference.model} is another model; leave one of the two out"
            )
        _say_what_is_unusual(config, start, own)
        return Adapting(
            folder=folder,
            asked=config.adapters,
            dtype=compute_dtype(config),
            start=start,
            reference_adapter=own,
            shares_base=shares_base,
            moves=config.reference.update != "none",
            seed=config.data.seed,
        )

    @property
    def held(self) -> torch.dtype | Quantisation:
        """How the base's matrices are held."""
        return adapters.held_as(self.asked.base_dtype, self.dtype)

    @property
    def base_dtype(self) -> str:
        """The same, as adapter folders say it."""
        return self.held if isinstance(self.held, str) else name_of(self.held)

    @property
    def is_start(self) -> bool:
        """Whether the reference is the policy as the run starts."""
        folders = [None if one is None else one.folder.resolve() for one in (self.start, self.reference_adapter)]
        return self.shares_base and folders[0] == folders[1]

    def check_vocabulary(self, n_rows: int) -> None:
        """Raises InputError where an adapter's tokenizer has other words than the base's. n_rows: of the embedding."""
        for found in filter(None, (self.start, self.reference_adapter)):
            weights.check_vocabulary(found, self.folder, n_rows)

    def for_plan(self) -> OnBase:
        """What policy and reference have on the base, as a plan asks for it."""
        return OnBase(
            policy=None if self.start is None else self.start.adapter,
            reference=None if self.reference_adapter is None else self.reference_adapter.adapter,
            shares_base=self.shares_base,
        )

    def attach(self, policy: Transformer) -> None:
        """Freezes a policy on the meta device, and puts the adapter beside it. Raises InputError."""
        adapters.freeze(policy, self.dtype, self.held)
        if self.start is not None:
            self.start.check(policy, self.folder)
            with weights.placed(self.start.folder):
                adapters.attach(policy, self.start.adapter)
        else:
            adapters.attach(policy, asked_adapter(policy, self.asked))
        if self.reference_adapter is not None and not self.is_start:
            self.reference_adapter.check(policy, self.folder)
        theirs = self.reference_adapter
        if self.moves and theirs is not None and theirs.adapter != policy.adapter:
            raise InputError(
                f"--reference-update hard: copies the policy's A and B to the reference, and {theirs.folder} is an "
                f"adapter of another rank, scale or other layers; leave it out, or name one like the policy's"
            )

    def fill(self, policy: Transformer, ranks: Ranks) -> None:
        """Reads the base, and what the adapter starts from. Raises InputError."""
        weights.fill(policy, self.folder, ranks.local)
        if self.start is not None:
            weights.fill_adapter(policy, self.start, ranks.local)
        else:
            weights.draw_adapter(policy, self.seed, ranks.local)

    def share(self, policy: Transformer, ranks: Ranks) -> Transformer:
        """The reference on the policy's base, its own numbers still to be read (`fill_shared`)."""
        own = None if self.reference_adapter is None else self.reference_adapter.adapter
        if own is None and self.moves:  # it will have what the policy has now: zeros are the base
            own = policy.adapter
        return adapters.reference_of(policy, own, ranks.device)

    def fill_shared(self, view: Transformer) -> None:
        """Reads what the reference has of its own: its adapter, and what the policy trains whole. Raises InputError."""
        weights.fill_whole(view, self.folder)
        if self.reference_adapter is not None:
            weights.fill_adapter(view, self.reference_adapter)

    def save(
        self,
        policy: Transformer,
        ranks: Ranks,
        name: str,
        texts: Mapping[str, str],
        folder: str | Path,
        held: Mapping[str, Tensor] | None,
        card: str | None,
        replaces: bool,
    ) -> None:
        """Writes the adapter's folder (Training.save). name: what the user calls the base. Collective."""
        weights.save_adapter(
            policy,
            folder,
            base=str(self.folder.resolve()) if Path(name).is_dir() else name,
            base_dtype=self.base_dtype,
            beside={**texts, **({} if card is None else {"README.md": card})},
            parts=ranks,
            held=held,
            replaces=replaces,
        )

    def build_reference(self) -> tuple[Transformer, Path]:
        """The base with the reference's adapter, as a model by itself, on the meta device, and the folder to fill it
        from: the adapter's, which reads its base, too.
        """
        found = self.reference_adapter
        if found is None:
            return weights.build(self.folder, self.dtype, base_dtype=self.base_dtype), self.folder
        return weights.build_adapted(found, self.dtype, self.folder, self.base_dtype), found.folder

    def digests(self) -> list[bytes]:
        """SHA-256 of what makes the reference another than the base in the dtype that computes."""
        found = [] if self.held == self.dtype else [self.base_dtype.encode()]
        return found + ([] if self.reference_adapter is None else self.reference_adapter.digests())

    def identity(self) -> dict[str, str]:
        """What has to be the same for a run to go on with this one, beside its flags."""
        held = {"base dtype": self.base_dtype}
        for name, found in (("adapter", self.start), ("reference adapter", self.reference_adapter)):
            if found is not None:
                held[name] = hashlib.sha256(b"".join(found.digests())).hexdigest()[:16]
        return held

    def card(self, policy: Transformer) -> AdapterCard:
        """What model cards say of it."""
        assert policy.adapter is not None
        targets = adapters.targets_of(policy)
        return AdapterCard(adapter=policy.adapter, targets=targets, base_dtype=self.base_dtype, start=self.asked.start)

    def sentence(self, policy: Transformer, rate: float) -> str:
        """What trains, for the log."""
        adapter = policy.adapter
        assert adapter is not None
        n = sum(p.numel() for _, p in policy.trained())
        total = policy.config.n_parameters
        kinds = adapters.short_names(adapters.layers_of(policy), adapter.modules)
        named = ", ".join(kinds) if len(kinds) <= 8 else f"{len(kinds)} layers"
        also = f", and {' and '.join(adapter.whole)} whole" if adapter.whole else ""
        held = "" if self.held == self.dtype else f", its matrices held in {self.base_dtype}"
        return (
            f"an adapter of rank {adapter.rank}, alpha {adapter.alpha:g}, on {named}{also}: {n:,} numbers train beside "
            f"{total:,} that are frozen{held}; --lr {rate:g}"
        )


def open_chat(folder: Path, adapting: Adapting | None, settings: TemplateSettings) -> Chat | None:
    """A run's chat: of the adapter that it starts from where that has a tokenizer, as whoever answers with it takes it,
    else of the model's folder. Raises InputError.
    """
    start = None if adapting is None else adapting.start
    if start is None or not has_tokenizer(start.folder):
        return open_model(str(folder), settings)[1]
    own, of_base = (open_model(str(one), settings, base=folder)[1] for one in (start.folder, folder))
    if own and (of_base is None or own.template.source != of_base.template.source):
        cli.notify_once(f"{start.folder}: its own tokenizer and chat template are used, which differ from {folder}'s")
    return own


def say_if_far(adapting: Adapting | None, step: Step, metrics: Mapping[str, float]) -> None:
    """Says of an adapter's first step where the policy begins far from its reference, which saturates objectives."""
    found = {side: metrics[f"logratios/{side}"] for side in ("chosen", "rejected") if f"logratios/{side}" in metrics}
    if adapting is None or step.number > 1 or max(map(abs, found.values()), default=0.0) < FAR:
        return
    said = " and ".join(f"{value:+.0f} nats for {side} responses" for side, value in found.items())
    say(
        f"step 1: the mean log-ratio of policy and reference is {said}, where many objectives have hardly a gradient; "
        "without --reference-model the run begins at 0"
    )


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype that a run computes in."""
    if config.memory.dtype is not None:
        return getattr(torch, config.memory.dtype)
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _check_precision(asked: AdapterConfig, dtype: torch.dtype) -> None:
    """Raises InputError where 4 bits are to be multiplied in float32 on a GPU."""
    if asked.base_dtype == "nf4" and dtype == torch.float32 and torch.cuda.is_available():
        raise InputError(
            "--base-dtype nf4: cannot be combined with --dtype float32 on a GPU, which is many times slower than "
            "bfloat16 and not more exact on 4-bit weights; use --dtype bfloat16, or --base-dtype float32"
        )


def _say_what_is_unusual(config: TrainConfig, start: AdapterFolder | None, reference: AdapterFolder | None) -> None:
    """A rank that is not served, a rate that trains nothing, a base that is held otherwise than before."""
    rank = config.adapters.rank if start is None else start.adapter.rank
    if rank is not None and rank > MOST_RANK:
        cli.notify_once(
            f"rank {rank}: vLLM serves adapters of rank {MOST_RANK} at most; merge it to serve it (engine.merge)"
        )
    if config.optimizer.rate < LEAST_RATE:
        cli.notify_once(
            f"--lr {config.optimizer.rate:g}: suits the training of all parameters; an adapter hardly changes below "
            f"{LEAST_RATE:g}, and {LORA_RATE:g} to 1e-5 is usual"
        )
    held = config.adapters.base_dtype or name_of(compute_dtype(config))
    for one, does in ((start, "continues"), (reference if reference != start else None, "is the reference")):
        if one is not None and one.base_dtype in ("int8", "nf4") and one.base_dtype != held:
            cli.notify_once(
                f"{one.folder}: was trained on a base in {one.base_dtype} and {does} with one in {held}, whose weights "
                f"differ; --base-dtype {one.base_dtype} takes the same"
            )


def _of_reference(config: TrainConfig, folder: Path, start: AdapterFolder | None) -> tuple[AdapterFolder | None, bool]:
    """The adapter that the reference has, and whether it is on the policy's base: also where the base that it names is
    not there, which is said, or where it names none.
    """
    asked = config.reference
    if asked.model is None:
        return start, True
    if asked.is_base:
        return None, True
    other = find_model(asked.model)
    if not weights.is_adapter(other):
        return None, other.resolve() == folder.resolve()
    if start is not None and other.resolve() == start.folder.resolve():
        return start, True
    found, base = weights.read_adapter(other), known_base(other)
    if base is None:
        weights.say_if_of_another(found, config.model, folder)
        return found, True
    return (found, True) if is_copy(base, folder) else (None, False)
