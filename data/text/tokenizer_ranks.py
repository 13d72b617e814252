"""Meta's own Llama-3 tokenizer.model: base64 byte strings with their ranks (tiktoken's form), as a tokenizer.json.

Any two neighbours whose bytes together have a rank are merged, lowest rank first. That is a BPE whose merges are all
splits of every entry into two entries, in the order of ranks; `tokenizers` runs it, and the ids are tiktoken's.
The control tokens stand in no file: their names are those of Meta's llama-models (llama3/tokenizer.py, 0.3.0).
"""

import base64
import binascii
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from system import InputError

N_RANKS = 128_000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = [
    "begin_of_text",
    "end_of_text",
    "reserved_special_token_0",
    "reserved_special_token_1",
    "finetune_right_pad_id",
    "step_id",
    "start_header_id",
    "end_header_id",
    "eom_id",
    "eot_id",
    "python_tag",
    "image",
]
CONTROL = [f"<|{name}|>" for name in _NAMED + [f"reserved_special_token_{i}" for i in range(2, 246)]]
BOS, EOS = CONTROL[:2]

# Meta's encode never hands tiktoken more than this at once, so that very long words end at these places.
WINDOW = 400_000
LONGEST_RUN = 25_000


def looks_like_ranks(head: bytes) -> bool:
    """Whether a tokenizer.model that begins so is a rank file."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", head) is not None


def rank_words(path: Path) -> list[str]:
    """The words of a rank file in order of their ranks, spelled as a tokenizer.json does. Raises InputError."""
    letters = _byte_letters()
    return ["".join(letters[b] for b in token) for token in _read(path)]


def read_ranks(path: Path) -> dict[str, Any]:
    """The rank file as the object of a tokenizer.json. Raises InputError, located, for a line that is not one."""
    return _describe(_read(path))


def _read(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            token, expected = base64.b64decode(text, validate=True), len(ranks)
        except (ValueError, binascii.Error):
            raise InputError(f"{path}:{number}: not a base64 token and its rank; copy the file again") from None
        if rank != str(expected).encode() or token in ranks:
            raise InputError(f"{path}:{number}: the token or rank occurs twice or out of order; copy the file again")
        ranks[token] = expected
    if len(ranks) != N_RANKS:
        raise InputError(
            f"{path}: {len(ranks)} ranks, Llama-3 has {N_RANKS}; use the checkpoint's tokenizer.json instead"
        )
    return ranks


def runs_of_text(text: str) -> list[str]:
    """Text cut where Meta's encode cuts it: every WINDOW characters, and inside longer runs of (non-)blanks."""
    if len(text) <= LONGEST_RUN:
        return [text]
    pieces = []
    for start in range(0, len(text), WINDOW):
        window = text[start : start + WINDOW]
        runs = [m.span() for m in re.finditer(rf"\s{{{LONGEST_RUN + 1},}}|\S{{{LONGEST_RUN + 1},}}", window)]
        cuts = [0, *(at for a, b in runs for at in range(a + LONGEST_RUN, b, LONGEST_RUN)), len(window)]
        pieces += [window[a:b] for a, b in pairwise(cuts)]
    return pieces


def _describe(ranks: dict[bytes, int]) -> dict[str, Any]:
    letters = _byte_letters()
    spelled = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = []
    for token in ranks:
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = sorted((ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks)
        merges += [(spelled[a], spelled[b]) for _, _, a, b in known]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(ranks) + i, "content": text, **flags} for i, text in enumerate(CONTROL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {BOS: {"id": BOS, "ids": [len(ranks)], "tokens": [BOS]}},
        },
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that has a rank of its own is that token
            "vocab": {spelled[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: itself where it can be seen (GPT-2's table)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [b for b in range(256) if b not in seen]
    return [chr(b) if b in seen else chr(256 + unseen.index(b)) for b in range(256)]
