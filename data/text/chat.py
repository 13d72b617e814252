"""Conversations as token ids, by the checkpoint's own chat template.

    messages --template--> text with every content marked --split at control tokens--> runs --tokenizer--> ids

The template's text may place control tokens; content never does: it is marked while the template is rendered, and
whatever stands between the marks is encoded as text. Runs are encoded whole, so that the ids are those of encoding
the rendered conversation in one piece.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data.text.json_files import read_json
from data.text.messages import ROLES, Message
from data.text.template import Template
from data.text.tokenizer import Tokenizer
from system import InputError, check_regular, cli

# Llama-3's format, for checkpoints that have its control tokens and no template of their own.
LLAMA3_TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BUILT_IN = Path("<built-in Llama-3>")
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


Before = Literal["nothing", "control", "text"]


class Run(NamedTuple):
    """Text between two control tokens: template and content, each part flagged."""

    parts: tuple[tuple[str, bool], ...]
    goes_on: bool = False
    """Whether it is encoded as text that follows other text: no blank is put before it."""

    @property
    def text(self) -> str:
        """The run as the tokenizer sees it."""
        return "".join(text for text, _ in self.parts)


class Chat:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises InputError where there is no template, it cannot be trusted, or it has no place for an answer."""
        self.tokenizer = tokenizer
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        self.template = Template(*_template_source(tokenizer), {name: tokenizer.text_of(name) for name in names})
        self.roles = (*ROLES, *sorted(self.template.roles() - {*ROLES}))
        """The roles that a message may have."""
        is_built_in = self.template.location == BUILT_IN
        self.files = tokenizer.files | ({"chat_template.jinja": self.template.source} if is_built_in else {})
        """Files that the folder lacks and that a checkpoint needs beside its tokenizer's own, by name."""
        self._find_answer()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[tuple[str, bool]]:
        """The conversation as the template writes it: (text, whether it is content) in order.

        Raises InputError where the template refuses the conversation or does not show a content as it is.
        """
        everything = "".join(m.content for m in messages)
        free = [c for c in map(chr, range(0xFDD0, 0xFDF0)) if c not in everything]  # Unicode's noncharacters
        if len(free) < 2:
            raise InputError("the text holds all of Unicode's noncharacters U+FDD0 to U+FDEF; remove them")
        begin, end = free[:2]
        marked = [{"role": m.role, "content": f"{begin}{m.content}{end}" if m.content else ""} for m in messages]
        plain = [m.fields() for m in messages]
        meant = self.template.render(plain, add_generation_prompt=add_generation_prompt)
        text = self.template.render(marked, add_generation_prompt=add_generation_prompt)
        parts: list[tuple[str, bool]] = []
        for i, piece in enumerate(text.split(begin)):
            content, mark, rest = piece.partition(end) if i else ("", end, piece)
            if not mark or end in rest:
                raise InputError(
                    f"the chat template {self.template.location} cuts a content in two; content must stay whole"
                )
            parts += [(content, True)] * bool(content) + [(rest, False)] * bool(rest)
        n_shown, n_given = sum(is_content for _, is_content in parts), sum(bool(m.content) for m in messages)
        if n_shown != n_given:
            raise InputError(
                f"the chat template {self.template.location} shows {n_shown} contents of a conversation of {n_given}; "
                "take out the messages that it has no place for"
            )
        if "".join(text for text, _ in parts) != meant:  # it looked into a content, and found the marks
            raise InputError(
                f"the chat template {self.template.location} treats a content by what it says; content must stay whole"
            )
        return parts

    def pieces(self, parts: Iterable[tuple[str, bool]], *, after: Before = "nothing") -> list[int | Run]:
        """Rendered parts as control ids and the runs of text between them. after: what comes before the first."""
        pieces: list[int | Run] = []
        run: list[tuple[str, bool]] = []

        def close() -> None:
            if run:
                before = "control" if pieces else after
                bare = before == "text" or (before == "control" and not self.tokenizer.prefixes_after_control)
                pieces.append(Run(tuple(run), goes_on=bare))
                run.clear()

        for text, is_content in parts:
            for piece in [text] if is_content else self.tokenizer.split_control(text):
                if isinstance(piece, int):
                    close()
                    pieces.append(piece)
                else:
                    run.append((piece, is_content))
        close()
        return pieces

    def encode(self, runs: Sequence[Run]) -> list[list[int]]:
        """The ids of each run."""
        made: list[list[int]] = [[] for _ in runs]
        for goes_on in (False, True):
            chosen = [i for i, run in enumerate(runs) if run.goes_on == goes_on]
            for i, ids in zip(
                chosen, self.tokenizer.encode([runs[i].text for i in chosen], goes_on=goes_on), strict=True
            ):
                made[i] = ids
        return made

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt, whole. Raises InputError where the template refuses the conversation."""
        pieces = self.prompt_pieces(messages)
        encoded = iter(self.encode([piece for piece in pieces if isinstance(piece, Run)]))
        return [i for piece in pieces for i in (next(encoded) if isinstance(piece, Run) else [piece])]

    def prompt_pieces(self, messages: Sequence[Message]) -> list[int | Run]:
        """A prompt up to the place where the answer begins: BOS once, then what the template writes."""
        pieces = self.pieces(self.render(messages, add_generation_prompt=True))
        bos = self.tokenizer.bos_id
        return [bos, *pieces] if self.tokenizer.adds_bos and bos is not None and pieces[:1] != [bos] else pieces

    def response_pieces(self, text: str) -> list[int | Run]:
        """An answer with what the template puts around it, ending with the end-of-turn token."""
        parts = [*self._before_answer, (text, True), *self._after_answer]
        return [*self.pieces(parts, after=self._prompt_ends_in), self.end_of_turn]

    def _find_answer(self) -> None:
        """What stands between the generation prompt and an answer, and what ends it, read off a probe."""
        question, answer = Message("user", "question"), Message("assistant", "answer")
        prompt = self.render([question], add_generation_prompt=True)
        whole = self.render([question, answer], add_generation_prompt=False)
        prompt_text = "".join(text for text, _ in prompt)
        whole_text = "".join(text for text, _ in whole)
        at = whole.index(("answer", True))  # render has seen to it that every content is there once
        if not whole_text.startswith(prompt_text) or not prompt:
            raise InputError(
                f"the chat template {self.template.location} shows an answer differently from what its generation "
                "prompt promises; repair the template so that the prompt is the beginning of the conversation"
            )
        before = "".join(text for text, _ in whole[:at])[len(prompt_text) :]
        self._prompt_ends_in: Before = "text" if isinstance(self.pieces(prompt)[-1], Run) else "control"
        self._before_answer = [(before, False)] * bool(before)
        closing, self.end_of_turn = self._end_of_answer("".join(text for text, _ in whole[at + 1 :]))
        self._after_answer = [(closing, False)] * bool(closing)

    def _end_of_answer(self, text: str) -> tuple[str, int]:
        """What follows an answer, as (the part before the token that ends it, that token).

        It is the first one at which sampling stops, else the last control token, else an EOS: behind all that the
        template writes where it ends in a word that is no token, but not behind mere blanks.
        """
        pieces = self.tokenizer.split_control(text)
        control = [i for i, piece in enumerate(pieces) if isinstance(piece, int)]
        named = stop_ids(self.tokenizer.folder, None)
        stops = {*named, self.tokenizer.eos_id}
        at = next((i for i in control if pieces[i] in stops), control[-1] if control else None)
        eos = [i for i in (self.tokenizer.eos_id, *named) if i is not None and self.tokenizer.is_control(i)]
        end = next(iter(eos), None) if at is None else pieces[at]
        if not isinstance(end, int):
            raise InputError(
                f"the chat template {self.template.location} ends an answer with no control token; name an eos_token"
            )
        inner = pieces[:at] if at is not None or text.strip() else []
        if at is None and text.strip():
            cli.notify_once(
                f"{self.template.location}: ends an answer with {text.strip()!r}, which is no token of this tokenizer: "
                f"it is written as text, and {self.tokenizer.spelling(end)}, at which sampling stops, behind it"
            )
        return "".join(self.tokenizer.spelling(p) if isinstance(p, int) else p for p in inner), end


def _template_source(tokenizer: Tokenizer) -> tuple[str, Path]:
    """The template's text and where it stands. Raises InputError for one that is there and is none."""
    file, config = tokenizer.folder / "chat_template.jinja", tokenizer.folder / "tokenizer_config.json"
    if os.path.lexists(file):
        try:
            check_regular(file)
            return file.read_text(encoding="utf-8"), file
        except (OSError, UnicodeDecodeError) as fault:
            raise InputError(f"{file}: cannot be read ({fault}); copy it anew") from None
    value = tokenizer.config.get("chat_template")
    if isinstance(value, list):  # several, by name
        named = [item for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = named[0].get("template") if named else value
    if isinstance(value, str):
        return value, config
    if value is not None:
        raise InputError(f"{config}: chat_template is neither text nor a list with one called default; copy it anew")
    if all(token in tokenizer.added for token in LLAMA3_TOKENS):
        return LLAMA3_TEMPLATE, BUILT_IN
    raise InputError(f"{tokenizer.folder}: no chat template; put one into chat_template.jinja")


def stop_ids(folder: Path, chat: Chat | None) -> tuple[int, ...]:
    """Every id that ends an answer: of generation_config.json, config.json and the template's end of turn, sorted."""
    found: set[int] = set() if chat is None else {chat.end_of_turn}
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise InputError(f"{folder / name}: eos_token_id = {value!r}; it has to be an id, or a list of ids")
        found.update(ids)
    return tuple(sorted(found))
