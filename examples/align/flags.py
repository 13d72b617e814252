"""What align tells each command besides a recipe's own flags, and all of these looked at before any file is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.contrast import ContrastConfig
from data.rows import RowSettings, find_model
from engine.config import TrainConfig
from eval.advise import AdviseConfig
from examples import grid, programs
from examples.align.recipe import CONTRAST, EVALS, RECIPES, SCORE, TRAIN, UNSERVED, Recipe, Settings, with_teacher
from examples.grid import Cell
from system import InputError
from system.flags import flags_of

PAIRS = Path("pairs.jsonl")
"""What stands for a file of pairs while flags alone are looked at."""


def check(recipe: Recipe) -> None:
    """Raises InputError for the flags of any section that cannot be used, for all of them together. What the flags name
    need not be there.
    """
    faults: dict[str, None] = {}

    def look(check: Callable[[], Any]) -> None:
        try:
            check()
        except InputError as fault:
            faults[str(fault)] = None

    for number in range(1, recipe.rounds + 1):
        now = recipe.of_round(number)
        for name in now.sets:
            look(lambda now=now, name=name: of_set(now, name, out=PAIRS, model="model"))
        if "score" in now.revise:
            look(lambda now=now: of_score(now, PAIRS, Path("scored.jsonl"), "model"))
        look(lambda now=now: of_training(now))
        look(lambda now=now: located(now, "train", lambda: rates_of(now)))
        for loss in now.losses:
            look(lambda now=now, loss=loss: located(now, "train", lambda: grid.check_loss(loss)))
        for name in now.eval:
            look(lambda now=now, name=name: of_evaluation(now, name, str(now.out)))
        look(lambda now=now: _check_held_out(now))
    if recipe.score:
        score = with_teacher({"score": recipe.score}, UNSERVED)["score"]
        look(lambda: located(recipe, "score", lambda: programs.scorer(score, Path())))
    if faults:
        raise InputError("\n".join(faults))


def _check_held_out(recipe: Recipe) -> None:
    """Raises InputError where trajectories are to follow pairs that nothing holds out."""
    if "trajectories" not in recipe.eval or recipe.eval["trajectories"].get("data"):
        return
    measuring = of_training(recipe).measuring
    if not measuring.eval_pairs and not measuring.eval_data:
        raise InputError(
            f"{recipe.path}: eval: trajectories: training holds out no pairs to follow; give train: eval_pairs or "
            "eval_data, or give trajectories a file of pairs: data"
        )


def located(recipe: Recipe, where: str, check: Callable[[], Any]) -> Any:
    """Runs a check, and says where the fault stands that it raises InputError for."""
    place = f"{recipe.path}: {where}" if where else recipe.path
    try:
        return check()
    except InputError as fault:
        said = str(fault).removeprefix("--score: ")
        raise InputError(said if said.startswith(place) else f"{place}: {said}") from None


# --- pairs ---------------------------------------------------------------------------------------------------------


def of_set(recipe: Recipe, name: str, *, out: Path, model: str) -> Any:
    """The configuration of a data set's recipe. model: whose answers it wants. Raises InputError."""
    command, settings = recipe.sets[name]
    where, given = f"revise: {name}", set_flags(recipe, name, out=out, model=model)
    return located(
        recipe, where, lambda: command.parse(with_teacher(settings, UNSERVED), given, f"{recipe.path}: {where}")
    )


def set_flags(recipe: Recipe, name: str, *, out: Path, model: str, server: tuple[str, str] | None = None) -> Settings:
    """What align tells a recipe of revise itself. server: address and name of the model, where it is served."""
    command, settings = recipe.sets[name]
    if command is RECIPES["judge-off-policy"]:
        return {"out": str(out)}
    given: Settings = {"out": str(out), "store": str(recipe.out / "answers.sqlite")}
    return given | ({} if "response_from" in settings else target_flags(recipe, model, server))


def target_flags(recipe: Recipe, model: str, server: tuple[str, str] | None) -> Settings:
    """How the model that is to be aligned is asked."""
    if recipe.serve is None:
        return {"target_model": model}
    address, name = server or (UNSERVED, "policy")
    return {"target_endpoint": [address], "target_name": name}


def of_score(recipe: Recipe, pairs: Path, out: Path, model: str) -> Any:
    """The configuration of `revise score`. Raises InputError."""
    settings, given = with_teacher(recipe.revise["score"], UNSERVED), score_flags(recipe, pairs, out, model)
    where = "revise: score"
    return located(recipe, where, lambda: SCORE.parse(settings, given, f"{recipe.path}: {where}"))


def score_flags(recipe: Recipe, pairs: Path, out: Path, model: str, server: tuple[str, str] | None = None) -> Settings:
    """What align tells `revise score` itself."""
    given: Settings = {"pairs": str(pairs), "out": str(out), "store": str(recipe.out / "grades.sqlite")}
    return given | target_flags(recipe, model, server)


# --- training ------------------------------------------------------------------------------------------------------


def of_training(recipe: Recipe, model: str = "model", data: Path = PAIRS) -> TrainConfig:
    """The configuration of engine.train that all runs share, with the first objective. Raises InputError."""
    return _of_run(recipe, grid.parse_loss(recipe.losses[0])[0], {}, model, data)


def _of_run(recipe: Recipe, loss: str, own: Settings, model: str = "model", data: Path = PAIRS) -> TrainConfig:
    """The same with an objective and its own flags."""
    given = {"model": model, "data": [str(data)], "loss": loss, "out": str(recipe.out)}
    told = recipe.training | {name.replace("-", "_"): value for name, value in own.items()}
    return located(recipe, "train", lambda: TRAIN.parse(told, given, f"{recipe.path}: train"))


def rates_of(recipe: Recipe) -> dict[str, float]:
    """Each objective's learning rate: the recipe's, or engine.train's own for it, which an adapter has another of.
    Raises InputError.
    """
    if recipe.rates:
        return grid.rates_of(recipe.rates, recipe.losses)
    return {loss: _of_run(recipe, *grid.parse_loss(loss)).optimizer.rate for loss in recipe.losses}


def cells_of(recipe: Recipe, sets: Mapping[str, Path]) -> list[Cell]:
    """Every run of a round. sets: each data set's file."""
    rates = rates_of(recipe)
    return [
        Cell(name, path, loss, seed, rates[loss])
        for seed in range(recipe.seeds)
        for name, path in sets.items()
        for loss in recipe.losses
    ]


def reading_of(recipe: Recipe, config: type) -> Settings:
    """How training reads rows, as far as another command's configuration has the same flags."""
    known = flags_of(config).keys() & {*flags_of(RowSettings), "skip_bad_rows", "own_score"}
    return {name: value for name, value in recipe.training.items() if name in known}


def contrast_settings(recipe: Recipe, data: Path, model: str, out: Path) -> list[str]:
    """What `data.contrast` is told."""
    given: Settings = {"files": str(data), "tokenizer": str(find_model(model)), "out": str(out)}
    return CONTRAST.typed(reading_of(recipe, ContrastConfig), given, f"{recipe.path}: train")


# --- evaluation ----------------------------------------------------------------------------------------------------


def advice_settings(recipe: Recipe) -> Settings:
    """What `eval advise` is told, which reads rows as training does unless the recipe says otherwise."""
    own = {name.replace("-", "_"): value for name, value in recipe.eval.get("advise", {}).items()}
    return reading_of(recipe, AdviseConfig) | own


def advice_flags(recipe: Recipe, data: Path, model: str) -> Settings:
    """What align tells `eval advise` itself."""
    is_judged = bool(recipe.eval.get("advise", {}).get("judge_endpoint"))
    return {"data": str(data), "model": model} | ({"store": str(recipe.out / "advice.sqlite")} if is_judged else {})


def of_evaluation(recipe: Recipe, name: str, folder: str) -> Any:
    """The configuration of an evaluation, to look at. folder: one that is there. Raises InputError."""
    given: Settings = {
        "mixeval": {"what": folder, "store": str(recipe.out / "check.sqlite"), "out": str(recipe.out)},
        "alpacaeval": {"what": folder, "store": str(recipe.out / "check.sqlite"), "out": str(recipe.out)},
        "trajectories": {"run": folder},
        "advise": advice_flags(recipe, PAIRS, folder),
        "report": {"runs": folder, "out": str(recipe.out)},
    }[name]
    if name in ("mixeval", "alpacaeval") and recipe.serve is not None:
        given |= {"endpoint": [UNSERVED], "model": "policy"}
    told = advice_settings(recipe) if name == "advise" else recipe.eval[name]
    settings, where = with_teacher(told, UNSERVED), f"eval: {name}"
    return located(recipe, where, lambda: EVALS[name].parse(settings, given, f"{recipe.path}: {where}"))
