"""The store: every answer that was paid for, one row per request, in one SQLite file.

A row's key is the content hash of what was asked (wire.Request.key), so that the same question is paid for once, by
whichever recipe, whenever it is asked again. Rows are written in transactions that are on the disk (WAL, synchronous
FULL) before anybody is told; a second answer to the same key is ignored. One process writes at a time.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from system import InputError, RunError, hold

State = Literal["answered", "unusable", "refused", "failed"]

APPLICATION = 0x434C4149  # SQLite's application_id, "CLAI": another program's database is not taken for a store
MIGRATIONS = (  # append only: old stores are brought up to date by what they lack
    """
    CREATE TABLE answers (
        key TEXT PRIMARY KEY,      -- SHA-256 of the request
        purpose TEXT NOT NULL,     -- what it was asked for: target, clair, judge ...
        state TEXT NOT NULL,       -- answered; unusable: paid, no text; refused by the server; failed: no answer
        request TEXT NOT NULL,     -- what was sent, canonical JSON
        answer BLOB NOT NULL,      -- the server's bytes as they came, or why there are none
        digest TEXT NOT NULL,      -- SHA-256 of answer
        answer_id TEXT,            -- the server's name for it
        attempts INTEGER NOT NULL,
        seconds REAL NOT NULL,     -- of the attempt that succeeded
        tokens_in INTEGER NOT NULL,
        tokens_out INTEGER NOT NULL,
        is_counted INTEGER NOT NULL,  -- 0: tokens are an estimate
        dollars REAL NOT NULL,
        time REAL NOT NULL         -- seconds since 1970
    ) WITHOUT ROWID, STRICT;
    CREATE INDEX answer_ids ON answers (answer_id) WHERE answer_id IS NOT NULL;
    """,
    "ALTER TABLE answers ADD COLUMN why TEXT;",  # of an answer with a text: why it is of no use all the same
)


class Row(NamedTuple):
    """One request and what came of it."""

    key: str
    purpose: str
    state: State
    request: str
    answer: bytes
    answer_id: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    is_counted: bool = True
    dollars: float = 0.0
    time: float = 0.0
    why: str | None = None
    """It is of no use although it has a text; None where that is said by its text, or is not so."""


class Store:
    """An open store, held by this process alone. Use `open_store`."""

    def __init__(self, path: Path, reader: sqlite3.Connection, writer: sqlite3.Connection) -> None:
        """Two connections, since a commit that waits for the disk would hold up reads on its own."""
        self.path, self._reader, self._writer = path, reader, writer

    def states(self) -> dict[bytes, State]:
        """What is known of every key (its 32 bytes)."""
        return {bytes.fromhex(key): state for key, state in self._read("SELECT key, state FROM answers")}

    def get(self, key: str) -> Row | None:
        """A row, its answer checked against its digest. Raises RunError where it is damaged."""
        found = self._read(
            "SELECT key, purpose, state, request, answer, answer_id, attempts, seconds, tokens_in, tokens_out,"
            " is_counted, dollars, time, why, digest FROM answers WHERE key = ?",
            key,
        )
        if not found:
            return None
        *fields, digest = found[0]
        row = Row(*fields)
        if digest_of(row.answer) != digest:
            raise RunError(
                f"{self.path}: the answer to {key} is damaged (its checksum differs); delete its row and run again: "
                f"sqlite3 {self.path} \"DELETE FROM answers WHERE key = '{key}'\""
            )
        return row

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows in one transaction, on the disk when this returns. What failed before is replaced; an answer
        never is. Raises RunError where the disk is full or the file cannot be written.
        """
        values = [(*row, digest_of(row.answer)) for row in rows]
        try:
            with self._transaction():
                self._writer.executemany(
                    "INSERT INTO answers (key, purpose, state, request, answer, answer_id, attempts, seconds,"
                    f" tokens_in, tokens_out, is_counted, dollars, time, why, digest) VALUES ({', '.join('?' * 15)})"
                    " ON CONFLICT (key) DO UPDATE SET state = excluded.state, request = excluded.request,"
                    " answer = excluded.answer,"
                    " digest = excluded.digest, answer_id = excluded.answer_id, attempts = excluded.attempts,"
                    " seconds = excluded.seconds, tokens_in = tokens_in + excluded.tokens_in,"
                    " tokens_out = tokens_out + excluded.tokens_out, is_counted = excluded.is_counted,"
                    " dollars = dollars + excluded.dollars, time = excluded.time, why = excluded.why"
                    " WHERE answers.state != 'answered'",
                    values,
                )
        except sqlite3.Error as fault:
            raise RunError(
                f"{self.path}: cannot be written ({fault}); stored answers are kept, make room and run again"
            ) from None

    def mark_unusable(self, found: Mapping[str, str | None]) -> None:
        """Says of answers, by their keys, that they are of no use, and why where their text does not say it.
        --ask-again asks for them anew; they stay until it does.
        """
        unusable = "UPDATE answers SET state = 'unusable', why = ? WHERE key = ? AND state = 'answered'"
        try:
            with self._transaction():
                self._writer.executemany(unusable, [(why, key) for key, why in found.items()])
        except sqlite3.Error as fault:
            raise RunError(f"{self.path}: cannot be written ({fault}); make room and run again") from None

    def dollars(self) -> float:
        """What all answers in it have cost."""
        return self._read("SELECT coalesce(sum(dollars), 0) FROM answers")[0][0]

    def n_repeated_ids(self) -> int:
        """How many answers are, to the byte and under one name, another request's: a server that mixed up its
        connections. A name alone says little: some servers draw theirs from a thousand.
        """
        return self._read(
            "SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) n FROM answers WHERE answer_id IS NOT NULL"
            " AND state = 'answered' GROUP BY answer_id, digest HAVING n > 1)"
        )[0][0]

    def _read(self, query: str, *values: object) -> list[tuple]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as fault:
            raise RunError(f"{self.path}: cannot be read ({fault}); restore a copy, or salvage it") from None

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads within it see one state of the store."""
        self._reader.execute("BEGIN")
        try:
            yield
        finally:
            self._reader.execute("ROLLBACK")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")  # a deferred one can fail at its first write, whatever the timeout
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise


def digest_of(answer: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(answer).hexdigest()


@contextlib.contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """The store in a file, made where there is none. Raises InputError where it is held by another process, damaged,
    or another program's.
    """
    if not path.name or path.is_dir():
        raise InputError(f"--store: {str(path)!r} is not a file name; give one such as answers.sqlite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"{path}: its folder cannot be made ({fault.strerror}); give another file") from None
    with (
        hold(
            path.with_name(path.name + ".lock"),
            path,
            does="is using this store",
            otherwise="give another file for the store",
        ),
        contextlib.ExitStack() as open_connections,
    ):
        try:
            reader, writer = (_connect(path, open_connections) for _ in range(2))
            _prepare(path, writer)
            reader.execute("PRAGMA query_only = ON")
        except sqlite3.OperationalError as fault:
            raise InputError(f"{path}: cannot be used as a store ({fault}); give a file on a local disk") from None
        except sqlite3.DatabaseError as fault:
            raise InputError(f"{path}: damaged, or not a store ({fault}); give another file, or restore it") from None
        yield Store(path, reader, writer)


def _connect(path: Path, open_connections: contextlib.ExitStack) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    open_connections.callback(connection.close)
    return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and application != APPLICATION:
        raise InputError(f"{path}: another program's SQLite file; give another name for the store")
    if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise InputError(f"{path}: damaged ({found}); restore a copy, or salvage it: sqlite3 {path} .recover")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise InputError(f"{path}: written by a newer version of this program (step {version}); update it")
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        marks = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {migration} {marks} COMMIT;")
