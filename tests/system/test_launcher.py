"""Variables that a launcher leaves behind: a sentence with their values, or no matter at all."""

import os
import re
import socket
import sys

import pytest

from engine.config import CheckpointConfig
from system import InputError, launcher
from tests import forks, tiny
from tests.rows import id_rows

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29411"}
UNUSABLE = [
    ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 and RANK, MASTER_ADDR, MASTER_PORT are not set"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE is empty and RANK"),
    ({"RANK": "3"}, "RANK=3 and WORLD_SIZE"),
    ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 and RANK"),
    (
        WHOLE | {"RANK": "2"},
        "RANK=2, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT=29411: these variables do not describe",
    ),
    (
        WHOLE | {"MASTER_ADDR": ""},
        "RANK=1, WORLD_SIZE=2, MASTER_ADDR is empty, MASTER_PORT=29411: these variables do not describe",
    ),
    (
        WHOLE | {"MASTER_PORT": "tcp"},
        "RANK=1, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT=tcp: these variables do not describe",
    ),
    (WHOLE | {"WORLD_SIZE": "two"}, "RANK=1, WORLD_SIZE=two, "),
    ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK=-1, WORLD_SIZE=1 and"),
]
USABLE = [{}, WHOLE, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "here", "MASTER_PORT": "1"}]


@pytest.fixture
def variables(monkeypatch):
    def put(given):
        for name in launcher.VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(("given", "said"), UNUSABLE)
def test_variables_that_are_of_no_launcher_are_named_with_their_values(given, said, variables):
    variables(given)
    with pytest.raises(
        InputError, match=f"^{re.escape(said)}.*unset {' '.join(n for n in launcher.VARIABLES if n in given)}$"
    ):
        launcher.check()


@pytest.mark.parametrize("given", USABLE)
def test_one_process_and_one_of_several_are_taken(given, variables):
    variables(given)
    launcher.check()


def started(module, *flags, **given):
    env = {name: value for name, value in tiny.environment().items() if name not in launcher.VARIABLES}
    return forks.run([sys.executable, "-m", module, *flags], env=env | given, timeout=300)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Flags of a run of a few steps."""
    folder = tmp_path_factory.mktemp("run")
    tiny.write_model(folder / "m", vocab_size=101)
    rows = tiny.write_rows(folder / "rows.jsonl", id_rows(8))
    return "--model", folder / "m", "--data", rows, "--epochs", 1, "--batch-size", 4


@pytest.mark.parametrize(("given", "said"), UNUSABLE[:4])
def test_training_ends_with_the_sentence(given, said, training, tmp_path):
    done = started("engine.train", *training, "--out", tmp_path / "run", **given)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.slow
def test_ranks_that_nobody_meets_say_so_with_the_variables(rank, training, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = WHOLE | {"RANK": rank, "MASTER_PORT": str(port)}
    done = started("engine.train", *training, "--out", tmp_path / "run", "--hang-timeout", 3, **given)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        f"RANK={rank}, WORLD_SIZE=2, MASTER_ADDR=127.0.0.1, MASTER_PORT={port}: the other ranks cannot" in done.stderr
    )
    assert done.stderr.splitlines()[-1].endswith(f"unset {' '.join(launcher.VARIABLES)}")


def test_commands_of_one_process_take_no_notice_and_nor_do_their_children(training, tmp_path):
    given = WHOLE | {"RANK": "1", "LOCAL_RANK": "1"}
    lost = started("data.show", tmp_path / "none.jsonl", "--model", training[1], **given)
    assert lost.returncode == 2 and lost.stderr.startswith(f"error: {tmp_path / 'none.jsonl'}")
    shown = started("data.show", training[3], "--model", training[1], **given)
    assert shown.returncode == 0 and shown.stdout


def test_what_is_forgotten_is_not_handed_on(variables, monkeypatch):
    variables(WHOLE)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launcher.n_restarts() == 1
    launcher.forget()
    assert not {*launcher.VARIABLES, *launcher.OF_TORCHRUN} & set(os.environ)


@pytest.mark.parametrize("left", ["1", "", "many"])
def test_a_count_of_restarts_that_is_left_over_is_none(left, variables, monkeypatch):
    """A run would go on with what --out holds, without having been asked to."""
    variables({})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", left)
    assert launcher.n_restarts() == 0 and not CheckpointConfig().resumes
