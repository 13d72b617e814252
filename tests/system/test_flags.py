"""What is said of a command line before tyro reads it: each fault in a sentence, and nothing that tyro would take."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from system import InputError, cli
from system.flags import flags_of


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
