"""The flags of a configuration, and a check of a command line against them before tyro reads it.

tyro reports what it refuses in a drawn box; here it is one sentence that names the flag, the value and what is wanted.
"""

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import tyro

from system.errors import InputError


class _Path:
    """Marks a text as a path."""


PathText = Annotated[str, _Path()]
"""A path as a user writes it: on the command line and in a YAML file ~ and $VARIABLES in it stand for what they say."""


class Refused(NamedTuple):
    """Marks a flag of a shared configuration that one command cannot use. It is not in that command's help."""

    why: str
    """What is said where it is given."""


class Ignored(NamedTuple):
    """Marks a flag that one command takes and does not use, so that a file of settings can serve several commands. It
    is not in that command's help.
    """

    because: str
    """What is said where it is given, before its name."""


class Flag(NamedTuple):
    """Where a flag's value stands in a configuration, and what it may be."""

    subject: str
    """The field of the configuration that it belongs to; "" for the configuration itself."""
    name: str
    """Its field there."""
    kind: Any
    """Its type."""
    marks: tuple[Any, ...]
    """What is said of it to tyro."""
    is_required: bool

    @property
    def is_path(self) -> bool:
        """Whether its value, or each of them, is a path."""
        return any(isinstance(mark, _Path) for mark in (*self.marks, *_marks_inside(self.kind)))

    @property
    def is_positional(self) -> bool:
        """Whether it is given by its place."""
        return tyro.conf.Positional in self.marks

    @property
    def is_typed(self) -> bool:
        """Whether it is given by its name."""
        return not self.is_positional and (tyro.conf.Suppress not in self.marks or self.ignored is not None)

    @property
    def refused(self) -> Refused | None:
        """Why it cannot be used, if so."""
        return next((mark for mark in self.marks if isinstance(mark, Refused)), None)

    @property
    def ignored(self) -> Ignored | None:
        """Why it is not used, if so."""
        return next((mark for mark in self.marks if isinstance(mark, Ignored)), None)


def flags_of(config: type) -> dict[str, Flag]:
    """Every flag of a configuration ("-" as "_"): its own fields, and those of the fields that are dataclasses."""
    found: dict[str, Flag] = {}
    kinds = typing.get_type_hints(config, include_extras=True)
    for f in dataclasses.fields(config):
        kind, *marks = get_args(kinds[f.name]) if get_origin(kinds[f.name]) is Annotated else [kinds[f.name]]
        if dataclasses.is_dataclass(kind):
            found |= {flag: part._replace(subject=f.name) for flag, part in flags_of(typing.cast(type, kind)).items()}
        elif f.init:
            is_required = f.default is f.default_factory is dataclasses.MISSING
            found[_name_of(f)] = Flag("", f.name, kind, tuple(marks), is_required)
    return found


def _marks_inside(kind: Any) -> list[Any]:
    """What is said of the parts of a type."""
    own = list(getattr(kind, "__metadata__", ()))
    return own + [mark for part in get_args(kind) for mark in _marks_inside(part)]


def expanded(argv: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """The arguments with ~ and variables in paths expanded. Raises InputError for a variable that is not set, and for a
    user who is not known.
    """
    made: list[str] = []
    current = next((name for name, flag in flags.items() if flag.is_positional and flag.is_path), None)
    for argument in argv:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            current = name.removeprefix("--").replace("-", "_")
            value = expand(value, name) if equals and current in flags and flags[current].is_path else value
            made.append(f"{name}{equals}{value}")
        else:
            is_path = current is not None and current in flags and flags[current].is_path
            made.append(expand(argument, f"--{typed_name(current)}") if is_path and current else argument)
    return made


_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand(path: str, flag: str) -> str:
    """A path with ~ and variables in it expanded. flag: that it was given by, for messages. Raises InputError."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise InputError(f"{flag}: {path!r} names the variable {name}, which is not set; set it, or write it out")
        return os.environ[name]

    name, equals, made = "", "", _VARIABLE.sub(value, path)
    if "=~" in made and not made.startswith("~"):  # NAME=FILE
        name, equals, made = made.partition("=")
    if made.startswith("~") and (made := os.path.expanduser(made)).startswith("~"):
        raise InputError(f"{flag}: {path!r} names a user who is not known here; write the path out")
    return f"{name}{equals}{made}"


def flag_of(config: type, name: str) -> str:
    """A field's flag, as it is typed, without its dashes."""
    return next(typed_name(_name_of(f)) for f in dataclasses.fields(config) if f.name == name)


def check_above_zero(config: Any, *names: str) -> None:
    """Raises InputError, which names the flag, where a named field is below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{flag_of(type(config), name)}: {value} has to be above 0")


def check_not_negative(config: Any, *names: str) -> None:
    """Raises InputError, which names the flag, where a named field is below 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise InputError(f"--{flag_of(type(config), name)}: {value} has to be at least 0")


def typed_name(name: str) -> str:
    """A flag's name as it is typed, without its dashes."""
    return name.replace("_", "-")


def _name_of(f: "dataclasses.Field[Any]") -> str:
    """The flag of a field ("-" as "_"): tyro's name for it where it has one, or its own."""
    markers = getattr(f.type, "__metadata__", ())
    return next((m.name for m in markers if getattr(m, "name", None)), f.name).replace("-", "_")


def check(
    argv: Sequence[str], flags: dict[str, Flag], *, command: str, example: str, foreign: Callable[[str], str | None]
) -> None:
    """Raises InputError for a flag that does not exist, a value that is missing, wrong or one too many, and for a flag
    that has to be given.

    foreign: what to say of a name that is another program's, behind it; None where it is none of its.
    """
    given: set[str] = set()
    positional = {name for name, flag in flags.items() if flag.is_positional}
    for flag, values in _grouped(argv):
        behind = ""
        if flag is not None:
            name = _known(flag, flags, foreign)
            given.add(name)
            values = values[_check_values(flag, values, flags[name].kind) :]
            behind = f"; {flag} takes {'no value' if flags[name].kind is bool else 'one value'}"
        if values and not positional:
            raise InputError(f"{values[0]!r} belongs to no flag{behind}; see --help")
        given |= positional if values else set()
    missing = [name for name, flag in flags.items() if flag.is_required and name not in given]
    if missing:
        shown = [name.upper() if flags[name].is_positional else f"--{typed_name(name)}" for name in missing]
        raise InputError(f"{command} needs {' and '.join(shown)} too, such as: {example}")


def without_ignored(argv: Sequence[str], flags: dict[str, Flag]) -> tuple[list[str], list[str]]:
    """(the arguments without those that the command does not use, what there is to say of these). After `check`, which
    lets a refused switch pass where it is off.
    """
    kept: list[str] = []
    ignored: dict[str, dict[str, None]] = {}
    is_used = True
    for argument in argv:
        if _is_flag(argument):
            typed = argument.partition("=")[0]
            flag = flags[_known(typed, flags, lambda _: None)]
            is_used = not (flag.ignored or flag.refused)
            if flag.ignored:
                ignored.setdefault(flag.ignored.because, {})[typed] = None
        if is_used:
            kept.append(argument)
    return kept, [f"{because}: {', '.join(names)} ignored" for because, names in ignored.items()]


def _is_flag(argument: str) -> bool:
    return argument.startswith("--") or (
        argument.startswith("-") and argument[1:2].isalpha() and not _is(float, argument)
    )


def _grouped(argv: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """Each flag and what stands behind it up to the next; None for what stands before the first one."""
    groups: list[tuple[str | None, list[str]]] = [(None, [])]
    for argument in argv:
        if _is_flag(argument):
            flag, equals, value = argument.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(argument)
    return groups


def _known(flag: str, flags: dict[str, Flag], foreign: Callable[[str], str | None]) -> str:
    """The name of the field that a flag sets. Raises InputError where there is none."""
    name = flag.removeprefix("--").replace("-", "_")
    positive = name.removeprefix("no_")
    is_negated = positive != name and positive in flags and flags[positive].kind is bool
    name = positive if is_negated else name
    if name in flags and not is_negated and (refused := flags[name].refused):
        raise InputError(f"{flag}: {refused.why}")
    if is_negated or (flag.startswith("--") and name in flags and flags[name].is_typed):
        return name
    if said := foreign(name):
        raise InputError(f"--{name} {said}")
    near = difflib.get_close_matches(name.removeprefix("no_"), (n for n in flags if flags[n].is_typed), n=1)
    raise InputError(f"there is no flag {flag}; " + (f"perhaps --{typed_name(near[0])}" if near else "see --help"))


def _check_values(flag: str, values: list[str], kind: Any) -> int:
    """How many of the values are the flag's own. Raises InputError where there is none, or a wrong one."""
    if kind is bool:
        return 0
    kinds = [kind]
    if any(get_origin(k) in (dict, list, set) for k in (kind, *get_args(kind))):
        return len(values)  # tyro knows
    if get_origin(kind) is tuple:
        kinds = list(get_args(kind))
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(values)
    if len(values) < len(kinds):
        raise InputError(f"{flag} needs {'a value' if len(kinds) == 1 else f'{len(kinds)} values'}")
    for value, wanted in zip(values, kinds, strict=False):
        if not _is(wanted, value):
            raise InputError(f"{flag}: {value!r} is not {_said(wanted)}")
    return len(kinds)


def _is(kind: Any, text: str) -> bool:
    """Whether a text is a value of a type; of a type that is not known here tyro decides."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is(k, text) for k in get_args(kind))
    if get_origin(kind) is Literal:
        return text in map(str, get_args(kind))
    if kind is type(None):
        return text == "None"
    if kind is bool:
        return text in ("True", "False")
    if kind in (int, float):
        try:
            kind(text)
        except ValueError:
            return False
    return True


def _said(kind: Any) -> str:
    """What a value has to be, in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_said(k) for k in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(kind, "None")
