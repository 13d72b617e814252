"""Conversations as token ids, by the checkpoint's own chat template.

    messages --template--> text with every content marked --split at control tokens--> runs --tokenizer--> ids

The template's text may place control tokens; content never does: it is marked while the template is rendered, and
whatever stands between the marks is encoded as text. Runs are encoded whole, so that the ids are those of encoding
the rendered conversation in one piece.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.errors import InputError
from data.records import Message
from data.tokenizer import Tokenizer, read_json

# Llama-3's format, for checkpoints that have its control tokens and no template of their own.
LLAMA3_TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


class Run(NamedTuple):
    """Text between two control tokens: template and content, each part flagged."""

    parts: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """The run as the tokenizer sees it."""
        return "".join(text for text, _ in self.parts)


class Chat:
    """A tokenizer and its chat template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises InputError where there is no template, it cannot be compiled, or it has no place for an answer."""
        self.tokenizer = tokenizer
        self.template, self.template_place = _template_source(tokenizer)
        """The template's text, and where it stands."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=_Unprintable,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(self.template)
        except jinja2.TemplateError as fault:
            raise InputError(f"{self.template_place}: not a chat template ({fault}); copy it anew") from None
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
        names = {name: self.tokenizer.text_of(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            # Without strftime_now, Llama-3.1's template writes a fixed date: ids must not depend on the day.
            text = self._template.render(
                messages=marked, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **names
            )
        except jinja2.TemplateError as fault:
            raise InputError(
                f"the chat template {self.template_place} refuses the conversation: {fault.message}"
            ) from None
        except (TypeError, ValueError, OverflowError, ArithmeticError, LookupError) as fault:
            raise InputError(
                f"the chat template {self.template_place} fails: {type(fault).__name__}: {fault}"
            ) from None
        parts: list[tuple[str, bool]] = []
        for i, piece in enumerate(text.split(begin)):
            content, mark, rest = piece.partition(end) if i else ("", end, piece)
            if not mark or end in rest:
                raise InputError(
                    f"the chat template {self.template_place} cuts a content in two; content must stay whole"
                )
            parts += [(content, True)] * bool(content) + [(rest, False)] * bool(rest)
        return parts

    def pieces(self, parts: Iterable[tuple[str, bool]]) -> list[int | Run]:
        """Rendered parts as control ids and the runs of text between them."""
        pieces: list[int | Run] = []
        run: list[tuple[str, bool]] = []
        for text, is_content in parts:
            for piece in [text] if is_content else self.tokenizer.split_control(text):
                if isinstance(piece, int):
                    pieces += [Run(tuple(run))] * bool(run) + [piece]
                    run = []
                else:
                    run.append((piece, is_content))
        return pieces + [Run(tuple(run))] * bool(run)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt, whole. Raises InputError where the template refuses the conversation."""
        pieces = self.prompt_pieces(messages)
        encoded = iter(self.tokenizer.encode([piece.text for piece in pieces if isinstance(piece, Run)]))
        return [i for piece in pieces for i in (next(encoded) if isinstance(piece, Run) else [piece])]

    def prompt_pieces(self, messages: Sequence[Message]) -> list[int | Run]:
        """A prompt up to the place where the answer begins: BOS once, then what the template writes."""
        pieces = self.pieces(self.render(messages, add_generation_prompt=True))
        bos = self.tokenizer.bos_id
        return [bos, *pieces] if self.tokenizer.adds_bos and bos is not None and pieces[:1] != [bos] else pieces

    def response_pieces(self, text: str) -> list[int | Run]:
        """An answer with what the template puts around it, ending with the end-of-turn token."""
        return [*self.pieces([*self._before_answer, (text, True), *self._after_answer]), self.end_of_turn]

    def _find_answer(self) -> None:
        """What stands between the generation prompt and an answer, and what ends it, read off a probe."""
        question, answer = Message("user", "question"), Message("assistant", "answer")
        prompt = self.render([question], add_generation_prompt=True)
        whole = self.render([question, answer], add_generation_prompt=False)
        prompt_text = "".join(text for text, _ in prompt)
        whole_text = "".join(text for text, _ in whole)
        at = (
            len(whole) - 1 - next((i for i, part in enumerate(reversed(whole)) if part == ("answer", True)), len(whole))
        )
        if at < 0 or not whole_text.startswith(prompt_text):
            raise InputError(
                f"the chat template {self.template_place} shows an answer differently from what its generation prompt "
                "promises; repair the template so that the prompt is the beginning of the conversation"
            )
        before = "".join(text for text, _ in whole[:at])[len(prompt_text) :]
        self._before_answer = [(before, False)] * bool(before)
        after = self.tokenizer.split_control("".join(text for text, _ in whole[at + 1 :]))
        ends = [i for i, piece in enumerate(after) if isinstance(piece, int)]
        end = after[ends[0]] if ends else self.tokenizer.eos_id
        if not isinstance(end, int):
            raise InputError(
                f"the chat template {self.template_place} ends an answer with no control token; name an eos_token"
            )
        self.end_of_turn = end
        closing = "".join(str(piece) for piece in after[: ends[0]]) if ends else ""
        self._after_answer = [(closing, False)] * bool(closing)


def _template_source(tokenizer: Tokenizer) -> tuple[str, Path]:
    """The template's text and where it stands."""
    file, config = tokenizer.folder / "chat_template.jinja", tokenizer.folder / "tokenizer_config.json"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8"), file
        except (OSError, UnicodeDecodeError) as fault:
            raise InputError(f"{file}: cannot be read ({fault}); copy it anew") from None
    value = tokenizer.config.get("chat_template")
    if isinstance(value, list):  # several, by name
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}.get("default")
    if isinstance(value, str):
        return value, config
    if all(token in tokenizer.added for token in LLAMA3_TOKENS):
        return LLAMA3_TEMPLATE, Path("<built-in Llama-3>")
    raise InputError(f"{tokenizer.folder}: no chat template; put one into chat_template.jinja")


class _Unprintable(jinja2.Undefined):
    """An undefined name: templates may ask whether it is there, but writing it would be a fault that nobody sees."""

    __slots__ = ()
    __str__ = jinja2.Undefined._fail_with_undefined_error  # pyright: ignore[reportAssignmentType]


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, which transformers knows: marks an answer for masks, writes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def stop_ids(folder: Path, chat: Chat | None) -> tuple[int, ...]:
    """Every id that ends an answer: of generation_config.json, config.json and the template's end of turn, sorted."""
    found: set[int] = set() if chat is None else {chat.end_of_turn}
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        found.update(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
    return tuple(sorted(found))
