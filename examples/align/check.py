"""All that a recipe names looked at before anything is spent, and what each stage takes: requests, money, hours, disk.

Pairs that are still to be made are stood in for by as many rows as there are prompts, with responses as long as may be:
what is said of them is the most that it can be.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.rows import files_of, find_model
from engine import weights
from engine.inputs import TrainingInputs
from engine.planning import Plan, cost, size
from eval import alpacaeval_run, checkpoints, mixeval_run, scores
from examples import grid
from examples.align import flags
from examples.align.flags import located
from examples.align.recipe import RECIPES, Recipe
from examples.align.stages import BENCHMARKS, Survey, asks_model, is_advised, title
from examples.align.stand import Stand
from examples.room import Room, bytes_in, check_disk, memory_of
from revise import recipe_runner, recipes, score
from revise.client import ClientConfig, Estimate
from revise.judge import choice_template
from revise.prompts import Prompts
from revise.recipes import JudgeConfig, Positions
from revise.target import MORE
from system import InputError, cli, files

ANSWERING = 0.25
"""Share of what a training step computes in a second that answers do, a token at a time: on two cores 0.3
(docs/performance.md); on a GPU it is assumed."""
OF_MODEL = ("target", "answers", "outputs")
"""What the model itself is asked for, as estimates name it."""


class Said(NamedTuple):
    """What a stage takes."""

    stage: str
    lines: list[str]
    n_requests: int = 0
    dollars: float = 0.0
    hours: float = 0.0
    """Of a GPU, or of this CPU."""
    disk: int = 0
    """Bytes that stay."""
    spare: int = 0
    """Bytes more while it works; rounds follow one another."""
    is_priced: bool = True
    """Whether its dollars are by prices that were given."""


@dataclass
class Found:
    """What was found of a recipe."""

    said: list[Said] = field(default_factory=list)
    n_answers: dict[str, int] = field(default_factory=dict)
    """Answers that a stage has when it is done, at most, by its title."""

    @property
    def disk(self) -> int:
        """Bytes that all of it takes at most at a time."""
        return sum(one.disk for one in self.said) + max((one.spare for one in self.said), default=0)

    def add(
        self, stage: str, lines: list[str], estimates: Sequence[Estimate], config: ClientConfig, hours: float = 0.0
    ) -> None:
        """What a stage takes that asks servers. config: how, and at which prices."""
        n, dollars = sum(e.n_requests for e in estimates), sum(e.dollars for e in estimates)
        is_priced = not n or bool(config.price_in or config.price_out)
        made = Said(stage, [*lines, *(e.said for e in estimates)], n, dollars, hours, is_priced=is_priced)
        self.said.append(made)


def look(recipe: Recipe, room: Room, done: Survey, *, only_pairs: bool = False) -> Found:
    """Everything that the recipe names, and what each stage takes. room: for its runs. only_pairs: nothing of what
    comes after the pairs.

    Raises InputError for what cannot be used.
    """
    found = Found()
    folder = located(recipe, "train", lambda: find_model(recipe.model))
    for number in range(1, recipe.rounds + 1):
        now = recipe.of_round(number)
        with _standing_in(now) as stand:
            sets = {name: Path(file) for name, file in now.given_sets.items()}
            for name in now.sets:
                prompts = _look_at_set(found, now, number, name)
                sets[name] = done.pairs.get((number, name)) or _stand_for(stand, now, name, prompts)
                if "score" in now.revise:
                    _look_at_score(found, now, number, name, sets[name])
            if only_pairs:
                continue
            for name in (n for n in sets if is_advised(now, n) and (number, n) not in done.advised):
                _look_at_advice(found, now, number, name)
            if number in done.trained:
                n_checkpoints = max(len(checkpoints.of(run)) for run in done.trained[number])
            else:
                n_checkpoints = _look_at_training(found, now, number, sets, room, stand)
        n_runs = len(sets) * len(now.losses) * now.seeds
        for name in (n for n in BENCHMARKS if n in now.eval and (number, n) not in done.evaluated):
            _look_at_evaluation(found, now, number, name, str(folder), n_runs, n_checkpoints)
    for leftover in recipe.out.glob("check.sqlite*"):
        leftover.unlink()
    there, may_prune = _bytes_of_runs(recipe.out), recipe.score is not None  # a scorer may delete checkpoints
    check_disk(recipe.out, found.disk, there, only_says=may_prune)
    return found


# --- pairs ---------------------------------------------------------------------------------------------------------


def _stand_for(stand: Stand, recipe: Recipe, name: str, prompts: Prompts) -> Path:
    """What stands for a data set that is still to be made."""
    command, _ = recipe.sets[name]
    if command is not RECIPES["judge-off-policy"]:
        return stand(name, prompts, _response_tokens(recipe, name), command.words[-1])
    config = flags.of_set(recipe, name, out=recipe.out / "pairs.jsonl", model=recipe.model)
    return located(recipe, f"revise: {name}", lambda: stand.judged(name, config))


@contextlib.contextmanager
def _standing_in(recipe: Recipe) -> Iterator[Stand]:
    with tempfile.TemporaryDirectory() as folder:
        yield Stand(Path(folder), is_graded="score" in recipe.revise)


def _response_tokens(recipe: Recipe, name: str) -> int:
    """Most tokens of a response: those that are drawn, or those that training keeps."""
    drawn = recipe.sets[name][1].get("target_max_tokens", 512)
    return max(1, _kept_tokens(recipe, int(drawn)))


def _kept_tokens(recipe: Recipe, n: int) -> int:
    """How many of a response's n tokens training keeps."""
    rows = flags.of_training(recipe).data
    return min(one for one in (rows.cuts["response_tokens"], rows.max_tokens, n) if one)


def _look_at_set(found: Found, recipe: Recipe, number: int, name: str) -> Prompts:
    config = flags.of_set(recipe, name, out=recipe.out / "pairs.jsonl", model=recipe.model)
    stage, where = title(recipe, number, f"pairs ({name})"), f"revise: {name}"
    if recipe.sets[name][0] is RECIPES["judge-off-policy"]:
        prompts = located(recipe, where, lambda: Prompts(config))
        found.said.append(
            Said(stage, [f"{len(prompts):,} rows with answers that are judged already; no model is asked"])
        )
        return prompts
    made = located(recipe, where, lambda: _recipe_of(config))
    prompts, estimates, n_drawn = located(recipe, where, lambda: recipe_runner.foresee(made))
    if number > 1 and config.target_model:  # then another model answers, of which nothing is there
        n_drawn = made.n_own * len(prompts)
    if asks_model(recipe, name):
        _say_what_is_cut(recipe, config.target_max_tokens * (MORE if config.cut_answers == "again" else 1))
    n_wanted = n_drawn if recipe.serve is None else sum(e.n_requests for e in estimates if e.what == "target")
    lines, hours = _drawn(recipe, n_wanted, config.target_max_tokens)
    if n_drawn:
        lines = [f"{n_drawn:,} answers of the model, drawn here, of {config.target_max_tokens:,} tokens at most"]
    found.add(stage, lines if n_wanted else [], _of_others(recipe, estimates), config, hours)
    found.n_answers[stage] = n_drawn + sum(e.n_requests for e in estimates)
    return prompts


def _say_what_is_cut(recipe: Recipe, n_tokens: int) -> None:
    """Says so where training would end over pairs that are the same up to where it cuts them. n_tokens: the most that
    an answer can have.
    """
    kept = _kept_tokens(recipe, n_tokens)
    if kept < n_tokens and not flags.of_training(recipe).data.skip_bad_rows:
        cli.notify_once(
            f"{recipe.path}: train: an answer may have {n_tokens:,} tokens, of which training keeps {kept:,} at "
            "most: a pair that is the same up to there ends the run; give skip_bad_rows: true to leave "
            "such pairs out"
        )


def _recipe_of(config: Any) -> recipe_runner.Recipe:
    if isinstance(config, JudgeConfig):
        return recipes.judge_recipe(config, Positions())
    if isinstance(config, recipes.ClairConfig):
        return recipes.clair_recipe(config)
    return recipes.stronger_recipe(config)


def _seconds_a_token(model: str) -> float:
    """Of an answer that is drawn here, at most a rough guess."""
    n = weights.build(find_model(model)).config.n_parameters
    kind = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    return 2 * n / (cost.speed_here(*kind).computing * ANSWERING)


def _look_at_score(found: Found, recipe: Recipe, number: int, name: str, pairs: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = flags.of_score(recipe, pairs, Path(folder) / "scored.jsonl", recipe.model)
        estimates = located(recipe, "revise: score", lambda: score.foresee(config))
    stage = title(recipe, number, f"grades ({name})")
    found.add(stage, [], _of_others(recipe, estimates), config)
    found.n_answers[stage] = sum(e.n_requests for e in estimates)


# --- training ------------------------------------------------------------------------------------------------------


def _look_at_training(
    found: Found, recipe: Recipe, number: int, sets: Mapping[str, Path], room: Room, stand: Stand
) -> int:
    """How many checkpoints a run leaves, at most."""
    cells = flags.cells_of(recipe, sets)
    hours, disk, spare, lines, most = 0.0, 0, 0, list[str](), 0
    with tempfile.TemporaryDirectory() as folder:  # a run that is there is not looked at: rows may only stand in
        others = [
            cell._replace(file=stand.others[cell.file])
            for cell in cells
            if cell.seed == 0 and cell.loss == recipe.losses[0] and cell.file in stand.others
        ]
        _of_pairs(recipe, stand, lambda: grid.check_all(
            [*cells, *others], Path(folder), model=recipe.model, settings=None, score=None, more=recipe.training
        ))  # fmt: skip
        for cell in (c for c in cells if c.seed == 0):
            told = grid.flags_of(cell, recipe.model, recipe.training)
            config = grid.configured(told, Path(folder, "run"), Path(folder), None)
            laid_out = _of_pairs(recipe, stand, lambda c=config: room.layout(TrainingInputs(c), len(cells)))
            times = stand.shares.get(cell.file, 1.0)
            of_run = laid_out.hours(config, room.gpus) * times
            on_disk = sum(laid_out.disk_bytes(config, times))
            spare = max(spare, laid_out.spare_bytes(config, times))
            most = max(most, laid_out.n_folders(config, times))
            lines.append(
                f"{cell.loss} on {cell.data}: {_memory(laid_out)}, {duration(of_run)}, {size(on_disk)} on disk"
            )
            hours, disk = hours + of_run * room.gpus * recipe.seeds, disk + on_disk * recipe.seeds
    what = f"training ({_count(len(cells), 'run')})"
    found.said.append(
        Said(title(recipe, number, what), lines, hours=hours, disk=disk, spare=min(room.at_once, len(cells)) * spare)
    )
    return most


def _of_pairs(recipe: Recipe, stand: Stand, check: Callable[[], Any]) -> Any:
    """Runs a check of training, and names what is wrong with pairs by what they stand for. Raises InputError."""

    def named() -> Any:
        try:
            return check()
        except InputError as fault:
            raise InputError(stand.named(str(fault))) from None

    return located(recipe, "train", named)


def _memory(laid_out: Plan) -> str:
    return f"{size(memory_of(laid_out))} of {size(laid_out.budget)} memory"


# --- evaluation ----------------------------------------------------------------------------------------------------


def _look_at_advice(found: Found, recipe: Recipe, number: int, name: str) -> None:
    """Of a judge: rows with scores take nothing."""
    config = flags.of_evaluation(recipe, "advise", recipe.model)
    if not config.judge_endpoint:
        return
    located(recipe, "eval: advise", lambda: choice_template(config.judge_template, flag="--judge-template"))
    hours = config.n * config.max_new_tokens * _seconds_a_token(recipe.model) / 3600
    lines = [
        f"{config.n:,} answers of the model at most, drawn here, of {config.max_new_tokens:,} tokens at most",
        f"verdicts: {config.n:,} requests at most",
    ]
    stage = title(recipe, number, f"advice ({name})")
    found.said.append(Said(stage, lines, config.n, hours=hours, is_priced=False))


def _look_at_evaluation(
    found: Found, recipe: Recipe, number: int, name: str, folder: str, n_runs: int, n_checkpoints: int
) -> None:
    names = [scores.BASE, *(f"run-{run}-{i}" for run in range(n_runs) for i in range(n_checkpoints))]
    config, stage = flags.of_evaluation(recipe, name, folder), title(recipe, number, f"evaluation ({name})")
    if name == "mixeval":
        estimates = located(recipe, "eval: mixeval", lambda: mixeval_run.foresee(config, names))
        lines, hours = _drawn(recipe, estimates[-1].n_requests, mixeval_run.MAX_TOKENS)  # the last is of who judges
        found.add(stage, [f"{len(names)} models", *lines], _of_others(recipe, estimates), config, hours)
    elif name == "alpacaeval":
        best = names[: 1 + 2 * n_runs]
        estimates = located(recipe, "eval: alpacaeval", lambda: alpacaeval_run.foresee(config, best))
        said = f"{len(best)} models: the base, and the two best checkpoints of each run"
        most = alpacaeval_run.PRESETS[config.preset].max_tokens
        lines, hours = _drawn(recipe, estimates[-1].n_requests, most)
        found.add(stage, [said, *lines], _of_others(recipe, estimates), config, hours)
    else:
        if config.data is not None:
            located(recipe, "eval: trajectories", lambda: files_of(config.data))
        n = config.answers * (n_checkpoints + 1) * n_runs
        said = f"{_count(n_runs, 'run')} of {_count(n_checkpoints, 'checkpoint')}, {_count(n, 'answer')} drawn here"
        hours = n * config.max_new_tokens * _seconds_a_token(recipe.model) / 3600
        found.said.append(Said(stage, [said], hours=hours))


def _of_others(recipe: Recipe, estimates: Sequence[Estimate]) -> list[Estimate]:
    """What is asked of others than the model that the recipe serves, whose answers nobody is paid for."""
    return [e for e in estimates if recipe.serve is None or not e.what.startswith(OF_MODEL)]


def _drawn(recipe: Recipe, n: int, max_tokens: int) -> tuple[list[str], float]:
    """What is said of so many answers, and their hours here: none of those that a served model draws."""
    hours = n * max_tokens * _seconds_a_token(recipe.model) / 3600
    if recipe.serve is None:
        return [], hours
    return [f"{n:,} answers of the served model; drawn here they would take {duration(hours)} at most"], 0.0


# --- telling -------------------------------------------------------------------------------------------------------


def tell(recipe: Recipe, found: Found) -> str:
    """What everything takes, by stage and in all."""
    device = "GPU" if torch.cuda.is_available() else "this CPU"
    lines = [f"{recipe.path}: what it takes, at most:"]
    for said in found.said:
        hours = f" ({duration(said.hours)} of {device})" if said.hours else ""
        lines += [f"  {said.stage}{hours}", *(f"      {line}" for one in said.lines for line in one.splitlines())]
    n, dollars = sum(s.n_requests for s in found.said), sum(s.dollars for s in found.said)
    hours, disk = sum(s.hours for s in found.said), found.disk
    free = files.free_on(recipe.out)
    bare = [said.stage for said in found.said if not said.is_priced]
    money = f"${dollars:,.2f} by the prices given"
    money += f" (none for {', '.join(bare)}: price_in, price_out)" if bare else ""
    lines.append(
        f"in all: {n:,} requests, {money}; {duration(hours)} of {device}, besides what servers compute; {size(disk)} "
        f"of disk, where {size(free)} are free"
    )
    return "\n".join(lines)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def duration(hours: float) -> str:
    """A time in words."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def _bytes_of_runs(out: Path) -> int:
    """What runs of an earlier start have written."""
    return sum(map(bytes_in, out.glob("round-*/runs")))
