"""What a run hands to wandb, trackio and MLflow: its settings once, a line per step, and how it ended.

One function per library: it begins the run, or goes on with the one of that id, and gives the calls that are made
later. Names and places are the libraries' own where their environment variables give them; else a run is called as its
folder is, in a project called as the folder that it lies in.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Line = Mapping[str, float]
MLFLOW_BATCH = 100  # parameters that it takes at once


class Asked(NamedTuple):
    """What a library is asked to show."""

    folder: Path
    """The run's."""
    project: str
    name: str
    """Of the run."""
    id: str | None
    """The run's in the library, where it began before."""
    settings: Mapping[str, Any]
    """config.yaml."""
    pid: int
    """The process that trains."""


class Began(NamedTuple):
    """A run in a library."""

    id: str
    where: str
    """Where it is to be seen, in words."""
    log: Callable[[Line, int], None]
    """Takes a step's numbers."""
    finish: Callable[[str], None]
    """Takes how the run ended: finished, stopped or failed."""


def wandb(asked: Asked) -> Began:
    """Weights & Biases. Its files lie in the run's folder unless WANDB_DIR says otherwise."""
    import wandb as library  # pyright: ignore[reportMissingImports]

    chosen = asked.id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    extra = {"x_stats_pid": asked.pid} if "x_stats_pid" in getattr(library.Settings, "model_fields", {}) else {}
    run = library.init(
        project=_unless("WANDB_PROJECT", asked.project),
        name=_unless("WANDB_NAME", asked.name),
        dir=_unless("WANDB_DIR", str(asked.folder)),
        id=chosen,
        resume="allow",
        settings=library.Settings(console="off", **extra),
    )
    run.config.update(dict(asked.settings), allow_val_change=True)
    offline = f"offline; wandb sync {run.settings.sync_dir} uploads it"
    return Began(
        chosen,
        run.url or offline,
        log=lambda line, step: run.log(dict(line), step=step),
        finish=lambda how: run.finish(exit_code=0 if how == "finished" else 1),
    )


def trackio(asked: Asked) -> Began:
    """trackio, in its own folder of this machine, or in the Space or server that its environment variables name."""
    import trackio as library  # pyright: ignore[reportMissingImports]

    run = library.init(
        project=os.environ.get("TRACKIO_PROJECT") or asked.project,
        name=asked.id or asked.name,
        config=dict(asked.settings),
        resume="allow" if asked.id else "never",
        embed=False,
    )
    return Began(
        run.name,
        f"trackio show --project {run.project}",
        log=lambda line, step: run.log(dict(line), step=step),
        finish=lambda how: run.finish(),
    )


def mlflow(asked: Asked) -> Began:
    """MLflow, where MLFLOW_TRACKING_URI says, or where the library keeps things when nothing does."""
    import mlflow as library  # pyright: ignore[reportMissingImports]

    is_named = os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")
    if asked.id is None and not is_named:
        library.set_experiment(asked.project)
    run = library.start_run(run_id=asked.id, run_name=None if asked.id else asked.name)
    known = library.get_run(run.info.run_id).data.params  # a parameter keeps its first value there
    new = [(name, value) for name, value in flat(asked.settings) if name not in known]
    for i in range(0, len(new), MLFLOW_BATCH):
        library.log_params(dict(new[i : i + MLFLOW_BATCH]))
    states = {"finished": "FINISHED", "stopped": "KILLED"}
    return Began(
        run.info.run_id,
        f"run {run.info.run_id} of {library.get_tracking_uri()}",
        log=lambda line, step: library.log_metrics(dict(line), step=step),
        finish=lambda how: library.end_run(states.get(how, "FAILED")),
    )


LIBRARIES: dict[str, Callable[[Asked], Began]] = {"wandb": wandb, "trackio": trackio, "mlflow": mlflow}
"""What begins a run in each library, by the library's name."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings without nesting: {"facts": {"rows": 3}} gives "facts/rows", 3."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _unless(variable: str, value: str) -> str | None:
    """A value, but where an environment variable has one, which the library reads itself."""
    return None if os.environ.get(variable) else value
