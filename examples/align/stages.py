"""The stages of a recipe: what each is called, the files that it makes, and the mark by which what is done is known.

Nothing is done here. `survey` looks at what an earlier start has left: which pairs are as the recipe says now, and who
is still to be asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from data.contrast import ContrastConfig
from data.rows import is_adapter
from eval import alpacaeval_run, checkpoints, mixeval_run, scores
from examples import grid, named_files, programs
from examples.align import flags
from examples.align.journal import Journal, digest_of, fingerprint
from examples.align.recipe import EVALS, LORA, RECIPES, SCORE, TRAIN, Recipe, Settings, asks_teacher
from examples.grid import Cell
from revise.client import ClientConfig
from system import InputError

BENCHMARKS = ("mixeval", "alpacaeval", "trajectories")
"""In the order in which they are run: the second reads the first's scores."""


class Start(NamedTuple):
    """What a round begins with."""

    model: str
    adapter: str | None = None

    @property
    def answers(self) -> str:
        """The folder of who answers."""
        return self.adapter or self.model


class Stage(NamedTuple):
    """A stage as it is to be done."""

    name: str
    key: str
    """Its name as a file's, which has the number of its round whether there are others or not."""
    mark: str
    """A digest of what goes in."""
    makes: tuple[Path, ...] = ()
    """Its files."""
    rows: str = ""
    """Of pairs and grades: the same digest without what changes no row, such as prices."""


@dataclass
class Survey:
    """What is done of a recipe as it says now."""

    pairs: dict[tuple[int, str], Path] = field(default_factory=dict)
    """The pairs that are made, and graded where the recipe grades, by round and data set."""
    revise: set[str] = field(default_factory=set)
    """Sections of revise that still have something to ask, in any round."""
    eval: set[str] = field(default_factory=set)
    """The same of eval."""
    asks_model: bool = False
    """Whether the model is still to answer."""
    trained: dict[int, list[Path]] = field(default_factory=dict)
    """The runs of the rounds whose training is over."""
    evaluated: set[tuple[int, str]] = field(default_factory=set)
    """Benchmarks that are done, by round."""
    advised: set[tuple[int, str]] = field(default_factory=set)
    """Data sets of which the advice is there, by round."""


class Stages:
    """Those of one recipe. `recipe`, where a method takes it, is that of the round: Recipe.of_round(number)."""

    def __init__(self, recipe: Recipe, journal: Journal) -> None:
        self._recipe, self._journal = recipe, journal

    # --- where files are -------------------------------------------------------------------------------------------

    def beside(self, number: int, name: str) -> Path:
        """A file in the folder of a round's pairs."""
        return self._recipe.out / f"round-{number}" / "pairs" / name

    def pairs(self, number: int, name: str) -> Path:
        """A data set of a round."""
        return self.beside(number, f"{name}.jsonl")

    def graded(self, number: int, name: str) -> Path:
        """The same with grades."""
        return self.beside(number, f"{name}.scored.jsonl")

    def runs(self, number: int) -> Path:
        """The folder of a round's runs."""
        return self._recipe.out / f"round-{number}" / "runs"

    def folders(self, number: int, cells: Sequence[Cell]) -> list[Path]:
        """A round's runs."""
        return [grid.folder(self.runs(number), cell) for cell in cells]

    def store(self, recipe: Recipe, number: int, what: str, start: Start) -> Path:
        """Where answers are kept. Where the model is served, its name says nothing of who answers, so that each model
        has a store of its own.
        """
        if recipe.serve is None:
            return self._recipe.out / f"{what}.sqlite"
        who = fingerprint({}, [start.answers, start.model])
        return self._recipe.out / f"{what}-{number}-{who[:8]}.sqlite"

    # --- stages ----------------------------------------------------------------------------------------------------

    def preparation(self) -> Stage:
        """Whatever the recipe wants made first."""
        command = self._recipe.prepare
        mark = fingerprint({"command": command}, programs.files_of(command))
        return Stage("prepare", "prepare", mark, tuple(self._named_files(inside=True)))

    def set(self, recipe: Recipe, number: int, name: str, start: Start) -> Stage:
        """A data set of a round."""
        command, settings = recipe.sets[name]
        is_asked = asks_model(recipe, name)
        read = [*named_files.in_settings(settings, command.config), *([start.answers] if is_asked else [])]
        told = {"settings": settings, "recipe": command.words}
        rows = fingerprint(told | {"settings": _of_rows(settings)}, read)
        mark = _mark(told, read, _servers(recipe, settings, is_asked))
        return _stage(recipe, number, f"pairs ({name})", mark, (self.pairs(number, name),), rows)

    def grades(self, recipe: Recipe, number: int, name: str, start: Start) -> Stage:
        """Its grades."""
        settings, draws = recipe.revise["score"], draws_own(recipe, name)
        read = [self.pairs(number, name), *named_files.in_settings(settings, SCORE.config)]
        read += [Path(start.answers)] if draws else []
        rows = fingerprint({"settings": _of_rows(settings)}, read)
        mark = _mark({"settings": settings}, read, _servers(recipe, settings, draws))
        return _stage(recipe, number, f"grades ({name})", mark, (self.graded(number, name),), rows)

    def contrast(self, recipe: Recipe, number: int, name: str, data: Path, start: Start) -> Stage:
        """How much its pairs differ, in tokens of the model."""
        out = self.beside(number, f"{name}.contrast.json")
        mark = fingerprint(flags.reading_of(recipe, ContrastConfig), [*named_files.in_rows(data), start.model])
        return _stage(recipe, number, f"contrast ({name})", mark, (out,))

    def advice(self, recipe: Recipe, number: int, name: str, data: Path, start: Start) -> Stage:
        """Which objective they fit."""
        settings = flags.advice_settings(recipe)
        read = [*named_files.in_rows(data), start.answers, *named_files.in_settings(settings, EVALS["advise"].config)]
        mark = _mark({"settings": settings}, read, _servers(recipe, settings, False))
        return _stage(recipe, number, f"advice ({name})", mark, (self.beside(number, f"{name}.advice.json"),))

    def training(self, recipe: Recipe, number: int, sets: Mapping[str, Path], start: Start) -> Stage:
        """All runs of a round."""
        cells = flags.cells_of(recipe, sets)
        more = told_to_train(recipe, number, start)
        told = {"cells": [cell._replace(file=Path(cell.file.name)) for cell in cells], "more": more}
        losses = [grid.parse_loss(loss) for loss in recipe.losses]
        read = [start.model, *([start.adapter] if start.adapter else [])]
        read += [path for source in sets.values() for path in named_files.in_rows(source)]
        read += [path for name, _ in losses for path in named_files.in_objective(name)]
        read += [path for own in (more, *(own for _, own in losses))
                 for path in named_files.in_settings(own, TRAIN.config)]  # fmt: skip
        commands = _servers(recipe, {"score": recipe.score}, False) | {"score": recipe.score}
        makes = tuple(folder / "metrics.jsonl" for folder in self.folders(number, cells))
        return _stage(recipe, number, "training", _mark(told, read, commands), makes)

    def evaluation(self, recipe: Recipe, number: int, name: str, runs: Sequence[Path]) -> Stage:
        """A benchmark of all of a round's runs."""
        mark = mark_of_evaluation(recipe, name, [c.folder for run in runs for c in checkpoints.of(run)])
        return _stage(recipe, number, f"evaluation ({name})", mark)

    def newest(self, number: int, cell: Cell) -> Start:
        """What the round after this one begins with. Raises InputError where the run's checkpoints are gone."""
        run = grid.folder(self.runs(number), cell)
        if not (every := checkpoints.of(run)):
            raise InputError(f"{run}: is finished, but its checkpoints are gone; remove the run, or give another --out")
        newest = str(every[-1].folder)
        if is_adapter(Path(newest)):
            return Start(str(checkpoints.settings(run)["model"]), newest)
        return Start(newest)

    @property
    def first(self) -> Start:
        """What the first round begins with."""
        return Start(self._recipe.model, self._recipe.training.get("adapter"))

    # --- what is done ----------------------------------------------------------------------------------------------

    def survey(self) -> Survey:
        """What is done. Raises InputError where a run was trained on pairs that the recipe now makes otherwise, or was
        told something else: nothing would be spent that ends in a refusal.
        """
        found, start = Survey(), self.first
        for number in range(1, self._recipe.rounds + 1):
            now = self._recipe.of_round(number)
            if start is not None:
                start = self._look_at_round(found, now, number, start)
            else:  # nothing of it can be there: the round before is not over
                found.revise |= {*now.revise}
                found.eval |= {*now.eval}
                found.asks_model = True
        return found

    def _look_at_round(self, found: Survey, recipe: Recipe, number: int, start: Start) -> Start | None:
        """Adds what is done of a round. What the next begins with, where this one's training is done."""
        sets: dict[str, Path] = {}
        for name in recipe.sets:
            if (path := self._look_at_set(found, recipe, number, name, start)) is not None:
                sets[name] = path
                found.pairs[number, name] = path
        sets |= {name: Path(file) for name, file in recipe.given_sets.items()}  # in the order of the road
        for name in [*recipe.sets, *recipe.given_sets]:
            known = sets.get(name) and self.advice(recipe, number, name, sets[name], start)
            if known and self._is_done(known):
                found.advised.add((number, name))
            elif is_advised(recipe, name):
                found.eval |= {"advise"}
        if len(sets) < len(recipe.sets) + len(recipe.given_sets):
            return self._still_to_evaluate(found, recipe)
        cells = flags.cells_of(recipe, sets)
        is_scored = is_scored_by(recipe, self.folders(number, cells))
        if not (is_scored and self._is_done(self.training(recipe, number, sets, start))):
            over = [cell for cell in cells if checkpoints.is_over(grid.folder(self.runs(number), cell))]
            told = told_to_train(recipe, number, start)
            flags.located(recipe, "train", lambda: grid.check_all(
                over, self.runs(number), model=start.model, settings=None, score=None, more=told
            ))  # fmt: skip
            return self._still_to_evaluate(found, recipe)
        runs = found.trained[number] = self.folders(number, cells)
        for name in (n for n in BENCHMARKS if n in recipe.eval):
            if self._is_done(self.evaluation(recipe, number, name, runs)) and has_scores(name, runs):
                found.evaluated.add((number, name))
            else:
                found.eval |= {name}
                found.asks_model |= name != "trajectories"
        return self.newest(number, cells[0])

    def _still_to_evaluate(self, found: Survey, recipe: Recipe) -> None:
        """Adds the benchmarks of a round whose training is not over."""
        found.eval |= recipe.eval.keys() & {*BENCHMARKS}
        found.asks_model |= bool(recipe.eval.keys() & {"mixeval", "alpacaeval"})

    def _look_at_set(self, found: Survey, recipe: Recipe, number: int, name: str, start: Start) -> Path | None:
        """The pairs of a data set, graded where the recipe grades; None where they are still to be made."""
        stage = self.set(recipe, number, name, start)
        if not self._is_done(stage):
            self._refuse_other_pairs(stage, number, name)
            found.revise |= {name, *(recipe.revise.keys() & {"score"})}
            found.asks_model |= asks_model(recipe, name) or ("score" in recipe.revise and draws_own(recipe, name))
            return None
        if "score" not in recipe.revise:
            return self.pairs(number, name)
        stage = self.grades(recipe, number, name, start)
        if not self._is_done(stage):
            self._refuse_other_pairs(stage, number, name)
            found.revise |= {"score"}
            found.asks_model |= draws_own(recipe, name)
            return None
        return self.graded(number, name)

    def _refuse_other_pairs(self, stage: Stage, number: int, name: str) -> None:
        """Raises InputError where runs have begun on what this stage was told before."""
        before = self._journal.read(stage.key)
        if before is None or before.rows in ("", stage.rows):
            return
        for settings in sorted(self.runs(number).glob(f"seed-*/{name}/*/config.yaml")):
            raise InputError(
                f"{settings.parent}: was trained on pairs that the recipe now makes otherwise ({stage.name}); give "
                "another --out, or remove the run"
            )

    def _is_done(self, stage: Stage) -> bool:
        return self._journal.found(stage.key, stage.mark) is not None

    def outside(self) -> dict[Path, str]:
        """The files elsewhere that the recipe's sections name, with a digest of each."""
        return {path: digest_of(path) for path in self._named_files(inside=False)}

    def _named_files(self, *, inside: bool) -> Iterator[Path]:
        """The files that the recipe's sections name, and those of the folders that they name. inside: those in the
        recipe's own folder; otherwise those elsewhere.
        """
        own = self._recipe.out.resolve()
        for path in dict.fromkeys(map(Path, self._read_by_sections())):
            if path.resolve() != own and path.resolve().is_relative_to(own) == inside:
                every = sorted(path.iterdir()) if path.is_dir() else [path]
                yield from (p for p in every if p.is_file() and not p.name.startswith("."))

    def _read_by_sections(self) -> Iterator[Path | str]:
        for number in range(1, self._recipe.rounds + 1):
            now = self._recipe.of_round(number)
            yield from named_files.in_settings(now.train, TRAIN.config)
            for source in now.given_sets.values():
                yield from named_files.in_rows(source)
            for command, settings in now.sets.values():
                yield from named_files.in_settings(settings, command.config)
            for name, settings in now.eval.items():
                yield from named_files.in_settings(settings, EVALS[name].config)
            yield from named_files.in_settings(now.revise.get("score", {}), SCORE.config)


def left_of(recipe: Recipe, found: Survey) -> Recipe:
    """A recipe with nothing but what is still to be asked."""
    return replace(
        recipe,
        revise={name: settings for name, settings in recipe.revise.items() if name in found.revise},
        eval={name: settings for name, settings in recipe.eval.items() if name in found.eval},
    )


def title(recipe: Recipe, number: int, what: str) -> str:
    """What a stage is called."""
    return f"round {number}: {what}" if recipe.rounds > 1 else what


def key_of(number: int, what: str) -> str:
    """The name of a round's stage as a file's."""
    return f"round-{number}-{what}".replace(" (", "-").replace(")", "").replace(" ", "-")


def _stage(recipe: Recipe, number: int, what: str, mark: str, makes: tuple[Path, ...] = (), rows: str = "") -> Stage:
    return Stage(title(recipe, number, what), key_of(number, what), mark, makes, rows)


def asks_model(recipe: Recipe, name: str) -> bool:
    """Whether a data set has answers of the model that is to be aligned."""
    command, settings = recipe.sets[name]
    return command is not RECIPES["judge-off-policy"] and "response_from" not in settings


def draws_own(recipe: Recipe, name: str) -> bool:
    """Whether grading draws the model's own answers: no answer in such rows is its own."""
    return recipe.sets[name][0] is RECIPES["judge-off-policy"]


def is_advised(recipe: Recipe, name: str) -> bool:
    """Whether there are scores to advise by: grades of pairs made here, or a judge."""
    is_judged = bool(recipe.eval.get("advise", {}).get("judge_endpoint"))
    return is_judged or ("score" in recipe.revise and name in recipe.sets)


def mark_of_evaluation(recipe: Recipe, name: str, folders: Sequence[Path]) -> str:
    """The mark of a benchmark of some checkpoints. AlpacaEval's is of those that MixEval-Hard finds best."""
    every = {one: recipe.eval[one] for one in (("mixeval", name) if name == "alpacaeval" else (name,))}
    named = [named_files.in_settings(said, EVALS[one].config) for one, said in every.items()]
    read = [*folders, *(path for paths in named for path in paths)]
    commands = [_servers(recipe, said, name != "trajectories") for said in every.values()]
    return _mark({"settings": every}, read, {k: v for one in commands for k, v in one.items()})


def is_scored_by(recipe: Recipe, runs: Sequence[Path]) -> bool:
    """Whether what the recipe's own scorer wrote of finished runs is still there."""
    return recipe.score is None or all((run / "eval" / scores.NAME).is_file() for run in runs)


def has_scores(name: str, runs: Sequence[Path], checkpoint: str | None = None) -> bool:
    """Whether runs have the scores of a benchmark that was done: of each of their checkpoints, or of one alone."""
    if name == "trajectories":
        return True
    benchmark = mixeval_run.BENCHMARK if name == "mixeval" else alpacaeval_run.BENCHMARK
    for run in runs:
        lines = scores.read(run / "eval" / scores.NAME)
        found = {line["checkpoint"] for line in lines if line["benchmark"] == benchmark}
        wanted = {c.name for c in checkpoints.of(run)} if checkpoint is None else {checkpoint}
        if not found or (not wanted <= found and (name == "mixeval" or checkpoint is not None)):
            return False
    return True


def told_to_train(recipe: Recipe, number: int, start: Start) -> Settings:
    """What engine.train is told of all runs of a round: in a later one an adapter goes on, and does not begin anew."""
    if number == 1 or start.adapter is None:
        return recipe.training
    return {k: v for k, v in recipe.training.items() if k not in (*LORA, "adapter")} | {"adapter": start.adapter}


CHANGE_NO_ROW = {f.name for f in fields(ClientConfig)} - {"model", "api", "accept_finish_reason", "max_answer_mb"}
"""Flags of revise that say how a server is asked, and not what."""


def _of_rows(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name.replace("-", "_") not in CHANGE_NO_ROW}


def _servers(recipe: Recipe, settings: Settings, asks: bool) -> dict[str, str | None]:
    """The commands by which a stage asks someone. asks: whether it asks the model."""
    served = {"serve": recipe.serve, "serve_adapter": recipe.serve_adapter} if asks else {}
    return served | ({"teacher": recipe.teacher} if asks_teacher(settings) else {})


def _mark(told: Settings, read: Sequence[Path | str], commands: Mapping[str, str | None]) -> str:
    """The mark of a stage. commands: those that it runs; the programs that they name count as what is read."""
    own = [path for command in commands.values() for path in programs.files_of(command)]
    return fingerprint({**told, "commands": commands}, [*read, *own])
