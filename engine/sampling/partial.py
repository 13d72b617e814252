"""Answers on their way, in a file beside the one that will hold all of them: a run that was stopped goes on from it."""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from data.rows import PromptRow, parse_row
from data.text import Message
from system import InputError, files


class Partial:
    """Answers as they end, in a file that a run which was stopped goes on from. One line each, in no order.

    A context manager: until it ends no other process writes answers there.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        """settings: what answers depend on. Raises InputError where the file is of other ones."""
        self._path = files.partial(out)
        self.answers: dict[tuple[int, int], dict[str, Any]] = {}
        """What is known, by prompt and sample."""
        text = json.dumps(settings, sort_keys=True, default=str)
        head = files.json_line({"settings": hashlib.sha256(text.encode()).hexdigest()}).encode()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._file = stack.enter_context(self._take())
            self._read(head)
            stack.pop_all()

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, *fault: Any) -> None:
        self._file.close()

    def _take(self) -> BinaryIO:
        """The file, opened and locked."""
        while True:
            file = open(self._path, "a+b")  # noqa: SIM115 (closed at the context's end)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_nlink:
                    return file
                file.close()  # another process has finished with it, and removed it
            except OSError as fault:
                file.close()
                if isinstance(fault, BlockingIOError):
                    said = "another process writes answers here; wait for it, or write elsewhere"
                else:
                    said = f"its file system has no locks ({fault.strerror}); write to a local disk"
                raise InputError(f"{self._path}: {said}") from None

    def _read(self, head: bytes) -> None:
        """Reads what is known, and cuts what a run that was killed left half written."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")[:-1]  # the last may be torn
        if lines and lines[0] + b"\n" != head:
            raise InputError(
                f"{self._path}: holds answers of another model, prompts or settings; remove it, or write elsewhere"
            )
        for number, line in enumerate(lines[1:], 2):
            row = parse_row(line, f"{self._path}:{number}")
            self.answers[row.pop("row"), row.pop("sample")] = row
        self._file.truncate(sum(len(line) + 1 for line in lines))
        if not lines:
            self._file.write(head)
            self._file.flush()

    def add(self, row: int, sample: int, answer: dict[str, Any]) -> None:
        """Writes an answer down."""
        self.answers[row, sample] = answer
        self._file.write(files.json_line({"row": row, "sample": sample} | answer).encode())
        self._file.flush()

    def finish(self, out: Path, prompts: Sequence[PromptRow]) -> None:
        """Writes the file of all answers, in order, and removes this one."""
        files.write_rows(out, (prompt_fields(prompts[i]) | answer | {"sample": sample}
                               for (i, sample), answer in sorted(self.answers.items())))  # fmt: skip
        self._path.unlink()


def prompt_fields(row: PromptRow) -> dict[str, Any]:
    """A prompt as a row of answers repeats it."""
    shown = [m.fields() if isinstance(m, Message) else m for m in row.prompt]
    return {"prompt" if isinstance(row.prompt[0], Message) else "prompt_ids": shown} | row.context.fields()
