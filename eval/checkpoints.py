"""What is evaluated: checkpoints of a run as they appear, its base model, or one model; and which of them are kept."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.rows import (
    FIELDS,
    RowSettings,
    find_model,
    is_adapter,
    is_copy,
    is_model_folder,
    known_base,
    name_of_base,
)
from data.text import TemplateSettings
from eval import scores
from system import OLD, InputError, cli, remove_folder, remove_leftovers, run_folder

WATCH_SECONDS = 15.0


class Checkpoint(NamedTuple):
    """A model and what it is called in scores."""

    name: str
    folder: Path
    """A whole model's, or an adapter's."""
    base: Path | None = None
    """Of an adapter, the folder of another base than it names."""
    base_dtype: str | None = None
    """How the matrices of its blocks are held, where not as its folder says."""


def of(run: Path) -> list[Checkpoint]:
    """A run's checkpoints, of epochs and of steps inside them, in the order of their steps. A folder appears when it is
    whole: it is renamed when it has been written.
    """
    found = [Checkpoint(p.name, p) for p in run_folder.checkpoints_of(run) if is_model_folder(p)]
    if found and is_adapter(found[0].folder) and _has_moved(found[0].folder):
        model = _named(run, "model", scores.BASE)
        found = [one._replace(base=model and model.folder) for one in found]
    return found


def _has_moved(adapter: Path) -> bool:
    """Whether the folder that an adapter names as its base is gone, for example because run and base were moved."""
    name = name_of_base(adapter)
    return name is not None and Path(name).is_absolute() and not Path(name).is_dir()


def settings(run: Path) -> dict[str, Any]:
    """What the run was asked for: its config.yaml, values as text; empty where there is none."""
    path = run / "config.yaml"
    return cli.read_yaml(path) if path.is_file() else {}


def rows_of(asked: dict[str, Any]) -> RowSettings:
    """How the run itself has read and cut its rows."""
    numbers = ("max_prompt_tokens", "max_response_tokens", "max_tokens", "max_row_mb")
    named = {name: value for name, value in asked.items() if value not in (None, "", "null")}
    kept: dict[str, Any] = {name: int(named[name]) for name in numbers if name in named}
    kept |= {name: named[name] for name in ("keep_prompt", "columns", "ignore_columns", "roles") if name in named}
    kept["beyond_context"] = named.get("beyond_context", "true") == "true"  # runs before there was such a flag took all
    kept["keep_json_text"] = named.get("keep_json_text") == "true"
    if "columns" in kept:  # an objective's own numbers are for training alone
        ours = [part for part in kept["columns"].split(",") if part.partition("=")[0].strip() in FIELDS]
        kept["columns"] = ",".join(ours) or None
    return RowSettings(**kept)


def base_of(run: Path) -> Checkpoint | None:
    """The model that a run began with, where its folder is there, or the hub's copy of it: with the adapter that it
    started from, its matrices held as the run held them.
    """
    model, start = _named(run, "model", scores.BASE), _named(run, "adapter", scores.BASE)
    if model is None or not _is_given(settings(run).get("adapter")):
        return model
    return start and start._replace(base=model.folder)


def reference_of(run: Path) -> Checkpoint | None:
    """The model that a run's rewards are measured against, likewise: the one it began with, or --reference-model, which
    can be the base of its adapter alone.
    """
    asked = settings(run)
    if not _is_given(asked.get("reference_model")):
        return base_of(run)
    if asked["reference_model"] == "base" and (_is_given(asked.get("adapter")) or _is_given(asked.get("lora_rank"))):
        return _named(run, "model", "reference")
    found, model = _named(run, "reference_model", "reference"), _named(run, "model", "reference")
    if found is None or model is None:
        return found and found._replace(base_dtype=None)
    if not is_adapter(found.folder):
        is_same = found.folder.resolve() == model.folder.resolve()  # a copy is a model of its own, as the run took it
    elif (base := known_base(found.folder)) is None:  # as the run took it
        return found._replace(base=model.folder)
    else:
        is_same = is_copy(base, model.folder)
    return found if is_same else found._replace(base_dtype=None)  # another model is held as it is


def _named(run: Path, setting: str, called: str) -> Checkpoint | None:
    name, held = settings(run).get(setting), settings(run).get("base_dtype")
    try:
        folder = find_model(name) if isinstance(name, str) and _is_given(name) else None
    except InputError:
        return None
    return folder and Checkpoint(called, folder, base_dtype=held if _is_given(held) else None)


def _is_given(value: Any) -> bool:
    """Whether a setting of config.yaml says anything."""
    return value not in (None, "", "null", [])


def template_of(what: Path, given: TemplateSettings) -> TemplateSettings:
    """The flags of a template, and where they are not given those of the run that a folder is or is a checkpoint of."""
    run = what.absolute().parent if is_model_folder(what) else what
    asked = settings(run)
    known = {
        name: asked[name]
        for name in ("chat_template", "chat_template_kwargs", "template_date")
        if getattr(given, name) is None and isinstance(asked.get(name), str) and asked[name] not in ("", "null")
    }
    if "chat_template" in known:  # what a run was given is carried by its checkpoints
        carried = [e.folder / "chat_template.jinja" for e in of(run)]
        known["chat_template"] = next((str(file) for file in carried if file.is_file()), known["chat_template"])
    chosen = {name: getattr(given, name) for name in ("chat_template", "chat_template_kwargs", "template_date")}
    return TemplateSettings(**chosen | known)


def find(what: Path, *, with_base: bool) -> list[Checkpoint]:
    """The one checkpoint in a folder, or a run's: its base first. Raises InputError where there is neither."""
    if is_model_folder(what):
        whole = what.resolve() if what.is_symlink() else what  # `best` is another one tomorrow
        return [Checkpoint(whole.name, whole)]
    base, found = base_of(what), of(what)
    if not found:
        raise InputError(f"{what}: neither a checkpoint nor a run with checkpoints; give one of them")
    if with_base and base is None:
        cli.notify(f"{what}: its base model is not there, so there are no gains over it (see --base-scores, --no-base)")
    return [*([base] if with_base and base else []), *found]


def is_over(run: Path) -> bool:
    """Whether a run has written its last checkpoint: all of its steps are done, or it has ended early."""
    asked = settings(run)
    if not asked:
        return False
    if run_folder.end_of(run) is not None:
        return True
    last = max(run_folder.lines_of(run), key=lambda line: line.get("step", 0), default=None)
    if last is None:
        return False
    done = float(last["epoch"]) >= float(asked["epochs"]) - 1e-9
    most = asked.get("max_steps") or "null"
    return done or (most != "null" and last["step"] >= int(most))


def watch(run: Path, *, with_base: bool) -> Iterator[Checkpoint]:
    """Checkpoints as they appear, each once, until the run has written its last."""
    seen: set[str] = set()
    while True:
        was_over = is_over(run)  # asked first: a folder that comes in between is then met in the next turn
        base = base_of(run) if with_base else None
        for checkpoint in [*([base] if base else []), *of(run)]:
            if checkpoint.name not in seen:
                seen.add(checkpoint.name)
                yield checkpoint
        if was_over:
            return
        time.sleep(WATCH_SECONDS)


def prune(run: Path, best: Mapping[str, float], also: set[str]) -> list[str]:
    """Removes the checkpoints that have a score, but for the best, the newest, `also`, and the one that the run's own
    `best` is a link to. Their names.

    best: each one's score. A folder is renamed before it is removed: what is left of it is never taken for one.
    """
    for prefix in (run_folder.EPOCH, run_folder.STEP):
        remove_leftovers(run, prefix, OLD)
    found, linked = of(run), run_folder.best_of(run)
    keep = {max(best, key=lambda name: best[name])} | also | {found[-1].name} if best and found else set()
    keep |= {linked.name} if linked else set()
    gone = [c for c in found if c.name in best and c.name not in keep]
    for checkpoint in gone:
        remove_folder(checkpoint.folder)
    return [c.name for c in gone]
