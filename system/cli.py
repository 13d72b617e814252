"""How every command reads its flags: a frozen dataclass is the command line, the YAML file and the help text.

The fields' names are the flags and the keys of `--config FILE`; flags win over the file. Errors are one sentence and
exit code 2.
"""

import contextlib
import dataclasses
import difflib
import errno
import functools
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, get_origin

import docstring_parser
import tyro
import yaml

from system import launcher, streams
from system.errors import InputError, RunError, Stopped
from system.flags import Flag, check, expand, expanded, flags_of, typed_name, without_ignored

Config = TypeVar("Config")

OUTCOME_VARIABLE = "RANK_OUTCOME_FILE"
"""Where launch.sh reads a run's exit code: torchrun itself turns every code into 1 (see `run`)."""


SCREEN_VARIABLE = "RANK_SCREEN"
"""What launch.sh shows the user as stderr: the ranks write there, torchrun's own reports go to a file."""


WORD_OF_RANK_0 = 5.0
"""Seconds that other ranks wait before they tell what ended them: by then rank 0 has told, and torchrun ended them."""


class Peer(Protocol):
    """A module that knows another program's names of our settings."""

    @property
    def translate(self) -> Callable[[dict[str, Any], Callable[[str], None], Mapping[str, str]], dict[str, Any]]:
        """Settings in our names; what was done is said sentence by sentence. The last argument is what is typed beside
        the file, and wins over it: flags ("-" as "_") and their first values."""
        ...

    @property
    def counterpart(self) -> Callable[[str], str | None]:
        """What to say of a flag that the other program has; None where it is none of its."""
        ...


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_DISKS = (*_FULL, errno.EROFS, errno.EIO)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aliases:
    """Other names of a command's flags, as fields are spelled ("-" as "_")."""

    names: Mapping[str, str]
    """Names that stay: another one -> the flag's."""
    former: Mapping[str, str]
    """Names of a release before, of which it is said what they are called now."""
    values: Mapping[tuple[str, str], str]
    """(former name, its value) -> the value now."""

    def translate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings under the flags' own names. Raises InputError where one has two values under two names."""
        made: dict[str, Any] = {}
        for name, value in given.items():
            known, value = self.known(name), self.value(name, value)
            if known in made and made[known] != value:
                raise InputError(f"--{typed_name(name)} and --{typed_name(known)}: two names of one setting; keep one")
            made[known] = value
        return made

    def known(self, name: str) -> str:
        """The flag's own name; said where a former one was given."""
        if name in self.former:
            now = typed_name(self.former[name])
            notify(f"--{typed_name(name)} is called --{now} now; the old name will be removed in release 0.3")
        return self.former.get(name) or self.names.get(name, name)

    def value(self, name: str, value: Any) -> Any:
        """A value that was given under a name, as it is called now."""
        return self.values.get((name, value), value) if isinstance(value, str) else value

    def typed(self, argv: Sequence[str]) -> list[str]:
        """The same arguments with the flags' own names. Raises InputError where one flag has two names."""
        names, first = {**self.names, **self.former}, dict[str, str]()
        for argument in argv:
            given = argument.removeprefix("--").partition("=")[0].replace("-", "_")
            if argument[:2] == "--" and (other := first.setdefault(names.get(given, given), given)) != given:
                raise InputError(f"--{typed_name(other)} and --{typed_name(given)}: two names of one setting; keep one")
        made: list[str] = []
        former = ""  # the flag that the value behind it belongs to
        for argument in argv:
            name, equals, value = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if argument.startswith("--") and name in {**self.former, **self.names}:
                made.append(f"--{typed_name(self.known(name))}{equals}{self.value(name, value)}")
            else:
                made.append(self.value(former, argument))
            former = name if argument.startswith("--") else former
        return made


NO_ALIASES = Aliases(names={}, former={}, values={})
FACTS = "facts"
"""The key of a run's config.yaml that holds what was found, not what was asked for: not read back as a setting."""


def parse(
    config: type[Config],
    argv: Sequence[str],
    *,
    command: str,
    example: str,
    help_text: Callable[[], str] = str,
    peer: Peer | None = None,
    aliases: Aliases = NO_ALIASES,
) -> Config:
    """The configuration that argv (and the file named by its --config) describes.

    command: "python -m engine.train", for help and messages. example: a complete line, shown where argv is empty.
    help_text: gives what is printed after the flags. peer: another program's names, understood in the file. aliases:
    other names of flags. Raises InputError; prints the help and leaves with 0 for --help.
    """
    if not argv:
        raise InputError(f"{command} needs arguments, such as: {example}")
    if any(not argument.isascii() and "\udc80" <= max(argument) <= "\udcff" for argument in argv):
        raise InputError(f"{command}: an argument is not UTF-8; type it again")
    argv, known = aliases.typed(argv), flags_of(config)
    _refuse_repeated(argv, [name for name, flag in known.items() if get_origin(flag.kind) is tuple])
    given = expanded([*_from_file(argv, known, peer, aliases), *argv], known)
    wanted, dotted = _take_dotted(given, "hyperparameters" in known)
    if any(argument in ("-h", "--help") for argument in argv):
        wanted = ["--help"]
    else:
        foreign = peer.counterpart if peer else lambda _: None
        check(wanted, known, command=command, example=example, foreign=foreign)
        wanted, unused = without_ignored(wanted, known)
        for sentence in unused:
            notify(sentence)
    heard = io.StringIO()
    try:
        join_help(config)
        with contextlib.redirect_stderr(heard):
            made = tyro.cli(config, prog=command, args=wanted, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as leaving:
        if not leaving.code:
            print(help_text())
            raise
        if fault := _cause(leaving):  # of the configuration's own checks
            raise fault from None
        print(heard.getvalue(), file=sys.stderr)  # as tyro says it
        raise InputError(f"{command}: these arguments cannot be used; see --help") from None
    return dataclasses.replace(made, hyperparameters=dotted) if dotted else made  # pyright: ignore[reportArgumentType]


def _cause(fault: BaseException | None) -> InputError | None:
    """The InputError that another exception was raised while handling."""
    while fault is not None and not isinstance(fault, InputError):
        fault = fault.__context__
    return fault


def join_help(config: type) -> None:
    """Joins the lines of fields' docstrings: tyro would break a sentence where its source does. A default that is None,
    or an empty text or list, is shown as unset, which is what the sentences call it. A value that is given by its place
    is called by its field's name, as in messages.
    """
    for kind in (config, *(f.type for f in dataclasses.fields(config) if dataclasses.is_dataclass(f.type))):
        for base in kind.__mro__:  # pyright: ignore[reportAttributeAccessIssue]
            if not dataclasses.is_dataclass(base) or "_help_is_joined" in vars(base):
                continue
            for said in docstring_parser.parse_from_object(base).params:
                if said.arg_name in base.__annotations__:
                    field, typed_as = base.__dataclass_fields__[said.arg_name], base.__annotations__[said.arg_name]
                    text = " ".join((said.description or "").split())
                    marker = tyro.conf.arg(help=text, help_behavior_hint=_hint(field), metavar=_place(field, typed_as))
                    base.__annotations__[said.arg_name] = Annotated[typed_as, marker]
            base._help_is_joined = True  # pyright: ignore[reportAttributeAccessIssue]


def _hint(field: dataclasses.Field[Any]) -> str | None:
    """What stands behind a sentence of help in the place of the default; None where tyro's own words are right."""
    if field.default is dataclasses.MISSING:
        return "(required)" if field.default_factory is dataclasses.MISSING else None
    return "(default: unset)" if field.default in (None, "", ()) else None


def _place(field: dataclasses.Field[Any], kind: Any) -> str | None:
    """What usage and help call a value that is given by its place: FILE, or FILE [FILE ...] where there may be several.
    None for a flag.
    """
    if get_origin(kind) is not Annotated or tyro.conf.Positional not in kind.__metadata__:
        return None
    name = field.name.upper()
    if get_origin(kind.__origin__) is tuple:
        name = f"{name.removesuffix('S')} [{name.removesuffix('S')} ...]"
    return name if field.default is field.default_factory is dataclasses.MISSING else f"[{name}]"


def run(main: Callable[[Sequence[str]], None], *, is_distributed: bool = False) -> None:
    """Runs a command's main on sys.argv. What ends it becomes one sentence and an exit code:
    2 for input, 1 for a run that cannot go on, 130 for Ctrl-C, 143 for SIGTERM after what was done is saved.

    is_distributed: whether the command may be one of several processes; any other takes no notice of a launcher's
    variables, and does not hand them on.

    Under torchrun only one rank speaks. Where OUTCOME_VARIABLE names a file, rank 0 writes the code into it and every
    rank leaves with 0, so that torchrun has no report of its own to add.
    """
    streams.prepare()
    if (screen := os.environ.get(SCREEN_VARIABLE)) and os.path.exists(screen):
        os.dup2(os.open(screen, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    if not is_distributed:
        launcher.forget()
    try:
        if is_distributed:
            launcher.check()
        main(sys.argv[1:])
        sys.stdout.flush()  # where the disk behind it is full that is told here
    except InputError as fault:
        _leave(f"error: {fault}", 2)
    except Stopped as ending:
        _leave(str(ending), ending.code)
    except RunError as fault:
        _leave(f"error: {fault}", 1, fault.speaks)
    except BrokenPipeError:  # whoever read it, head or less, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as fault:
        if fault.errno not in _OF_DISKS:
            raise
        mend = "make room and give the same command again" if fault.errno in _FULL else "write to another disk"
        if fault.filename == streams.STDOUT:  # what is left of it goes nowhere, so that nothing fails at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(f"error: {fault.filename or 'a file'}: cannot be written ({fault.strerror}); {mend}", 1, speaks=True)
    except KeyboardInterrupt:
        _leave("stopped", 130)


def dispatch(
    argv: Sequence[str], commands: dict[str, Callable[[Sequence[str]], None]], *, package: str, doc: str, example: str
) -> None:
    """Hands the arguments to the command that the first one names. package: "python -m eval"; doc: what --help prints.

    Raises InputError where there is no such command.
    """
    known = ", ".join(commands)
    if not argv:
        raise InputError(f"{package} needs a command ({known}), such as: {example}")
    name, *rest = argv
    if name in ("-h", "--help"):
        print(doc)
    elif name not in commands:
        raise InputError(f"{package}: there is no command {name!r}; the commands are {known}")
    else:
        commands[name](rest)


def notify(sentence: str) -> None:
    """A notice on stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(sentence), file=sys.stderr)


@functools.cache
def notify_once(sentence: str) -> None:
    """A notice that a process gives once, however often it comes to where it is given."""
    notify(sentence)


def printable(text: str) -> str:
    """Text in which nothing acts on a terminal: of files and templates of strangers, whose words errors repeat."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def _leave(sentence: str, code: int, speaks: bool | None = None) -> None:
    """speaks: None where every rank has come to the same end, of which the first tells."""
    sentence = printable(sentence)
    rank = os.environ.get("RANK", "0")
    is_common, speaks = speaks is None, rank == "0" if speaks is None else speaks
    outcome = os.environ.get(OUTCOME_VARIABLE)
    if outcome and not os.path.isfile(outcome):  # left over from a launcher that has ended
        outcome = None
    if speaks:
        print(sentence, file=sys.stderr)
    elif (
        is_common and code < 128 and not outcome and not launcher.meeting.is_over
    ):  # perhaps there is no rank 0 that speaks
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(WORD_OF_RANK_0)
        print(f"rank {rank}: {sentence}", file=sys.stderr)
    if outcome and speaks:
        Path(outcome).write_text(str(code))
    if outcome and is_common:
        deadline = time.monotonic() + 10
        while not Path(outcome).read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        if Path(outcome).read_text():
            code = 0
        else:  # this rank alone: torchrun has to end the others
            print(f"rank {rank}: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _refuse_repeated(argv: Sequence[str], names: Sequence[str]) -> None:
    """Raises InputError for a flag of several values that stands twice: the first ones would be forgotten."""
    flags = [
        argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in argv if argument[:2] == "--"
    ]
    if twice := next((name for name in names if flags.count(name) > 1), None):
        flag = twice.replace("_", "-")
        raise InputError(f"--{flag} is given twice; give it once, with all values behind it: --{flag} a b")


def _from_file(argv: Sequence[str], known: dict[str, Flag], peer: Peer | None, aliases: Aliases) -> list[str]:
    """The flags that --config FILE stands for. Scalars stay the text that was typed; the flags' types convert them."""
    path = _value_of("--config", argv)
    if path is None:
        return []
    path = expand(path, "--config")
    settings = read_yaml(Path(path))
    settings.pop(FACTS, None)
    if peer is not None:
        try:
            settings = peer.translate(settings, lambda said: notify(f"{path}: {said}"), _typed(argv))
        except InputError as fault:
            raise InputError(f"{path}: {fault}") from None
    return typed(settings, known, path, aliases)


def typed(
    settings: Mapping[str, Any], known: Mapping[str, Flag], place: str, aliases: Aliases = NO_ALIASES
) -> list[str]:
    """Settings of a file as they would be typed. known: the command's flags; place: where they stand, for messages.

    Raises InputError for one that there is no flag for, that stands there twice, or that is a mapping.
    """
    made: list[str] = []
    first: dict[str, tuple[str, Any]] = {}  # the key that a flag was first given by, and its value
    for key, value in settings.items():
        name = key.replace("-", "_")
        value = aliases.value(name, value)
        name = name if name in known else aliases.known(name)
        if name not in known and "." not in name:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"{place}: there is no setting {key!r}" + (f"; perhaps {near[0]!r}" if near else "; see --help")
            )
        other, before = first.setdefault(name, (key, value))
        if before != value:
            raise InputError(f"{place}: {other} and {key}: two names of one setting, with two values; keep one")
        flag = name if "." in name else name.replace("_", "-")
        if name in known and known[name].kind is bool and str(value).lower() in ("true", "false"):
            made.append(f"--{flag}" if value.lower() == "true" else f"--no-{flag}")
        elif isinstance(value, list):
            made += [f"--{flag}", *map(str, value)]
        elif isinstance(value, str):
            made += [f"--{flag}={value}"] if value not in ("null", "") else []
        else:
            raise InputError(f"{place}: {key!r} is a mapping; settings are flat, as the flags are")
    return made


def _typed(argv: Sequence[str]) -> dict[str, str]:
    """Flags that are typed ("-" as "_"), with the first value of each; "" where it has none."""
    found: dict[str, str] = {}
    for argument, behind in zip(argv, [*argv[1:], ""], strict=True):
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            found[name.replace("-", "_")] = value if equals else "" if behind.startswith("--") else behind
    return found


def _take_dotted(argv: Sequence[str], allowed: bool) -> tuple[list[str], dict[str, str]]:
    """--NAME.argument VALUE taken out of argv: hyperparameters, which whoever knows their names will check."""
    rest: list[str] = []
    dotted: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        match = re.fullmatch(r"--(\w+\.[\w-]+)(?:=(.*))?", argument) if allowed else None
        if match is None:
            rest.append(argument)
        elif (value := match[2] if match[2] is not None else next(arguments, None)) is None:
            raise InputError(f"{argument} needs a value")
        else:
            dotted[match[1].replace("-", "_")] = value
    return rest, dotted


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file, its scalars as text (YAML would read 1e-6 as text, `no` as false, a version as a
    date). Raises InputError where it is not a plain mapping without repeated keys, anchors or tags.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > 2**20 or any(isinstance(t, (yaml.AliasToken, yaml.TagToken)) for t in yaml.scan(text)):
            raise InputError(f"{path}: aliases, tags and files above 1 MB are not accepted; write the values out")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(fault).split())})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a mapping of settings; write lines such as `lr: 1e-6`")
    keys = [node.value.replace("-", "_") for node, _ in tree.value]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise InputError(f"{path}: {sorted(twice)[0]!r} is given twice; keep one")
    return value


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
    return None
