"""LoRA at its best learning rate against all parameters at theirs: the real model, the same pairs, three seeds.

    python -m examples.real.lora_search                     two hours and a half on two cores
    python -m examples.real.lora_search --minutes 110       what fits into so many minutes; the same command goes on

The pairs are those of ./launch.sh demo --real. Each way to train is searched for its rate with seed 0 on development
topics, which are in no pair and in no test, until the rate at which most sampled answers keep their rule and do not
repeat themselves has a worse one on both sides, or the ladder of rates ends (1e-3). The smallest rate within a standard
error of that is taken. Then it trains with three other seeds, which are measured on the test's topics. A run is a
process of its own; what came out is a file in docs/records/lora, written when it is measured, and a run whose file is
there is not done again. `python -m examples.real.lora_page` makes docs/adapters.md of these files.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.rows import Example, load_rows
from eval.tables import to_markdown
from examples.miniature import tune
from examples.real import apart, checkpoint, demo, lora_demo, lora_page, measure, task
from examples.real.task import Task
from examples.studies import GOES_ON, LEFT
from system import InputError, cli, files
from system.errors import Stopped
from system.flags import PathText

EXAMPLE = "python -m examples.real.lora_search --minutes 110"
WAYS: dict[str, dict[str, Any]] = {"all": {}, "lora": {"lora_rank": lora_demo.ADAPTER["lora_rank"]}}
"""The ways to train, and their flags."""
START = {"all": (3e-6, 1e-5, 3e-5), "lora": (3e-5, 1e-4, 3e-4)}
"""Rates to begin at, of tune.LADDER: the demo's, and ten times that (docs/adapters.md), with one on either side."""
SEEDS = (1, 2, 3)
"""Of the runs that are compared; the search has another."""
SEARCH_SEED = 0
N_DEVELOPMENT = 135
SECONDS = {"run": 430, "answer": 0.36}
"""What has been taken on two cores: by a run, and by an answer. Bounds what is begun until a run was timed here."""


@dataclass(frozen=True, kw_only=True)
class LoraSearchConfig:
    """Search the learning rate of LoRA and of training all parameters on a real model, and compare both at their
    best."""

    out: PathText = "runs/real"
    """Folder for the model, the pairs and the runs. What ./launch.sh demo --real has left in it is reused."""
    minutes: float | None = None
    """Time budget in minutes, counted from the start of the command. A run starts only if it is expected to be trained
    and measured within it. If runs are left, the exit code is 3; run the same command to continue. Unset: no limit."""
    records: PathText = "docs/records/lora"
    """Folder for the results, one JSON file for each run."""
    model: PathText | None = None
    """Checkpoint folder. Unset: SmolLM2-135M-Instruct, downloaded into --out."""
    data: PathText | None = None
    """Pairs to train on. Unset: those of ./launch.sh demo --real, made if they are not there."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"--minutes: {self.minutes:g} has to be above 0")


class Group:
    """Tasks of a group of topics, and ordinary answers of the model before training on them."""

    def __init__(self, base: Path, root: Path, name: str, topics: Sequence[str], n: int, ways: Sequence[str]) -> None:
        """ways: how answers are drawn, of measure.TEMPERATURES."""
        self.tasks: list[Task] = task.tasks(topics, n, seed=1)
        self._ways, self._answers = ways, root / "lora-search/answers"
        self._ordinary: list[Example] = measure.ordinary(base, self._answers / f"{name}-ordinary.jsonl", topics)
        self.name = name

    @property
    def n_answers(self) -> int:
        """Answers that a model gives."""
        return len(self.tasks) * len(self._ways)

    def scores(self, folder: Path, model: str) -> dict[str, measure.Score]:
        """A model's, by how answers were drawn; its answers are kept."""
        prompts = [t.prompt for t in self.tasks]
        return {
            how: measure.score(
                self.tasks,
                measure.answer(folder, prompts, measure.TEMPERATURES[how], self._answers / f"{model}-{how}.jsonl"),
            )
            for how in self._ways
        }

    def forget(self, model: str) -> None:
        """Removes answers of a model that is trained anew."""
        for how in self._ways:
            (self._answers / f"{model}-{how}.jsonl").unlink(missing_ok=True)

    def likelihoods(self, folder: Path) -> np.ndarray:
        """Nats per token of the ordinary answers under a model, [n]."""
        return measure.log_likelihood(folder, self._ordinary)


class Search:
    """What is trained on what, and where it is kept."""

    def __init__(self, config: LoraSearchConfig) -> None:
        self._end = None
        if config.minutes is not None:
            self._end = time.monotonic() + 60 * config.minutes
        self._base = Path(config.model or checkpoint.fetch(Path(config.out)))
        self._root = Path(config.out) / f"run-{demo.fingerprint()}"
        self._records = Path(config.records)
        self._records.mkdir(parents=True, exist_ok=True)
        self._pairs = Path(config.data) if config.data else self._root / "clair.jsonl"
        if config.data is None:
            self._root.mkdir(parents=True, exist_ok=True)
            demo.make_pairs(self._base, self._root, "clair")
        self._groups = {
            "development": Group(
                self._base, self._root, "development", task.DEVELOPMENT_TOPICS, N_DEVELOPMENT, ["sampled"]
            ),
            "test": Group(self._base, self._root, "test", task.HELDOUT_TOPICS, demo.N_TEST, list(measure.TEMPERATURES)),
        }
        self._about = {
            "model": self._base.name, "loss": demo.OBJECTIVES[0], "n_pairs": len(load_rows(self._pairs)),
            "tasks": demo.fingerprint(), **{k: v for k, v in demo.TRAINING.items() if k != "lr"},
        }  # fmt: skip
        self._rate = 1.0  # seconds that a run takes here, against SECONDS
        self._before = {name: group.likelihoods(self._base) for name, group in self._groups.items()}

    def before(self, group: str) -> dict[str, Any]:
        """The record of the model before training."""
        path = self._records / f"base-{group}.json"
        if not path.exists():
            scores = self._groups[group].scores(self._base, f"base-{group}")
            known = {"way": "base", "group": group, "scores": measure.counts(scores)}
            files.write_json(path, {**self._about, **known, **lora_demo.machine()})
        return self._read(path)

    def measured(self, way: str, rate: float, seed: int, group: str) -> dict[str, Any]:
        """A run's record: trained and measured where it is not there. Raises Stopped where no time is left for it."""
        name = f"{way}-{rate:g}-seed-{seed}"
        path = self._records / f"{name}.json"
        if not path.exists():
            self._check_time(group)
            begun = time.monotonic()
            out = self._root / "lora-search" / name
            flags = demo.TRAINING | WAYS[way] | {
                "model": str(self._base), "data": [str(self._pairs)], "loss": demo.OBJECTIVES[0], "lr": rate,
                "seed": seed, "keep_checkpoints": 1, "track": ["none"],
            }  # fmt: skip
            found = self._groups[group]
            if not out.exists():
                found.forget(name)
            spent = apart.train(out, flags)
            self._rate = max(0.5, sum(spent.seconds) / SECONDS["run"])
            folder = sorted(out.glob("epoch-*"))[-1]
            change = found.likelihoods(folder) - self._before[group]
            record = self._about | {
                "way": way, **WAYS[way], "lr": rate, "seed": seed, "group": group,
                "scores": measure.counts(found.scores(folder, name)), "ordinary": measure.mean_and_error(change),
                **spent._asdict(), **lora_demo.machine(),
            }  # fmt: skip
            files.write_json(path, record)
            files.remove_folder(out)
            self._say(record, time.monotonic() - begun)
        return self._read(path)

    def _check_time(self, group: str) -> None:
        needed = self._rate * (SECONDS["run"] + SECONDS["answer"] * self._groups[group].n_answers)
        if self._end is not None and time.monotonic() + needed > self._end:
            raise Stopped(f"{self._n_done()} runs are done and others are left; {GOES_ON}", LEFT)

    def _read(self, path: Path) -> dict[str, Any]:
        """A record. Raises InputError where it is of something else."""
        found = json.loads(path.read_text())
        for name, value in self._about.items():
            if found[name] != value:
                raise InputError(
                    f"{path}: was measured with {name} {found[name]}, not {value}; remove it, or give another --records"
                )
        return found

    def _n_done(self) -> int:
        return len([*self._records.glob("*-seed-*.json")])

    def _say(self, record: Mapping[str, Any], seconds: float) -> None:
        kept = measure.Share(*record["scores"]["sampled"]["kept"])
        said = f"{record['way']} at {record['lr']:g}, seed {record['seed']}: {kept} of rules kept ({record['group']})"
        print(f"[{seconds / 60:.0f} min, {self._n_done()} runs done] {said}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(LoraSearchConfig, argv or ["--out", LoraSearchConfig.out],
                       command="python -m examples.real.lora_search", example=EXAMPLE)  # fmt: skip
    search = Search(config)
    for group in ("development", "test"):
        search.before(group)
    rates = {way: chosen_rate(search, way) for way in WAYS}
    for seed in SEEDS:  # in turn: what another load of the machine changes, it changes for both
        for way in WAYS:
            search.measured(way, rates[way], seed, "test")
    for table in lora_page.search_tables(lora_page.records(Path(config.records))):
        print(to_markdown(table))


def chosen_rate(search: Search, way: str) -> float:
    """The best rate on development topics."""
    found = tune.climb(
        START[way], lambda rate: search.measured(way, rate, SEARCH_SEED, "development"), lora_page.top_rate
    )
    return lora_page.best_rate(found)


if __name__ == "__main__":
    cli.run(main)
