"""Files of pairs: rows that engine.train takes as they are, and beside them what was rejected, each with its reason.

A row is in the form of the authors' data set (prompt, chosen and rejected as message lists, rational) and says where it
is from. Both files are written whole or not at all, with the same bytes as often as the same answers are read.
"""

import collections
import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.contrast import Contrast, contrast, table
from data.rows import Record, read_records
from revise.prompts import Item
from system import InputError, RunError, files

CHUNK = 1024  # pairs that are measured together


class Rejected(ValueError):
    """Answers that make no pair; the text is the reason, in a few words, by which rows are counted. is_open: an answer
    is still missing.
    """

    def __init__(self, reason: str, *, is_open: bool = False) -> None:
        super().__init__(reason)
        self.is_open = is_open


class Pair(NamedTuple):
    """Two answers of which one is better."""

    chosen: str
    rejected: str
    rational: str = ""
    """Why, in the words of the reviser or judge."""
    facts: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    """What else its provenance says."""
    reasoning: tuple[str, str] = ("", "")
    """Thoughts before the chosen and the rejected answer, where they are to be trained on."""


class Made(NamedTuple):
    """What came of an item."""

    item: Item
    pair: Pair | Rejected
    provenance: dict[str, Any]
    texts: dict[str, list[str]]
    """All texts that there are, for the file of what was rejected."""
    thoughts: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    """Fields of the row for what models thought before they answered: reasoning, own_reasoning."""


class Count(NamedTuple):
    """What came of all items."""

    n_pairs: int
    n_open: int
    """Rejected because an answer is still missing."""
    reasons: collections.Counter[str]
    n_thoughts: int = 0
    """With thoughts that were cut off."""
    n_cut: int = 0
    """With an answer that was cut at a token of a chat template."""

    @property
    def said(self) -> list[str]:
        """What was taken off, in sentences."""
        made = []
        if self.n_thoughts:
            made.append(f"{self.n_thoughts:,} rows had thoughts before an answer: cut off, and kept as reasoning")
        if self.n_cut:
            made.append(f"{self.n_cut:,} rows had an answer that ran past a chat template's end of turn: cut there")
        return made


def rejected_beside(out: Path) -> Path:
    """pairs.jsonl: pairs.rejected.jsonl."""
    return out.with_name(out.name.removesuffix(".jsonl") + ".rejected.jsonl")


def check_out(out: Path, *inputs: str | None) -> None:
    """Raises InputError where the pairs, or what is rejected, would replace something that no recipe wrote.

    inputs: files and folders that are read, or written besides.
    """
    if out.suffix != ".jsonl":
        raise InputError(f"--out: {out} has to end in .jsonl")
    for path in (out, rejected_beside(out)):
        for other in (Path(name) for name in inputs if name):
            if path.absolute() == other.absolute() or (path.exists() and other.exists() and path.samefile(other)):
                raise InputError(f"--out: {path} is also read, and would be overwritten; give another name")
            if other.is_dir() and path.absolute().is_relative_to(other.absolute()):
                raise InputError(f"--out: {path} is in the folder of the prompts; give another one")
        if not path.exists():
            files.check_new_file(path)
        elif not _is_ours(path):
            raise InputError(f"{path}: exists, and was not written by a recipe; give another file, or remove it")


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError), open(path, encoding="utf-8") as file:
        first = file.readline()
        return not first or bool(json.loads(first)["provenance"]["recipe"])
    return False


def write(made: Iterable[Made], out: Path) -> Count:
    """Writes pairs and what was rejected, in the order given. Raises RunError where there is no room for them."""
    try:
        return _write(made, out)
    except OSError as fault:
        raise RunError(f"{out}: cannot be written ({fault.strerror}); every answer is stored, run again") from None


def _write(made: Iterable[Made], out: Path) -> Count:
    reasons: collections.Counter[str] = collections.Counter()
    n_pairs = n_open = n_thoughts = n_cut = 0
    with contextlib.ExitStack() as both:
        paths = [both.enter_context(files.whole_file(p)) for p in (out, rejected_beside(out))]  # out is renamed last
        kept, dropped = (both.enter_context(open(p, "w", encoding="utf-8")) for p in paths)
        for m in made:
            n_thoughts += bool(m.thoughts)
            n_cut += _is_cut(m.provenance)
            if isinstance(m.pair, Pair):
                n_pairs += 1
                kept.write(files.json_line(_row(m, m.pair)))
            else:
                reasons[str(m.pair).partition(":")[0]] += 1
                n_open += m.pair.is_open
                row = {"prompt": _prompt(m.item), "reason": str(m.pair)} | m.texts | m.thoughts
                row |= {"provenance": m.provenance}
                dropped.write(files.json_line(row))
    return Count(n_pairs, n_open, reasons, n_thoughts, n_cut)


def _is_cut(provenance: dict[str, Any]) -> bool:
    return any("cut_at" in answer for name in ("target", "answers") for answer in provenance.get(name, ()))


def _row(made: Made, pair: Pair) -> dict[str, Any]:
    messages = made.item.messages
    answers = zip(("chosen", "rejected"), (pair.chosen, pair.rejected), pair.reasoning, strict=True)
    both = {name: [*messages, _answer(text, thoughts)] for name, text, thoughts in answers}
    facts = {"rational": pair.rational, **made.thoughts, "provenance": made.provenance | pair.facts}
    return {"prompt": _prompt(made.item)} | both | made.item.context.fields() | facts


def _answer(text: str, thoughts: str) -> dict[str, str]:
    return {"role": "assistant", "content": text} | ({"reasoning_content": thoughts} if thoughts else {})


def _prompt(item: Item) -> str | list[dict[str, str]]:
    first, *rest = item.prompt
    return first.content if not rest and first.role == "user" else item.messages


def report(count: Count, n: int, out: Path, said: str | None = None) -> None:
    """What became of n prompts, on stderr; the measures of Table 1, on stdout."""
    lines = [f"{count.n_pairs:,} pairs of {n:,} prompts: {out}"]
    lines += [f"{k:>8,}  {reason}" for reason, k in count.reasons.most_common()]
    print("\n".join([*lines, *count.said, *([said] if said else [])]), file=sys.stderr)
    if count.n_pairs:
        print(table({out.name: _measured(out)}))


def _measured(out: Path) -> Contrast:
    """The contrast of a file, some pairs at a time: a long one does not have to fit into memory."""
    parts = list(_contrasts(r for r in read_records(out) if isinstance(r, Record)))
    names = [name for name in Contrast._fields if getattr(parts[0], name) is not None]
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return Contrast(**{name: joined.get(name) for name in Contrast._fields})  # pyright: ignore[reportArgumentType]


def _contrasts(records: Iterator[Record]) -> Iterator[Contrast]:
    while chunk := list(itertools.islice(records, CHUNK)):
        yield contrast([(r.texts[0], r.texts[1]) for r in chunk])
