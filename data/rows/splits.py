"""Which files of a folder are which split: by its card's YAML where that says so, else by names as the hub reads them.

README.md            configs: [{config_name, data_files: [{split, path}]}] decides
train.jsonl          a split word (SPLITS) anywhere in the name, between "-", "_", ".", blanks and numbers; the
prefs_test.csv       split is called what the file is, without the number of a part
train/part-1.json    else the folder that it lies in; folders above are the configuration, data/ and default/ none
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from system import InputError

TRAIN = ("train", "training")
SPLITS = (
    *TRAIN,
    *("test", "testing", "eval", "evaluation"),
    *("validation", "valid", "val", "dev"),
    *("heldout", "holdout"),
)
"""Words that name splits: the hub's, and what people call rows that are held out."""
CARD = "README.md"
_PART = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")
_NUMBER = re.compile(r"[-_.]?\d+$")


def split_of(path: Path) -> str:
    """Which split a file belongs to, with its configuration before it: "train", "en/train"; "" where none is named."""
    stem = _PART.sub("", Path(path.name.removesuffix(".gz")).stem)
    unnumbered = _NUMBER.sub("", stem)
    if _words(unnumbered)[-1] in SPLITS or not is_split(stem):  # train-1; the number of train_iteration_1 is a name
        stem = unnumbered
    above = [part for part in path.parts[:-1] if part not in ("data", "default")]
    if is_split(stem):
        return "/".join([*above, stem])
    if above and is_split(above[-1]):
        return "/".join(above)
    return ""


def is_split(name: str) -> bool:
    """Whether a name has a split word in it."""
    return any(word in SPLITS for word in _words(name))


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", re.sub(r"held[-_ ]out", "heldout", name.lower()))


def chosen(splits: dict[str, list[Path]], wanted: str | None, name: str) -> list[Path]:
    """The files of the split that is wanted; of none, of that called train, or of the only one there is.

    name: the folder's, for messages. Raises InputError where several fit, or none.
    """
    ways = (lambda split: split, _tail, lambda split: _NUMBER.sub("", _tail(split)))
    if wanted is None:
        fitting = [split for split in splits if len(splits) == 1 or split in TRAIN]
        fitting = fitting or [split for split in splits if _tail(split) in TRAIN]
        if not fitting and len({_NUMBER.sub("", split) for split in splits}) == 1:
            return [path for paths in splits.values() for path in paths]
    else:
        fitting = next((found for way in ways if (found := [s for s in splits if way(s) == wanted])), [])
        if len({_NUMBER.sub("", split) for split in fitting}) == 1:
            return [path for split in fitting for path in splits[split]]
        fitting = fitting or [split for split in splits if wanted in SPLITS and _is_called(_tail(split), wanted)]
    if len(fitting) != 1:
        known = ", ".join(sorted(split or "(other files)" for split in splits))
        example = min(splits, key=lambda split: (not split, _tail(split) not in TRAIN, split))
        raise InputError(f"{name}: has the splits {known}; name one, such as {name}:{example}")
    return splits[fitting[0]]


def _tail(split: str) -> str:
    return split.rpartition("/")[2]


def _is_called(name: str, wanted: str) -> bool:
    return any(word == wanted or (word in TRAIN and wanted in TRAIN) for word in _words(name))


# --- the card ------------------------------------------------------------------------------------------------------


def splits_of_card(folder: Path, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of rows by the splits that README.md's YAML gives them; files that it does not name under "".

    Empty where it names none. Raises InputError where the YAML cannot be read, or is not the hub's.
    """
    configs = _configs(folder / CARD)
    by_name = {path.relative_to(folder).as_posix(): path for path in paths}
    splits: dict[str, list[Path]] = {}
    for i, config in enumerate(configs):
        above = "" if (title := str(config.get("config_name", "default"))) == "default" else f"{title}/"
        base = f"{str(config.get('data_dir') or '').strip('/')}/".removeprefix("/")
        for split, patterns in _data_files(config, f"{folder / CARD}: configs[{i}]"):
            whole = re.compile("|".join(_as_regex(base + pattern) for pattern in patterns))
            if found := [path for path_name, path in by_name.items() if whole.fullmatch(path_name)]:
                splits[above + split] = found
    rest = [path for path in paths if not any(path in found for found in splits.values())]
    return splits | ({"": rest} if rest and splits else {})


def _configs(card: Path) -> list[dict[str, Any]]:
    try:
        text = card.read_text(encoding="utf-8-sig") if card.is_file() else ""
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{card}: cannot be read ({fault}); fix it, or name the files") from None
    front = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    if front is None or "configs:" not in front[1]:
        return []
    try:
        found = (yaml.safe_load(front[1]) or {}).get("configs") or []
        if not isinstance(found, list) or not all(isinstance(config, dict) for config in found):
            raise TypeError
    except (yaml.YAMLError, AttributeError, TypeError):
        raise InputError(f"{card}: its YAML or the configs in it cannot be read; fix it, or name the files") from None
    return found


def _data_files(config: dict[str, Any], place: str) -> list[tuple[str, list[str]]]:
    """(split, patterns) of a configuration; files without a split are those of train."""
    given = config.get("data_files")
    if given is None:
        return [("train", ["**"])] if config.get("data_dir") else []
    items = given if isinstance(given, list) else [given]
    if all(isinstance(item, str) for item in items):
        items = [{"split": "train", "path": items}]
    made = []
    for item in items:
        paths = item.get("path") if isinstance(item, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths) or "split" not in item:
            raise InputError(f"{place}: data_files is not a list of splits and paths; fix it, or name the files")
        made.append((str(item["split"]), paths))
    return made


_GLOB = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _as_regex(pattern: str) -> str:
    """A glob pattern of a path; what it names may be a folder, of which all is meant."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./").rstrip("/"))
    made = (_GLOB.get(piece) or (piece if i % 2 else re.escape(piece)) for i, piece in enumerate(pieces))
    return f"{''.join(made)}(?:/.*)?"
