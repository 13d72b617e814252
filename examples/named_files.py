"""The files that settings name, by which it is seen that one of them has changed."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.rows import files_of
from engine.config import BASE
from eval import alpacaeval_run
from eval.mixeval import JUDGE, PROMPTS
from system import InputError
from system.flags import expand, flags_of

ROWS = ("data", "eval_data", "prompts", "only_prompts")
"""Flags whose value is rows: a file, a folder, FOLDER:SPLIT or a hub id."""
FOLDERS = ("model", "reference_model", "adapter", "continue_from")
"""Flags whose value may be a model's folder."""
CHECKOUTS: Mapping[str, Callable[[Path], list[Path]]] = {
    "mixeval": lambda root: [*sorted(root.glob("mix_eval/data/*/mixeval-hard/*.json")), root / PROMPTS, root / JUDGE],
    "alpaca_eval": lambda root: [root / alpacaeval_run.OUTPUTS, alpacaeval_run.template_path(root)],
}
"""Flags whose value is a repository, and what is read of it."""
SECRETS = ("key_file", "ca_file")
"""What such a file holds changes nothing of what is made."""


def in_settings(settings: Mapping[str, Any], config: type) -> list[Path | str]:
    """What settings of a command name that it reads: files, models' folders, and sources of rows that are not here. An
    objective's own files are in_objective. config: the command's configuration, which knows which flags are paths.
    """
    known, found = flags_of(config), list[Path | str]()
    for name, value in settings.items():
        flag = name.replace("-", "_")
        if flag in known and known[flag].is_path and flag != "loss" and not flag.endswith(SECRETS):
            values = map(str, value if isinstance(value, list) else [value])
            found += [one for text in values if text not in ("", "null") for one in _read(flag, text)]
    return list(dict.fromkeys(found))


def _read(flag: str, value: str) -> list[Path | str]:
    if flag in ROWS:
        return in_rows(value)
    path = Path(expand(value, f"--{flag}"))
    if flag in CHECKOUTS:
        return [*CHECKOUTS[flag](path)]
    is_read = path.is_file() or (flag in FOLDERS and value != BASE and path.is_dir())
    return [path] if is_read else []


def in_rows(source: Path | str) -> list[Path | str]:
    """The files of a source of rows; of what is not here, such as a hub id, its name, for nothing is downloaded."""
    name = expand(str(source), "--data")
    if not any(Path(one).exists() for one in (name, name.rpartition(":")[0]) if one):
        return [name]
    try:
        return [*files_of(name)]
    except InputError:
        return [name]


def in_objective(loss: str) -> list[Path]:
    """The files of an objective: FILE:NAME, or a mixture of such with their weights."""
    return list(dict.fromkeys(_programs(loss)))


def _programs(loss: str) -> Iterator[Path]:
    for term in loss.split(","):
        for name in (term.rpartition(":")[0], term.rpartition(":")[0].rpartition(":")[0]):
            if name and (path := Path(name)).is_file():
                yield path
                break


def changed_since(paths: list[Path | str], when: float) -> Path | None:
    """The first of these files that is newer than a time (of os.stat)."""
    return next((p for p in map(Path, paths) if p.is_file() and p.stat().st_mtime > when), None)
