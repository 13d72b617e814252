"""Small tokenizers of the form of each family's: the same kinds of added tokens, flags, normalizers and models."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tests import texts, tiny
from tests.data.family_templates import TEMPLATES

WORDS = [
    *texts.LANGUAGES[:20],
    "user assistant system model developer question answer Today Known until be of help Thoughts Tools",
    "[INST] question [/INST] answer <|user|> <|assistant|> <|system|> <b>bold</b> <table><td> <|im_start|>user",
    "def f(x):\n    return x\n\n\n# a  b   c\n",
] * 4
TAGS = ["<b>", "</b>", "<table>", "</table>", "<td>", "<br>"]
NEWLINES = ["\n" * n for n in range(1, 9)]
BLANKS = ["\u2581" * n for n in range(2, 9)]
THOUGHTS = ["<think>", "</think>"]
CALLS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
QWEN_SPLIT = tiny.LLAMA3_SPLIT.replace("{1,3}", "")


class Token(NamedTuple):
    """An added token. eats: blanks on its "left" and "right" side; own: its place in the model's vocabulary too."""

    content: str
    special: bool = True
    eats: str = ""
    normalized: bool = False

    def entry(self, i: int) -> dict[str, Any]:
        """As tokenizer.json has it."""
        eats = {"lstrip": "left" in self.eats, "rstrip": "right" in self.eats}
        named = {"content": self.content, "special": self.special, "normalized": self.normalized}
        return {"id": i, "single_word": False, **named, **eats}


def specials(*contents: str, eats: str = "") -> list[Token]:
    return [Token(content, eats=eats) for content in contents]


def plain(contents: Sequence[str], *, normalized: bool = False) -> list[Token]:
    """Added tokens that are not special."""
    return [Token(content, special=False, normalized=normalized) for content in contents]


@functools.lru_cache(maxsize=4)
def _trained_on_bytes(split: str) -> str:
    """A byte-level BPE, as JSON."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer.to_str()


def byte_level(added: Sequence[Token], *, split: str = tiny.LLAMA3_SPLIT, form: str | None = None) -> dict[str, Any]:
    """A byte-level BPE, whose added tokens stand behind its vocabulary. form: of Unicode, to which text is brought."""
    made = json.loads(_trained_on_bytes(split))
    first = len(made["model"]["vocab"])
    made["added_tokens"] = [token.entry(first + i) for i, token in enumerate(added)]
    made["normalizer"] = None if form is None else {"type": form}
    made["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return made


@functools.lru_cache(maxsize=1)
def _trained_on_letters() -> str:
    """A BPE of words that begin with \u2581, as JSON."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    return tokenizer.to_str()


def pieces(
    before: Sequence[Token], *, defined: Sequence[Token] = (), behind: Sequence[Token] = (), prefix: bool
) -> dict[str, Any]:
    """A BPE of sentencepiece's form as converters write it: bytes for letters that it lacks, \u2581 for a blank.

    before: control tokens with the first ids; defined: pieces that somebody defined, words of the vocabulary and added
    tokens; behind: added tokens with the last ids. prefix: whether a blank is put before each text (Llama-2's form),
    or none (Gemma's).
    """
    trained = json.loads(_trained_on_letters())["model"]
    words = [token.content for token in (*before, *defined)] + [f"<0x{i:02X}>" for i in range(256)]
    runs = [(run[: len(run) // 2], run[len(run) // 2 :]) for run in (*BLANKS, *NEWLINES) if len(run) > 1]
    merges = [*trained["merges"], *(list(m) for m in runs if {*m, m[0] + m[1]} <= {*words, "\u2581"})]
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*words, *trained["vocab"]]))}
    added = [token.entry(vocab[token.content]) for token in (*before, *defined)]
    added += [token.entry(len(vocab) + i) for i, token in enumerate(behind)]
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    back = [blank | {"pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, blank]} if prefix else blank,
        "pre_tokenizer": None if prefix else split,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*back, strip] if prefix else back},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _with_bos(made: dict[str, Any], bos: str) -> dict[str, Any]:
    """A tokenizer that puts BOS before every text."""
    i = next(token["id"] for token in made["added_tokens"] if token["content"] == bos)
    text, start = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": bos, "type_id": 0}}
    both = [start, text, {"Sequence": {"id": "B", "type_id": 1}}]
    known = {bos: {"id": bos, "ids": [i], "tokens": [bos]}}
    kind = {"type": "TemplateProcessing", "single": [start, text], "pair": both, "special_tokens": known}
    return made | {"post_processor": kind}


def gemma() -> dict[str, Any]:
    """Gemma's: runs of newlines and blanks and HTML tags are added tokens, and words of the vocabulary."""
    before = specials("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    return _with_bos(pieces(before, defined=plain(["<unused0>", *NEWLINES, *BLANKS, *TAGS]), prefix=False), "<bos>")


def _llama2(*marks: Token, behind: Sequence[Token] = ()) -> dict[str, Any]:
    return _with_bos(pieces([*specials("<unk>", "<s>", "</s>"), *marks], behind=behind, prefix=True), "<s>")


MISTRAL_MARKS = [
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
]


def _tekken(*more: str) -> dict[str, Any]:
    return _with_bos(byte_level(specials("<unk>", "<s>", "</s>", *MISTRAL_MARKS, *more)), "<s>")


def _phi3() -> dict[str, Any]:
    turns = specials("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", eats="right")
    made = pieces([*specials("<unk>", "<s>"), Token("</s>", special=False, eats="right")], behind=turns, prefix=True)
    return made


def _chatml(*more: Token, **options: Any) -> dict[str, Any]:
    return byte_level([*specials("<|endoftext|>", "<|im_start|>", "<|im_end|>"), *more], **options)


def _tokenizer(name: str) -> tuple[dict[str, Any], str, str]:
    """The tokenizer.json of a family, its BOS ("" for none) and its EOS."""
    end = "<|endoftext|>"
    if name.startswith("Gemma"):
        return gemma(), "<bos>", "<eos>"
    if name.startswith("Mistral"):
        control = {"Mistral v1": _llama2, "Mistral v3": lambda: _llama2(*specials(*MISTRAL_MARKS))}
        tekken = {"Mistral tekken": _tekken, "Mistral v7": lambda: _tekken("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")}
        return (control | tekken)[name](), "<s>", "</s>"
    if name.startswith(("Qwen", "SmolLM3")):
        split = QWEN_SPLIT if "Qwen" in name else tiny.LLAMA3_SPLIT
        form = "NFC" if "Qwen" in name else None
        return _chatml(*plain([*THOUGHTS, *CALLS]), split=split, form=form), "", "<|im_end|>"
    if name.startswith("Granite"):
        return byte_level(specials("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")), "", "<|end_of_text|>"
    if name == "OLMo 2":  # GPT-NeoX's form: runs of blanks behind the vocabulary, normalized
        runs = plain([" " * n for n in range(24, 1, -1)] + ["\t\t"], normalized=True)
        return byte_level([*specials(end), *runs, *plain(["|||IP|||"])], form="NFC"), end, end
    if name.startswith("OLMo 3"):
        return _chatml(*plain(["<functions>", "</functions>"])), end, "<|im_end|>"
    if name == "Phi-3":
        return _phi3(), "<s>", end
    if name == "Phi-4":
        return (
            byte_level(specials(end, "<|im_start|>", "<|im_end|>", "<|im_sep|>", eats="left right")),
            end,
            "<|im_end|>",
        )
    if name == "Phi-4 mini":
        turns = specials("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|tool|>", "<|/tool|>", eats="right")
        return byte_level([*specials(end), *turns]), end, end
    if name == "EXAONE 4":
        roles = specials("[BOS]", "[|endofturn|]", "[|user|]", "[|assistant|]", "[|system|]", "[|tool|]")
        return (
            byte_level([*roles, *plain([*THOUGHTS, "<tool_result>", "</tool_result>"])], form="NFC"),
            "[BOS]",
            ("[|endofturn|]"),
        )
    marks = [f"<|{role}_{side}|>" for role in ("system", "developer", "user", "assistant") for side in ("start", "end")]
    return _with_bos(byte_level(specials("<s>", "</s>", *marks)), "<s>"), "<s>", "<|assistant_end|>"


def write(folder: Path, name: str) -> Path:
    """A checkpoint folder's tokenizer and chat template, of a family."""
    folder.mkdir(exist_ok=True)
    made, bos, eos = _tokenizer(name)
    (folder / "tokenizer.json").write_text(json.dumps(made))
    names = {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"} | ({"bos_token": bos} if bos else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    return folder
