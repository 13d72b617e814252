"""Flags, the YAML file, and how a command ends."""

import dataclasses
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
import tyro

from system import InputError, cli, launcher
from system.flags import PathText
from tests import tiny


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a test."""

    model: str = "tiny"
    """Where the weights are."""
    lr: float = 0.5
    """Learning rate."""
    batch_size: int = 16
    """Examples in a step."""
    shuffle: bool = True
    """Take the rows in a new order."""
    kind: Literal["new", "old"] = "new"
    """Which one."""
    keep: int | None = None
    """How many to keep."""
    names: tuple[str, ...] = ()
    """Several names."""
    config: str | None = None
    """YAML file of settings."""
    hyperparameters: tyro.conf.Suppress[dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A command without hyperparameters."""

    lr: float = 0.5
    """Learning rate."""
    config: str | None = None
    """YAML file of settings."""


def parse(*argv, config=Settings):
    return cli.parse(config, argv, command="python -m test", example="python -m test --model tiny")


@pytest.fixture
def yaml(tmp_path):
    """Writes a YAML file and gives its name."""

    def write(text):
        (tmp_path / "settings.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "settings.yaml")

    return write


def refused(*argv, config=Settings):
    with pytest.raises(InputError) as fault:
        parse(*argv, config=config)
    assert "\n" not in str(fault.value) and "│" not in str(fault.value)
    return str(fault.value)


def test_no_arguments_are_answered_with_an_example():
    assert refused() == "python -m test needs arguments, such as: python -m test --model tiny"


def test_flags_are_the_fields():
    made = parse("--model", "m", "--lr", "1e-6", "--no-shuffle", "--kind", "old", "--names", "a", "b", "--keep", "3")
    assert made == Settings(model="m", lr=1e-6, shuffle=False, kind="old", names=("a", "b"), keep=3)


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
def test_a_flag_may_be_written_either_way(flag):
    assert parse(flag, "3").batch_size == 3


def test_a_file_sets_what_it_names(yaml):
    text = "model: m\nlr: 1e-6\nbatch-size: 8\nshuffle: false\nkind: old\nnames: [a, b]\n"
    path = yaml(text)
    expected = Settings(model="m", lr=1e-6, batch_size=8, shuffle=False, kind="old", names=("a", "b"), config=path)
    assert parse("--config", path) == expected == parse(f"--config={path}")


def test_flags_win_over_the_file(yaml):
    path = yaml("model: m\nlr: 1e-6\nshuffle: false\nbatch_size: 8\ndpo.beta: 0.3\n")
    made = parse("--config", path, "--lr", "0.25", "--shuffle", "--dpo.beta", "0.7")
    assert (made.model, made.lr, made.shuffle, made.batch_size) == ("m", 0.25, True, 8)
    assert made.hyperparameters == {"dpo.beta": "0.7"}
    assert parse("--lr", "0.25", "--config", path).lr == 0.25  # wherever --config stands


def test_settings_written_by_a_run_are_read_back_without_its_facts(yaml):
    made = parse("--config", yaml("lr: 1e-6\nkeep: null\nfacts:\n  steps: 12\n  gpus: [a, b]\n"))
    assert made.lr == 1e-6 and made.keep is None


@pytest.mark.parametrize("text", ["no", "off", "y", "2024-01-02", "1e-6", "0x10", "1_000", "12:30:00", "~x", "007"])
def test_what_is_typed_stays_what_is_typed(yaml, text):
    made = parse("--config", yaml(f"model: {text}\nnames: [{text}]\ndpo.x: {text}\n"))
    assert (made.model, made.names, made.hyperparameters) == (text, (text,), {"dpo.x": text})


@pytest.mark.parametrize("text", ["true", "false", "--lr"])
def test_text_that_looks_like_something_else_is_kept_for_a_setting_of_text(yaml, text):
    assert parse("--config", yaml(f'model: "{text}"\n')).model == text


def test_an_unknown_key_names_the_nearest(yaml):
    path = yaml("batchsize: 3\n")
    assert refused("--config", path) == f"{path}: there is no setting 'batchsize'; perhaps 'batch_size'"
    assert refused("--config", yaml("qqq: 3\n")) == f"{path}: there is no setting 'qqq'; see --help"


def test_what_the_configuration_refuses_is_said_as_it_says_it():
    @dataclass(frozen=True)
    class Checked(Plain):
        def __post_init__(self):
            if self.lr <= 0:
                raise InputError(f"--lr: {self.lr} has to be above 0")

    assert refused("--lr", "-1", config=Checked) == "--lr: -1.0 has to be above 0"


def test_what_only_tyro_refuses_is_shown_as_it_says_it(capsys):
    @dataclass(frozen=True)
    class Odd(Plain):
        names: dict[str, int] = field(default_factory=dict)

    assert refused("--names", "a", "b", config=Odd) == "python -m test: these arguments cannot be used; see --help"
    assert "--names" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["lr: fast\n", "batch_size: 1.5\n", "shuffle: perhaps\n", "kind: newer\n"])
def test_a_wrong_value_in_the_file_is_refused(yaml, text):
    assert refused("--config", yaml(text))


@pytest.mark.parametrize("text", ["lr: 1\nlr: 2\n", "batch_size: 1\nlr: 0.1\nbatch_size: 1\n", "dpo.b: 1\ndpo.b: 1\n"])
def test_a_key_that_stands_twice_is_refused(yaml, text):
    path = yaml(text)
    assert refused("--config", path) == f"{path}: {text.split(':')[0]!r} is given twice; keep one"


def test_a_key_in_both_spellings_stands_twice(yaml):
    assert "is given twice" in refused("--config", yaml("batch-size: 1\nbatch_size: 2\n"))


def test_a_flag_of_several_values_that_stands_twice_is_refused():
    with pytest.raises(InputError, match=r"^--names is given twice; give it once, with all values behind it"):
        parse("--names", "a", "--names", "b")
    assert parse("--lr=1", "--lr", "2").lr == 2  # of one value the last counts, as everywhere


def test_nothing_that_is_repeated_in_an_error_acts_on_a_terminal():
    assert cli.printable("a\x1b[2J\n\u202eb\x07") == "a\\u001b[2J\n\\u202eb\\u0007"


@pytest.mark.parametrize("text", ["model: &a x\nkind: *a\n", "model: !!python/name:os.system x\n", "lr: !!float 1\n"])
def test_aliases_and_tags_are_refused(yaml, text):
    path = yaml(text)
    assert refused("--config", path).startswith(f"{path}: aliases, tags and files above 1 MB are not accepted")


def test_a_file_that_is_too_large_is_refused(yaml):
    assert "above 1 MB are not accepted" in refused("--config", yaml("model: " + "a" * 2**20))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_refused(yaml, text):
    path = yaml(text)
    assert refused("--config", path).startswith(f"{path}: not a mapping of settings")


@pytest.mark.parametrize("text", ["lr: [1\n", "lr: 1\n\tkind: old\n", "? [a]\n: 1\n"])
def test_a_file_that_is_no_yaml_is_refused(yaml, text):
    path = yaml(text)
    assert refused("--config", path).startswith(f"{path}: cannot be read as YAML (")


def test_a_setting_is_never_a_mapping(yaml):
    path = yaml("dpo:\n  beta: 0.3\nlr:\n  a: 1\n")
    assert refused("--config", path).startswith(f"{path}: there is no setting 'dpo'")
    assert (
        refused("--config", yaml("lr:\n  a: 1\n")) == f"{path}: 'lr' is a mapping; settings are flat, as the flags are"
    )


def test_a_missing_file_is_named(tmp_path):
    path = str(tmp_path / "absent.yaml")
    assert refused("--config", path).startswith(f"{path}: cannot be read as YAML ([Errno 2]")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"model: \xff\n")
    assert "cannot be read as YAML" in refused("--config", str(tmp_path / "x.yaml"))


def test_dotted_flags_are_hyperparameters(yaml):
    made = parse("--apo_zero.beta", "0.3", "--lr", "1", "--dpo.a=-1", "--x.y", "-2")
    assert made.hyperparameters == {"apo_zero.beta": "0.3", "dpo.a": "-1", "x.y": "-2"} and made.lr == 1
    assert parse("--config", yaml("apo_zero.beta: 1e-1\n")).hyperparameters == {"apo_zero.beta": "1e-1"}


def test_a_command_without_hyperparameters_refuses_dotted_flags(yaml):
    assert "--dpo.beta" in refused("--dpo.beta", "1", config=Plain)
    assert "--dpo.beta" in refused("--config", yaml("dpo.beta: 1\n"), config=Plain)


def test_help_is_the_docstrings_and_leaves_with_0(capsys, yaml):
    with pytest.raises(SystemExit) as leaving:
        cli.parse(
            Settings, ["--lr", "fast", "--help"], command="python -m test", example="x", help_text=lambda: "and more"
        )
    shown = capsys.readouterr().out
    assert leaving.value.code == 0
    assert all(part in shown for part in ("python -m test", "--batch-size", "Examples in a step.", "and more"))
    assert "hyperparameters" not in shown
    assert all(re.search(rf"{said}\W+\(default: unset\)", shown) for said in ("How many to keep", "Several names"))
    assert re.search(r"Learning rate\W+\(default: 0\.5\)", shown)


COMMAND = """
import sys
from system import InputError, RunError, cli

def main(argv):
    print("argv", *argv)
    if argv == ["input"]:
        raise InputError("rows.jsonl:3: not JSON")
    if argv == ["run"]:
        raise RunError("the loss is not finite")
    if argv == ["interrupt"]:
        raise KeyboardInterrupt
    if argv == ["ours"]:
        raise RuntimeError("what we broke")

cli.run(main, is_distributed=True)
"""


RANK_3 = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


def command(*argv, **environment):
    """The command in a process of its own."""
    away = (*launcher.VARIABLES, cli.OUTCOME_VARIABLE)
    inherited = {k: v for k, v in tiny.environment().items() if k not in away}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, *argv],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


ENDS = [("input", 2, "error: rows.jsonl:3: not JSON\n"), ("run", 1, "error: the loss is not finite\n")]
ENDS += [("interrupt", 130, "stopped\n"), ("fine", 0, "")]


@pytest.mark.parametrize(("argument", "code", "said"), ENDS)
def test_a_command_ends_with_its_code_and_one_sentence(argument, code, said):
    done = command(argument)
    assert (done.returncode, done.stderr, done.stdout) == (code, said, f"argv {argument}\n")


def test_what_we_broke_keeps_its_traceback():
    done = command("ours")
    assert done.returncode == 1 and "Traceback" in done.stderr and "what we broke" in done.stderr


@pytest.mark.parametrize(("argument", "code", "said"), ENDS[:3])
def test_where_an_outcome_file_is_named_the_code_goes_there_and_the_exit_is_0(tmp_path, argument, code, said):
    outcome = tmp_path / "outcome"
    outcome.touch()  # as the launcher does; one that is not there is left over
    done = command(argument, **{cli.OUTCOME_VARIABLE: str(outcome)}, RANK="0")
    assert (done.returncode, done.stderr, outcome.read_text()) == (0, said, str(code))


@pytest.mark.parametrize(("argument", "code", "said"), ENDS[:3])
def test_other_ranks_are_silent(tmp_path, argument, code, said):
    outcome = tmp_path / "outcome"
    outcome.write_text(str(code))  # rank 0 has spoken
    done = command(argument, **{cli.OUTCOME_VARIABLE: str(outcome)}, **RANK_3)
    assert (done.returncode, done.stderr, outcome.read_text()) == (0, "", str(code))


@pytest.mark.parametrize(("argument", "code", "said"), ENDS[:2])
def test_an_error_is_told_by_a_rank_that_no_rank_0_speaks_for(argument, code, said):
    """Under torchrun rank 0 tells it, and torchrun ends the others in the seconds that they wait."""
    alone = command(argument, **RANK_3)
    assert (alone.returncode, alone.stderr) == (code, f"rank 3: {said}")


def test_a_rank_that_waits_for_rank_0_to_speak_is_ended_without_a_word():
    inherited = {k: v for k, v in tiny.environment().items() if k != cli.OUTCOME_VARIABLE}
    waits = subprocess.Popen(
        [sys.executable, "-u", "-c", COMMAND, "input"],
        env=inherited | RANK_3,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waits.stdout.readline() == "argv input\n"
    time.sleep(1)
    waits.terminate()
    assert waits.communicate(timeout=60) == ("", "") and waits.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_a_rank_that_fails_alone_speaks_and_keeps_its_code(tmp_path):
    argument, code, said = ENDS[0]
    outcome = tmp_path / "outcome"
    outcome.write_text("")
    done = command(argument, **{cli.OUTCOME_VARIABLE: str(outcome)}, **RANK_3)
    assert (done.returncode, done.stderr, outcome.read_text()) == (code, f"rank 3: {said}", "")


def test_two_names_of_one_setting_are_refused_wherever_they_stand(yaml):
    """The last one would hold, and the other be forgotten without a word."""
    aliases = cli.Aliases(names={"save_total_limit": "keep"}, former={"most": "keep"}, values={})

    def given(*argv):
        return cli.parse(Settings, argv, command="c", example="e", aliases=aliases).keep

    assert given("--config", yaml("most: 1"), "--keep", "2") == 2  # flags win over the file
    assert given("--config", yaml("most: 3\nsave-total-limit: 3")) == 3
    with pytest.raises(InputError, match=r"^--most and --save-total-limit: two names of one setting; keep one$"):
        given("--most", "1", "--save-total-limit=2")
    with pytest.raises(InputError, match=r"most and keep: two names of one setting, with two values; keep one$"):
        given("--config", yaml("most: 1\nkeep: 2"))


PRINTS = """
import sys
from system import cli

def main(argv):
    print("x" * int(argv[0]))
    print("done", file=sys.stderr)

cli.run(main)
"""


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("n", [10, 100_000])
def test_a_full_disk_behind_the_standard_output_is_called_that(n, buffered):
    env = tiny.environment() | {"PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS, str(n)], env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    said = "error: the standard output: cannot be written (No space left on device); make room"
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(said) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("closed", "out", "err"), [("2>&-", "x\n", ""), (">&-", "", "done\n"), ("<&- >&- 2>&-", "", "")]
)
def test_a_standard_stream_that_is_closed_is_nobody_s(closed, out, err, tmp_path):
    """What the process opens would get its number, and what it says would go there."""
    (tmp_path / "prints.py").write_text(
        PRINTS.replace("def main(argv):", "def main(argv):\n    file = open(argv[1], 'w')")
    )
    shell = f"exec {sys.executable} {tmp_path / 'prints.py'} 1 {tmp_path / 'opened'} {closed}"
    done = subprocess.run(["bash", "-c", shell], env=tiny.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)
    assert (tmp_path / "opened").read_text() == ""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Settings that are paths."""

    out: PathText
    """Where to."""
    rows: Annotated[tuple[PathText, ...], tyro.conf.arg(name="data")] = ()
    """Where from."""
    cache: PathText | None = None
    """Perhaps."""
    note: str = ""
    """No path."""
    config: PathText | None = None
    """A file of settings."""


def places(*argv):
    return cli.parse(Places, argv, command="python -m test", example="python -m test --out x")


def test_tilde_and_variables_in_paths_stand_for_what_they_say_on_the_command_line_and_in_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch")
    expected = Places(
        out=f"{tmp_path}/runs/x", rows=("/scratch/a", "/scratch/b:train"), cache="/scratch", note="~/$NONE"
    )
    given = ("--data", "$SCRATCH/a", "${SCRATCH}/b:train", "--cache", "$SCRATCH", "--note", "~/$NONE")
    assert places("--out", "x", "--data", "clair=~/a", "b=c=~/d").rows == (f"clair={tmp_path}/a", "b=c=~/d")
    assert places("--out=~/runs/x", *given) == expected
    (tmp_path / "c.yaml").write_text(
        "out: ~/runs/x\ndata: [$SCRATCH/a, '${SCRATCH}/b:train']\ncache: $SCRATCH\nnote: ~/$NONE\n"
    )
    assert dataclasses.replace(places("--config", "~/c.yaml"), config=None) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--out", "$NOWHERE/x"],
            "--out: '$NOWHERE/x' names the variable NOWHERE, which is not set; set it, or write it out",
        ),
        (["--out", "x", "--data", "a", "${NOWHERE}"], "--data: '${NOWHERE}' names the variable NOWHERE"),
        (["--config=$NOWHERE", "--out", "x"], "--config: '$NOWHERE' names the variable NOWHERE"),
        (["--out=~nobodyhere/x"], "--out: '~nobodyhere/x' names a user who is not known here"),
    ],
)
def test_a_variable_that_is_not_set_is_an_error(argv, said, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(InputError, match=f"^{re.escape(said)}"):
        places(*argv)
