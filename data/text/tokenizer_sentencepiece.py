"""A sentencepiece tokenizer.model (Llama-2's and Mistral's form) as a coder of plain text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from system import InputError, cli

_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece  # pyright: ignore[reportAttributeAccessIssue]


def pieces_of(path: Path) -> list[str]:
    """The pieces of a sentencepiece model, in order of their ids. Raises InputError where it is none."""
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    except (DecodeError, OSError) as fault:
        raise InputError(f"{path}: not a sentencepiece model ({fault}); copy it again") from None
    return [piece.piece for piece in model.pieces]


Prefix = Literal["always", "first", "never"]
"""always: before each text between control tokens, as Meta and Mistral do. first: before the one with which everything
begins."""


def prefix_of(config: Mapping[str, Any], folder: Path) -> Prefix:
    """What a tokenizer_config.json says of it, as transformers reads it; where it says nothing, "always", and that is
    said: transformers 4 takes legacy for true then, and 5 for false.
    """
    if config.get("add_prefix_space") is False:
        return "never"
    if config and "legacy" not in config:
        cli.notify_once(
            f"{folder}: tokenizer_config.json says nothing of legacy: a blank is put before each text between control "
            "tokens, as Meta and transformers 4 do; with legacy: false before the first alone, as transformers 5 does"
        )
    return "always" if config.get("legacy", True) else "first"


class SentencePieceCoder:
    """Text to ids by the `sentencepiece` library, with every piece that is not text made a control symbol.

    The library never makes a control symbol of text, but a user-defined one it does: so those that are words (<tool>,
    [INST]) are turned into the former. Single letters and blanks that somebody defined are text like any other. A
    second copy puts no blank before a text: for text that goes on in the middle of a sentence.
    """

    def __init__(self, path: Path, prefix: Prefix = "always") -> None:
        """prefix: before which texts a blank is put. Raises InputError where the file is not a sentencepiece model."""
        self.prefixes_after_control = prefix == "always"
        self.text_tokens: list[dict[str, Any]] = []
        try:
            model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
            if not model.pieces or not model.HasField("trainer_spec"):
                raise ValueError("it holds no pieces")
            kinds = {i: piece.type for i, piece in enumerate(model.pieces)}
            self.tokens: list[dict[str, Any]] = [
                {"id": i, "content": model.pieces[i].piece, "special": kind != _Piece.USER_DEFINED}
                for i, kind in kinds.items()
                if kind in (_Piece.CONTROL, _Piece.UNKNOWN)
                or (kind == _Piece.USER_DEFINED and len(model.pieces[i].piece.strip(" \n\t\r\u2581")) > 1)
            ]
            for token in self.tokens:
                if not token["special"]:
                    model.pieces[token["id"]].type = _Piece.CONTROL
            plain = _make(model)
            model.normalizer_spec.add_dummy_prefix = False
            self._bare = _make(model)
            self._plain = self._bare if prefix == "never" else plain
        except (DecodeError, RuntimeError, ValueError, OSError) as fault:
            raise InputError(
                f"{path}: neither a sentencepiece model nor ranks as Llama-3's ({' '.join(str(fault).split())}); "
                "copy it again"
            ) from None
        self.n_ids = len(model.pieces)
        self.ids = frozenset(range(self.n_ids))
        self._control = {t["id"]: t["content"] for t in self.tokens}
        names = {
            "bos_token": self._plain.bos_id(),
            "eos_token": self._plain.eos_id(),
            "unk_token": self._plain.unk_id(),
        }
        self.names = {name: self._control[i] for name, i in names.items() if i in self._control}
        """The spellings of bos_token, eos_token and unk_token."""

    def id_of(self, text: str) -> int | None:
        """The id of the token of that spelling."""
        found = self._plain.piece_to_id(text)
        return found if self._plain.id_to_piece(found) == text else None

    def words(self) -> dict[int, str]:
        """Every token by its id, spelled as in the file."""
        return {i: self._plain.id_to_piece(i) for i in range(self.n_ids)}

    def encode(self, texts: Sequence[str], *, goes_on: bool) -> list[list[int]]:
        """Ids of each text. goes_on: it follows other text, so that no blank is put before it."""
        return (self._bare if goes_on else self._plain).encode(list(texts), out_type=int)

    def offsets(self, text: str, *, goes_on: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and where each begins and ends in it, in characters."""
        found = (self._bare if goes_on else self._plain).encode_as_offset_mapping(text)
        return found["ids"], found["offsets"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens."""
        return self._plain.decode([i for i in ids if i < self.n_ids and i not in self._control])


def _make(model: Any) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
