"""Looking at pairs: what the winner changed, word by word, as in Figure 2 of arXiv 2408.06266.

    python -m revise show pairs.jsonl                      the first pairs, in the terminal
    python -m revise show pairs.jsonl --html pairs.html    a page that needs nothing else: no server, no network

What was rejected, in the file beside it, is shown with its reason. Model text is data: the page's script puts it in as
text, its content security policy runs nothing but that script, and control characters never reach a terminal.
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rapidfuzz.distance import Indel

from data.rows import Reading, ReadingSettings, parse_record, rows_of
from data.show import wants_colour
from data.text import Message
from revise.pairs import rejected_beside
from revise.templates import task_of
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m revise show pairs.jsonl --html pairs.html"
PAGE = Path(__file__).with_name("show.html")
WORD = re.compile(r"(?:\w+|[^\w\s])\s*|^\s+")  # with the blanks behind it, which alone make no difference

Pieces = list[tuple[bool, str]]
"""A text in pieces: whether each stands in this text alone, and its words."""


@dataclass(frozen=True, kw_only=True)
class ShowConfig(ReadingSettings):
    """Show pairs and what changed in them, in the terminal or as a page."""

    file: tyro.conf.Positional[PathText]
    """Pairs, as a recipe writes them or as engine.train takes them; what was rejected is looked for beside it."""
    html: PathText | None = None
    """File for a page, in the place of the terminal."""
    row: int = 1
    """Begin with that row, counted from 1."""
    n: int | None = None
    """How many rows; unset: 3 in the terminal, 1,000 on a page."""
    config: PathText | None = None
    """YAML file of settings, named as the flags are; flags win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row < 1 or (self.n is not None and self.n < 1):
            raise InputError("--row and --n are counted from 1")


class Shown(NamedTuple):
    """One row, ready to be looked at."""

    location: str
    prompt: str
    rejected: Pieces
    chosen: Pieces
    labels: tuple[str, str]
    rational: str = ""
    reason: str = ""
    """Why it is no pair; empty where it is one."""
    facts: str = ""
    """Its provenance, as lines."""

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]


def difference(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces: words that stand in both, in order, and those of one alone (longest common subsequence)."""
    a, b = WORD.findall(before), WORD.findall(after)
    left, right = [], []
    keys = ([word.strip() or " " for word in words] for words in (a, b))  # not "": the library takes it for NUL
    for step in Indel.opcodes(*keys):
        if words := "".join(a[step.src_start : step.src_end]):
            left.append((step.tag != "equal", words))
        if words := "".join(b[step.dest_start : step.dest_end]):
            right.append((step.tag != "equal", words))
    return left, right


def shown_rows(path: Path, reading: Reading | None = None) -> Iterator[Shown]:
    """The pairs of a file. reading: how it is read. Raises InputError for a row that is none."""
    for location, row in rows_of(path, reading):
        if isinstance(row, InputError):
            raise row
        record = parse_record(row, location, reading=reading)
        if len(record.responses) != 2 or record.is_tokenised:
            raise InputError(f"{location}: no pair of texts; this shows pairs")
        chosen, rejected = record.texts
        prompt = task_of(record.messages)
        left, right = difference(rejected, chosen)
        yield Shown(location, prompt, left, right, ("rejected", "chosen"), _text(row.get("rational")), "", _facts(row))


def rejected_rows(path: Path) -> Iterator[Shown]:
    """What a recipe set aside, with its reason."""
    for location, row in rows_of(path):
        if isinstance(row, InputError):
            raise row
        own, answers = ("\n\n".join(map(_text, row.get(name) or [])) for name in ("own", "answers"))
        prompt = row.get("prompt")
        if isinstance(prompt, list):
            prompt = task_of(
                [Message(_text(m.get("role")), _text(m.get("content"))) for m in prompt if isinstance(m, dict)]
            )
        labels = "the model's own", "the answer"
        yield Shown(
            location,
            _text(prompt),
            [(False, own)],
            [(False, answers)],
            labels,
            "",
            _text(row.get("reason")),
            _facts(row),
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _facts(row: dict[str, Any]) -> str:
    named = {name: row[name] for name in ("chosen_score", "rejected_score", "own_score", "provenance") if name in row}
    return json.dumps(named, indent=1, ensure_ascii=False) if named else ""


# --- the page ------------------------------------------------------------------------------------------------------


def page(rows: Sequence[Shown], title: str, note: str) -> str:
    """A whole HTML page. All that comes from rows is in one block of JSON in which no < > & stands."""
    template = PAGE.read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", template, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    shown = [
        {**row._asdict(), "kind": row.kind, "location": Path(row.location).name} for row in rows
    ]  # no folder of yours
    text = json.dumps({"title": title, "note": note, "rows": shown}, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return template.replace("<CSP>", policy, 1).replace("<DATA>", text, 1)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# --- the terminal --------------------------------------------------------------------------------------------------


def text(row: Shown, *, colour: bool) -> str:
    """A row for a terminal: what is gone and what is new, in colours or as [-gone-] and {+new+}."""
    gone, new = ("\033[31;9m{}\033[0m", "\033[32m{}\033[0m") if colour else ("[-{}-]", "{{+{}+}}")
    title = "\033[1m{}\033[0m" if colour else "{}"

    def words(pieces: Pieces, changed: str) -> str:
        return "".join(changed.format(cli.printable(t)) if is_changed else cli.printable(t) for is_changed, t in pieces)

    lines = [title.format(cli.printable(f"{row.location}{f': {row.reason}' if row.reason else ''}"))]
    lines += [cli.printable(row.prompt), ""]
    lines += [title.format(row.labels[0]), words(row.rejected, gone), ""]
    lines += [title.format(row.labels[1]), words(row.chosen, new)]
    return "\n".join([*lines, *(["", title.format("reasoning"), cli.printable(row.rational)] if row.rational else [])])


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ShowConfig, argv, command="python -m revise show", example=EXAMPLE)
    path = Path(config.file)
    if config.html:
        files.check_new_file(Path(config.html))
    n = config.n or (1000 if config.html else 3)
    is_rejected = path.name.endswith(".rejected.jsonl")
    found = rejected_rows(path) if is_rejected else shown_rows(path, config.reading)
    rows = list(itertools.islice(found, config.row - 1, config.row - 1 + n + 1))
    beside = rejected_beside(path)
    dropped = list(itertools.islice(rejected_rows(beside), n + 1)) if config.html and beside.is_file() else []
    if not rows and not dropped:
        raise InputError(f"{path}: no row {config.row}; give a --row that is there")
    if not config.html:
        print("\n\n".join(text(row, colour=wants_colour()) for row in rows[:n]))
        return
    is_part = len(rows) > n or len(dropped) > n
    note = (
        f"At most {n:,} rows of each file, from row {config.row:,}; more with --n." if is_part or config.row > 1 else ""
    )
    files.write_text(Path(config.html), page([*rows[:n], *dropped[:n]], path.name, note))
    cli.notify(f"{len(rows[:n]):,} pairs and {len(dropped[:n]):,} rejected rows: {config.html}")
