"""OpenAI's Batch API as a slow and cheap way to send: files out, files back into the same store.

    {"custom_id": KEY, "method": "POST", "url": "/v1/chat/completions", "body": {...}}            what is written
    {"custom_id": KEY, "response": {"status_code": 200, "body": {...}}, "error": null}            what comes back

The custom_id is the request's key, so answers may come in any order, in several files, twice, or not at all: what is
missing stays open. vLLM's run-batch reads and writes the same form.
"""

import collections
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.rows import parse_row, read_lines
from revise.client import reading, refusals, wire
from revise.client.config import ClientConfig
from revise.client.disk import answer_row
from revise.client.roles import REVISER
from revise.client.store import Row, State, Store
from revise.client.wire import Request
from system import InputError, files

MOST_REQUESTS, MOST_BYTES = 50_000, 200 * 10**6  # in a file, says the API's reference
PRICE = 0.5  # of what is asked online
CHUNK = 512  # rows that share a commit
LONGEST_LINE = 64 * 2**20


def write_batch(requests: Iterable[Request], store: Store, path: Path, again: Sequence[State] = ("failed",)) -> str:
    """Writes what the store lacks, in as many files as the API's limits ask for; says what to do with them.

    again: of what the store knows of a request, what does not keep it from being written. Raises InputError where one
    of the files exists.
    """
    known, seen = store.states(), set()
    parts: list[list[str]] = [[]]
    size = 0
    for request in requests:
        key = request.key
        if key in seen or known.get(bytes.fromhex(key), "failed") not in again:
            continue
        seen.add(key)
        made = {"custom_id": key, "method": "POST", "url": f"/v1/{request.path}", "body": request.body}
        line = files.json_line(made)
        if len(parts[-1]) == MOST_REQUESTS or size + len(line.encode()) > MOST_BYTES:
            _write_part(path, len(parts), parts[-1])
            parts[-1] = []
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line.encode())
    if not seen:
        return "every answer is in the store already; leave --batch-write out to write the pairs"
    _write_part(path, len(parts), parts[-1])
    names = " ".join(str(_part(path, i + 1)) for i in range(len(parts)))
    return (
        f"{len(seen):,} requests: {names}\n"
        "send each as a batch (https://platform.openai.com/docs/guides/batch), or through vllm run-batch -i FILE -o "
        "ANSWERS --model NAME; then run the same command with --batch-read ANSWERS... instead of --batch-write"
    )


def _part(path: Path, number: int) -> Path:
    """batch.jsonl, batch-2.jsonl ..."""
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def _write_part(path: Path, number: int, lines: list[str]) -> None:
    files.check_new_file(_part(path, number))
    files.write_text(_part(path, number), "".join(lines))


def read_batch(
    paths: Sequence[Path], requests: Iterable[Request], store: Store, config: ClientConfig, purpose: str
) -> str:
    """Puts the answers in files into the store; says how many there were, and of what use.

    requests: what was sent; answers to anything else are counted and left. Raises InputError where a file cannot be
    read; a line that is cut or no JSON is counted.
    """
    wanted = {request.key: request for request in requests}
    states = store.states()
    taken = {key for key in wanted if states.get(bytes.fromhex(key), "failed") not in config.again}
    n_before = len(taken)
    counts: collections.Counter[str] = collections.Counter()
    rows: list[Row] = []
    for path in paths:
        for location, line in read_lines(path, LONGEST_LINE):
            found = _object(line, location)
            if found is None:
                counts["damaged"] += 1
                continue
            key = found.get("custom_id")
            if not isinstance(key, str) or key not in wanted:
                counts["unknown"] += 1
            elif key in taken:
                counts["twice"] += 1
            else:
                row = _row(found, wanted[key], config, purpose)
                counts[row.state] += 1
                taken |= {key} if row.state != "failed" else set()
                rows.append(row)
            if len(rows) == CHUNK:
                store.write(rows)
                rows = []
    store.write(rows)
    n_open = len(wanted.keys() - taken)
    found = ", ".join(f"{n:,} {name}" for name, n in counts.items() if n) or "nothing"
    return f"of {len(wanted):,} answers {n_before:,} were in the store; from the files: {found}; {n_open:,} are missing"


def _object(line: bytes | InputError, location: str) -> dict[str, Any] | None:
    """What a line holds, half a character or NaN included: such an answer is of no use, but it was paid for."""
    if isinstance(line, InputError):
        return None
    try:
        return parse_row(line, location)
    except InputError:
        pass
    try:
        found = json.loads(line)
        return found if isinstance(found, dict) and not _is_plain(found) else None
    except (ValueError, RecursionError):
        return None


def _is_plain(value: Any) -> bool:
    try:
        return bool(wire.canonical(value).encode())
    except ValueError:
        return False


def _row(found: dict[str, Any], request: Request, config: ClientConfig, purpose: str) -> Row:
    """What a line says of a request."""
    response = found.get("response") if isinstance(found.get("response"), dict) else {}
    status, body = response.get("status_code"), response.get("body")  # pyright: ignore[reportOptionalMemberAccess]
    write = wire.canonical if _is_plain(body) else json.dumps
    raw = write(body).encode() if isinstance(body, dict) else b""
    sent = wire.canonical(request.body)
    if status in (None, 200) and isinstance(body, dict):
        try:
            answer = reading.read_answer(raw, request, config.accept_finish_reason)
        except reading.Unreadable as fault:
            return Row(request.key, purpose, "failed", sent, str(fault).encode("utf-8", "replace"), time=time.time())
        return answer_row(request, purpose, raw, answer, config, price=PRICE)
    error = found.get("error")
    raw = raw or json.dumps({"error": error}).encode()
    told = refusals.read_error(raw, status if isinstance(status, int) else 0)
    return Row(
        request.key,
        purpose,
        "refused" if isinstance(status, int) and _is_refusal(told, request) else "failed",
        sent,
        told.said.encode("utf-8", "replace"),
        time=time.time(),
    )


def _is_refusal(told: refusals.Error, request: Request) -> bool:
    """Whether an error is the row's own, as far as that can be told: not the account's, the key's or the settings'."""
    if not 400 <= told.status < 500 or told.status in wire.PASSING_STATUS or refusals.is_without_money(told):
        return False
    if refusals.is_own(told) or refusals.is_too_long(told):
        return True
    is_settings = (
        told.status in (401, 403) or refusals.is_no_place(told) or refusals.mend(told, request.body, REVISER, "")
    )
    return not is_settings
