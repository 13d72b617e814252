"""Any grid of data sets, objectives and seeds, trained, scored and reported: several runs side by side, resumable.

    python -m examples.grid --config grid.yaml

    model: path/to/llama
    data: [clair=pairs.jsonl, judged=judged.jsonl]
    loss: [apo_zero, apo_zero beta=0.3, dpo lr=1e-7]     with whatever engine.train is told for that one alone
    lr: [2e-7]                           or one for each: [apo_zero=2e-7, dpo=1e-7]
    train: settings.yaml                 whatever else engine.train is told
    score: "{python} -m my.scorer {run}"     writes RUN/eval/scores.jsonl; any program
    out: runs/grid

All of it is checked before the first run begins: rows, flags, objectives, model, scorer, memory, disk. A run is a
process, OUT/seed-S/DATA/LOSS its folder and what it says its log.txt; SIGTERM and Ctrl-C let those that run save their
state and end them, and the same command goes on where it was stopped. The reference's log-probs are computed once for
each data set. It ends in OUT/report/report.html, whose first table has each cell's gain over the base model: the mean
and deviation over seeds.
"""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.config import ALIASES, TrainConfig, trl_names
from engine.inputs import TrainingInputs
from engine.step import Objective
from eval import checkpoints, contrast_run, report
from eval.runs import Run, deltas, headlines, read_runs
from eval.tables import Table, number
from examples import named_files, programs
from examples.children import Children, only_in
from examples.room import Room, bytes_in, check_disk, looked_at_apart
from examples.slots import Slots, side_by_side
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "python -m examples.grid --config grid.yaml"
NAMES = ("--model", "model", "--data", "data", "--out", "out")  # what engine.train has to be told to look at the rest
TAKEN = {"config", "data", "loss", "model", "out", "reference_cache", "resume", "seed"}  # what the grid tells it


class Cell(NamedTuple):
    """One run of a grid."""

    data: str
    """The data set's name."""
    file: Path
    loss: str
    """The objective, and what is told for it alone: "apo_zero" or "apo_zero beta=0.3"."""
    seed: int
    lr: float
    flags: tuple[tuple[str, str], ...] = ()
    """What else engine.train is told for this one."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Train, score and report every objective on every data set with every seed."""

    model: PathText
    """Checkpoint folder or hub id that every run starts from."""
    data: tuple[PathText, ...]
    """Data sets as NAME=FILE, where FILE is one that engine.train takes."""
    loss: tuple[PathText, ...]
    """Objectives to train. To give one of them engine.train settings of its own, quote them together: "apo_zero
    beta=0.3", "dpo lr=1e-7"."""
    out: PathText
    """Folder for the runs and their report."""
    lr: tuple[str, ...] = ()
    """Learning rate: one for all objectives, or NAME=RATE for each. Unset: lr in --train, or else engine.train's own
    default (2e-7; 2e-6 with an adapter)."""
    seeds: int = 1
    """Number of seeds; 3 trains every combination with seeds 0, 1 and 2. A seed sets the order of the rows and which of
    them are held out."""
    train: PathText | None = None
    """YAML file with further settings of engine.train, for all runs. It must not contain what the grid sets itself:
    config, data, loss, model, out, reference_cache, resume, seed."""
    score: str | None = None
    """Command that scores a run's checkpoints into its eval/scores.jsonl; {run} stands for the run's folder, {python}
    for the Python interpreter of this command. Unset: runs are not scored."""
    at_once: int | None = None
    """Number of runs at the same time. Unset: as many as the GPUs allow with --gpus each, or one without a GPU. With a
    larger number, runs share GPUs; without a GPU they share the cores."""
    gpus: int = 1
    """Number of GPUs for each run. With more than one, the run is sharded over them (./launch.sh train --nproc)."""
    title: str = "A grid of runs"
    """Title of the report."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        if not self.data or not self.loss or min(self.seeds, self.gpus, self.at_once or 1) < 1:
            raise InputError(
                "--data and --loss need at least one value, --seeds, --gpus and --at-once have to be above 0"
            )
        named = {name.replace("-", "_") for name in cli.read_yaml(Path(self.train))} if self.train else set[str]()
        for name in sorted(named):
            theirs = re.match(r"is --([\w-]+)", trl_names.counterpart(name) or "")
            if name in TAKEN or (theirs and theirs[1] in TAKEN):
                raise InputError(f"--train: {self.train}: {name} is set by the grid; leave it out")
        for loss in self.loss:
            check_loss(loss, self.train)
        names = [named.partition("=")[0] for named in self.data]
        if not all(all(named.partition("=")) for named in self.data):
            raise InputError("--data: give NAME=FILE for each data set, such as clair=pairs.jsonl")
        for what, every in (("--data", names), ("--loss", list(self.loss))):
            if twice := [name for name in every if every.count(name) > 1]:
                raise InputError(f"{what}: {twice[0]} is given twice; each needs a folder of its own")
        if self.score:
            programs.scorer(self.score, Path())
        self.rates()

    def rates(self) -> dict[str, float]:
        """Each objective's learning rate. Raises InputError."""
        if self.lr:
            return rates_of(self.lr, self.loss)
        return {loss: _told_alone(loss, self.train).optimizer.rate for loss in self.loss}

    def cells(self) -> list[Cell]:
        """Every run, a data set after the other."""
        named = [one.partition("=") for one in self.data]
        rates = self.rates()
        return [
            Cell(name, Path(file), loss, seed, rates[loss])
            for seed in range(self.seeds)
            for name, _, file in named
            for loss in self.loss
        ]


def rates_of(asked: Sequence[str], losses: Sequence[str]) -> dict[str, float]:
    """Learning rates, one for all or NAME=RATE for each, by objective. Raises InputError."""
    try:
        if len(asked) == 1 and "=" not in asked[0]:
            return dict.fromkeys(losses, float(asked[0]))
        named = {loss: float(rate) for loss, _, rate in (one.rpartition("=") for one in asked)}
        return {loss: named[parse_loss(loss)[0]] for loss in losses}
    except (ValueError, KeyError) as fault:
        what = f"{fault} is missing" if isinstance(fault, KeyError) else fault
        raise InputError(f"--lr: give one number, or NAME=RATE for every --loss; {what}") from None


def parse_loss(text: str) -> tuple[str, dict[str, str]]:
    """ "apo_zero beta=0.3" -> the objective and its own flags. Raises InputError for flags that the grid sets."""
    found = re.fullmatch(r"(.*?)((?:\s+[\w.-]+=\S+)*)\s*", text)
    assert found is not None  # the first part takes anything
    named = (one.partition("=") for one in found[2].split())
    flags = {name if "." in name else name.replace("_", "-"): value for name, _, value in named}
    if taken := TAKEN & {name.replace("-", "_") for name in flags}:
        raise InputError(f"--loss: {text}: {min(taken)} is set by the grid; leave it out")
    return found[1], flags


def check_loss(text: str, settings: str | None = None) -> Objective:
    """The objective that "apo_zero beta=0.3" names. settings: the file that its flags add to. Raises InputError."""
    name, flags = parse_loss(text)
    try:
        beta = float(flags["beta"]) if "beta" in flags else None
    except ValueError:
        raise InputError(f"--loss: {text}: {flags['beta']} is not a number") from None
    _told_alone(text, settings)
    return Objective(name, beta, {name: value for name, value in flags.items() if "." in name})


def _told_alone(text: str, settings: str | None) -> TrainConfig:
    """What engine.train makes of an objective with flags of its own, and of the settings for all. Raises InputError."""
    name, flags = parse_loss(text)
    try:
        told = [*NAMES, *(["--config", settings] if settings else []), "--loss", name, *_spelt(flags)]
        return cli.parse(TrainConfig, told, command="engine.train", example=EXAMPLE, peer=trl_names, aliases=ALIASES)
    except InputError as fault:
        raise InputError(f"--loss: {text}: {fault}") from None


def _spelt(flags: Mapping[str, Any]) -> list[str]:
    """Flags as engine.train takes them: what is true or false has no value there."""
    made: list[str] = []
    for name, value in flags.items():
        if isinstance(value, list):
            made += [f"--{name}", *map(str, value)]
            continue
        is_switch = "." not in name and value.lower() in ("true", "false")
        made += [f"--{name}" if value.lower() == "true" else f"--no-{name}"] if is_switch else [f"--{name}", value]
    return made


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(GridConfig, argv, command="python -m examples.grid", example=EXAMPLE)
    out, cells = Path(config.out), config.cells()
    slots = Slots(at_once=config.at_once, gpus=config.gpus)
    run_all(cells, out, model=config.model, settings=config.train, score=config.score, slots=slots)
    found = read(cells, out)
    folders = [folder(out, cell) for cell in cells if cell.seed == 0]
    print(report.write(folders, out / "report", title=config.title, first=[gains(found)]))


def folder(out: Path, cell: Cell) -> Path:
    """Where a run is."""
    return out / f"seed-{cell.seed}" / cell.data / re.sub(r"[/\s]", "_", cell.loss)


def read(cells: Iterable[Cell], out: Path) -> dict[Cell, Run]:
    """What the runs have written down."""
    cells = list(cells)
    return dict(zip(cells, read_runs([folder(out, cell) for cell in cells]), strict=True))


# --- running -------------------------------------------------------------------------------------------------------


def run_all(
    cells: Sequence[Cell],
    out: Path,
    *,
    model: str,
    settings: str | None,
    score: str | None,
    slots: Slots,
    more: Mapping[str, Any] | None = None,
    children: Children | None = None,
) -> None:
    """Trains and scores every cell, as many side by side as there are slots; what is done already is left as it is.

    more: flags of engine.train for all, texts or lists of them. children: of a program that the grid is part of; unset,
    it has its own. Raises InputError, before the first run begins, for what any of them could not
    use; RunError for the first run that fails, after those beside it; Stopped where a signal ended them.
    """
    start, n_done, lock, took = time.perf_counter(), 0, threading.Lock(), []

    def work(cell: Cell) -> None:
        with slots.take() as env:
            work_in(cell, env)

    def work_in(cell: Cell, env: Mapping[str, str]) -> None:
        nonlocal n_done
        begun = time.perf_counter()
        where = folder(out, cell)
        log = where.parent / f"{where.name}.log"
        is_new = not checkpoints.is_over(where)
        if is_new:
            where.parent.mkdir(parents=True, exist_ok=True)
            told = _told(flags_of(cell, model, more or {}), where, out, settings)
            running.run([*slots.trainer, *told], log, env)
        if score:
            running.run(programs.scorer(score, where), log, env)
        try:
            contrast_run.measure(where)
        except InputError as fault:  # labelled completions, token ids: a row of a table is empty, and nothing else
            cli.notify_once(f"how much pairs differ is not measured: {fault}")
        with lock:
            n_done += 1
            if is_new:
                took.append(time.perf_counter() - begun)
            passed, left = time.perf_counter() - start, (len(cells) - n_done) * fmean(took or [0.0]) / slots.n
            seconds = f"{time.perf_counter() - begun:.0f} s"
            said = f"[{passed / 60:4.1f} min, about {left / 60:.0f} left] {n_done} of {len(cells)}"
            print(f"{said}: {cell.loss} on {cell.data}, seed {cell.seed}: {seconds}", file=sys.stderr, flush=True)

    with contextlib.nullcontext(children) if children else only_in(out, does="trains in it") as running:
        looked_at_apart(
            check_all, cells, out, model=model, settings=settings, score=score, more=more or {},
            room=Room(slots.n, slots.gpus),
        )  # fmt: skip
        running.raise_if_stopped()
        side_by_side(cells, work, slots.n)


def flags_of(cell: Cell, model: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What engine.train is told of a cell."""
    loss, own = parse_loss(cell.loss)
    flags = {"model": model, "data": str(cell.file), "loss": loss, "lr": str(cell.lr), "seed": str(cell.seed)}
    return flags | {**more, **dict(cell.flags), **own}


def configured(flags: Mapping[str, Any], where: Path, out: Path, settings: str | None) -> TrainConfig:
    """What engine.train makes of a cell's flags. where: the run's folder; out: the grid's. Raises InputError."""
    told = _told(flags, where, out, settings)
    return cli.parse(TrainConfig, told, command="engine.train", example=EXAMPLE, peer=trl_names, aliases=ALIASES)


def _told(flags: Mapping[str, Any], where: Path, out: Path, settings: str | None) -> list[str]:
    """The same as it is typed, with where a run is."""
    made = ["--out", str(where), "--resume", "--reference-cache", str(out / "reference")]
    return [*made, *(["--config", settings] if settings else []), *_spelt(flags)]


def check_all(
    cells: Sequence[Cell],
    out: Path,
    *,
    model: str,
    settings: str | None,
    score: str | None,
    more: Mapping[str, Any],
    room: Room | None = None,
) -> None:
    """Raises InputError for whatever a cell could not use, all of it at once: its flags, its rows in the form that its
    objective takes, the model, a finished run that was told something else, the scorer. Seeds change none of these.

    room: where runs that are left have to fit, and the disk with them; unset, neither is looked at.
    """
    faults: dict[Cell, str] = {}
    left: dict[Cell, list[Cell]] = {}
    for cell in cells:
        where = folder(out, cell)
        try:
            if score:
                programs.scorer(score, where)
            if checkpoints.is_over(where):
                check_same(where, flags_of(cell, model, more), settings)
            else:
                left.setdefault(cell._replace(seed=0), []).append(cell)
        except InputError as fault:
            faults[cell] = _of_cell(cell, fault)
    n_left, needed, there, spare = sum(map(len, left.values())), 0, 0, 0
    for alike in left.values():
        first, folders = alike[0], [folder(out, cell) for cell in alike]
        try:
            inputs = TrainingInputs(configured(flags_of(first, model, more), folders[0], out, settings))
            if room:
                plan = room.layout(inputs, n_left)
                needed += len(folders) * sum(plan.disk_bytes(inputs.config))
                there += sum(map(bytes_in, folders))
                spare = max(spare, plan.spare_bytes(inputs.config))
        except InputError as fault:
            faults[first] = _of_cell(first, fault)
    if faults:
        said = dict.fromkeys(faults[cell] for cell in cells if cell in faults)
        raise InputError("\n".join(["the grid cannot run as it is:", *(f"  {one}" for one in said)]))
    if room:  # a scorer may delete checkpoints as they are scored
        check_disk(out, needed + min(room.at_once, n_left) * spare, there, only_says=score is not None)


def _of_cell(cell: Cell, fault: InputError) -> str:
    return str(fault) if str(fault).startswith("--score") else f"{cell.loss} on {cell.data}: {fault}"


def check_same(where: Path, flags: Mapping[str, Any], settings: str | None) -> None:
    """Raises InputError where a finished run was told something else, or what it was made of has changed since."""
    said = _by_names_of_now(checkpoints.settings(where))
    asked = _by_names_of_now({name.replace("-", "_"): value for name, value in flags.items()})
    begun = (where / "config.yaml").stat().st_mtime
    told = {name: said[name] for name in ("data", "eval_data", "chat_template") if said.get(name)}
    read = [*named_files.in_settings(told, TrainConfig), *named_files.in_objective(str(said["loss"])), settings or ""]
    if path := named_files.changed_since(read, begun):
        raise InputError(
            f"{where}: {path} has changed since this run was trained; remove the run, or give another --out"
        )
    known, asked = _plain(said), _plain(asked)
    told = _hyperparameters(asked)
    held = _hyperparameters(said)
    if "beta" in told:  # of every term: what was said of each counts no more
        held = {name: value for name, value in held.items() if name != "beta" and not name.endswith(".beta")}
    known |= _arguments(asked["loss"], _hyperparameters(said))
    asked = {name: v for name, v in asked.items() if name not in told} | _arguments(asked["loss"], held | told)
    for name, value in asked.items():
        if not _is_same(str(known.get(name)), str(value)):
            raise InputError(
                f"{where}: was trained with {name} {known.get(name)}, not {value}; remove it, or give another --out"
            )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which a list of one is that one."""
    return {name: v[0] if isinstance(v, list) and len(v) == 1 else v for name, v in settings.items()}


def _by_names_of_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the flags' own names, where they have others or had others in release 0.1."""
    names = {**ALIASES.names, **ALIASES.former}
    return {names.get(name, name): ALIASES.value(name, value) for name, value in settings.items()}


def _hyperparameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those of settings that are the objective's, as flags give them; a run's config.yaml calls none null."""
    own = {name: str(value) for name, value in settings.items() if name == "beta" or "." in name}
    return {name: "none" if value == "null" else value for name, value in own.items()}


def _arguments(loss: str, told: Mapping[str, str]) -> dict[str, Any]:
    """What an objective is called with, whatever its hyperparameters were said by."""
    beta = float(told["beta"]) if "beta" in told else None
    return Objective(loss, beta, {name: value for name, value in told.items() if "." in name}).arguments


def _is_same(known: str, asked: str) -> bool:
    try:
        return float(known) == float(asked)
    except ValueError:
        return known.lower() == asked.lower()  # "true" is True there


# --- what came out -------------------------------------------------------------------------------------------------


def means(found: Mapping[Cell, Run]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """By data set and objective: of each seed the maximum and the mean gain over the base, in points."""
    (first, *_) = headlines(found.values()) or [None]
    gained: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell, run in found.items():
        values = list(deltas(run, first)[0].values()) if first else []
        if values:
            gained.setdefault((cell.data, cell.loss), []).append((max(values), fmean(values)))
    return gained


def gains(found: Mapping[Cell, Run]) -> Table:
    """The grid: maximum and mean over checkpoints of what each cell gains over the base, over seeds."""
    rows = []
    for (data, loss), seeds in means(found).items():
        cells = [data, loss, str(len(seeds))]
        for pick in (0, 1):
            values = [seed[pick] for seed in seeds]
            cells += [number(fmean(values), sign=True), number(stdev(values) if len(values) > 1 else None)]
        rows.append(tuple(cells))
    header = ("data", "objective", "seeds", "max Δ", "± sd", "mean Δ", "± sd of means")
    notes = [
        "Points over the base model: the largest and the mean of a run's checkpoints; mean and deviation over seeds. "
        "The figures and tables of single runs on this page are those of the first seed."
    ]
    return Table("grid", "Gain over the base model, over seeds (Table 2)", header, rows, 2, notes)


if __name__ == "__main__":
    cli.run(main)
