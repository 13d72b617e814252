"""A run's folder: what was asked for, a line per step, a checkpoint per epoch.

config.yaml         every setting, resolved, and the facts found (rows, what was cut)
first_example.txt   the first row of the run as the trainer sees it
metrics.jsonl       a line per optimizer step
epoch-01/ ...       Hugging Face checkpoint folders
events.out...       the metrics for TensorBoard
"""

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from data import InputError, RunError
from data.chat import Chat
from data.cli import FACTS
from engine import weights
from engine.columns import Columns
from engine.config import TrainConfig
from engine.llama import Llama
from engine.objective import Objective
from engine.parallel import Ranks
from engine.steps import Step, Steps
from losses import Result


def check_folder(folder: Path) -> None:
    """Raises InputError where the folder holds a run already, or cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file; --out has to be a folder")
    if (folder / "config.yaml").exists() or (folder / "metrics.jsonl").exists():
        raise InputError(f"{folder}: holds a run already; give another --out, or remove it")
    nearest = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not _is_writable(nearest):
        raise InputError(f"{folder}: {nearest} cannot be written to; give another --out")


def _is_writable(folder: Path) -> bool:
    probe = folder / ".engine-probe.tmp"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been here
    except OSError:
        return False
    return True


class Run:
    """Everything a run writes and shows. Only rank 0 does; on the others every method returns at once."""

    def __init__(
        self, config: TrainConfig, steps: Steps, objective: Objective, ranks: Ranks, facts: dict[str, Any]
    ) -> None:
        self._config, self._steps, self._ranks = config, steps, ranks
        self.folder = Path(config.out)
        self.n_tokens = 0
        """Tokens trained on so far: prompts once, responses whole."""
        self.last: dict[str, float] = {}
        """The newest line of metrics."""
        self._facts = {name: value for name, value in facts.items() if isinstance(value, int)}
        self._pending: dict[str, float] = {}
        self._clock = time.perf_counter()
        self.step_seconds = 0.0
        """What the newest step took, with its data and its reference."""
        if not ranks.is_first:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and for one rank only

        self.folder.mkdir(parents=True, exist_ok=True)
        resolved = asdict(config) | {"dtype": str(ranks.dtype).removeprefix("torch."), FACTS: facts}
        for name in ("config", "hyperparameters", "beta"):
            del resolved[name]
        resolved |= objective.settings
        (self.folder / "config.yaml").write_text(
            yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        self._lines = open(self.folder / "metrics.jsonl", "x", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._board = SummaryWriter(str(self.folder))
        self._bar = tqdm(total=len(steps), unit="step", disable=None)  # rate and time left; quiet unless on a terminal

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._ranks.is_first:
            self._bar.close()
            self._lines.close()
            self._board.close()

    def check_finite(self, step: Step, columns: Columns, result: Result, grad_norm: float) -> None:
        """Raises RunError, on every rank, before the weights change, where a loss or the gradient is not finite."""
        bad = (~result.losses.isfinite()) | (~columns.logps.isfinite().all(dim=1))
        if not bad.any() and grad_norm == grad_norm and abs(grad_norm) != float("inf"):
            return
        what = "the loss of" if bad.any() else f"the gradient ({grad_norm}) of a step with"
        places = [e.place for e, is_bad in zip(step.examples, bad.tolist(), strict=True) if is_bad or not bad.any()]
        more = f" and {len(places) - 10} more" if len(places) > 10 else ""
        raise RunError(
            f"step {step.number}: {what} {', '.join(places[:10])}{more} is not finite; the weights are as step "
            f"{step.number - 1} left them; look at these rows, or lower --lr"
        )

    def add(self, metrics: dict[str, float]) -> None:
        """More for the line of the present step."""
        self._pending |= metrics

    def log(self, step: Step, metrics: dict[str, float], *, learning_rate: float, grad_norm: float) -> None:
        """Writes a step's line: values from before the step, and the learning rate that was used in it."""
        seconds = self.step_seconds
        self.n_tokens += step.n_tokens
        line = {"step": step.number, "epoch": step.number / self._steps.per_epoch}
        line |= (
            metrics
            | self._pending
            | {"learning_rate": learning_rate, "grad_norm": grad_norm, "num_tokens": self.n_tokens}
        )
        line |= {f"data/{name}": value for name, value in self._facts.items()}
        line |= {
            "perf/step_seconds": seconds,
            "perf/pairs_per_second": step.n_examples / seconds,
            "perf/tokens_per_second": step.n_tokens / seconds,
        }
        self._pending = {}
        self.last = line
        self._clock = time.perf_counter()
        if not self._ranks.is_first:
            return
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in line.items():
            self._board.add_scalar(name, value, step.number)
        shown = {k: f"{line[k]:.3f}" for k in ("loss", "rewards/chosen", "rewards/rejected") if k in line}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def stop_clock(self) -> None:
        """A step's work is done: evaluation and saving do not count into its time."""
        self.step_seconds = time.perf_counter() - self._clock

    def save_epoch(self, step: Step, policy: Llama, stop_ids: tuple[int, ...], chat: Chat | None) -> Path:
        """Writes the epoch's checkpoint folder, and removes the oldest beyond --keep. Collective."""
        folder = self.folder / f"epoch-{step.epoch:02d}"
        ranks = self._ranks
        beside = chat.files if chat else {}
        weights.save(policy, folder, stop_ids=stop_ids, beside=beside, whole=ranks.whole, writes=ranks.is_first)
        if self._ranks.is_first and self._config.keep:
            epochs = [p for p in self.folder.glob("epoch-*") if p.name.removeprefix("epoch-").isdigit()]
            for old in sorted(epochs, key=lambda p: int(p.name.removeprefix("epoch-")))[: -self._config.keep]:
                shutil.rmtree(old)
        self._ranks.wait()
        return folder

    def write(self, name: str, text: str) -> None:
        """A text file into the run's folder."""
        if self._ranks.is_first:
            (self.folder / name).write_text(text, encoding="utf-8")

    def say(self, sentence: str) -> None:
        """A notice for the user."""
        if self._ranks.is_first:
            tqdm.write(sentence, file=sys.stderr)
