"""The store: one answer for a key, on the disk, held by one process."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from revise.client.store import APPLICATION, MIGRATIONS, Row, digest_of, open_store
from system.errors import InputError, RunError

ROOT = Path(__file__).parents[2]


def row(i=0, state="answered", answer=b"an answer", **more):
    return Row(f"{i:064x}", "test", state, "{}", answer, **more)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


def test_an_answer_is_there_when_the_store_is_opened_again(path):
    with open_store(path) as store:
        store.write([row(1, answer_id="a", attempts=2, tokens_in=3, tokens_out=4, dollars=0.5, time=9.0)])
    with open_store(path) as store:
        assert store.get(f"{1:064x}") == row(
            1, answer_id="a", attempts=2, tokens_in=3, tokens_out=4, dollars=0.5, time=9.0
        )
        assert store.states() == {(1).to_bytes(32, "big"): "answered"}
        assert store.get("0" * 64) is None


def test_a_second_answer_to_a_key_changes_nothing(path):
    with open_store(path) as store:
        store.write([row(answer=b"first"), row(answer=b"second")])
        store.write([row(state="failed", answer=b"third")])
        assert store.get("0" * 64).answer == b"first"


@pytest.mark.parametrize("state", ["failed", "refused", "unusable"])
def test_what_was_no_answer_is_replaced_and_its_price_is_kept(path, state):
    with open_store(path) as store:
        store.write([row(state=state, dollars=1.0, tokens_in=5)])
        store.write([row(answer=b"yes", dollars=2.0, tokens_in=7)])
        found = store.get("0" * 64)
    assert (found.state, found.answer, found.dollars, found.tokens_in) == ("answered", b"yes", 3.0, 12)


def test_money_is_the_sum_of_all_rows(path):
    with open_store(path) as store:
        assert store.dollars() == 0
        store.write([row(1, dollars=0.25), row(2, dollars=0.5, state="unusable")])
        assert store.dollars() == 0.75


def test_answers_of_another_request_are_counted(path):
    """The same bytes under one name; Ollama draws its names from a thousand, so that a name alone says nothing."""
    with open_store(path) as store:
        store.write([row(1, answer_id="a"), row(2, answer_id="a"), row(3, answer_id="b"), row(4), row(5)])
        store.write([row(6, answer_id="c"), row(7, answer_id="c", answer=b"another")])
        assert store.n_repeated_ids() == 1


def test_a_changed_answer_is_found_out(path):
    with open_store(path) as store:
        store.write([row()])
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.execute("UPDATE answers SET answer = CAST('an ansver' AS BLOB)")
    with open_store(path) as store, pytest.raises(RunError, match=f"damaged.*{'0' * 64}"):
        store.get("0" * 64)


def test_a_second_process_is_told_who_holds_the_store(path):
    script = (
        "import sys; from pathlib import Path; from revise.client import open_store\n"
        "with open_store(Path(sys.argv[1])): pass"
    )
    with open_store(path):
        done = subprocess.run(
            [sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode != 0 and f"process {os.getpid()} on " in done.stderr
    done = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_a_lock_goes_with_its_process_even_where_a_child_of_it_lives(path):
    script = (
        "import os, signal, subprocess, sys; from pathlib import Path; from revise.client import open_store\n"
        "with open_store(Path(sys.argv[1])):\n"
        "    subprocess.Popen(['sleep', '30'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -9
    with open_store(path):
        pass


@pytest.mark.parametrize("damage", ["garbage", "cut", "middle"])
def test_a_damaged_store_is_refused_and_left_alone(path, damage):
    with open_store(path) as store:
        store.write([row(i, answer=os.urandom(3000)) for i in range(100)])
    whole = path.read_bytes()
    broken = {
        "garbage": b"nothing of the kind " * 1000,
        "cut": whole[: len(whole) // 2],
        "middle": whole[:8192] + os.urandom(40960) + whole[49152:],
    }[damage]
    path.write_bytes(broken)
    with pytest.raises(InputError, match=str(path)), open_store(path):
        pass
    assert path.read_bytes() == broken


def test_another_programs_database_is_refused(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE notes (text)")
    with pytest.raises(InputError, match="another program's"), open_store(path):
        pass


def test_a_store_of_a_newer_version_is_refused(path):
    with open_store(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(InputError, match="newer version"), open_store(path):
        pass


def test_a_store_of_the_first_version_is_read_and_brought_up_to_date(path):
    values = ("0" * 64, "clair", "answered", "{}", b"an answer", "", None, 1, 0.0, 3, 4, 1, 0.0, 9.0)
    values = (*values[:5], digest_of(b"an answer"), *values[6:])
    with closing(sqlite3.connect(path, isolation_level=None)) as direct:
        direct.executescript(f"{MIGRATIONS[0]} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = 1;")
        direct.execute(f"INSERT INTO answers VALUES ({', '.join('?' * 14)})", values)
    with open_store(path) as store:
        assert store.get("0" * 64) == Row(
            "0" * 64, "clair", "answered", "{}", b"an answer", None, 1, 0.0, 3, 4, True, 0.0, 9.0
        )
        store.mark_unusable({"0" * 64: "one answer to 5 different questions"})
    with open_store(path) as store:
        found = store.get("0" * 64)
        assert (found.state, found.why) == ("unusable", "one answer to 5 different questions")
        store.write([row(answer=b"another")])
        assert (store.get("0" * 64).state, store.get("0" * 64).why) == ("answered", None)


def test_a_folder_in_the_place_of_a_store_is_refused(path):
    path.mkdir()
    with pytest.raises(InputError, match=str(path)), open_store(path):
        pass


def test_the_settings_are_those_that_survive_a_loss_of_power(path):
    with open_store(path) as store:
        assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_full_disk_stops_with_what_was_stored_and_goes_on_when_there_is_room(path):
    with open_store(path) as store:
        store.write([row(1)])
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own "database or disk is full"
        with pytest.raises(RunError, match=r"full.*make room"):
            store.write([row(i, answer=os.urandom(5000)) for i in range(2, 9)])
        assert len(store.states()) == 1
        store._writer.execute("PRAGMA max_page_count = 1000000")
        store.write([row(i, answer=os.urandom(5000)) for i in range(2, 9)])
        assert len(store.states()) == 8


def test_a_snapshot_sees_one_state(path):
    with open_store(path) as store:
        store.write([row(1)])
        with store.snapshot():
            assert len(store.states()) == 1
            store.write([row(2)])
            assert len(store.states()) == 1
        assert len(store.states()) == 2
