"""What a checkpoint folder holds of a tokenizer: which files are its own, and what they say of its special tokens.

Several files can say the same thing, and one of them counts: transformers' order of precedence is kept here, and where
another file says something else, that is said once.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data.text.json_files import decoded, existing, read_json
from data.text.tokenizer_ranks import looks_like_ranks, rank_words
from data.text.tokenizer_sentencepiece import pieces_of
from system import InputError, cli

# What belongs to a tokenizer: copied byte for byte into the folders that training writes.
_PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map*.json",
    "added_tokens*.json",
    "chat_template*.json",
    "*.jinja",
    "tokenizer.model*",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "vocab*.json",
    "vocab*.txt",
    "vocab.bpe",
    "encoder.json",
    "merges*.txt",
    "tokenization_*.py",  # what a tokenizer_config.json's auto_map names
)
TEMPLATES = "additional_chat_templates"
"""The folder of further chat templates, by name."""
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What a tokenizer's special tokens are called."""
_OF_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # where a file names none


def tokenizer_files(folder: Path) -> list[str]:
    """The files in a folder that belong to its tokenizer, those of its subfolder of templates too, by relative path."""
    own = [p.name for p in folder.iterdir() if any(fnmatch(p.name, pattern) for pattern in _PATTERNS) and p.is_file()]
    further = [p.relative_to(folder).as_posix() for p in (folder / TEMPLATES).rglob("*") if p.is_file()]
    return sorted(own) + sorted(further)


def special_names(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What special_tokens_map.json calls the special tokens, where it counts; `config` is tokenizer_config.json.

    As in transformers: it goes before tokenizer_config.json where that has no added_tokens_decoder, and is not read
    where it has one.
    """
    path = existing(folder / "special_tokens_map.json")
    found = {} if path is None else {name: value for name, value in read_json(path).items() if name in NAMES}
    counts = "added_tokens_decoder" not in config
    for name, value in found.items():
        by_map, by_config = spelling(value), spelling(config.get(name))
        if by_map != by_config and (name in config or not counts):
            cli.notify_once(f"{folder}: {_precedence(name, by_map, by_config, counts=counts)}, as in transformers")
    return found if counts else {}


def _precedence(name: str, by_map: str, by_config: str, *, counts: bool) -> str:
    if counts:
        return f"special_tokens_map.json's {name} {by_map!r} goes before tokenizer_config.json's {by_config!r}"
    other = f"is {by_config!r}" if by_config else "is none"
    return (
        f"the {name} {other} by tokenizer_config.json, whose added_tokens_decoder puts special_tokens_map.json's "
        f"{by_map!r} out of use"
    )


def names_of_class(config: Mapping[str, Any], *, is_byte_level: bool) -> dict[str, str]:
    """What transformers' class of tokenizer calls the special tokens that no file names.

    is_byte_level: whether tokenizer.json is; transformers then takes no Llama-2 class, whatever the file says.
    """
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    return dict(_OF_LLAMA) if kind in ("LlamaTokenizer", "CodeLlamaTokenizer") and not is_byte_level else {}


def say_if_vocabularies_differ(description: Mapping[str, Any], model: Path) -> None:
    """Says once where a tokenizer.json (`description`) and the tokenizer.model beside it are two vocabularies."""
    words = vocabulary_of(model)
    vocab = description["model"].get("vocab") or {}
    known = (
        {i: word for word, i in vocab.items()} if isinstance(vocab, dict) else {i: w[0] for i, w in enumerate(vocab)}
    )
    known |= {token["id"]: None for token in description.get("added_tokens") or []}  # may be called as one likes
    different = [i for i, word in enumerate(words) if known.get(i, "") not in (None, word)]
    if different:
        i = different[0]
        cli.notify_once(
            f"{model.parent}: tokenizer.json counts, as in transformers, and tokenizer.model is another vocabulary "
            f"({len(different):,} tokens differ: {i} is {known.get(i, 'none')!r} and {words[i]!r})"
        )


def vocabulary_of(model: Path) -> list[str]:
    """The words of a tokenizer.model in order of their ids; none where it cannot be read, for it is not needed."""
    with open(model, "rb") as file:
        head = file.read(4096)
    try:
        return rank_words(model) if looks_like_ranks(head) else pieces_of(model)
    except InputError:
        return []


def say_differences(folder: Path, config: Mapping[str, Any]) -> None:
    """Says once which of a folder's chat templates does not count, where several are there and differ."""
    file, further = folder / "chat_template.jinja", sorted(p.name for p in (folder / TEMPLATES).glob("*.jinja"))
    own = _default_template(config.get("chat_template"))
    if file.is_file():
        if own is not None and _text(file) != own.removesuffix("\n"):
            cli.notify_once(
                f"{folder}: chat_template.jinja counts, as in transformers; the chat_template in tokenizer_config.json "
                "differs from it"
            )
    elif own is not None and further:
        cli.notify_once(
            f"{folder}: the chat_template in tokenizer_config.json is taken, which transformers leaves out beside "
            f"{TEMPLATES}/ ({further[0]}); put it into chat_template.jinja"
        )
    if (path := existing(folder / "chat_template.json")) is not None:
        old = _default_template(read_json(path).get("chat_template"))
        current = _text(file) if file.is_file() else own
        if old is not None and (current is None or current.removesuffix("\n") != old.removesuffix("\n")):
            cli.notify_once(
                f"{folder}: chat_template.json, which is a processor's, is not read; it is another template"
            )


def spelling(value: Any) -> str:
    """The spelling of a special token as a file names it; "" where it is none that can be."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text.isprintable() else ""


def _default_template(value: Any) -> str | None:
    if isinstance(value, list):
        named = [i.get("template") for i in value if isinstance(i, dict) and i.get("name") == "default"]
        value = named[0] if named else None
    return value if isinstance(value, str) else None


def _text(path: Path) -> str | None:
    """A template's text but for the line end that jinja drops; None where it cannot be read, as is told elsewhere."""
    try:
        return decoded(path.read_bytes(), path).removesuffix("\n")
    except (OSError, UnicodeDecodeError):
        return None
