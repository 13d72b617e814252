"""The lines of a run: what each holds, who writes them, what TensorBoard gets, and what goes on without it."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.run import MetricsLog, say
from engine.run.tensorboard import Board
from engine.step import Batch
from tests import tiny


def step(number, n=2):
    batch = Batch(tiny.random_examples([(3, 2, 4)] * n))
    return SimpleNamespace(number=number, batch=batch, n_tokens=batch.n_tokens)


def log(folder, *, n_done=0, n_tokens=0, writes=True):
    facts = {"cut": 3, "report": "words", "reference": "fused"}
    return MetricsLog(folder, n_steps=8, per_epoch=4, n_done=n_done, n_tokens=n_tokens, facts=facts, writes=writes)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_step_epoch_metrics_facts_and_counts(tmp_path):
    with log(tmp_path) as lines_of:
        lines_of.stop_clock()
        lines_of.step_seconds = 0.5
        lines_of.write(step(1), {"loss": 1.25, "learning_rate": 0.1 + 0.2}, 7.5)
        assert lines(tmp_path) == [lines_of.last]  # flushed
        lines_of.write(step(2, n=3), {"loss": 2.0}, 8.5)
    first, second = lines(tmp_path)
    assert first == {
        "step": 1,
        "epoch": 0.25,
        "loss": 1.25,
        "learning_rate": 0.1 + 0.2,  # every digit
        "grad_norm": 7.5,
        "num_tokens": 18,
        "data/cut": 3,
        "perf/step_seconds": 0.5,
        "perf/pairs_per_second": 4.0,
        "perf/tokens_per_second": 36.0,
    }
    assert second["num_tokens"] == 18 + 27 and second["step"] == 2 and lines_of.n_done == 2


def test_a_run_that_goes_on_adds_to_its_lines_and_counts_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')
    with log(tmp_path, n_done=4, n_tokens=1000) as lines_of:
        assert lines_of.n_done == 4
        lines_of.stop_clock()
        lines_of.write(step(5), {}, 0.0)
    assert [line["step"] for line in lines(tmp_path)] == [4, 5] and lines(tmp_path)[1]["num_tokens"] == 1018


def test_another_rank_counts_and_writes_nothing(tmp_path):
    with log(tmp_path, writes=False) as lines_of:
        lines_of.stop_clock()
        lines_of.write(step(1), {"loss": 1.0}, 1.0)
        lines_of.sync()
        assert lines_of.n_done == 1 and lines_of.n_tokens == 18 and lines_of.last["loss"] == 1.0
    assert not list(tmp_path.iterdir())


def test_what_comes_between_steps_does_not_count_into_their_time(tmp_path, monkeypatch):
    now = iter([0.0, 2.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr("engine.run.metrics_log.time.perf_counter", lambda: next(now))
    lines_of = log(tmp_path, writes=False)  # at 0
    lines_of.stop_clock()  # at 2: the work of step 1 is done; until 10 it is measured and saved
    lines_of.write(step(1), {}, 0.0)
    assert lines_of.last["perf/step_seconds"] == 2.0
    lines_of.stop_clock()
    lines_of.write(step(2), {}, 0.0)
    assert lines_of.last["perf/step_seconds"] == 3.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as fault, log(tmp_path) as lines_of:
        lines_of.stop_clock()
        lines_of.write(step(1), {}, 0.0)
    assert fault.value.filename == str(tmp_path / "metrics.jsonl")


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_notice_is_the_first_ranks_and_acts_on_no_terminal(monkeypatch, capsys):
    say("a\x1b[2Jb")
    assert capsys.readouterr().err == "a\\u001b[2Jb\n"
    monkeypatch.setenv("RANK", "1")
    say("a")
    assert not capsys.readouterr().err


# --- TensorBoard ---------------------------------------------------------------------------------------------------


def events(folder, name):
    read = EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(name)]


def test_tensorboard_shows_every_number_by_step_and_drops_what_is_done_anew(tmp_path):
    for n_done, numbers in ((0, (1, 2, 3)), (2, (3, 4))):
        board = Board(tmp_path, n_done)
        for number in numbers:
            board.add({"loss": number + 10.0 * n_done, "rewards/chosen": -number}, number)
        board.close()
    assert events(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0)]
    assert events(tmp_path, "rewards/chosen") == [(1, -1.0), (2, -2.0), (3, -3.0), (4, -4.0)]


@pytest.mark.parametrize("act", ["add", "close"])
def test_without_tensorboard_a_run_goes_on_and_is_told_once(tmp_path, capsys, act):
    board = Board(tmp_path, 0)
    writer = board._writer
    board._writer = SimpleNamespace(add_scalar=full, close=full)
    for _ in range(2):
        board.add({"loss": 1.0}, 1) if act == "add" else board.close()
    board.close()
    writer.close()
    assert capsys.readouterr().err.count("no more lines for TensorBoard (No space left on device)") == 1
