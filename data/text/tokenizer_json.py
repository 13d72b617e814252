"""A tokenizer.json (or what has its form) as a coder of plain text: what the file adds around a text is taken off."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from data.text.plain_tokens import IsText, no_token_is_text
from system import InputError


class JsonCoder:
    """Text to ids by the `tokenizers` library, from copies of the tokenizer that have no added tokens but those that
    are text (data/text/plain_tokens.py).

    A second copy puts no blank before a text: for text that goes on in the middle of a sentence.
    """

    def __init__(
        self,
        description: dict[str, Any],
        location: Path,
        cut: Callable[[str], list[str]] | None = None,
        is_text: IsText = no_token_is_text,
    ) -> None:
        """cut: where the text is cut before it is encoded. is_text: which added tokens are text.

        Raises InputError where it is not a tokenizer.
        """
        description = {"normalizer": None, "pre_tokenizer": None} | description | {"truncation": None, "padding": None}
        self._full = _make(description, location)
        self.tokens, self.text_tokens = _added_tokens(description, location, is_text)
        plain = description | {"added_tokens": _hidden(description, self.text_tokens), "post_processor": None}
        bare = {
            key: _without_prefix(value) if key in ("normalizer", "pre_tokenizer") else value
            for key, value in plain.items()
        }
        self._cut = cut
        self._plain = _make(plain, location)
        self._bare = self._plain if bare == plain else _make(bare, location)
        for made in (self._plain, self._bare):
            made.encode_special_tokens = True  # what is hidden stays letters
        for token in self.text_tokens:
            if (i := self._plain.token_to_id(token["content"])) != token["id"]:
                raise InputError(
                    f"{location}: the added token {token['content']!r} ({token['id']}) is token {i} for the library "
                    "that reads it; copy the file again"
                )
        self.prefixes_after_control = bare != plain and not _is_first_only(plain)
        """Whether a text behind a control token gets the blank that stands before the first word, too."""
        nodes = [*_nodes(description["pre_tokenizer"]), *_nodes(description.get("decoder"))]
        self.is_byte_level = any(node.get("type") == "ByteLevel" for node in nodes)
        """Whether its words are spelled in letters that stand for bytes."""
        more = (t["id"] for t in (*self.tokens, *self.text_tokens))
        self.ids = frozenset([*self._full.get_vocab().values(), *more])
        self.n_ids = 1 + max(self.ids, default=-1)
        self.first_id = next(iter(self._full.encode("").ids), None)
        """What the tokenizer itself puts before a text."""

    def encode_whole(self, text: str) -> list[int]:
        """Ids of a text in which added tokens are found by their spelling, as transformers gives them."""
        return self._full.encode(text, add_special_tokens=False).ids

    def id_of(self, text: str) -> int | None:
        """The id of the token of that spelling."""
        return self._full.token_to_id(text)

    def word_of(self, i: int) -> str | None:
        """The spelling of the token of that id; None where there is none."""
        return self._full.id_to_token(i)

    def words(self) -> dict[int, str]:
        """Every token by its id, spelled as in the file."""
        return {i: word for word, i in self._full.get_vocab().items()}

    def encode(self, texts: Sequence[str], *, goes_on: bool) -> list[list[int]]:
        """Ids of each text. goes_on: it follows other text, so that no blank is put before it."""
        tokenizer = self._bare if goes_on else self._plain
        if self._cut is None or all(len(text) < 1000 for text in texts):
            return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        pieces = [self._cut(text) for text in texts]
        encoded = iter(tokenizer.encode_batch_fast([p for ps in pieces for p in ps], add_special_tokens=False))
        return [[i for _ in ps for i in next(encoded).ids] for ps in pieces]

    def offsets(self, text: str, *, goes_on: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and where each begins and ends in it, in characters."""
        tokenizer = self._bare if goes_on else self._plain
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        start = 0
        for piece in self._cut(text) if self._cut else [text]:
            encoded = tokenizer.encode(piece, add_special_tokens=False)
            ids += encoded.ids
            spans += [(begin + start, end + start) for begin, end in encoded.offsets]
            start += len(piece)
        return ids, spans

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self._full.decode(list(ids), skip_special_tokens=True)


def _make(description: dict[str, Any], location: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as fault:  # the library raises bare Exception
        raise InputError(f"{location}: not a tokenizer ({fault}); copy it again") from None


def _added_tokens(
    description: dict[str, Any], location: Path, is_text: IsText
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The added tokens: those that are marks, and those that are text.

    Raises InputError where two share an id or a spelling, or a mark cannot be told from text.
    """
    texts: dict[str, int] = {}
    owners: dict[int, str] = {}
    vocab = description["model"].get("vocab")
    own = vocab if isinstance(vocab, dict) else {word[0] for word in vocab or ()}
    marks, plain = [], []
    for token in description.get("added_tokens") or []:
        text, i = token["content"], token["id"]
        if texts.setdefault(text, i) != i or owners.setdefault(i, text) != text:
            raise InputError(f"{location}: the added token {text!r} ({i}) shares its id or name; copy the file again")
        if text and is_text(token, text in own):
            plain.append(token)
        elif not text or (len(text) == 1 and isinstance(vocab, dict) and text in vocab):
            raise InputError(
                f"{location}: the added token {text!r} is an ordinary letter of text; remove it from the file"
            )
        else:
            marks.append(token)
    return marks, plain


def _hidden(description: dict[str, Any], text_tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The added tokens of a copy that finds those that are text, and gives them the ids of the file.

    The others are kept, for ids go by the order of all, and called special, as which the library can pass them over.
    """
    ids = {token["id"] for token in text_tokens}
    return [token | {"special": token["id"] not in ids} for token in description["added_tokens"]] if ids else []


def _without_prefix(node: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no blank before the first word."""
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return None
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in node else "pretokenizers"
        inner = [_without_prefix(item) for item in node.get(key, [])]
        return node | {key: [item for item in inner if item is not None]}
    if kind == "ByteLevel":
        return node | {"add_prefix_space": False}
    if kind == "Metaspace":
        rest = {name: value for name, value in node.items() if name != "add_prefix_space"}
        return rest | {"prepend_scheme": "never"}
    return node


def _is_first_only(description: dict[str, Any]) -> bool:
    """Whether the only blank that is put before a text stands before the very first one."""
    schemes = {
        node.get("prepend_scheme") for node in _nodes(description["pre_tokenizer"]) if node["type"] == "Metaspace"
    }
    normalizers = {node["type"] for node in _nodes(description["normalizer"])}
    return schemes == {"first"} and "Prepend" not in normalizers


def _nodes(node: Any) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    inner = [n for key in ("normalizers", "pretokenizers") for item in node.get(key, []) for n in _nodes(item)]
    return [node, *inner]
