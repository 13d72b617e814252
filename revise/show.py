"""Looking at pairs: what the winner changed, word by word, as in Figure 2 of arXiv 2408.06266.

    python -m revise show pairs.jsonl                      the first pairs, in the terminal
    python -m revise show pairs.jsonl --html pairs.html    a page that needs nothing else: no server, no network

What was rejected, in the file beside it, is shown with its reason and what that means. Model text is data: the page's
script puts it in as text, its content security policy runs nothing but that script, and control characters never reach
a terminal.
"""

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from data.contrast import contrast
from data.differences import Pieces, difference
from data.rows import Reading, ReadingSettings, Record, parse_record, rows_of
from data.show import wants_colour
from data.text import Message
from revise import clair
from revise.pairs import rejected_beside
from revise.reasons import meaning
from revise.templates import task_of
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m revise show pairs.jsonl --html pairs.html"
PAGE = Path(__file__).with_name("show.html")
REJECTED = ".rejected.jsonl"
FACTS = ("chosen_score", "rejected_score", "own_score", "provenance")
CHUNK = 512  # pairs that are measured together


@dataclass(frozen=True, kw_only=True)
class ShowConfig(ReadingSettings):
    """Show pairs, and what differs between winner and loser, in the terminal or as a page."""

    file: tyro.conf.Positional[PathText]
    """Pairs in any form that engine.train reads, or a .rejected.jsonl file of revise. With --html, the page also shows
    the rejected rows from the file beside the pairs."""
    html: PathText | None = None
    """HTML file to write, instead of printing to the terminal."""
    row: int = 1
    """First row to show, counted from 1."""
    n: int | None = None
    """Number of rows to show. Unset: 3 in the terminal, 1,000 on a page."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row < 1 or (self.n is not None and self.n < 1):
            raise InputError("--row and --n are counted from 1")


class Shown(NamedTuple):
    """One row, ready to be looked at."""

    number: int
    """In its file, from 1."""
    location: str
    prompt: str
    rejected: Pieces
    chosen: Pieces
    labels: tuple[str, str]
    rational: str = ""
    thoughts: str = ""
    """What models thought before they answered."""
    reason: str = ""
    """Why it is no pair; empty where it is one."""
    facts: str = ""
    """Its provenance, as lines."""
    scores: tuple[float, float] | None = None
    """Of chosen and rejected, by one judge."""

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(":")[0]

    @property
    def texts(self) -> tuple[str, str]:
        """What stands on the right, the winner or an answer, and on the left."""
        right, left = ("".join(words for _, words in side) for side in (self.chosen, self.rejected))
        return right, left


def shown_pair(number: int, location: str, row: dict[str, Any], reading: Reading | None = None) -> Shown:
    """A pair. reading: how its file is read. Raises InputError for a row that is none."""
    record = parse_record(row, location, reading=reading)
    if len(record.responses) != 2 or record.is_tokenised:
        raise InputError(f"{location}: not a pair of texts; only pairs can be shown")
    chosen, rejected = record.texts
    left, right = difference(rejected, chosen)
    return Shown(
        number, location, task_of(record.messages), left, right, ("rejected", "chosen"), _text(row.get("rational")),
        _thoughts(row, record), facts=_facts(row), scores=_scores(record),
    )  # fmt: skip


def _scores(record: Record) -> tuple[float, float] | None:
    scores = record.ratings.scores
    return (float(scores[0]), float(scores[1])) if scores is not None and len(scores) == 2 else None


def _thoughts(row: Mapping[str, Any], record: Record | None = None) -> str:
    """What a row keeps of thoughts: beside its answers, or in them."""
    found = []
    for kept in (row.get("own_reasoning"), row.get("reasoning")):
        found += kept if isinstance(kept, list) else [kept]
    for response in record.conversations if record else ():
        found += [message.reasoning_content for message in response]
    return "\n\n".join(dict.fromkeys(text for text in found if isinstance(text, str) and text.strip()))


def shown_rejected(number: int, location: str, row: dict[str, Any]) -> Shown:
    """A row that a recipe set aside: what would have been its two sides as far as they are there, and the reason."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        prompt = task_of(
            [Message(_text(m.get("role")), _text(m.get("content"))) for m in prompt if isinstance(m, dict)]
        )
    own, answers = (_texts(row.get(name)) for name in ("own", "answers"))
    rational = ""
    if len(own) == 2:  # a judge was asked which is better
        (left, right), labels = own, ("the model's own, first", "the model's own, second")
        rational = "\n\n".join(answers)
    else:
        left, right, labels = "\n\n".join(own), "\n\n".join(answers), ("the model's own", "the answer")
        with contextlib.suppress(ValueError):
            rational, right = clair.parse(right, student_solution=left)
            labels = "the model's own", "the revision"
    before, after = difference(left, right) if left and right else ([(False, left)], [(False, right)])
    return Shown(
        number, location, _text(prompt), before, after, labels, rational, _thoughts(row), _text(row.get("reason")),
        _facts(row),
    )  # fmt: skip


def _texts(value: Any) -> list[str]:
    return [_text(v) for v in value] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _facts(row: Mapping[str, Any]) -> str:
    named = {name: row[name] for name in FACTS if name in row}
    return json.dumps(named, indent=1, ensure_ascii=False) if named else ""


class Part(NamedTuple):
    """Some rows of a file, and what is known of all of them."""

    rows: list[Shown]
    first: int = 1
    """The number of the first one."""
    n_all: int = 0
    """How many rows the file has."""
    kinds: Mapping[str, int] = {}
    """By reason, how many of all are no pairs."""


def read_part(
    found: Iterator[tuple[str, dict[str, Any] | InputError]],
    show: Callable[[int, str, dict[str, Any]], Shown],
    first: int,
    n: int,
) -> Part:
    """The rows from `first` on, at most n, of all that are found. Raises InputError where one of them is unreadable."""
    rows: list[Shown] = []
    kinds: Counter[str] = Counter()
    number = 0
    for number, (location, row) in enumerate(found, 1):
        if first <= number < first + n:
            if isinstance(row, InputError):
                raise row
            rows.append(show(number, location, row))
        if isinstance(row, dict) and isinstance(row.get("reason"), str):
            kinds[row["reason"].partition(":")[0]] += 1
    return Part(rows, first, number, kinds)


# --- the page ------------------------------------------------------------------------------------------------------


def page(pairs: Part, rejected: Part, title: str) -> str:
    """A whole HTML page. All that comes from rows is in one block of JSON in which no < > & stands."""
    template = PAGE.read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", template, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    told = {"title": title, "pairs": _told(pairs), "rejected": _told(rejected)}
    text = json.dumps(told, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return template.replace("<CSP>", policy, 1).replace("<DATA>", text, 1)


def _told(part: Part) -> dict[str, Any]:
    """What the page is told of some rows."""
    rows = []
    for chunk in (part.rows[i : i + CHUNK] for i in range(0, len(part.rows), CHUNK)):
        found = contrast([row.texts for row in chunk])
        for i, row in enumerate(chunk):
            right, left = row.texts
            measures: dict[str, float | int | None] = {
                "asked": len(row.prompt),
                "length": len(right),
                "before": len(left),
            }
            if right and left:
                measures |= {"ratio": round(len(right) / len(left), 4), "distance": int(found.levenshtein[i])}
                measures["jaccard"] = round(100 * float(found.jaccard_words[i]), 2)
            if row.scores:
                measures["score"] = round(row.scores[0] - row.scores[1], 6)
            place = {"location": Path(row.location).name}  # no folder of yours
            rows.append({**row._asdict(), **place, **measures, "kind": row.kind, "meaning": meaning(row.reason)})
    return {"rows": rows, "first": part.first, "n": part.n_all, "kinds": part.kinds}


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
    lines += [said] if (said := meaning(row.reason)) else []
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
    is_rejected = path.name.endswith(REJECTED)
    found = rows_of(path) if is_rejected else rows_of(path, config.reading)
    show = shown_rejected if is_rejected else functools.partial(shown_pair, reading=config.reading)
    if not config.html:
        found = itertools.islice(found, config.row - 1 + n)  # nobody waits for the rest
    named = read_part(found, show, config.row, n)
    beside, no_pairs = rejected_beside(path), Part([])
    if config.html and not is_rejected and beside.is_file():
        no_pairs = read_part(rows_of(beside), shown_rejected, 1, n)
    if not named.rows and not no_pairs.rows:
        raise InputError(f"{path}: there is no row {config.row}; lower --row")
    if not config.html:
        print("\n\n".join(text(row, colour=wants_colour()) for row in named.rows))
        return
    parts = (Part([]), named) if is_rejected else (named, no_pairs)
    files.write_text(Path(config.html), page(*parts, path.name))
    counts = [
        _of(len(part.rows), part.n_all, what) for part, what in zip(parts, ("pairs", "rejected rows"), strict=True)
    ]
    cli.notify(f"{' and '.join(counts)}: {config.html}")


def _of(n: int, n_all: int, what: str) -> str:
    what = what.removesuffix("s") if n_all == 1 else what
    return f"{n:,} {what}" if n == n_all else f"{n:,} of {n_all:,} {what}"
