"""A checkpoint's own tokenizer, in which text stays text.

A tokenizer file turns the spelling of a control token into the control token wherever it stands, in a user's text
too. Here text is encoded by a copy of the tokenizer that has no added tokens, and control ids are placed by whoever
renders a template (data/chat.py). Ids of added tokens can therefore not be written by text.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from data.errors import InputError

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


class Tokenizer:
    """The tokenizer of a Hugging Face folder with a tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder has no tokenizer.json, or it or tokenizer_config.json cannot be read."""
        self.folder = folder
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{folder}: no tokenizer.json; bring the checkpoint's own, or rows of token ids")
        description = read_json(path)
        try:
            self._full = tokenizers.Tokenizer.from_str(json.dumps(description))
            self._plain = tokenizers.Tokenizer.from_str(
                json.dumps(
                    description | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
                )
            )
        except Exception as fault:  # the library raises bare Exception
            raise InputError(f"{path}: not a tokenizer ({fault}); copy it anew") from None
        self.config = (
            read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        )
        self.added: dict[str, int] = {t["content"]: t["id"] for t in description.get("added_tokens", [])}
        self._added_ids = {i: text for text, i in self.added.items()}
        eats = {t["content"]: (r"\s*" * t["lstrip"], r"\s*" * t["rstrip"]) for t in description.get("added_tokens", [])}
        longest_first = sorted(self.added, key=len, reverse=True)
        self._control = re.compile(
            "|".join(eats[t][0] + f"({re.escape(t)})" + eats[t][1] for t in longest_first) or r"(?!)"
        )
        self.n_ids = 1 + max(max(self._full.get_vocab().values(), default=-1), max(self.added.values(), default=-1))
        self.bos_id = self._named("bos_token")
        self.eos_id = self._named("eos_token")
        self.adds_bos = self.bos_id is not None and self._full.encode("").ids[:1] == [self.bos_id]

    def _named(self, name: str) -> int | None:
        """The id of the token that tokenizer_config.json calls `name`."""
        value = self.config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return None if text is None else self._full.token_to_id(text)

    def text_of(self, name: str) -> str:
        """The spelling of "bos_token", "eos_token" ... for a template; "" where there is none."""
        value = self.config.get(name)
        return (value.get("content") if isinstance(value, dict) else value) or ""

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

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, none of them an added token's, whatever the text spells."""
        encoded = [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]
        for i, ids in enumerate(encoded):
            if not self._added_ids.keys().isdisjoint(ids):  # in the model's own vocabulary too: cut the spelling in two
                encoded[i] = self._encode_apart(texts[i])[0]
        return encoded

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` begins and ends, in characters."""
        return self._encode_apart(text)[1]

    def _encode_apart(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets of `text`, cut in two inside the spelling of each added token that comes out."""
        encoded = self._plain.encode(text, add_special_tokens=False)
        found = next((self._added_ids[i] for i in encoded.ids if i in self._added_ids), None)
        if found is None:
            return encoded.ids, encoded.offsets
        at = text.find(found)
        if at < 0 or len(found) < 2:
            raise InputError(
                f"{self.folder}: the text {text[:40]!r} cannot be encoded without the control token {found!r}"
            )
        middle = at + len(found) // 2
        (left, at_left), (right, at_right) = self._encode_apart(text[:middle]), self._encode_apart(text[middle:])
        return left + right, at_left + [(begin + middle, end + middle) for begin, end in at_right]

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of token ids, without control tokens unless asked for; always valid Unicode."""
        return self._full.decode(list(ids), skip_special_tokens=skip_control)


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises InputError where it is missing or holds anything else."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is the checkpoint complete?") from None
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: not JSON ({fault}); copy it anew") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, not an object; copy it anew")
    return value
