"""What a recipe for align says: a YAML file with a section for each command, which holds that command's own flags.

    out: runs/mine
    revise:
      clair: {prompts: prompts.jsonl, endpoint: "https://api.openai.com/v1", model: gpt-4-turbo}
    train: {model: path/to/llama, loss: [apo_zero, dpo], epochs: 3}
    score: "{python} -m my.scorer {run}"
    eval:
      mixeval: {mixeval: path/to/MixEval, judge_endpoint: "http://localhost:8000/v1", judge: NAME}

Words in braces are filled in: {python} the interpreter, {out} the folder, {round} the number of the round, {teacher}
the address of the server that `teacher` starts; and where a program is named what is said of it below.
"""

import difflib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.contrast import ContrastConfig
from data.rows import is_adapter
from engine.config import ALIASES, TrainConfig, trl_names
from eval.advise import AdviseConfig
from eval.alpacaeval_run import AlpacaEvalConfig
from eval.mixeval_run import MixEvalConfig
from eval.report import ReportConfig
from eval.trajectories import TrajectoriesConfig
from examples import programs
from revise import recipes
from revise.score import ScoreConfig
from system import InputError, cli
from system.flags import expand, flags_of

Settings = dict[str, Any]
UNSERVED = "http://127.0.0.1:9/v1"
"""What stands for the address of a server that the recipe starts, while it is not started."""
COMMANDS = ("prepare", "teacher", "serve", "serve_adapter", "score")
"""Keys whose value is a command."""
LORA = ("lora_rank", "lora_alpha", "lora_targets", "lora_rslora", "train_also")
"""Settings that begin an adapter: a later round goes on with the adapter that there is."""


class Command(NamedTuple):
    """A command whose flags stand in a section."""

    config: type
    words: tuple[str, ...]
    """What is typed behind python -m."""
    taken: frozenset[str]
    """Flags that align gives itself."""

    def parse(self, settings: Mapping[str, Any], given: Mapping[str, Any], place: str) -> Any:
        """The configuration that settings describe, with what align gives. Raises InputError, located."""
        return cli.parse(
            self.config, self.typed(settings, given, place), command=f"python -m {' '.join(self.words)}",
            example="./launch.sh align recipe.yaml", **_dialect(self.config),
        )  # fmt: skip

    def typed(self, settings: Mapping[str, Any], given: Mapping[str, Any], place: str) -> list[str]:
        """The same as it is typed. Raises InputError for a flag that is not the user's to give, or is none."""
        spelt = {name.replace("-", "_"): value for name, value in settings.items()}
        if ours := sorted(spelt.keys() & self.taken):
            raise InputError(f"{place}: {ours[0]} is set by align; leave it out")
        known = flags_of(self.config)
        aliases = _dialect(self.config).get("aliases", cli.NO_ALIASES)
        behind = [str(value) for name, value in given.items() if name in known and known[name].is_positional]
        rest = {k: v for k, v in given.items() if k not in known or not known[k].is_positional}
        return [*cli.typed(spelt | rest, known, place, aliases), *behind]


def _dialect(config: type) -> dict[str, Any]:
    """How engine.train alone is spelled besides."""
    return {"peer": trl_names, "aliases": ALIASES} if config is TrainConfig else {}


OF_TARGET = {"target_model", "target_endpoint", "target_name", "target_api"}
RECIPES = {
    name: Command(config, ("revise", name), frozenset({"out", "store", "dry_run", "config"} | OF_TARGET))
    for name, config in {
        "clair": recipes.ClairConfig,
        "judge-on-policy": recipes.JudgeConfig,
        "judge-off-policy": recipes.OffPolicyConfig,
        "stronger-preferred": recipes.StrongerConfig,
    }.items()
}
SCORE = Command(ScoreConfig, ("revise", "score"), frozenset({"pairs", "out", "store", "dry_run", "config"} | OF_TARGET))
TRAIN = Command(TrainConfig, ("engine.train",), frozenset({"config", "out", "reference_cache", "resume", "seed"}))
CONTRAST = Command(ContrastConfig, ("data.contrast",), frozenset())
_JUDGED = frozenset({"what", "out", "store", "dry_run", "config", "endpoint", "model", "checkpoint", "base",
                     "base_scores", "watch", "prune", "key_env", "key_file", "header", "extra"})  # fmt: skip
EVALS = {
    "mixeval": Command(MixEvalConfig, ("eval", "mixeval"), _JUDGED),
    "alpacaeval": Command(AlpacaEvalConfig, ("eval", "alpacaeval"), _JUDGED),
    "trajectories": Command(TrajectoriesConfig, ("eval", "trajectories"), frozenset({"run", "out", "config"})),
    "advise": Command(
        AdviseConfig, ("eval", "advise"), frozenset({"model", "data", "out", "scores", "store", "config"})
    ),
    "report": Command(ReportConfig, ("eval", "report"), frozenset({"runs", "out", "config"})),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is to be done, as the file says it."""

    path: str
    out: Path
    rounds: int = 1
    """How often answers, pairs and training follow each other, each time with the newest checkpoint."""
    seeds: int = 1
    """Runs of each objective on each data set, with orders of their own."""
    at_once: int | None = None
    """Runs side by side, as examples.grid has it."""
    gpus: int = 1
    """GPUs of each run."""
    prepare: str | None = None
    """A command that makes what the rest names, run once, first."""
    teacher: str | None = None
    """A command that serves who revises and judges, at {port}; it runs while a stage asks {teacher}."""
    serve: str | None = None
    """A command that serves {checkpoint} at {port}, for its answers; {base} is the base of an adapter, {name} the name
    that the model is asked by."""
    serve_adapter: str | None = None
    """The same where {checkpoint} is an adapter; unset: `serve` is the command for both."""
    score: str | None = None
    """A program that writes {run}/eval/scores.jsonl, as examples.grid has it."""
    revise: Mapping[str, Settings] = field(default_factory=dict)
    """Recipes of revise by the names of their data sets, and `score`."""
    train: Settings
    eval: Mapping[str, Settings] = field(default_factory=dict)

    @property
    def sets(self) -> dict[str, tuple[Command, Settings]]:
        """The data sets that are made: each with its command and flags."""
        made: dict[str, tuple[Command, Settings]] = {}
        for name, settings in self.revise.items():
            if name != "score":
                own = dict(settings)
                made[name] = RECIPES[own.pop("recipe", name)], own
        return made

    @property
    def given_sets(self) -> dict[str, str]:
        """The data sets that are there: files, by name."""
        return dict(_named(source) for source in _several(self.train.get("data")))

    @property
    def losses(self) -> list[str]:
        """The objectives, as examples.grid names them."""
        return _several(self.train.get("loss", "apo_zero"))

    @property
    def rates(self) -> list[str]:
        """Learning rates as they are given: one for all, or NAME=RATE for each; none where they are not."""
        return _several(self.train.get("lr"))

    @property
    def model(self) -> str:
        """Where the first round begins."""
        return str(self.train["model"])

    def server_of(self, checkpoint: str) -> str | None:
        """The command that serves a checkpoint; None: it is asked here."""
        return self.serve_adapter if self.serve_adapter and is_adapter(Path(checkpoint)) else self.serve

    @property
    def training(self) -> Settings:
        """What engine.train is told for all runs alike."""
        apart = ("model", "data", "loss", "lr")
        return {k.replace("-", "_"): v for k, v in self.train.items() if k.replace("-", "_") not in apart}

    def of_round(self, number: int) -> "Recipe":
        """The same with {round} filled in."""
        values = {"round": str(number)}
        return replace(
            self,
            revise=_filled(self.revise, values),
            train=_filled(self.train, values),
            eval=_filled(self.eval, values),
        )


def read(path: Path, out: str | None = None) -> Recipe:
    """The recipe in a file. out: another folder than the file names.

    Raises InputError for a key that there is none of, and for what can be told to be wrong by the file alone.
    """
    said = cli.read_yaml(path)
    known = {f.name: f for f in fields(Recipe) if f.name != "path"}
    for key in said:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"perhaps {near[0]!r}" if near else f"the keys are {', '.join(known)}"
            raise InputError(f"{path}: there is no key {key!r} in a recipe; {hint}")
    folder = out or said.get("out")
    if not folder or not isinstance(folder, str):
        raise InputError(f"{path}: out is missing; name the folder for everything that is made, or give --out")
    said["out"] = _out(folder, f"{path}: out")
    for name in ("rounds", "seeds", "gpus", "at_once"):
        if name in said:
            said[name] = _count(said[name], f"{path}: {name}")
    for name in COMMANDS:
        if not isinstance(said.get(name, ""), str):
            raise InputError(f"{path}: {name} has to be a command, as text")
    said["train"] = _training(_section(said.get("train"), f"{path}: train"), f"{path}: train")
    for name in ("revise", "eval"):
        section = _section(said.get(name, {}), f"{path}: {name}")
        said[name] = {key: _section(value, f"{path}: {name}: {key}") for key, value in section.items()}
    python, place = shlex.quote(sys.executable), str(said["out"])
    commands = {k: v for k, v in said.items() if k in COMMANDS}
    filled = _filled(said, {"python": python, "out": place})
    filled |= _filled(commands, {"python": python, "out": shlex.quote(place)})
    recipe = Recipe(path=str(path), **filled)
    _check(recipe)
    return recipe


def _section(value: Any, place: str) -> Settings:
    if value is None:
        raise InputError(f"{place}: is missing; a recipe needs that section")
    if value in ("", "null"):
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{place}: not a mapping; write the command's flags below it, such as `epochs: 3`")
    return value


def _out(folder: str, place: str) -> Path:
    """The folder by its one name: relative where it is inside the current folder."""
    path = Path(os.path.abspath(expand(folder, place)))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) and path != Path.cwd() else path


def _training(settings: Settings, place: str) -> Settings:
    """Settings with TRL's names put into ours, and the home folder into paths. Raises InputError."""
    ours = trl_names.translate(settings, lambda said: cli.notify(f"{place}: {said}"))
    for name in ("model", "adapter"):
        if isinstance(value := ours.get(name), str):
            ours[name] = expand(value, f"{place}: {name}")
    if isinstance(ours.get("data"), dict):
        raise InputError(f"{place}: data: not a mapping; give one file, or a list: [NAME=FILE, ...]")
    return ours


def _count(text: Any, place: str) -> int:
    if not isinstance(text, str) or not re.fullmatch(r"[1-9][0-9]*", text):
        raise InputError(f"{place}: {text!r} is not a whole number above 0")
    return int(text)


def _several(value: Any) -> list[str]:
    return (
        [] if value in (None, "", "null") else [str(one) for one in value] if isinstance(value, list) else [str(value)]
    )


def _named(source: str) -> tuple[str, str]:
    """ "clair=pairs.jsonl" or "pairs.jsonl" -> the data set's name, the file."""
    name, equals, file = source.partition("=")
    return (name, file) if equals else (Path(source).name.removesuffix(".jsonl"), source)


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    """The same with words in braces filled in, in all text; braces around anything else are left."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), value)
    if isinstance(value, Mapping):
        return {key: _filled(inside, values) for key, inside in value.items()}
    return [_filled(inside, values) for inside in value] if isinstance(value, list) else value


def with_teacher(settings: Settings, address: str) -> Settings:
    """Settings with the teacher's address in them."""
    return _filled(settings, {"teacher": address})


def asks_teacher(*settings: Settings) -> bool:
    """Whether any of them names the teacher's address."""
    return any("{teacher}" in str(value) for one in settings for value in one.values())


# --- what can be told by the file alone ----------------------------------------------------------------------------


def _check(recipe: Recipe) -> None:
    """Raises InputError."""
    place = recipe.path
    for name, settings in recipe.revise.items():
        if name == "score":
            continue
        asked = settings.get("recipe", name)
        if not isinstance(asked, str) or asked not in RECIPES:
            raise InputError(
                f"{place}: revise: {name}: there is no recipe {asked!r}; name one of {', '.join(RECIPES)}, or score; "
                "a data set of another name needs a `recipe:`"
            )
        if not re.fullmatch(r"[\w.-]+", name):
            raise InputError(
                f"{place}: revise: {name!r} names a folder; use only letters, digits, dots, dashes and underscores"
            )
    for name in recipe.eval:
        if name not in EVALS:
            raise InputError(f"{place}: eval: there is no {name!r}; the commands are {', '.join(EVALS)}")
    if "model" not in recipe.train:
        raise InputError(f"{place}: train: model is missing; name the checkpoint folder or hub id to start from")
    _check_sets(recipe)
    _check_rounds(recipe)
    if recipe.serve_adapter is not None and recipe.serve is None:
        raise InputError(f"{place}: serve_adapter: the model before training is served too; give `serve:` as well")
    is_adapter_run = any(recipe.training.get(name) for name in ("lora_rank", "adapter"))
    if is_adapter_run and recipe.serve is not None and recipe.serve_adapter is None and "{base}" not in recipe.serve:
        raise InputError(
            f"{place}: serve: the trained checkpoints are adapters, which are served with their base; write {{base}} "
            "where the program takes the base's folder, or give `serve_adapter:` a command with {checkpoint} and {base}"
        )
    for name in ("prepare", "teacher", "serve", "serve_adapter"):
        if (command := getattr(recipe, name)) is not None:
            wanted = {"teacher": ("port",), "serve": ("checkpoint", "port"),
                      "serve_adapter": ("base", "checkpoint", "port")}.get(name, ())  # fmt: skip
            check_program(command, wanted, f"{place}: {name}")
    if recipe.teacher is None and asks_teacher(*recipe.revise.values(), *recipe.eval.values()):
        raise InputError(f"{place}: {{teacher}} is used, but there is no `teacher:`; give the command that serves it")
    if "alpacaeval" in recipe.eval and "mixeval" not in recipe.eval:
        raise InputError(
            f"{place}: eval: alpacaeval scores the checkpoints that mixeval finds best; give mixeval too, or run "
            "python -m eval alpacaeval RUN --checkpoint NAME by hand"
        )


def _check_sets(recipe: Recipe) -> None:
    """Raises InputError unless there is data, under names that tell it apart."""
    place, names = recipe.path, [_named(source)[0] for source in _several(recipe.train.get("data"))]
    every = [*recipe.sets, *names]
    if not every:
        raise InputError(f"{place}: no pairs: give `revise:` a recipe that makes them, or train: data: a file of them")
    if twice := [name for name in every if every.count(name) > 1]:
        raise InputError(f"{place}: two data sets are called {twice[0]!r}; name them: data: [NAME=FILE, ...]")
    if "score" in recipe.revise and not recipe.sets:
        raise InputError(f"{place}: revise: score grades the pairs that are made here, but none are; leave it out")


def _check_rounds(recipe: Recipe) -> None:
    """Raises InputError where it is not clear who goes on in the next round."""
    if recipe.rounds == 1:
        return
    n = recipe.seeds * len(recipe.losses) * len([*recipe.sets, *recipe.given_sets])
    if n > 1:
        raise InputError(
            f"{recipe.path}: rounds: a round ends with {n} runs, but the next one starts from one model; name one "
            "data set, one loss and one seed"
        )
    if not recipe.sets:
        raise InputError(f"{recipe.path}: rounds: every round makes new pairs; give `revise:` a recipe")


def check_program(command: str, wanted: Sequence[str], place: str) -> list[str]:
    """The words of a command. wanted: what it has to take in braces. Raises InputError where there is none such."""
    try:
        words = shlex.split(command)
    except ValueError as fault:
        raise InputError(f"{place}: cannot be read as a command ({fault})") from None
    for name in wanted:
        if f"{{{name}}}" not in command:
            raise InputError(f"{place}: {{{name}}} is missing; write it where the program takes that value")
    if not words or shutil.which(words[0]) is None:
        raise InputError(f"{place}: there is no program {words[0] if words else ''!r}; install it, or name its path")
    if words[:2] == [sys.executable, "-m"] and not programs.is_module("".join(words[2:3])):
        raise InputError(f"{place}: there is no module {''.join(words[2:3])!r}")
    return words


def words_of(command: str, values: Mapping[str, str]) -> list[str]:
    """A command's words with what stands in braces filled in."""
    return shlex.split(_filled(command, {name: shlex.quote(value) for name, value in values.items()}))
