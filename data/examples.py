"""Records as token ids: templates applied, cut to the limits, in the form that an objective takes.

records -> encode -> examples (one trunk and its branches each) -> in_form("pairs" | "unpaired" | "single")
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from data.chat import Chat, Run
from data.errors import InputError
from data.records import Message, Record

CHUNK = 512  # records whose texts are encoded together: the tokenizer works on all cores, and memory stays flat


class Example(NamedTuple):
    """A small tree of token ids: the prompt is its trunk, each response a branch."""

    place: str
    """"FILE:LINE" of its row."""
    prompt: np.ndarray
    """[P] int32, at least one id."""
    responses: tuple[np.ndarray, ...]
    """Each [n] int32, at least one id; the last one of a response that was not cut is the end-of-turn token."""
    label: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a row is used."""

    prompt_tokens: int = 512
    response_tokens: int = 512
    keep_prompt: Literal["end", "start"] = "end"
    """Which part of a prompt that is too long stays; BOS and the template's headers always do."""


@dataclass
class Encoded:
    """Examples in the order of their records, and what was cut or could not be used."""

    examples: list[Example] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cut_prompts: int = 0
    cut_responses: int = 0


def encode(records: Sequence[Record], chat: Chat | None, limits: Limits, *, n_ids: int) -> Encoded:
    """Examples of records. Rows of token ids are taken as they are, and cut like text.

    n_ids: size of the model's vocabulary; ids outside it are row faults. chat None: the model folder has no
    tokenizer, and rows of text are faults. Never raises for a row: what is wrong with it stands in `faults`.
    """
    made = Encoded()
    for start in range(0, len(records), CHUNK):
        chunk = records[start : start + CHUNK]
        for record, trees in zip(chunk, _pieces_of(chunk, chat), strict=True):
            if isinstance(trees, str):
                made.faults.append(f"{record.place}: {trees}")
                continue
            (prompt, content), *responses = trees
            try:
                cut = _cut_prompt(prompt, content, limits)
            except InputError as fault:
                made.faults.append(f"{record.place}: {fault}")
                continue
            ids = [cut, *(r[: limits.response_tokens] for r, _ in responses)]
            if (top := max(max(i) for i in ids)) >= n_ids:
                made.faults.append(f"{record.place}: token id {top} is outside the model's vocabulary of {n_ids}")
                continue
            made.cut_prompts += len(cut) < len(prompt)
            made.cut_responses += sum(len(r) > limits.response_tokens for r, _ in responses)
            trunk, *branches = (np.asarray(i, dtype=np.int32) for i in ids)
            made.examples.append(Example(record.place, trunk, tuple(branches), record.label))
    return made


def in_form(examples: Sequence[Example], form: str) -> list[Example]:
    """The examples that an objective of that form trains on.

    "unpaired" makes two labelled examples of a pair, "single" takes a pair's chosen response. Raises InputError
    naming the first row that cannot be had in that form.
    """
    return list(_in_form(examples, form))


def _in_form(examples: Sequence[Example], form: str) -> Iterator[Example]:
    for e in examples:
        is_pair = len(e.responses) == 2
        if form == "pairs" and is_pair:
            yield e
        elif form == "unpaired" and is_pair:
            yield Example(e.place, e.prompt, e.responses[:1], True)
            yield Example(e.place, e.prompt, e.responses[1:], False)
        elif form == "unpaired" and e.label is not None:
            yield e
        elif form == "single" and e.label is None:
            yield Example(e.place, e.prompt, e.responses[:1])
        else:
            kind = "a pair" if is_pair else "a completion without label" if e.label is None else "a labelled completion"
            raise InputError(f"{e.place}: this objective trains on rows of the form {form}, and this is {kind}")


def _pieces_of(records: Sequence[Record], chat: Chat | None) -> Iterator[list[tuple[list[int], "_Content"]] | str]:
    """For each record its prompt and responses as (ids, content flags on demand), or what is wrong with it."""
    trees: list[list[list[int | Run]] | str] = [_render(r, chat) for r in records]
    runs = [
        piece
        for tree in trees
        if not isinstance(tree, str)
        for pieces in tree
        for piece in pieces
        if isinstance(piece, Run)
    ]
    encoded = iter(chat.tokenizer.encode([run.text for run in runs]) if chat and runs else ())
    for record, tree in zip(records, trees, strict=True):
        if isinstance(tree, str):
            yield tree
            continue
        made = []
        for pieces in tree:
            groups = [next(encoded) if isinstance(p, Run) else [p] for p in pieces]
            made.append(([i for group in groups for i in group], _Content(record, pieces, groups, chat)))
        yield made


def _render(record: Record, chat: Chat | None) -> list[list[int | Run]] | str:
    if record.is_tokenised:
        return [list(record.prompt), *(list(r) for r in record.responses)]  # pyright: ignore[reportReturnType]
    if chat is None:
        return "a row of text, and the model folder has no tokenizer; give rows of token ids"
    try:
        prompt = [m for m in record.prompt if isinstance(m, Message)]
        return [chat.prompt_pieces(prompt), *(chat.response_pieces(str(r)) for r in record.responses)]
    except InputError as fault:
        return str(fault)


class _Content(NamedTuple):
    """Which ids of a prompt may be cut away: those of content may, what the template placed may not."""

    record: Record
    pieces: list[int | Run]
    groups: list[list[int]]
    chat: Chat | None

    def flags(self) -> list[bool]:
        if self.record.is_tokenised or self.chat is None:
            bos = self.chat.tokenizer.bos_id if self.chat else None
            return [i > 0 or ids[0] != bos for i, ids in enumerate(self.groups)]
        flags: list[bool] = []
        for piece in self.pieces:
            flags += [False] if isinstance(piece, int) else _content_flags(piece, self.chat)
        return flags


def _content_flags(run: Run, chat: Chat) -> list[bool]:
    """For each token of a run whether it begins in content."""
    is_content = [flag for text, flag in run.parts for _ in text]
    return [is_content[min(start, len(is_content) - 1)] for start, _ in chat.tokenizer.offsets(run.text)]


def _cut_prompt(ids: list[int], content: _Content, limits: Limits) -> list[int]:
    excess = len(ids) - limits.prompt_tokens
    if excess <= 0:
        return ids
    flags = content.flags()
    removable = [i for i, flag in enumerate(flags) if flag]
    if len(removable) <= excess:
        fixed = len(ids) - len(removable)
        raise InputError(f"the template's own tokens of this prompt are {fixed}; raise --max-prompt-tokens")
    gone = set(removable[:excess] if limits.keep_prompt == "end" else removable[-excess:])
    return [token for i, token in enumerate(ids) if i not in gone]
