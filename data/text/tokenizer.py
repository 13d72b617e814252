"""A checkpoint's own tokenizer, in which text stays text.

    tokenizer.json                             data/text/tokenizer_json.py
    tokenizer.model, sentencepiece's           data/text/tokenizer_sentencepiece.py     Llama-2, Mistral
    tokenizer.model, ranks in tiktoken's form  data/text/tokenizer_ranks.py             Meta's Llama-3

A tokenizer file turns the spelling of a control token into the control token wherever it stands, in a user's text
too. Here text is encoded without any added token, and control ids are placed by whoever renders a template
(data/text/chat.py). Ids of added tokens can therefore not be written by text, but for those that the checkpoint does
not call special: <think>, <tool_call> are what an assistant says, and what is decoded keeps their spelling; runs of
newlines, HTML tags are words like any other, whoever says them (data/text/plain_tokens.py).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from data.text.json_files import existing, read_json
from data.text.plain_tokens import is_written, text_unless_written
from data.text.tokenizer_folder import (
    names_of_class,
    say_differences,
    say_if_vocabularies_differ,
    special_names,
    spelling,
)
from data.text.tokenizer_json import JsonCoder
from data.text.tokenizer_ranks import BOS, EOS, looks_like_ranks, read_ranks, runs_of_text
from data.text.tokenizer_sentencepiece import SentencePieceCoder, prefix_of
from system import InputError, cli

LONGEST_KEPT, MOST_KEPT = 200, 1024
"""Of a template's own texts, those whose cuts at control tokens are remembered: letters of one, and how many."""


class _Coder(Protocol):
    """One of the three kinds of tokenizer file, as a coder of plain text."""

    tokens: list[dict[str, Any]]
    """Tokens that are not text: {"id", "content", ...}, "lstrip" and "rstrip" where they eat blanks."""
    text_tokens: list[dict[str, Any]]
    """Added tokens that are text."""
    n_ids: int
    ids: frozenset[int]
    """Those that stand for something."""
    prefixes_after_control: bool

    def id_of(self, text: str) -> int | None: ...

    def words(self) -> dict[int, str]: ...

    def encode(self, texts: Sequence[str], *, goes_on: bool) -> list[list[int]]: ...

    def offsets(self, text: str, *, goes_on: bool) -> tuple[list[int], list[tuple[int, int]]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Tokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, folder: Path, templates: Sequence[str] = (), *, model: Path | None = None) -> None:
        """templates: texts of the chat templates that write what it encodes. model: the folder of the model that it is
        of, where that is another: an adapter's base.

        Raises InputError where the folder has no tokenizer, or one of its files cannot be used.
        """
        self.folder, self._templates = folder, tuple(templates)
        self.model = model or folder
        """The folder that says at which ids sampling stops, and has a template where its own has none."""
        self.config = _read_config(folder)
        self.files: dict[str, str] = {}
        """Files that the folder lacks and that transformers and vLLM need beside it, by name."""
        by_map = special_names(folder, self.config)
        self._coder, names = self._open(_named_tokens(folder, self.config | by_map))
        self.config |= by_map
        say_differences(folder, self.config)
        for name, text in names.items():
            self.config.setdefault(name, text)
        tokens = _all_tokens(folder, self.config, self._coder)
        self.added: dict[str, int] = {t["content"]: t["id"] for t in tokens}
        self._added_ids = {i: text for text, i in self.added.items()}
        named = _named_tokens(folder, self.config)
        self.special = {t["content"]: t["id"] for t in tokens if t.get("special") or t["content"] in named}
        """Those of the added tokens that no text stands for: placed by templates alone, and left out of what is
        decoded."""
        self._special_ids = frozenset(self.special.values())
        self._eats = {t["id"]: (bool(t.get("lstrip")), bool(t.get("rstrip"))) for t in tokens}
        self._spoken_ids = frozenset(self.added.values()) - self._special_ids
        self._controls = _Spelled.of(tokens)
        self._known_cuts: dict[str, list[str | int]] = {}
        self._spoken = _Spelled.of([t for t in tokens if t["content"] not in self.special])
        self.control = self._controls.pattern
        self.control_special = _Spelled.of([t for t in tokens if t["content"] in self.special]).pattern
        """What spells any added token, and what spells a special one."""
        self.n_ids = max(self._coder.n_ids, 1 + max(self.added.values(), default=-1))
        self.bos_id = self._named("bos_token")
        self.eos_id = self._named("eos_token")
        self._say_what_is_no_token()
        first = self._coder.first_id if isinstance(self._coder, JsonCoder) else None
        adds = first == self.bos_id if isinstance(self._coder, JsonCoder) else self.config.get("add_bos_token", True)
        self.adds_bos = self.bos_id is not None and bool(adds)
        self.prefixes_after_control = self._coder.prefixes_after_control
        """Whether a text behind a control token gets the blank that stands before a first word."""

    def _open(self, named: set[str]) -> tuple[_Coder, dict[str, str]]:
        """The coder, and names of control tokens that the kind of file brings. named: those that other files name."""
        description, model = (existing(self.folder / name) for name in ("tokenizer.json", "tokenizer.model"))
        if description is not None:
            read = read_json(description)
            coder = JsonCoder(read, description, is_text=text_unless_written(named, self._templates))
            if model is not None:
                say_if_vocabularies_differ(read, model)
            return coder, names_of_class(self.config, is_byte_level=coder.is_byte_level)
        if model is None:
            raise InputError(
                f"{self.folder}: neither tokenizer.json nor tokenizer.model; add the checkpoint's own, or give rows of "
                "token ids"
            )
        with open(model, "rb") as file:
            head = file.read(4096)
        if head.startswith(b"version https://git-lfs"):
            raise InputError(f"{model}: a Git LFS pointer, not the file; run git lfs pull in its folder")
        if not looks_like_ranks(head):
            coder = SentencePieceCoder(model, prefix_of(self.config, self.folder))
            return coder, coder.names
        made = read_ranks(model)
        names = {"bos_token": BOS, "eos_token": EOS}
        self.files["tokenizer.json"] = json.dumps(made, ensure_ascii=False)
        if not self.config:
            whole = names | {"tokenizer_class": "PreTrainedTokenizerFast"}
            self.files["tokenizer_config.json"] = json.dumps(whole, indent=2) + "\n"
        return JsonCoder(made, model, runs_of_text), names

    def written_by(self, templates: Sequence[str]) -> "Tokenizer":
        """This tokenizer where templates write the conversations: a token that one of them spells is no text."""
        texts = [t["content"] for t in self._coder.text_tokens if len(t["content"].strip()) > 1]
        if not any(is_written(text, templates) for text in texts):
            return self
        return Tokenizer(self.folder, (*self._templates, *templates), model=self.model)

    def _named(self, name: str) -> int | None:
        """The id of the token that tokenizer_config.json calls `name`."""
        return self.added.get(self.text_of(name))

    def _say_what_is_no_token(self) -> None:
        for name, i in (("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            if i is None and (text := self.text_of(name)):
                cli.notify_once(
                    f"{self.folder}: the {name} {text!r} is no token of the tokenizer's files, and stays text; "
                    "transformers gives it an id behind all others, for which the model may have no row"
                )

    def text_of(self, name: str) -> str:
        """The spelling of "bos_token", "eos_token" ... for a template; "" where there is none."""
        return spelling(self.config.get(name))

    def words(self) -> dict[int, str]:
        """Every token by its id, spelled as in the files: what two tokenizers of one vocabulary have in common."""
        return self._coder.words() | self._added_ids

    def names(self) -> dict[str, str]:
        """What a template sees by name: bos_token, eos_token, pad_token and unk_token, "" where there is none, and
        every other token that tokenizer_config.json names (sep_token, eot_token, extra_special_tokens by name).
        """
        more = self.config.get("extra_special_tokens")
        given = {name: value for name, value in self.config.items() if name.endswith("_token")}
        given |= more if isinstance(more, Mapping) else {}
        spelled = {name: spelling(value) for name, value in given.items()}
        always = {name: self.text_of(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return {name: text for name, text in spelled.items() if text} | always

    def normalized_in(self, text: str) -> int | None:
        """The first `normalized` token that a template's text spells: the normalizer sees it together with the text
        around it. None where there is none.
        """
        decoder = self.config.get("added_tokens_decoder") or {}  # goes before tokenizer.json
        says_no = {int(i) for i, token in decoder.items() if isinstance(token, Mapping) and not token.get("normalized")}
        asked = {t["id"] for t in self._coder.tokens if t.get("normalized")} - says_no
        return next((piece for piece in self.split_control(text) if piece in asked), None) if asked else None  # pyright: ignore[reportReturnType]

    def encode_whole(self, text: str) -> list[int] | None:
        """Ids of a template's text as transformers gives them; None where the file is none of its own."""
        return self._coder.encode_whole(text) if isinstance(self._coder, JsonCoder) else None

    def split_control(self, text: str) -> list[str | int]:
        """A template's own text cut into runs of text and the ids of the control tokens between them."""
        if len(text) > LONGEST_KEPT:
            return self._split(text, self._controls)
        if text not in self._known_cuts:  # a template writes the same few texts in every row
            if len(self._known_cuts) >= MOST_KEPT:
                self._known_cuts.clear()
            self._known_cuts[text] = self._split(text, self._controls)
        return list(self._known_cuts[text])

    def split_spoken(self, text: str) -> list[str | int]:
        """What an assistant says cut into runs of text and the ids of added tokens that are not special."""
        return self._split(text, self._spoken)

    def _split(self, text: str, spelled: "_Spelled") -> list[str | int]:
        if not spelled.may_be_in(text):
            return [text] if text else []
        pieces: list[str | int] = []
        end = 0
        for match in spelled.pattern.finditer(text):
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
        """Ids and offsets of `text`, cut in two inside every spelling of the added tokens that come out."""
        pieces = [text]
        while True:
            made = [self._coder.offsets(p, goes_on=goes_on or n > 0) for n, p in enumerate(pieces)]
            found = {self._added_ids[i] for ids, _ in made for i in ids if i in self._added_ids}
            if not found:
                break
            smaller = [part for piece in pieces for part in _cut_inside(piece, found)]
            if len(smaller) == len(pieces):
                raise self._no_token(pieces, made)
            pieces = smaller
        ids, spans, start = [], [], 0
        for piece, (some, offsets) in zip(pieces, made, strict=True):
            ids += some
            spans += [(begin + start, end + start) for begin, end in offsets]
            start += len(piece)
        return ids, spans

    def _no_token(self, pieces: Sequence[str], made: Sequence[tuple[list[int], list[tuple[int, int]]]]) -> InputError:
        """What is said where a token comes out that no spelling in the text explains: the sign for the unknown."""
        for piece, (ids, spans) in zip(pieces, made, strict=True):
            for i, (begin, end) in zip(ids, spans, strict=True):
                if i in self._added_ids:
                    part = piece[begin:end]
                    return InputError(f"the tokenizer in {self.folder} has no token for {part!r}; change the text")
        raise AssertionError("called where there is one")

    def is_control(self, token: int) -> bool:
        """Whether a token is an added one: placed by a template, or one that only an assistant's text can stand for."""
        return token in self._added_ids

    def ids_without_token(self, n_ids: int) -> list[int]:
        """Those below n_ids that stand for nothing: rows by which a model's vocabulary is padded."""
        return [i for i in range(n_ids) if i not in self._coder.ids and i not in self._added_ids]

    def is_spoken(self, token: int) -> bool:
        """Whether a token is an added one that is not special: it is written by what an assistant says."""
        return token in self._spoken_ids

    def eats(self, token: int) -> tuple[bool, bool]:
        """Whether an added token takes the blanks before it away, and those behind it."""
        return self._eats[token]

    def spelling(self, token: int) -> str:
        """An added token as templates write it."""
        return self._added_ids[token]

    def text_of_tokens(self, ids: Sequence[int]) -> str:
        """The text of ids in the middle of a text, the blank before a word included; U+FFFD for half a letter."""
        if self._spoken_ids.isdisjoint(ids):
            return self._text_behind(ids)
        before = self._coder.encode(["a"], goes_on=True)[0]
        return self.decode([*before, *ids])[len(self.decode(before)) :]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids without special tokens; always valid Unicode.

        Added tokens that are not special are spelled: encoded as what an assistant says, the text gives the same ids.
        """
        ids = [i for i in ids if i not in self._special_ids]
        if self._spoken_ids.isdisjoint(ids):
            return self._coder.decode(ids)
        made: list[str] = []
        run: list[int] = []

        def close() -> None:
            if run:
                is_first = not made or self.prefixes_after_control
                made.append(self._coder.decode(run) if is_first else self._text_behind(run))
                run.clear()

        for i in ids:
            if i in self._spoken_ids:
                close()
                made.append(self._added_ids[i])
            else:
                run.append(i)
        close()
        return "".join(made)

    def _text_behind(self, ids: Sequence[int]) -> str:
        """The text of ids that follow others, the blank before a word included."""
        before = self._coder.encode(["a"], goes_on=True)[0]
        return self._coder.decode([*before, *ids])[len(self._coder.decode(before)) :]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer file of a kind that is known here, be it broken."""
    return any(os.path.lexists(folder / name) for name in ("tokenizer.json", "tokenizer.model"))


def _cut_inside(text: str, spellings: set[str]) -> list[str]:
    """Text cut in the middle of each of the spellings in it."""
    longest_first = sorted((s for s in spellings if len(s) > 1), key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
    cuts = [0, *((m.start() + m.end()) // 2 for m in re.finditer(pattern, text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


class _Spelled(NamedTuple):
    """How some tokens are found in a text."""

    pattern: re.Pattern[str]
    """Matches any of them, the longest first, and the blanks that it eats, beside which the token is a group. There are
    no other groups: spellings that begin alike are looked for together then, be they hundreds."""
    starts: tuple[str, ...]
    """The first letters of all: most texts hold none of these, and looking for them is many times as fast."""

    @staticmethod
    def of(tokens: Sequence[Mapping[str, Any]]) -> "_Spelled":
        """Tokens as a coder has them."""
        longest_first = sorted({t["content"]: t for t in tokens}.values(), key=lambda t: -len(t["content"]))
        spellings = []
        for token in longest_first:
            spelling, (before, behind) = re.escape(token["content"]), (token.get(s) for s in ("lstrip", "rstrip"))
            eats = before or behind
            spellings.append(
                (r"\s*" if before else "") + (f"({spelling})" if eats else spelling) + (r"\s*" if behind else "")
            )
        starts = sorted({t["content"][:2] for t in longest_first})
        return _Spelled(re.compile("|".join(spellings) or r"(?!)"), tuple(starts))

    def may_be_in(self, text: str) -> bool:
        """Whether a text can hold one of them."""
        return any([start in text for start in self.starts])


def _named_tokens(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Spellings of tokens that tokenizer_config.json or special_tokens_map.json gives a part to: transformers makes
    them special.
    """
    beside = existing(folder / "special_tokens_map.json")
    values: list[Any] = []
    for file in (config, read_json(beside) if beside else {}):
        values += [file.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")]
        for name in ("additional_special_tokens", "extra_special_tokens"):
            more = file.get(name) or []
            values += more.values() if isinstance(more, Mapping) else more if isinstance(more, list) else []
    texts = (value.get("content") if isinstance(value, Mapping) else value for value in values)
    return {text for text in texts if isinstance(text, str)}


def _all_tokens(folder: Path, config: dict[str, Any], coder: _Coder) -> list[dict[str, Any]]:
    """The tokens that are no text: the coder's, those that other files add, and those that tokenizer_config.json calls
    BOS, EOS and so on.
    """
    has_json = (folder / "tokenizer.json").exists()  # which knows better than the files beside it
    tokens: dict[int, dict[str, Any]] = {t["id"]: t for t in (*coder.tokens, *coder.text_tokens)}
    for token in _tokens_beside(folder, config):
        i, text = token["id"], token["content"]
        if not has_json or i not in tokens:
            if has_json:
                _check_is_free(folder, token, coder)
            tokens[i] = token
        elif (own := tokens[i]["content"]) != text:
            cli.notify_once(
                f"{folder}: token {i} is {own!r} in tokenizer.json, which counts, and {text!r} in the files beside it"
            )
    texts = [token["content"] for token in tokens.values()]
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        text = spelling(config.get(name))
        i = coder.id_of(text) if text and text not in texts else None
        if i is not None and i not in tokens and len(text) > 1:
            tokens[i] = {"id": i, "content": text}
            texts.append(text)
    if twice := sorted(text for text in set(texts) if texts.count(text) > 1):
        raise InputError(f"{folder}: the added token {twice[0]!r} has two ids; copy the tokenizer's files again")
    text_ids = {token["id"] for token in coder.text_tokens}
    return [token for i, token in tokens.items() if i not in text_ids]


def _check_is_free(folder: Path, token: Mapping[str, Any], coder: _Coder) -> None:
    """Raises InputError where tokenizer.json has a word of text at the id that other files give to a token."""
    word = coder.word_of(token["id"]) if isinstance(coder, JsonCoder) else None
    if word not in (None, token["content"]):
        raise InputError(
            f"{folder}: token {token['id']} is the text {word!r} in tokenizer.json, and the added token "
            f"{token['content']!r} in added_tokens.json or tokenizer_config.json; copy the tokenizer's files again"
        )


def _tokens_beside(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """What added_tokens.json and tokenizer_config.json add. Raises InputError where an entry cannot be."""
    path = existing(folder / "added_tokens.json")
    entries: list[tuple[Any, Any]] = [(i, {"content": t}) for t, i in read_json(path).items()] if path else []
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise InputError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is not an object; copy it again")
    entries += [(int(i) if re.fullmatch("[0-9]{1,9}", i) else i, token) for i, token in decoder.items()]
    for i, token in entries:
        text = token.get("content") if isinstance(token, dict) else None
        if type(i) is not int or not 0 <= i < 2**31 or not isinstance(text, str) or not text:
            raise InputError(
                f"{folder}: the added token {text!r} ({i!r}) is not valid; copy the tokenizer's files again"
            )
    return [token | {"id": i} for i, token in entries]


def _read_config(folder: Path) -> dict[str, Any]:
    path = existing(folder / "tokenizer_config.json")
    return {} if path is None else read_json(path)
