"""One row as the trainer sees it: prompt, responses, what is predicted, which ids are control tokens, what was cut.

    python -m data.show pairs.jsonl --model DIR --row 3

Most spoilt alignment runs are spoilt by a template or a token that is not what one thinks; this is where it shows.
Tokens are divided by a thin bar, control tokens stand in brackets with their ids, what was cut in double brackets.
Below each part stand the tokens in it that are not special (<think>), below a response what of it is not predicted, the
words that were revised in a pair (data/revisions.py), and token weights where the row has them.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice

import numpy as np
import tyro

from data.revisions import with_revised
from data.rows import Cut, NotUsed, Reading, Record, RowSettings, config_folder, encode, open_model, read_records
from data.text import REMEDY, ROLES, Chat, read_json
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "python -m data.show pairs.jsonl --model path/to/Llama-3-8B-Instruct --row 1"
BAR = "\u254e"  # between tokens
SHOWN_RUN = 400  # characters that are shown of what was cut, and of each run of revised words
SHOWN_REVISED = 1000  # characters after which further runs are only counted
COLOURS = {
    "heading": "1",
    "control": "1;35",
    "spoken": "1;36",
    "predicted": "32",
    "revised": "1;4;32",
    "seen": "0",
    "cut": "9;31",
    "bar": "2",
    "warning": "1;33",
}


@dataclass(frozen=True, kw_only=True)
class ShowConfig(RowSettings):
    """Show one row as the trainer sees it: the tokens of prompt and responses, what is predicted, and what was cut."""

    file: tyro.conf.Positional[PathText]
    """Rows to read: a .jsonl, .json, .csv or .parquet file, a folder of such files, or a hub id."""
    model: PathText
    """Checkpoint folder (Hugging Face layout) or hub id whose tokenizer and chat template are used."""
    row: int = 1
    """Which row to show, counted from 1."""
    fields: str | None = None
    """Numeric columns to show too, separated by commas, such as margin,confidence: those that your objective names in
    fields=(...). Unset: none."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row < 1:
            raise InputError(f"--row: {self.row} has to be above 0")

    @property
    def reading(self) -> Reading:
        """How the file is read."""
        names = tuple(name.strip() for name in self.fields.split(",")) if self.fields else ()
        return replace(super().reading, fields=names)


def show(cut: Cut, chat: Chat | None, *, colour: bool = False) -> str:
    """The text of the view. chat None: ids only, there is no tokenizer to spell them."""
    page = _Page(chat, colour)
    example = cut.example
    n = len(example.responses)
    names = _names(n)
    made = page.paint("heading", f"{visible(example.location)}: {page.kind(cut)}") + "\n"
    if chat is not None:
        made += f"template: {visible(str(chat.template.location))}\n"
    n_cut = len(cut.whole_prompt) - len(example.prompt)
    made += page.heading("prompt", len(example.prompt), n_cut, "seen by every response, predicted by none")
    made += page.tokens(cut.whole_prompt, cut.kept, ["seen"] * len(cut.kept))
    made += page.spoken(example.prompt.tolist())
    pair = with_revised([example], chat and chat.tokenizer)[0] if n == 2 else example
    flags, predicted = pair.revised or [None] * n, example.predicted or [None] * n
    weights = example.token_weights or [None] * n
    for name, whole, kept, n_said, said, differs, weighs in zip(
        names, cut.whole_responses, example.responses, example.lengths, predicted, flags, weights, strict=True
    ):
        n_cut = len(whole) - len(kept)
        which = "each is predicted" if said is None else f"{n_said} are predicted, the others seen"
        made += page.heading(name, len(kept), n_cut, f"{which}; the last is no input")
        kinds = ["predicted"] * len(whole)
        for i in () if said is None else np.flatnonzero(~said):
            kinds[i] = "seen"
        for i in () if differs is None else np.flatnonzero(differs):
            kinds[i] = "revised"
        made += page.tokens(whole, [i < len(kept) for i in range(len(whole))], kinds)
        made += page.spoken(kept.tolist())
        made += "" if said is None else page.context(kept.tolist(), said.tolist())
        made += "" if differs is None else page.revised(kept.tolist(), differs.tolist(), n_said)
        made += "" if weighs is None else f"token weights: {BAR.join(f'{w:g}' for w in weighs)}\n"
    return made + page.footer(cut)


def visible(text: str) -> str:
    """Text in which nothing acts on a terminal: control characters, bidi marks and the like shown as signs."""
    return "".join(_sign(c) for c in text)


def _sign(c: str) -> str:
    if c == "\n":
        return "\u23ce"
    if ord(c) < 0x20:
        return chr(0x2400 + ord(c))
    return f"\\u{ord(c):04x}" if c in (BAR, "\u23ce") else cli.printable(c)


class _Page:
    """The parts of the view, in colour or plain."""

    def __init__(self, chat: Chat | None, colour: bool) -> None:
        self._chat, self._colour = chat, colour

    def paint(self, kind: str, text: str) -> str:
        return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m" if self._colour and text else text

    def kind(self, cut: Cut) -> str:
        example = cut.example
        if len(example.responses) > 1:
            said = "a pair" if len(example.responses) == 2 else f"{len(example.responses)} ranked completions"
        else:
            said = "a completion" if example.label is None else f"a completion labelled {str(example.label).lower()}"
        scores, own = example.ratings.scores, example.ratings.own
        said += "" if scores is None else f", scores {', '.join(f'{s:g}' for s in scores)}"
        said += "" if own is None else f", own score {own:g}"
        return said + "".join(f", {visible(name)} {number:g}" for name, number in example.ratings.fields)

    def heading(self, name: str, n: int, n_cut: int, what: str) -> str:
        counts = f"{n} token{'s' * (n != 1)}" + (f", {n_cut} cut" if n_cut else "")
        return "\n" + self.paint("heading", f"{name}: {counts}") + f" ({what})\n"

    def tokens(self, ids: Sequence[int], kept: Sequence[bool], kinds: Sequence[str]) -> str:
        bar = self.paint("bar", BAR)
        parts = []
        for stays, group in groupby(zip(ids, kept, kinds, strict=True), key=lambda item: item[1]):
            run = [(i, kind) for i, _, kind in group]
            if stays:
                parts.append(bar.join(self.paint(k, text) for k, text in self._cells(run)))
            else:
                parts.append("\u27e6cut: " + self.paint("cut", self._text(run)) + "\u27e7")
        return bar.join(parts).replace("\u23ce", "\u23ce\n") + "\n"

    def revised(self, ids: Sequence[int], differs: Sequence[bool], n: int) -> str:
        """How many of n tokens were revised, and the runs of them, so many as fit."""
        groups = groupby(zip(ids, differs, strict=True), key=lambda item: item[1])
        runs = [self._text([(i, "revised") for i, _ in group]) for is_revised, group in groups if is_revised]
        ends = accumulate(len(text) for text in runs)
        n_shown = 1 + sum(end <= SHOWN_REVISED for end in ends) if runs else 0
        said = "".join(f' "{self.paint("revised", text)}"' for text in runs[:n_shown])
        said += f" and in {len(runs) - n_shown} further places" if len(runs) > n_shown else ""
        return f"revised: {sum(differs)} of {n} tokens" + (f":{said}" if said else "") + "\n"

    def spoken(self, ids: Sequence[int]) -> str:
        """Which tokens are not special: a template places them, and what an assistant says is them too."""
        if self._chat is None or not (found := Counter(i for i in ids if self._chat.tokenizer.is_spoken(i))):
            return ""
        spelled = self._chat.tokenizer.spelling
        named = (
            self.paint("spoken", f"{visible(spelled(i))} {i}") + (f" ({n} times)" if n > 1 else "")
            for i, n in found.items()
        )
        return f"tokens that are not special: {', '.join(named)}\n"

    def context(self, ids: Sequence[int], predicted: Sequence[bool]) -> str:
        """What of a response is not predicted: it stands between two messages of the assistant."""
        groups = groupby(zip(ids, predicted, strict=True), key=lambda item: item[1])
        runs = [self._text([(i, "seen") for i, _ in group]) for is_predicted, group in groups if not is_predicted]
        return "not predicted:" + "".join(f' "{text}"' for text in runs) + "\n" if runs else ""

    def _text(self, run: Sequence[tuple[int, str]]) -> str:
        """The text of a run of tokens, without its middle where that is too long."""
        text = "".join(text for _, text in self._cells(run))
        return text if len(text) <= SHOWN_RUN else f"{text[: SHOWN_RUN // 2]} ... {text[-SHOWN_RUN // 2 :]}"

    def _cells(self, run: Sequence[tuple[int, str]]) -> Iterator[tuple[str, str]]:
        """(kind, text) of each token; tokens that only together make a letter come together, with their count."""
        if self._chat is None:
            yield from ((kind, f" {i} ") for i, kind in run)
            return
        tokenizer = self._chat.tokenizer
        waiting: list[int] = []
        for at, (i, kind) in enumerate(run):
            if tokenizer.is_control(i):
                yield "spoken" if tokenizer.is_spoken(i) else "control", f"[{visible(tokenizer.spelling(i))} {i}]"
                continue
            waiting.append(i)
            text = tokenizer.text_of_tokens(waiting)
            is_last = at + 1 == len(run) or tokenizer.is_control(run[at + 1][0])
            if "\ufffd" in text and len(waiting) < 8 and not is_last:
                continue
            yield kind, visible(text) + (f"({len(waiting)} tokens)" if len(waiting) > 1 else "")
            waiting = []

    def footer(self, cut: Cut) -> str:
        """What to look at: control tokens that are met more often than they should be, and cuts."""
        example, said = cut.example, []
        if cut.n_without_thought:
            said.append("the prompt opens a thought, and a response neither continues nor ends it")
        if self._chat is not None:
            tokenizer = self._chat.tokenizer
            if example.prompt.tolist().count(tokenizer.bos_id) > 1:
                said.append("the token that begins a text (BOS) occurs more than once")
            ends = all(r[-1] in self._chat.ends for r in example.responses)
            said += ["a response does not end with the end-of-turn token"] * (not ends)
        said += self._cuts(cut)
        if cut.spelled:
            tokens = visible(" ".join(cut.spelled))
            said.append(f"control tokens occur as text, and they stay text ({tokens}): {REMEDY}")
        return "".join("\n" + self.paint("warning", f"note: {sentence}") for sentence in said) + "\n" * bool(said)

    def _cuts(self, cut: Cut) -> list[str]:
        """What was cut, by side."""
        example = cut.example
        parts = [("the prompt", cut.whole_prompt, example.prompt)]
        parts += zip(_names(len(example.responses)), cut.whole_responses, example.responses, strict=True)
        return [
            f"{name} was cut: {len(whole) - len(kept)} of {len(whole)} tokens are gone"
            for name, whole, kept in parts
            if len(whole) > len(kept)
        ]


def _names(n: int) -> list[str]:
    """What n responses to a prompt are called."""
    if n == 1:
        return ["completion"]
    return ["chosen", "rejected"] if n == 2 else [f"completion {i}, best first" for i in range(1, n + 1)]


def wants_colour() -> bool:
    """Whether stdout is a terminal; NO_COLOR and FORCE_COLOR decide otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ShowConfig, argv, command="python -m data.show", example=EXAMPLE)
    folder, chat = open_model(config.model, config)
    shape = read_json(config_folder(folder) / "config.json")
    n_ids, context = (_count(shape.get(name)) for name in ("vocab_size", "max_position_embeddings"))
    records = read_records(config.file, config.reading, roles=chat.roles if chat else ROLES)
    record = next(islice(records, config.row - 1, None), None)
    if record is None:
        raise InputError(f"{config.file}: has fewer than {config.row} rows; lower --row")
    (cut,) = encode([record], chat, config.limits_in(context), n_ids=n_ids or 2**31)
    if isinstance(cut, InputError):
        raise cut
    for name in config.reading.fields:
        if name not in cut.example.ratings.numbers():
            raise InputError(f'{cut.example.location}: no finite number under "{name}"; correct --fields or the row')
    sys.stdout.reconfigure(encoding="utf-8")  # pyright: ignore[reportAttributeAccessIssue]
    not_used = NotUsed()
    if isinstance(record, Record):
        not_used.add(record)
    said = "".join(f"note: {visible(sentence)}\n" for sentence in not_used.sentences())
    sys.stdout.write(show(cut, chat, colour=wants_colour()) + said)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


if __name__ == "__main__":
    cli.run(main)
