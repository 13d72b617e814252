"""The road from prompts to an aligned model: its stages in order, and again for each round.

    prepare               whatever the recipe wants made first
    pairs, grades         the model's answers, and what is made of them              revise
    contrast, advice      how much the pairs differ, and which objective they fit    data.contrast, eval advise
    training              every objective on every data set                          examples.grid
    evaluation            every checkpoint answered and scored                       eval
    report                one page of all rounds                                     eval report

What is done is taken as it was; what was stopped goes on.
"""

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from eval import report, tables
from eval.tables import Table
from examples import grid
from examples.align import flags
from examples.align.check import Found
from examples.align.evaluation import Evaluation, Job
from examples.align.journal import Journal, keeping_times
from examples.align.progress import Ahead, Clock, Count
from examples.align.recipe import CONTRAST, EVALS, SCORE, Recipe, Settings, asks_teacher, with_teacher, words_of
from examples.align.served import served
from examples.align.stages import (
    BENCHMARKS,
    Stage,
    Stages,
    Start,
    asks_model,
    draws_own,
    has_scores,
    is_advised,
    is_scored_by,
    key_of,
    title,
    told_to_train,
)
from examples.children import BAD_INPUT, Children, Failed
from examples.grid import Cell
from examples.slots import Slots
from system import cli, run_folder


class Road:
    """A recipe on its way."""

    def __init__(self, recipe: Recipe, children: Children, slots: Slots) -> None:
        self._recipe, self._children, self._slots = recipe, children, slots
        self.journal = Journal(recipe.out)
        self.stages = Stages(recipe, self.journal)
        self._found = Found()
        self._clock = Clock([], {})

    def prepare(self) -> None:
        """Runs the command that makes what the recipe names, unless what it made is there."""
        command = self._recipe.prepare
        if command is None:
            return
        stage = self.stages.preparation()
        if self.journal.found(stage.key, stage.mark) is not None:
            print("prepare: taken as it was", file=sys.stderr, flush=True)
            return
        print("preparing ...", file=sys.stderr, flush=True)
        begun = time.monotonic()
        before = self.stages.outside()
        with keeping_times(stage.makes):
            self._children.run(words_of(command, {}), self._log("prepare"), os.environ)
        new = [path for path, digest in self.stages.outside().items() if before.get(path) != digest]
        self.journal.write(stage.key, stage.mark, [*self.stages.preparation().makes, *new], begun)

    def make_pairs(self, found: Found) -> dict[str, Path]:
        """The stages of the first round's pairs. found: what a look at the recipe has said. Their files."""
        self._begin(found, [one for one in self._ahead() if one.kind.startswith(("pairs ", "grades "))])
        now = self._recipe.of_round(1)
        return {name: self._make_set(now, 1, name, self.stages.first) for name in now.sets}

    def _begin(self, found: Found, ahead: Sequence[Ahead]) -> None:
        self._found = found
        stages = [one._replace(guess=self._guess(one)) for one in ahead]
        timed = {a.kind: done.seconds for a in stages if (done := self.journal.read(a.key)) is not None}
        self._clock = Clock(stages, timed)

    def go(self, found: Found) -> Path:
        """All stages. found: what a look at the recipe has said. The report's path."""
        self._begin(found, [*self._ahead()])
        start, rounds = self.stages.first, list[list[Cell]]()
        for number in range(1, self._recipe.rounds + 1):
            now = self._recipe.of_round(number)
            sets = {name: self._make_set(now, number, name, start) for name in now.sets}
            sets |= {name: Path(file) for name, file in now.given_sets.items()}
            for name, path in sets.items():
                self._measure_contrast(now, number, name, path, start)
                self._advise(now, number, name, path, start)
            cells = self._train(now, number, sets, start)
            self._evaluate(now, number, self.stages.folders(number, cells))
            start = self.stages.newest(number, cells[0])
            rounds.append(cells)
        return self._report(rounds)

    # --- what there is to do ---------------------------------------------------------------------------------------

    def _ahead(self) -> Iterator[Ahead]:
        for number in range(1, self._recipe.rounds + 1):
            for what, kind in self._ahead_in(self._recipe.of_round(number)):
                yield Ahead(title(self._recipe, number, what), kind, key=key_of(number, what))
        yield Ahead("report", "report", key="report")

    def _ahead_in(self, recipe: Recipe) -> Iterator[tuple[str, str]]:
        """A round's stages, and what kind each is."""
        for name in recipe.sets:
            yield f"pairs ({name})", f"pairs {name}"
            if "score" in recipe.revise:
                yield f"grades ({name})", f"grades {name}"
        for name in [*recipe.sets, *recipe.given_sets]:
            yield f"contrast ({name})", "contrast"
            if is_advised(recipe, name):
                yield f"advice ({name})", "advice"
        yield "training", "training"
        for name in (n for n in BENCHMARKS if n in recipe.eval):
            yield f"evaluation ({name})", name

    def _guess(self, stage: Ahead) -> float:
        """Seconds that a stage may take: a process, what is computed here, and what is asked, twenty a second."""
        said = [one for one in self._found.said if one.stage.startswith(stage.name)]  # training says how many runs
        hours, side = sum(one.hours for one in said), 1
        if stage.kind == "training":
            n_runs = len(self._recipe.losses) * self._recipe.seeds * len([*self._recipe.sets, *self._recipe.given_sets])
            side = min(self._slots.n, n_runs) * self._slots.gpus
        elif stage.kind in BENCHMARKS:
            side = self._slots.n
        return 10.0 + 3600 * hours / side + sum(one.n_requests for one in said) / 20

    def _do(
        self, stage: Stage, work: Callable[[], None], count: Count = lambda: None, *, is_there: bool = True
    ) -> None:
        """Does a stage unless it is done, and what it made besides its files is there."""
        if is_there and self.journal.found(stage.key, stage.mark) is not None:
            self._clock.taken(stage.name)
            return
        for path in stage.makes:
            path.parent.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with keeping_times(stage.makes), self._clock.stage(stage.name, count):
            work()
        made = [path for path in stage.makes if path.is_file()]
        self.journal.write(stage.key, stage.mark, made, begun, stage.rows)

    # --- pairs -----------------------------------------------------------------------------------------------------

    def _make_set(self, recipe: Recipe, number: int, name: str, start: Start) -> Path:
        """A data set of a round, graded where the recipe grades."""
        command, settings = recipe.sets[name]
        out, stage = self.stages.pairs(number, name), self.stages.set(recipe, number, name, start)
        store = self.stages.store(recipe, number, "answers", start)

        def make() -> None:
            with self._teacher(settings) as teacher, self._served(recipe, start, asks_model(recipe, name)) as server:
                given = flags.set_flags(recipe, name, out=out, model=start.answers, server=server)
                given |= {"store": str(store)} if "store" in given else {}
                self._run(command.words, command.typed(with_teacher(settings, teacher), given, recipe.path), stage)

        self._do(stage, make, self._stored(store, stage))
        return self._grade(recipe, number, name, out, start) if "score" in recipe.revise else out

    def _grade(self, recipe: Recipe, number: int, name: str, pairs: Path, start: Start) -> Path:
        settings, out = recipe.revise["score"], self.stages.graded(number, name)
        stage, draws = self.stages.grades(recipe, number, name, start), draws_own(recipe, name)
        store = self.stages.store(recipe, number, "grades", start) if draws else self._recipe.out / "grades.sqlite"

        def make() -> None:
            out.unlink(missing_ok=True)
            with self._teacher(settings) as teacher, self._served(recipe, start, draws) as server:
                given = flags.score_flags(recipe, pairs, out, start.answers, server) | {"store": str(store)}
                self._run(SCORE.words, SCORE.typed(with_teacher(settings, teacher), given, recipe.path), stage)

        self._do(stage, make, self._stored(store, stage))
        return out

    def _stored(self, store: Path, stage: Stage) -> Count:
        """How many answers a stage has got of those that it wants."""
        n, before = float(self._found.n_answers.get(stage.name, 0)), list[int]()

        def count() -> tuple[float, float, str] | None:
            now = _rows(store)
            before.append(now)  # the first is that of the stage's beginning
            return (float(now - before[0]), n, "answers") if n else None

        return count

    # --- what the pairs are like -----------------------------------------------------------------------------------

    def _measure_contrast(self, recipe: Recipe, number: int, name: str, data: Path, start: Start) -> None:
        stage = self.stages.contrast(recipe, number, name, data, start)
        (out,) = stage.makes

        def measure() -> None:
            out.unlink(missing_ok=True)
            try:
                self._run(CONTRAST.words, flags.contrast_settings(recipe, data, start.model, out), stage)
            except Failed as fault:
                if fault.code != BAD_INPUT:
                    raise
                cli.notify(f"{stage.name}: not measured ({fault})")

        self._do(stage, measure)

    def _advise(self, recipe: Recipe, number: int, name: str, data: Path, start: Start) -> None:
        if not is_advised(recipe, name):
            return
        settings, stage = flags.advice_settings(recipe), self.stages.advice(recipe, number, name, data, start)
        (out,) = stage.makes

        def advise() -> None:
            out.unlink(missing_ok=True)
            with self._teacher(settings) as teacher:
                given = flags.advice_flags(recipe, data, start.answers) | {"out": str(out)}
                typed = EVALS["advise"].typed(with_teacher(settings, teacher), given, recipe.path)
                self._run(EVALS["advise"].words, typed, stage)

        self._do(stage, advise)
        found, asked = json.loads(out.read_text())["objective"], ", ".join(recipe.losses)
        print(f"advice for {name}: --loss {found}; the recipe trains {asked}", file=sys.stderr, flush=True)

    # --- training --------------------------------------------------------------------------------------------------

    def _train(self, recipe: Recipe, number: int, sets: Mapping[str, Path], start: Start) -> list[Cell]:
        cells = flags.cells_of(recipe, sets)
        folders = self.stages.folders(number, cells)

        def train() -> None:
            with self._teacher({"score": recipe.score}) as teacher:
                score = with_teacher({"score": recipe.score}, teacher)["score"]
                grid.run_all(
                    cells, self.stages.runs(number), model=start.model, settings=None, score=score, slots=self._slots,
                    more=told_to_train(recipe, number, start), children=self._children,
                )  # fmt: skip

        epochs = float(flags.of_training(recipe).schedule.epochs)
        stage, is_there = self.stages.training(recipe, number, sets, start), is_scored_by(recipe, folders)
        self._do(stage, train, lambda: _epochs(folders, epochs), is_there=is_there)
        return cells

    # --- evaluation and report -------------------------------------------------------------------------------------

    def _evaluate(self, recipe: Recipe, number: int, runs: Sequence[Path]) -> None:
        evaluation = Evaluation(recipe, runs, self.journal, self._children, self._slots)
        for name in (n for n in BENCHMARKS if n in recipe.eval):
            self._measure(recipe, number, name, evaluation, runs)

    def _measure(self, recipe: Recipe, number: int, name: str, evaluation: Evaluation, runs: Sequence[Path]) -> None:
        settings, done = recipe.eval[name], list[Job]()

        def measure() -> None:
            with self._teacher(settings) as teacher:
                evaluation.do(name, teacher, done)

        n_jobs = float(len(evaluation.jobs(name)))
        stage = self.stages.evaluation(recipe, number, name, runs)
        self._do(stage, measure, lambda: (float(len(done)), n_jobs, "models"), is_there=has_scores(name, runs))

    def _report(self, rounds: Sequence[Sequence[Cell]]) -> Path:
        settings = {k.replace("-", "_"): v for k, v in self._recipe.eval.get("report", {}).items()}
        found, folders = {}, list[Path]()
        for n, cells in enumerate(rounds, 1):
            for cell, run in grid.read(cells, self.stages.runs(n)).items():
                found[cell._replace(data=title(self._recipe, n, cell.data))] = run
            folders += self.stages.folders(n, [cell for cell in cells if cell.seed == 0])
        gains = grid.gains(found)
        first = [table for table in (self._sets_table(rounds), gains) if table.rows]
        with self._clock.stage("report"):
            return report.write(
                folders, self._recipe.out / "report", title=settings.get("title", "From prompts to an aligned model"),
                gap_to=settings.get("gap_to", report.ReportConfig.gap_to), first=first,
            )  # fmt: skip

    def _sets_table(self, rounds: Sequence[Sequence[Cell]]) -> Table:
        """The pairs of each round: how many, how much they differ, what is advised."""
        rows = []
        for n in range(1, len(rounds) + 1):
            for name in dict.fromkeys(cell.data for cell in rounds[n - 1]):
                contrast, path = (self.stages.beside(n, f"{name}.{what}.json") for what in ("contrast", "advice"))
                if not contrast.is_file():
                    continue
                (found,) = json.loads(contrast.read_text()).values()
                advice = json.loads(path.read_text()) if path.is_file() else {}
                better = tables.number(100 * advice["share"], 0) if advice else tables.DASH
                jaccard = tables.number(100 * found["jaccard_words"]["mean"], 1)
                cells = (title(self._recipe, n, name), f"{found['pairs']:,}", jaccard, better)
                rows.append((*cells, advice.get("objective", tables.DASH)))
        header = ("pairs", "how many", "Jaccard of words, %", "own answer better than winner, %", "advice")
        return Table("pairs", "The pairs, and which objective they fit", header, rows, 1)

    # --- processes and places --------------------------------------------------------------------------------------

    def _run(self, module: Sequence[str], typed: Sequence[str], stage: Stage) -> None:
        with self._slots.take() as env:
            self._children.run([sys.executable, "-m", *module, *typed], self._log(stage.key), env)

    @contextlib.contextmanager
    def _teacher(self, settings: Settings) -> Iterator[str]:
        """The address of who revises and judges, where settings ask for it."""
        if self._recipe.teacher is None or not asks_teacher(settings):
            yield ""
            return
        log = self._log("teacher")
        with served(self._recipe.teacher, {}, self._children, log, os.environ) as server:
            yield server.address

    @contextlib.contextmanager
    def _served(self, recipe: Recipe, start: Start, is_asked: bool) -> Iterator[tuple[str, str] | None]:
        """Address and name of the model that a round begins with, where it is served and asked."""
        command = recipe.server_of(start.answers)
        if command is None or not is_asked:
            yield None
            return
        values = {"checkpoint": start.answers, "base": start.model}
        with served(command, values, self._children, self._log("serve"), os.environ) as server:
            yield server.address, server.name

    def _log(self, name: str) -> Path:
        return self._recipe.out / "logs" / f"{name}.log"


def _rows(store: Path) -> int:
    """Answers in a store that another process may be writing; 0 where there is none yet."""
    if not store.is_file():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=1)) as reader:
            return int(reader.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.Error:  # it is being made
        return 0


def _epochs(folders: Sequence[Path], epochs: float) -> tuple[float, float, str]:
    """How far runs are."""
    done = 0.0
    for folder in folders:
        last = max(
            (line for line in run_folder.lines_of(folder) if "epoch" in line), key=lambda x: x["step"], default={}
        )
        done += float(last.get("epoch", 0.0))
    return done, epochs * len(folders), "epochs"
