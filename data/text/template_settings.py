"""Which chat template a command uses, what it is given beside the messages, and which day it writes.

Without a word from the user it is the checkpoint's own: chat_template.jinja, else what tokenizer_config.json says, else
Llama-3's where its control tokens are there. --chat-template takes another one, by the name that the checkpoint gives
it or out of a file.
"""

import datetime
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.text.json_files import decoded
from data.text.tokenizer import Tokenizer, has_tokenizer
from system import InputError, check_regular
from system.flags import PathText

# Llama-3's format, for checkpoints that have its control tokens and no template of their own.
LLAMA3_TEMPLATE = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BUILT_IN = Path("<built-in Llama-3>")
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
OURS = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token", "pad_token", "unk_token")
"""Names that a template is given of the row and of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """Flags of every command that renders a chat template."""

    chat_template: PathText | None = None
    """Chat template to use instead of the checkpoint's own: a file, or the name of one of several templates that the
    checkpoint has. Checkpoints that engine.train writes contain it. Unset: the checkpoint's own."""
    chat_template_kwargs: str | None = None
    """Extra variables for the chat template in every row: enable_thinking=false,reasoning_effort=low. A value is read
    as JSON where possible, else as text. "chat_template_kwargs" in a row win over it. Unset: none."""
    template_date: str | None = None
    """Date, as YYYY-MM-DD, for chat templates that print the current date. Unset: today."""

    def __post_init__(self) -> None:
        _ = self.kwargs, self.day

    @property
    def kwargs(self) -> dict[str, Any]:
        """Names and values of --chat-template-kwargs. Raises InputError where they cannot be read."""
        return dict(_parse_kwargs(self.chat_template_kwargs or ""))

    @property
    def day(self) -> datetime.date | None:
        """The day of --template-date; None where it is not given. Raises InputError where it is none."""
        if self.template_date is None:
            return None
        try:
            return datetime.date.fromisoformat(str(self.template_date))
        except ValueError:
            raise InputError(f"--template-date: {self.template_date!r} is not a date such as 2024-07-26") from None

    @property
    def given_values(self) -> dict[str, str]:
        """What is given, by name."""
        names = ("chat_template", "chat_template_kwargs", "template_date")
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) is not None}

    @property
    def given(self) -> list[str]:
        """The flags that are given."""
        return [f"--{name.replace('_', '-')}" for name in self.given_values]


@functools.lru_cache(maxsize=16)
def _parse_kwargs(text: str) -> tuple[tuple[str, Any], ...]:
    """name=value,name=value; a comma inside of a JSON value divides nothing."""
    found: dict[str, Any] = {}
    rest = text.strip()
    while rest:
        name, equals, rest = rest.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise InputError(
                f"--chat-template-kwargs: {name!r} is not of the form name=value, such as enable_thinking=false"
            )
        if name in OURS:
            raise InputError(f"--chat-template-kwargs: {name} comes from the row or the checkpoint; leave it out")
        value, rest = _value(rest.lstrip())
        if name in found:
            raise InputError(f"--chat-template-kwargs: {name} is given twice; give it once")
        found[name] = value
    return tuple(found.items())


def _value(text: str) -> tuple[Any, str]:
    """The value at the beginning of a text, and what stands behind the comma that ends it."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        behind = text[end:].lstrip()
        if not behind or behind[0] == ",":
            return value, behind[1:]
    except ValueError:
        pass
    plain, _, rest = text.partition(",")
    return plain.strip(), rest


def template_source(tokenizer: Tokenizer, chosen: str | None = None) -> tuple[str, Path]:
    """A template's text and where it stands: the chosen one, else the checkpoint's own.

    Raises InputError for one that is there and is none, and where there is none of that name.
    """
    folder = tokenizer.folder
    if chosen is not None:
        return _chosen(tokenizer, chosen)
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if os.path.lexists(file):
        return _read(file), file
    value = tokenizer.config.get("chat_template")
    if isinstance(value, list):
        named = named_templates(tokenizer)
        if "default" in named:
            return named["default"]
        if named:
            raise InputError(
                f"{config}: chat_template is a list without one called default; choose one of them: --chat-template "
                + " or ".join(sorted(named))
            )
    if isinstance(value, str):
        return value, config
    if value is None and tokenizer.model != folder and _has_template(tokenizer.model):
        return template_source(Tokenizer(tokenizer.model))  # an adapter's base, where the adapter has none of its own
    if value is not None:
        raise InputError(f"{config}: chat_template is neither text nor a list of named templates; copy it again")
    if (old := folder / "chat_template.json").is_file():
        raise InputError(
            f"{folder}: the only chat template is a processor's, {old.name}, which transformers gives to no tokenizer; "
            "copy its text into chat_template.jinja"
        )
    if all(token in tokenizer.added for token in LLAMA3_TOKENS):
        return LLAMA3_TEMPLATE, BUILT_IN
    raise InputError(
        f"{folder}: no chat template; put one into chat_template.jinja, or name one by --chat-template FILE"
    )


def _has_template(folder: Path) -> bool:
    """Whether a folder has a tokenizer with a template of its own."""
    if not has_tokenizer(folder):
        return False
    return os.path.lexists(folder / "chat_template.jinja") or bool(Tokenizer(folder).config.get("chat_template"))


def _chosen(tokenizer: Tokenizer, chosen: str) -> tuple[str, Path]:
    named, file = named_templates(tokenizer), Path(chosen)
    if chosen in named and os.path.lexists(file):
        raise InputError(
            f"--chat-template {chosen}: both a file and a template of {tokenizer.folder}; for the file write ./{chosen}"
        )
    if chosen in named:
        return named[chosen]
    if not os.path.lexists(file):
        known = f"; it has {', '.join(sorted(named))}" if named else ""
        raise InputError(f"--chat-template {chosen}: neither a file nor a template of {tokenizer.folder}{known}")
    return _read(file), file


def named_templates(tokenizer: Tokenizer) -> dict[str, tuple[str, Path]]:
    """Every template that the checkpoint has under a name, and where it stands."""
    folder, value = tokenizer.folder, tokenizer.config.get("chat_template")
    found = {
        item["name"]: (item["template"], folder / "tokenizer_config.json")
        for item in (value if isinstance(value, list) else [])
        if isinstance(item, Mapping) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
    }
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read(path), path
    return found


def _read(file: Path) -> str:
    try:
        check_regular(file)
        return decoded(file.read_bytes(), file)
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{file}: cannot be read ({fault}); copy it again") from None


NO_SETTINGS = TemplateSettings()
