"""The model card of a checkpoint folder, README.md: what the weights are, from the run's own facts.

YAML in front of it is what the hub reads: base model and data sets where they have a hub id, tags, library. No path of
the machine is in it: files and folders are called by the last part of their names. The licence is left open.
"""

import functools
import inspect
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import engine
from data.rows import is_hub_id
from engine.config import TrainConfig
from engine.model import name_of
from engine.run.adapter_card import AdapterCard
from engine.step import Objective, Step
from losses import Loss

CARD = "README.md"
TAG = "anchored-preference-optimization"
"""By which a card is known as one of ours."""
LICENCE = "# license: yours to name; the terms of the base model and of the data hold for these weights too"
OF_THE_MACHINE = {"out", "config", "resume", "take_over", "track", "hyperparameters", "hang_timeout", "gpu_memory"}
"""Settings that say nothing of the model."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of every checkpoint of a run."""

    config: TrainConfig
    objective: Objective
    settings: Mapping[str, Any]
    """The objective's hyperparameters, and what else was found for settings that were left open."""
    facts: Mapping[str, Any]
    """config.yaml's."""
    n_steps: int
    n_ranks: int
    adapter: AdapterCard | None = None
    """What trains, where that is an adapter beside the base."""

    def text(self, name: str, step: Step, measured: Mapping[str, float], saved: torch.dtype) -> str:
        """Of the checkpoint of a step. name: the folder's; measured: of held-out rows at that step; saved: the folder's
        dtype.
        """
        return "\n".join([*self._front(), "", *self._body(name, step, measured, saved)]) + "\n"

    def _front(self) -> Iterator[str]:
        names = [term.loss.name for term in self.objective.terms]
        library = "transformers" if self.adapter is None else "peft"
        made: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
        if base := self._base:
            made["base_model"] = base
        if self.adapter is not None:
            made["base_model_relation"] = "adapter"
        if data := list(dict.fromkeys(filter(None, map(hub_id_of, self.config.data.sources)))):
            made["datasets"] = data
        made["tags"] = list(
            dict.fromkeys([TAG, "preference-alignment", *([] if self.adapter is None else ["lora"]), *names])
        )
        yield "---"
        yield yaml.safe_dump(made, sort_keys=False, allow_unicode=True).rstrip()
        if "base_model" not in made:
            yield f"# base_model: the hub id of {_quiet(shown(self.config.model))}"
        yield LICENCE
        yield "---"

    def __post_init__(self) -> None:
        _ = self._base  # while the model's folder is there

    @functools.cached_property
    def _base(self) -> str | None:
        """The base model's hub id: as it was asked for, or as the card of the folder names it."""
        model = self.config.model
        return hub_id_of(model) or front_of(Path(model) / CARD).get("base_model")

    def _body(self, name: str, step: Step, measured: Mapping[str, float], saved: torch.dtype) -> Iterator[str]:
        yield f"# {_quiet(Path(self.config.out).name)}, {name}"
        yield ""
        base, loss = _code(shown(self.config.model)), _code(self.objective.name)
        after = f"after step {step.number:,} of {self.n_steps:,}, in {name_of(saved)}"
        if self.adapter is None:
            yield (
                f"{base} aligned on preferences with the objective {loss}: the weights {after}, which transformers and "
                "vLLM load as they are."
            )
        else:
            yield (
                f"A LoRA adapter for {base}, aligned on preferences with the objective {loss}: {self.adapter.form}; "
                f"its numbers {after}. The base's weights are not in this folder."
            )
            yield from self.adapter.use(self._base, _quiet(name))
        yield from self._origin()
        yield from self._formulas()
        yield from self._heldout(measured)
        yield from ["", "## Command", "", "```", self.command, "```", "", "All settings, those left out included:", ""]
        yield "```yaml"
        yield yaml.safe_dump(self._resolved(), sort_keys=False, allow_unicode=True, width=110).rstrip()
        yield "```"
        yield ""
        yield f"Trained by {TAG} {engine.__version__}, torch {torch.__version__.split('+')[0]}. Files and folders are"
        yield "called by the last part of their names."

    def _origin(self) -> Iterator[str]:
        data = [f"{_code(shown(name))}" for name in self.config.data.sources]
        yield from ["", "## Trained from", ""]
        identity = _identity(Path(self.config.out))
        named = {"base model": (self.config.model, identity.get("weights"))}
        if self.adapter is not None and self.adapter.start is not None:
            named["adapter that it started from"] = self.adapter.start, identity.get("adapter")
        if self.config.reference.model is not None:
            named["reference"] = self.config.reference.model, identity.get("reference weights")
        for kind, (model, digest) in named.items():
            yield f"- {kind}: {_code(shown(model))}" + (f", digest of its files {digest}" if digest else "")
        yield f"- data: {', '.join(data)}; {self._rows('')}"
        if (eval_data := self.config.measuring.eval_data) is not None:
            yield f"- held out: {_code(shown(eval_data))}; {self._rows('eval_')}"
        elif n := self.config.measuring.eval_pairs:
            yield f"- held out: {n} rows of the data, by --seed {self.config.data.seed}"

    def _rows(self, kind: str) -> str:
        """How many rows of data there were, and a digest of what of them is trained on."""
        n, digest = self.facts.get(f"{kind}rows"), self.facts.get(f"{kind}token_ids_sha256")
        return f"{n:,} rows, SHA-256 of their token ids {digest}" if digest else "rows not counted"

    def _formulas(self) -> Iterator[str]:
        yield from ["", "## Objective"]
        for term in self.objective.terms:
            yield ""
            weight = f" x {term.weight:g}" if len(self.objective.terms) > 1 else ""
            yield f"{_code(term.loss.name)}{weight}: {formula_of(term.loss)}"
        yield ""
        if arguments := self.objective.arguments:
            yield "Hyperparameters: " + ", ".join(_code(f"{name} = {value}") for name, value in arguments.items()) + "."

    def _heldout(self, measured: Mapping[str, float]) -> Iterator[str]:
        yield from ["", "## Held-out numbers", ""]
        if not measured:
            yield "None: no rows were held out, or none were measured at this step."
            return
        yield from ["| at this step | |", "|---|---|"]
        yield from (f"| {name} | {value:.6g} |" for name, value in measured.items())

    def _resolved(self) -> dict[str, Any]:
        """Every setting, with what was found for those that were left open."""
        found = {name: value for name, value in self.config.resolved().items() if name not in OF_THE_MACHINE}
        return {name: _plain(value) for name, value in (found | dict(self.settings)).items()}

    @property
    def command(self) -> str:
        """The line that starts such a run: the flags whose values are not the defaults."""
        config = self.config
        plain = TrainConfig(model=config.model, data=config.data.sources, out=config.out).flat()
        start = "python" if self.n_ranks == 1 else f"torchrun --nproc_per_node {self.n_ranks}"
        words = [start, "-m engine.train"]
        for name, value in config.flat().items():
            if name in ("model", "data", "out") or (value != plain[name] and name not in OF_THE_MACHINE):
                words.append(_flag(name, value))
        words += [f"--{name} {shlex.quote(value)}" for name, value in config.objective.hyperparameters.items()]
        return " ".join(words)


def hub_id_of(name: str) -> str | None:
    """The hub id, owner/name, that a source or a model is called by; None where it is a file or folder."""
    path = Path(name)
    cached = re.search(r"(?:models|datasets)--([\w.-]+?)--([\w.-]+)/snapshots/", path.as_posix() + "/")
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    if path.exists() or Path(name.rpartition(":")[0] or name).exists() or not is_hub_id(name):
        return None
    return re.split("[@:]", name)[0]


def shown(name: str) -> str:
    """What a file or folder is called in a card: its last part; a hub id as it is."""
    if hub_id_of(name) is not None and not Path(name).exists():
        return name
    return Path(name).name or name


def front_of(path: Path) -> dict[str, Any]:
    """The YAML in front of a card; empty where there is no card, none of ours, or nothing that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, LookupError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict) or TAG not in (found.get("tags") or []):
        return {}
    return found


def formula_of(loss: Loss) -> str:
    """What an objective minimises, in its own words."""
    said = re.split(r"\n(?=When:|Source:|Metrics?:|\w+(?:, \w+)*: )", inspect.getdoc(loss.function) or "")[0]
    text = " ".join(said.split()) or "of a file of its own, which does not say"
    return text.replace("*", r"\*").replace("|", r"\|") + (f" (file with SHA-256 {loss.digest})" if loss.digest else "")


def _flag(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return flag if value else f"--no-{name.replace('_', '-')}"
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([flag, *(shlex.quote(re.sub(r"\s+", " ", str(_plain(one)))) for one in values)])


def _plain(value: Any) -> Any:
    """A setting's value as a card shows it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, str) and ("/" in value or value.startswith("~")):
        return shown(value)
    return value


def _identity(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "state" / "identity.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _code(text: str) -> str:
    return f"`{_quiet(text)}`"


def _quiet(text: str) -> str:
    """A name in which nothing is markup."""
    return re.sub(r"[`\s<>|]+", " ", text)
