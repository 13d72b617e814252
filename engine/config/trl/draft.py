"""A file for TRL while it is taken apart: what it has, what of it has been understood, what that comes to here."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from engine.config.trl.defaults import OF_ALL, OF_TRAINER, Trainer

Settings = dict[str, Any]
T = TypeVar("T")

NULL = ("null", "Null", "NULL", "~", "", "None")
"""How YAML, and people, write nothing."""
NAMES = {name for group in (*OF_ALL, *OF_TRAINER.values()) for name in group}
"""All names that TRL has, or had."""


class Draft:
    """A file for TRL while it is taken apart. Each subject takes its names, and puts what they come to."""

    def __init__(self, theirs: Settings, ours: Settings, typed: Mapping[str, str], trainer: Trainer) -> None:
        """theirs, ours: the file's settings under names of TRL and of ours. typed: flags of the command line, by name,
        which win over the file.
        """
        self.theirs, self.typed = theirs, typed
        self.trainer: Trainer = trainer
        self.ours = set(ours)
        """Names of ours that the file has."""
        self.made: Settings = dict(ours)
        """What it comes to, by our names."""
        self.said: list[str] = []
        """What is translated, and what is not done, sentence by sentence."""
        self.defaults: list[str] = []
        """What is not named in it and holds there."""
        self.faults: list[str] = []
        """What has to change, sentence by sentence."""
        self._left = dict.fromkeys(theirs)

    def has(self, name: str) -> bool:
        """Whether a setting stands in it with a value."""
        return name in self.theirs and not is_null(self.theirs[name])

    def take(self, *names: str) -> Any:
        """The value of the first of these that is named; None where none is. All of them count as understood."""
        found = [self.theirs[name] for name in names if self.has(name)]
        for name in names:
            self._left.pop(name, None)
        return found[0] if found else None

    def look(self, name: str) -> Any:
        """The value of a setting, which another subject takes."""
        return self.theirs[name] if self.has(name) else None

    @property
    def left(self) -> list[str]:
        """Names that no subject has taken."""
        return list(self._left)

    @property
    def idle(self) -> list[str]:
        """Names of settings that have changed nothing: neither are they ours, nor is anything said of them."""
        told = "\n".join(self.said)
        return [
            name
            for name in self.theirs
            if name not in self.made and not re.search(rf"(?<![\w.-]){name}(?![\w-])", told)
        ]

    def put(self, flag: str, value: str | list[str], said: str) -> None:
        """Sets one of our flags ("-" as "_"); said: the setting that it comes from, as it stands in the file."""
        name = said.partition(":")[0]
        before = self.made.setdefault(flag, value)
        if not same(before, value):
            self.faults.append(f"{name} and {flag}: two names of one setting, with two values; keep one")
        elif flag != name or shown(value) != said.partition(":")[2].strip():
            values = " ".join(value) if isinstance(value, list) else value
            self.said.append(f"{said} is --{_typed(flag)} {values} here")

    def default(self, flag: str, value: str) -> None:
        """Sets one of our flags to what holds in TRL where the file does not name it, and neither does the user."""
        if flag not in self.made and flag not in self.typed:
            self.made[flag] = value
            self.defaults.append(f"--{_typed(flag)} {value}")

    def leave(self, name: str, why: str) -> None:
        """Says that a setting is not done, and why."""
        self.said.append(f"{self.named(name)}: left out, {why}")

    def refuse(self, name: str, mend: str) -> None:
        """Adds a setting to what has to change; mend: what is said of it, from its verb on."""
        self.faults.append(f"{self.named(name)} {mend}")

    def named(self, name: str) -> str:
        """A setting as it stands in the file."""
        return f"{name}: {shown(self.theirs.get(name, ''))}"

    def number(self, name: str) -> Decimal | None:
        """A setting that is a number; None where it is not named, or none, which is a fault."""
        return self._read(name, as_number, "is not a number")

    def whole(self, name: str) -> int | None:
        """A setting that is a whole number of 0 or more; None where it is not named, or none, which is a fault."""
        return self._read(name, as_whole, "is not a whole number")

    def truth(self, name: str) -> bool | None:
        """A setting that is true or false; None where it is not named, or neither, which is a fault."""
        return self._read(name, as_truth, "is not true or false")

    def _read(self, name: str, read: Callable[[Any], T | None], fault: str) -> T | None:
        value = self.take(name)
        if value is None:
            return None
        if (found := read(value)) is None:
            self.refuse(name, fault)
        return found


def is_null(value: Any) -> bool:
    """Whether a value says nothing."""
    return value is None or (isinstance(value, str) and value in NULL) or value in ([], {})


def as_number(value: Any) -> Decimal | None:
    """The number that a text is; None where it is none."""
    try:
        found = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        return None
    return found if found is not None and found.is_finite() else None


def as_whole(value: Any) -> int | None:
    """The whole number of 0 or more that a text is; None where it is none."""
    number = as_number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def as_truth(value: Any) -> bool | None:
    """What a text says of true and false; None where it says neither."""
    known = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return known.get(value.lower()) if isinstance(value, str) else None


def same(a: Any, b: Any) -> bool:
    """Whether two values are one: numbers by their worth, true and false by their meaning."""
    if isinstance(a, list) or isinstance(b, list):
        parts = [x if isinstance(x, list) else [x] for x in (a, b)]
        return len(parts[0]) == len(parts[1]) and all(map(same, *parts))
    if is_null(a) or is_null(b):
        return is_null(a) and is_null(b)
    for meaning in (as_number, as_truth):
        if meaning(a) is not None and meaning(b) is not None:
            return meaning(a) == meaning(b)
    return a == b


def shown(value: Any) -> str:
    """A value of a file in a sentence."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    return (
        re.sub(r"\s+", " ", str(value))
        if len(str(value)) <= 60
        else f"{str(value)[:40].strip()} ...".replace("\n", " ")
    )


def plain(number: Decimal) -> str:
    """A number as it is typed: 3 for 3.0, else its digits."""
    return str(int(number)) if number == int(number) else str(number)


def _typed(flag: str) -> str:
    return flag if "." in flag else flag.replace("_", "-")
