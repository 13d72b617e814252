"""Records as token ids: templates applied, cut to the limits, in the form that an objective takes.

records -> encode -> examples (one prompt and its responses each) -> in_form("pairs" | "unpaired" | "single")
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from data.rows.limits import Limits
from data.rows.record import NO_RATINGS, Ratings, Record
from data.text import Chat, Response, Run, Said, spelled_control
from system import InputError

CHUNK = 512  # records whose texts are encoded together: the tokenizer works on all cores, and memory stays flat
CHUNK_LETTERS = 2**21  # a chunk ends there too: an encoder takes some 70 times the memory of a text


class Example(NamedTuple):
    """Token ids of a prompt and of each response to it."""

    location: str
    """"FILE:LINE" of its row."""
    prompt: np.ndarray
    """[P] int32, at least one id."""
    responses: tuple[np.ndarray, ...]
    """Each [n] int32, at least one id; the last one of a response that was not cut is the end-of-turn token."""
    label: bool | None = None
    ratings: Ratings = NO_RATINGS
    """What the row says of its responses in numbers."""
    revised: tuple[np.ndarray, ...] | None = None
    """Of each response [n] bool, which tokens differ between chosen and rejected (data/revisions.py); None where
    nothing asked for it.
    """
    token_weights: tuple[np.ndarray, ...] | None = None
    """Of each response [n] float64, finite; None where the row has none."""
    predicted: tuple[np.ndarray, ...] | None = None
    """Of each response [n] bool, which of its tokens are predicted, the last one always: what an assistant says is,
    what a tool says between is context. None where all are.
    """
    is_listed: bool = False
    """Whether the responses stand as the row lists them, and none is called chosen (`Reading.listed`)."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens of each response are predicted."""
        if self.predicted is None:
            return tuple(map(len, self.responses))
        return tuple(int(flags.sum()) for flags in self.predicted)

    def targets(self) -> tuple[np.ndarray, ...]:
        """The ids of each response's tokens that are predicted."""
        return self.of_predicted(self.responses)

    def of_predicted(self, values: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Of values [n] of each response's tokens those of the tokens that are predicted."""
        if self.predicted is None:
            return values
        return tuple(x[flags] for x, flags in zip(values, self.predicted, strict=True))

    def answered_by(self, other: "Example") -> "Example":
        """The prompt with the first response of another example, and with what that row says of the response."""
        return other.only(slice(0, 1), other.label)._replace(location=self.location, prompt=self.prompt)

    def only(self, which: slice, label: bool | None) -> "Example":
        """The prompt with some of the responses, and with what is theirs."""
        return self._replace(
            responses=self.responses[which],
            label=label,
            ratings=self.ratings.of(which),
            revised=self.revised and self.revised[which],
            token_weights=self.token_weights and self.token_weights[which],
            predicted=self.predicted and self.predicted[which],
        )


class Cut(NamedTuple):
    """An example, and what it was cut from."""

    example: Example
    whole_prompt: list[int]
    """The prompt's ids before the cut."""
    kept: list[bool]
    """For each of them whether it is in the example."""
    whole_responses: tuple[list[int], ...]
    """Their ids before the cut, up to the last one that is predicted."""
    spelled: tuple[str, ...] = ()
    """Control tokens whose spellings stand as text in the row."""
    n_without_thought: int = 0
    """Responses to a prompt that opens a thought, which neither go on with it nor end it."""

    @property
    def is_prompt_cut(self) -> bool:
        """Whether the prompt lost tokens."""
        return not all(self.kept)

    @property
    def cut_responses(self) -> tuple[bool, ...]:
        """Of each response whether it lost its end."""
        return tuple(len(w) > len(r) for w, r in zip(self.whole_responses, self.example.responses, strict=True))


def encode(
    records: Iterable[Record | InputError], chat: Chat | None, limits: Limits, *, n_ids: int
) -> Iterator[Cut | InputError]:
    """Examples of records, in their order, a chunk at a time; what is already a fault passes through.

    Rows of token ids are taken as they are, and cut like text. n_ids: size of the model's vocabulary; ids outside it
    are row faults. chat None: the model folder has no tokenizer, and rows of text are faults. Raises nothing for a
    row: what is wrong with it comes in its place.
    """
    for chunk in _chunks(records):
        trees = _pieces_of([r for r in chunk if isinstance(r, Record)], chat)
        for record in chunk:
            if isinstance(record, InputError):
                yield record
                continue
            try:
                yield _cut(record, next(trees), limits, n_ids, chat)
            except InputError as fault:
                yield type(fault)(f"{record.location}: {fault}")


def _chunks(records: Iterable[Record | InputError]) -> Iterator[list[Record | InputError]]:
    chunk: list[Record | InputError] = []
    letters = 0
    for record in records:
        chunk.append(record)
        letters += _letters(record) if isinstance(record, Record) else 0
        if len(chunk) == CHUNK or letters >= CHUNK_LETTERS:
            yield chunk
            chunk, letters = [], 0
    if chunk:
        yield chunk


def _letters(record: Record) -> int:
    if record.is_tokenised:
        return len(record.prompt) + sum(map(len, record.responses))
    return sum(len(m.content) for part in (record.messages, *record.conversations) for m in part)


def _cut(record: Record, trees: "list[_Part] | InputError", limits: Limits, n_ids: int, chat: Chat | None) -> Cut:
    if isinstance(trees, InputError):
        raise trees
    prompt, *responses = trees
    n_prompt, sizes = limits.sizes(len(prompt.ids), [_end_of(r) for r in responses])
    kept = _kept_of_prompt(prompt.ids, prompt.content, n_prompt, limits)
    sizes = [_kept_of_response(r, n, limits) for r, n in zip(responses, sizes, strict=True)]
    ids = [
        [i for i, stays in zip(prompt.ids, kept, strict=True) if stays],
        *(r.ids[:n] for r, n in zip(responses, sizes, strict=True)),
    ]
    if (top := max(max(i) for i in ids)) >= n_ids:
        named = f" ({chat.tokenizer.spelling(top)})" if chat is not None and chat.tokenizer.is_control(top) else ""
        raise InputError(f"token id {top}{named} is outside the model's vocabulary of {n_ids}")
    _check_context(ids, limits)
    kept_prompt, *kept_responses = (np.asarray(i, dtype=np.int32) for i in ids)
    example = Example(record.location, kept_prompt, tuple(kept_responses), record.label, record.ratings)
    example = example._replace(is_listed=True) if record.form == "listed" else example
    if record.token_weights is not None:
        kept_weights = (np.asarray(w[:n], dtype=np.float64) for w, n in zip(record.token_weights, sizes, strict=True))
        example = example._replace(token_weights=tuple(kept_weights))
    if any(r.predicted is not None for r in responses):
        flags = [np.asarray(r.flags()[:n], dtype=bool) for r, n in zip(responses, sizes, strict=True)]
        example = example._replace(predicted=None if all(map(np.all, flags)) else tuple(flags))
    whole = tuple(r.ids[: r.end()] for r in responses)
    n_lacking = sum(r.lacks_thought for r in responses)
    cut = Cut(example, prompt.ids, kept, whole, _spelled(record, chat), n_lacking)
    if not example.is_listed:
        _check_differ(cut, limits)
    return cut


def _end_of(part: "_Part") -> int:
    """How many ids a response has up to the last one that is predicted."""
    if part.end() == 0:
        raise InputError(
            "the assistant says nothing in a response, so there is nothing to predict in it; take the row out"
        )
    return part.end()


def _kept_of_response(part: "_Part", n: int, limits: Limits) -> int:
    """How many of the first n ids of a response stay: none behind the last one that is predicted."""
    kept = part.end(n)
    if kept == 0:
        raise InputError(
            f"the first {n} tokens of a response hold nothing that the assistant says; raise {limits.flag_of_responses}"
        )
    return kept


def _check_context(ids: Sequence[list[int]], limits: Limits) -> None:
    """Raises InputError where prompt and longest response do not fit into the model's context."""
    prompt, *responses = map(len, ids)
    n = prompt + max(responses)
    if limits.longest is not None and n > limits.longest:
        raise InputError(
            f"{n:,} tokens after the cut, but with dynamic RoPE no sequence is longer than max_position_embeddings, "
            f"{limits.longest:,}, even with --beyond-context; lower {limits.flags}"
        )
    if limits.context is not None and n > limits.context:
        raise InputError(
            f"{n:,} tokens after the cut, but the model's context (max_position_embeddings) has {limits.context:,}; "
            f"lower {limits.flags}, or accept such rows: --beyond-context"
        )


def _check_differ(cut: Cut, limits: Limits) -> None:
    """Raises InputError where the best and the worst response to a prompt are the same ids: nothing can be learnt of
    them, whatever they said before the cut.
    """
    responses, whole = cut.example.responses, cut.whole_responses
    if len(responses) == 1 or not np.array_equal(responses[0], responses[-1]):
        return
    names = '"chosen" and "rejected"' if len(responses) == 2 else "the best and the worst completion"
    if whole[0] == whole[-1]:
        raise InputError(f"{names} are the same token ids; a pair has to differ")
    limit, flag = limits.response_tokens, limits.flag_of_responses
    if limit is not None and whole[0][:limit] == whole[-1][:limit]:  # it cuts before any other rule
        flag = "--max-response-tokens"
    raise InputError(
        f"{names} are the same {len(responses[0])} token ids after the cut; a pair has to differ: raise {flag}"
    )


def _spelled(record: Record, chat: Chat | None) -> tuple[str, ...]:
    if record.is_tokenised:
        return ()
    texts = [m.content for part in (record.messages, *record.conversations) for m in part]
    return spelled_control(texts, chat and chat.tokenizer)


def in_form(examples: Sequence[Example], form: str, *, side: Literal["chosen", "rejected"] = "chosen") -> list[Example]:
    """The examples that an objective of that form trains on.

    "unpaired" makes two labelled examples of a pair, "single" takes the response of that side. Raises InputError
    naming the first row that cannot be had in that form, or has another number of ranked responses than the first.
    """
    made = [made for e in examples for made in _in_form(e, form, side)]
    for e in made:
        if len(e.responses) != len(made[0].responses):
            n, first = len(e.responses), len(made[0].responses)
            raise InputError(f"{e.location}: {n} responses, but the first row has {first}; all rows need equally many")
    return made


def _in_form(e: Example, form: str, side: str) -> Iterator[Example]:
    n = len(e.responses)
    if (form == "pairs" and n == 2) or (form == "ranked" and n > 1):
        yield e
    elif form == "unpaired" and n == 2:
        for i, label in enumerate((True, False)):
            yield e.only(slice(i, i + 1), label)
    elif form == "unpaired" and e.label is not None:
        yield e
    elif form == "single" and e.label is None:
        yield e.only(slice(0, 1) if side == "chosen" or n == 1 else slice(n - 1, n), None)
    else:
        labelled = 'a completion without "label"' if e.label is None else 'a completion with a "label"'
        kind = {1: labelled, 2: "a pair"}.get(n, f"{n} ranked completions")
        raise InputError(f"{e.location}: this objective trains on rows of the form {form}, but this is {kind}")


def _pieces_of(records: Sequence[Record], chat: Chat | None) -> "Iterator[list[_Part] | InputError]":
    """For each record its prompt and responses, or what is wrong with it.

    The texts of all are encoded together: the tokenizer works on all cores.
    """
    trees = [_render(r, chat) for r in records]
    whole = [tree for tree in trees if not isinstance(tree, InputError)]
    runs = [piece for tree in whole for made in tree for piece in made.pieces if isinstance(piece, Run)]
    encoded = iter(chat.encode(runs) if chat and runs else ())
    for record, tree in zip(records, trees, strict=True):
        if isinstance(tree, InputError):
            yield tree
            continue
        parts = []
        for made in tree:
            groups = [next(encoded) if isinstance(p, Run) else [p] for p in made.pieces]
            content = _Content(record, made.pieces, groups, chat)
            predicted = None if made.is_predicted_whole or chat is None else _predicted(made, groups, chat)
            parts.append(_Part([i for group in groups for i in group], content, predicted, made.lacks_thought))
        yield parts


def _render(record: Record, chat: Chat | None) -> list[Response] | InputError:
    """The prompt and the responses of a record in pieces."""
    if record.is_tokenised:
        return [Response(list(ids), [0] * len(ids)) for ids in (record.prompt, *record.responses)]  # pyright: ignore[reportArgumentType]
    if chat is None:
        return InputError("a row of text, but the model folder has no tokenizer; give rows of token ids")
    try:
        written = chat.write(record.messages, record.conversations, record.context)
    except InputError as fault:
        return fault
    return [Response(written.prompt, [0] * len(written.prompt)), *written.responses]


def _predicted(made: Response, groups: Sequence[Sequence[int]], chat: Chat) -> list[bool]:
    """For each token of a response whether it is predicted: where a letter of it is what an assistant says."""
    flags: list[bool] = []
    for piece, seen, ids in zip(made.pieces, made.seen, groups, strict=True):
        if not isinstance(piece, Run):
            flags.append(not seen)
        elif seen in (0, len(piece.text)):
            flags += [not seen] * len(ids)
        else:
            flags += [end > seen for _, end in chat.tokenizer.offsets(piece.text, goes_on=piece.goes_on)]
    return flags


class _Part(NamedTuple):
    """A prompt or a response before it is cut."""

    ids: list[int]
    content: "_Content"
    predicted: list[bool] | None = None
    """Of a response for each id whether it is predicted; None where all are."""
    lacks_thought: bool = False
    """Whether the prompt opens a thought that the response neither goes on with nor ends."""

    def flags(self) -> list[bool]:
        return [True] * len(self.ids) if self.predicted is None else self.predicted

    def end(self, limit: int | None = None) -> int:
        """How many of the ids there are up to the last one that is predicted, within the first `limit` of them."""
        ids = self.ids[:limit]
        if self.predicted is None:
            return len(ids)
        return next((i + 1 for i in reversed(range(len(ids))) if self.predicted[i]), 0)


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
            flags += _content_flags(piece, self.chat) if isinstance(piece, Run) else [isinstance(piece, Said)]
        return flags


def _content_flags(run: Run, chat: Chat) -> list[bool]:
    """For each token of a run whether it begins in content."""
    is_content = [bool(speaker) for text, speaker in run.parts for _ in text]
    return [
        is_content[min(start, len(is_content) - 1)]
        for start, _ in chat.tokenizer.offsets(run.text, goes_on=run.goes_on)
    ]


def _kept_of_prompt(ids: list[int], content: _Content, n: int, limits: Limits) -> list[bool]:
    """For each id of a prompt whether it is among the n that stay."""
    excess = len(ids) - n
    if excess <= 0:
        return [True] * len(ids)
    removable = [i for i, flag in enumerate(content.flags()) if flag]
    if len(removable) <= excess:
        fixed = len(ids) - len(removable)
        raise InputError(
            f"the template's own tokens in this prompt, {fixed}, exceed the limit; raise --max-prompt-tokens"
        )
    gone = set(removable[:excess] if limits.keep_prompt == "end" else removable[-excess:])
    return [i not in gone for i in range(len(ids))]
