"""What a run does that its numbers do not show. A test that two settings agree proves first, with it, that they differ:
two runs that take the same passes agree whatever the setting is worth.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engine import train
from engine.config import TrainConfig
from engine.step import Hooks
from tests.metrics import lines


class Pass(NamedTuple):
    """One pass over the layers."""

    step: int
    """Which step's; 0 where it belongs to none: what is computed before the first, or measured after an epoch."""
    is_before: bool
    """Whether no step had begun yet."""
    n_tokens: int
    n_rows: int
    """Through the head."""
    n_sequences: int
    walks_reference: bool
    has_gradient: bool


class Watch:
    """The passes of a run, seen from the hooks that the loop offers."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.steps: list[int] = []
        """Those whose optimizer step was done, in order."""
        self.mesh: list[int] = []
        """Ranks that hold copies, and that share one; empty where nothing is sharded."""
        self._step, self._has_begun = 0, False

    @property
    def hooks(self) -> Hooks:
        """What a run is given."""
        return Hooks(begin=self._begin, after_step=lambda _, step: self.steps.append(step.number), on_phase=self._note)

    def _note(self, step: int, phase: str) -> None:
        self._has_begun = True
        self._step = 0 if phase == "done" else step

    def _begin(self, training: Any) -> None:
        import torch

        if training.ranks.is_sharded:
            self.mesh = list(training.ranks.mesh.shape)

        def seen(model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            (forest,) = given
            walks = named["with_reference"] and model.reference is not None
            sizes = forest.n_tokens, len(forest.rows), forest.n_sequences
            self.passes.append(Pass(self._step, not self._has_begun, *sizes, walks, torch.is_grad_enabled()))

        training.model.register_forward_pre_hook(seen, with_kwargs=True)

    @property
    def trained(self) -> list[Pass]:
        """Those that went back."""
        return [one for one in self.passes if one.has_gradient]

    @property
    def before(self) -> list[Pass]:
        """Those before the first step."""
        return [one for one in self.passes if one.is_before]

    @property
    def of_reference(self) -> list[Pass]:
        """Those that walked the reference too."""
        return [one for one in self.passes if one.walks_reference]

    @property
    def n_tokens(self) -> int:
        """Of those that went back."""
        return sum(one.n_tokens for one in self.trained)

    @property
    def n_rows(self) -> int:
        """Through the head, in those that went back."""
        return sum(one.n_rows for one in self.trained)

    def per_step(self) -> list[int]:
        """How many went back in each step."""
        return [sum(one.step == step for one in self.trained) for step in self.steps]

    def write(self, path: Path) -> None:
        """For a test in another process; `read` gives it back."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"passes": self.passes, "steps": self.steps, "mesh": self.mesh}))

    @staticmethod
    def read(path: Path) -> "Watch":
        """What `write` wrote."""
        held, made = json.loads(path.read_text()), Watch()
        made.passes, made.steps, made.mesh = [Pass(*one) for one in held["passes"]], held["steps"], held["mesh"]
        return made


def watched(config: TrainConfig) -> tuple[list[dict[str, float]], Watch]:
    """A run's lines of metrics, and what it did."""
    watch = Watch()
    return lines(train.run(config, watch.hooks).out), watch


def n_ranks_of(out: Path) -> int:
    """How many processes wrote a run's newest state."""
    newest = max((out / "state").glob("step-*/run.json"))
    return json.loads(newest.read_text())["ranks"]


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """A list that gets the arguments of every call, from now on, of a function of a module or a class."""
    plain: Callable[..., Any] = getattr(owner, name)
    calls: list[tuple[Any, ...]] = []

    def noted(*given: Any, **named: Any) -> Any:
        calls.append(given)
        return plain(*given, **named)

    monkeypatch.setattr(owner, name, noted)
    return calls
