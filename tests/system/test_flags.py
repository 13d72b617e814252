"""What is said of a command line before tyro reads it: each fault in a sentence, and nothing that tyro would take."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from system import InputError, cli
from system.flags import Ignored, Refused, check_above_zero, check_not_negative, flags_of


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part of a configuration."""

    beta: float | None = None
    """Strength."""
    most: Annotated[int, tyro.conf.arg(name="limit")] = 1
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a test."""

    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files."""
    lr: float = 0.5
    """Rate."""
    size: int = 16
    """Examples."""
    shuffle: bool = True
    """Whether."""
    kind: Literal["new", "old"] | None = None
    """Which."""
    pair: tuple[str, str] = ("a", "b")
    """Two."""
    weights: tuple[float, ...] = ()
    """Several."""
    where: Path = Path()
    """A folder."""
    inner: Inner = field(default_factory=Inner)
    hidden: tyro.conf.Suppress[dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Required:
    """A command that needs flags."""

    model: str
    """Model."""
    out_file: str
    """File."""
    lr: float = 0.5
    """Rate."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A command whose values are given by their place."""

    run: tyro.conf.Positional[str]
    """Folder."""
    files: tyro.conf.Positional[tuple[str, ...]]
    """Files."""


@dataclass(frozen=True, kw_only=True)
class Shared(Required):
    """A command that shares its configuration with others."""

    store: Annotated[str | None, Ignored("nobody is asked"), tyro.conf.Suppress] = None
    hosts: Annotated[tuple[str, ...], Ignored("nobody is asked"), tyro.conf.Suppress] = ()
    quick: Annotated[bool, Ignored("it is never slow"), tyro.conf.Suppress] = True
    thinks: Annotated[bool, Refused("has no thoughts; leave it out"), tyro.conf.Suppress] = False
    config: str | None = None
    """YAML file."""


def parse(config, *argv):
    return cli.parse(config, argv, command="python -m test", example="python -m test --model m")


def test_the_flags_are_the_fields_and_those_of_the_parts():
    known = flags_of(Settings)
    names = ["files", "lr", "size", "shuffle", "kind", "pair", "weights", "where", "beta", "limit", "hidden"]
    assert list(known) == names and known["limit"][:3] == ("inner", "most", int)
    assert [name for name, flag in known.items() if not flag.is_typed] == ["files", "hidden"]
    assert [name for name, flag in known.items() if flag.is_positional] == ["files"]
    assert [name for name, flag in flags_of(Required).items() if flag.is_required] == ["model", "out_file"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--lr", "-1e-3", "--size=-2", "--no-shuffle", "--kind", "None", "one", "two"],
        ["--lr", "-inf", "--weights", "1", "-2", ".5", "--pair", "x", "y"],
        ["one", "--beta", "0.1", "--where", "a b", "--kind=old", "--shuffle"],
        ["--lr=1", "--lr", "2", "--limit", "3"],
        ["--limit=3", "--where=--lr"],
    ],
)
def test_what_tyro_takes_passes(argv):
    assert parse(Settings, *argv) == tyro.cli(Settings, args=argv, config=(tyro.conf.OmitArgPrefixes,))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sizes", "3"], "there is no flag --sizes; perhaps --size"),
        (["--no-shufle"], "there is no flag --no-shufle; perhaps --shuffle"),
        (["--qqq=1"], "there is no flag --qqq; see --help"),
        (["-l", "3"], "there is no flag -l; see --help"),
        (["--no-lr"], "there is no flag --no-lr; perhaps --lr"),
        (["--files", "a"], "there is no flag --files; see --help"),
        (["--most", "a"], "there is no flag --most; see --help"),
        (["--hidden", "a"], "there is no flag --hidden; see --help"),
        (["--lr"], "--lr needs a value"),
        (["--lr", "--size", "3"], "--lr needs a value"),
        (["--pair", "x"], "--pair needs 2 values"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--size", "1.5"], "--size: '1.5' is not a whole number"),
        (["--weights", "1", "x"], "--weights: 'x' is not a number"),
        (["--kind", "newer"], "--kind: 'newer' is not one of new, old or None"),
        (["--beta=x"], "--beta: 'x' is not a number or None"),
    ],
)
def test_each_fault_is_a_sentence(argv, said):
    with pytest.raises(InputError) as fault:
        parse(Settings, *argv)
    assert str(fault.value) == said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model", "m"], "python -m test needs --out-file too, such as: python -m test --model m"),
        (["--lr", "1"], "python -m test needs --model and --out-file too, such as: python -m test --model m"),
        (["stray"], "'stray' belongs to no flag; see --help"),
        (["--model", "m", "n"], "'n' belongs to no flag; --model takes one value; see --help"),
        (["--modl", "m"], "there is no flag --modl; perhaps --model"),
    ],
)
def test_what_has_to_be_given_and_what_is_one_too_many(argv, said):
    with pytest.raises(InputError) as fault:
        parse(Required, *argv)
    assert str(fault.value) == said


def test_a_flag_of_another_program_is_said_to_be_one():
    class Peer:
        @staticmethod
        def translate(settings, say):
            return settings

        @staticmethod
        def counterpart(name):
            return "is --lr here" if name == "learning_rate" else None

    with pytest.raises(InputError, match=r"^--learning_rate is --lr here$"):
        cli.parse(Settings, ["--learning-rate", "1"], command="c", example="e", peer=Peer)


def test_a_flag_that_one_command_cannot_use_is_refused_with_its_reason_and_passes_where_it_is_off(capsys):
    needed = ("--model", "m", "--out-file", "o")
    with pytest.raises(InputError, match=r"^--thinks: has no thoughts; leave it out$"):
        parse(Shared, *needed, "--thinks")
    assert parse(Shared, *needed, "--no-thinks").thinks is False
    assert capsys.readouterr().err == ""


def test_a_flag_that_one_command_does_not_use_is_named_once_and_those_behind_it_count(tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("store: a\nthinks: false\n")
    flags = ("--store", "b", "--hosts", "c", "d", "--no-quick", "--lr=0.25", "--out-file", "o", "--model", "m")
    made = parse(Shared, "--config", str(file), *flags)
    assert (made.model, made.out_file, made.lr, made.store, made.hosts, made.quick) == ("m", "o", 0.25, None, (), True)
    said = ["nobody is asked: --store, --hosts ignored", "it is never slow: --no-quick ignored"]
    assert capsys.readouterr().err.splitlines() == said


def test_values_that_are_given_by_their_place_are_called_by_their_fields(capsys):
    with pytest.raises(SystemExit):
        parse(Placed, "--help")
    said = capsys.readouterr().out
    assert re.search(r"usage: python -m test \[-h\] RUN FILE \[FILE \.\.\.\]\n", said)
    assert re.search(r"Files\.\W+\(required\)", said)
    with pytest.raises(SystemExit):
        parse(Settings, "--help")
    assert "[FILE [FILE ...]]" in capsys.readouterr().out


def test_numbers_out_of_range_are_named_with_their_flag():
    check_above_zero(Settings(size=1), "size")
    check_not_negative(Settings(size=0), "size")
    with pytest.raises(InputError, match=r"^--size: 0 has to be above 0$"):
        check_above_zero(Settings(size=0), "size")
    with pytest.raises(InputError, match=r"^--size: -1 has to be at least 0$"):
        check_not_negative(Settings(size=-1), "lr", "size")
    with pytest.raises(InputError, match=r"^--limit: 0 has to be above 0$"):
        check_above_zero(Inner(most=0), "most")


def test_neither_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse(Shared, "--help")
    said = capsys.readouterr().out
    assert "--lr" in said and not any(name in said for name in ("--store", "--hosts", "--quick", "--thinks"))
