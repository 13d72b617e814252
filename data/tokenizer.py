"""A checkpoint's own tokenizer, in which text stays text.

    tokenizer.json                             data/tokenizer_json.py
    tokenizer.model, sentencepiece's           data/tokenizer_sentencepiece.py     Llama-2, Mistral
    tokenizer.model, ranks in tiktoken's form  data/tokenizer_ranks.py             Meta's Llama-3

A tokenizer file turns the spelling of a control token into the control token wherever it stands, in a user's text
too. Here text is encoded without any added token, and control ids are placed by whoever renders a template
(data/chat.py). Ids of added tokens can therefore not be written by text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.errors import InputError
from data.tokenizer_json import JsonCoder
from data.tokenizer_ranks import BOS, EOS, looks_like_ranks, read_ranks, runs_of_text
from data.tokenizer_sentencepiece import SentencePieceCoder

# What belongs to a tokenizer in a Hugging Face folder: copied byte for byte into the folders that training writes.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
MAX_FILE_BYTES = 256 * 2**20  # Llama-3's tokenizer.json has 9 MB, the largest in use some 35


class _Coder(Protocol):
    """One of the three kinds of tokenizer file, as a coder of plain text."""

    tokens: list[dict[str, Any]]
    """Tokens that are not text: {"id", "content", ...}, "lstrip" and "rstrip" where they eat blanks."""
    n_ids: int
    prefixes_after_control: bool

    def encode(self, texts: Sequence[str], *, goes_on: bool) -> list[list[int]]: ...

    def offsets(self, text: str, *, goes_on: bool) -> tuple[list[int], list[tuple[int, int]]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Tokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder has no tokenizer, or one of its files cannot be used."""
        self.folder = folder
        self.config = _read_config(folder)
        self.files: dict[str, str] = {}
        """Files that the folder lacks and that transformers and vLLM need beside it, by name."""
        self._coder, names = self._open()
        for name, text in names.items():
            self.config.setdefault(name, text)
        tokens = _all_tokens(folder, self.config, self._coder)
        self.added: dict[str, int] = {t["content"]: t["id"] for t in tokens}
        self._added_ids = {i: text for text, i in self.added.items()}
        self._control = _control_pattern(tokens)
        self.n_ids = max(self._coder.n_ids, 1 + max(self.added.values(), default=-1))
        self.bos_id = self._named("bos_token")
        self.eos_id = self._named("eos_token")
        first = self._coder.first_id if isinstance(self._coder, JsonCoder) else None
        adds = first == self.bos_id if isinstance(self._coder, JsonCoder) else self.config.get("add_bos_token", True)
        self.adds_bos = self.bos_id is not None and bool(adds)
        self.prefixes_after_control = self._coder.prefixes_after_control
        """Whether a text behind a control token gets the blank that stands before a first word."""

    def _open(self) -> tuple[_Coder, dict[str, str]]:
        """The coder, and names of control tokens that the kind of file brings."""
        description, model = (_existing(self.folder / name) for name in ("tokenizer.json", "tokenizer.model"))
        if description is not None:
            return JsonCoder(read_json(description), description), {}
        if model is None:
            raise InputError(
                f"{self.folder}: neither tokenizer.json nor tokenizer.model; bring the checkpoint's own, or rows of "
                "token ids"
            )
        with open(model, "rb") as file:
            head = file.read(4096)
        if not looks_like_ranks(head):
            coder = SentencePieceCoder(model)
            return coder, coder.names
        made = read_ranks(model)
        names = {"bos_token": BOS, "eos_token": EOS}
        self.files["tokenizer.json"] = json.dumps(made, ensure_ascii=False)
        if not self.config:
            whole = names | {"tokenizer_class": "PreTrainedTokenizerFast"}
            self.files["tokenizer_config.json"] = json.dumps(whole, indent=2) + "\n"
        return JsonCoder(made, model, runs_of_text), names

    def _named(self, name: str) -> int | None:
        """The id of the token that tokenizer_config.json calls `name`."""
        text = self.text_of(name)
        if not text:
            return None
        ids = self.added.get(text)
        return ids if ids is not None else _only(self._coder.encode([text], goes_on=True)[0])

    def text_of(self, name: str) -> str:
        """The spelling of "bos_token", "eos_token" ... for a template; "" where there is none."""
        value = self.config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else ""

    def split_control(self, text: str) -> list[str | int]:
        """A template's own text cut into runs of text and the ids of the control tokens between them."""
        pieces: list[str | int] = []
        end = 0
        for match in self._control.finditer(text):
            if match.start() > end:
                pieces.append(text[end : match.start()])
            pieces.append(self.added[match[match.lastindex or 0]])
            end = match.end()
        if end < len(text):
            pieces.append(text[end:])
        return pieces

    def encode(self, texts: Sequence[str], *, goes_on: bool = False) -> list[list[int]]:
        """Token ids of each text, none of them an added token's, whatever the text spells.

        goes_on: the texts follow other text: no blank is put before them, as some tokenizers do before a first word.
        """
        encoded = self._coder.encode(texts, goes_on=goes_on)
        for i, ids in enumerate(encoded):
            if not self._added_ids.keys().isdisjoint(ids):  # in the model's own vocabulary too: cut the spelling in two
                encoded[i] = self._encode_apart(texts[i], goes_on)[0]
        return encoded

    def offsets(self, text: str, *, goes_on: bool = False) -> list[tuple[int, int]]:
        """Where each token of `text` begins and ends, in characters."""
        return self._encode_apart(text, goes_on)[1]

    def _encode_apart(self, text: str, goes_on: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of `text`, cut in two inside the spelling of each added token that comes out."""
        ids, spans = self._coder.offsets(text, goes_on=goes_on)
        found = next((n for n, i in enumerate(ids) if i in self._added_ids), None)
        if found is None:
            return ids, spans
        spelled = self._added_ids[ids[found]]
        at = text.find(spelled)
        if at < 0:  # the tokenizer's sign for what it does not know
            begin, end = spans[found]
            raise InputError(f"the tokenizer in {self.folder} has no token for {text[begin:end]!r}; change the text")
        if len(spelled) < 2:
            raise InputError(f"{self.folder}: {text[:40]!r} cannot be encoded without the control token {spelled!r}")
        middle = at + len(spelled) // 2
        left, at_left = self._encode_apart(text[:middle], goes_on)
        right, at_right = self._encode_apart(text[middle:], True)
        return left + right, at_left + [(begin + middle, end + middle) for begin, end in at_right]

    def is_control(self, token: int) -> bool:
        """Whether a token is an added one: placed by a template, never written by text."""
        return token in self._added_ids

    def spelling(self, token: int) -> str:
        """An added token as templates write it."""
        return self._added_ids[token]

    def text_of_tokens(self, ids: Sequence[int]) -> str:
        """The text of ids in the middle of a text, the blank before a word included; U+FFFD for half a letter."""
        before = self._coder.encode(["a"], goes_on=True)[0]
        return self.decode([*before, *ids])[len(self.decode(before)) :]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids without control tokens; always valid Unicode."""
        return self._coder.decode(ids)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer file of a kind that is known here."""
    return (folder / "tokenizer.json").exists() or (folder / "tokenizer.model").exists()


def _control_pattern(tokens: Sequence[Mapping[str, Any]]) -> re.Pattern[str]:
    """Matches any of the tokens, the longest first, and the blanks that it eats; one group per token."""
    longest_first = sorted({t["content"]: t for t in tokens}.values(), key=lambda t: -len(t["content"]))
    eats = {True: r"\s*", False: ""}
    spellings = [
        eats[bool(t.get("lstrip"))] + f"({re.escape(t['content'])})" + eats[bool(t.get("rstrip"))]
        for t in longest_first
    ]
    return re.compile("|".join(spellings) or r"(?!)")


def _all_tokens(folder: Path, config: dict[str, Any], coder: _Coder) -> list[dict[str, Any]]:
    """The coder's tokens, and what other files add to a tokenizer.model; a tokenizer.json knows all of its own."""
    if (folder / "tokenizer.json").exists():
        return coder.tokens
    tokens: dict[Any, dict[str, Any]] = {t["id"]: t for t in coder.tokens}
    beside = _existing(folder / "added_tokens.json")
    for text, i in read_json(beside).items() if beside else ():
        tokens[i] = {"id": i, "content": text}
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        if isinstance(token, dict) and str(i).isdigit() and isinstance(token.get("content"), str):
            tokens[int(i)] = token | {"id": int(i)}
    texts: set[str] = set()
    for i, token in tokens.items():
        if type(i) is not int or i < 0 or not token["content"] or token["content"] in texts:
            raise InputError(f"{folder}: the added token {token['content']!r} ({i!r}) cannot be; copy its files anew")
        texts.add(token["content"])
    return list(tokens.values())


def _only(ids: Sequence[int]) -> int | None:
    return ids[0] if len(ids) == 1 else None


def _existing(path: Path) -> Path | None:
    """The path where a regular file of a sensible size is there. Raises InputError where something else is."""
    if not path.exists():
        if path.is_symlink():
            raise InputError(f"{path}: a link to nothing; copy the file anew")
        return None
    if not path.is_file():
        raise InputError(f"{path}: not a regular file; copy it anew")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MB; a tokenizer is not, copy it anew")
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    path = _existing(folder / "tokenizer_config.json")
    return {} if path is None else read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where it is missing, not a regular file, or holds anything else."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a regular file; copy it anew")
        content = path.read_bytes()
        if content.startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: a Git LFS pointer, not the file; run git lfs pull in its folder")
        value = json.loads(content)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is the checkpoint complete?") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: not JSON ({fault}); copy it anew") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, not an object; copy it anew")
    return value
