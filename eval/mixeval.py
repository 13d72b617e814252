"""MixEval-Hard, as its own programs score it (Ni et al., 2024; arXiv 2406.06565), as pure functions.

    read_wording(checkout)     the words of prompts and judge requests, read from the user's checkout, never executed
    format_prompt(entry)       what a model is asked
    judge_messages(entry)      what the judge is asked about its answer
    parse_score, parse_option  what the judge says
    aggregate(scores)          the tables: of the paper's time, and merged

An entry is a value of the checkout's free-form.json or multiple-choice.json: "prompt", "context", "options", "target",
"benchmark_name". Nothing of MixEval is part of this project.
"""

import ast
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from system import InputError

Split = Literal["free-form", "multiple-choice"]
Mode = Literal["merged", "table4_compat"]
SPLITS: tuple[Split, Split] = ("free-form", "multiple-choice")

PROMPTS, JUDGE = "mix_eval/prompts/evaluation_prompts.py", "mix_eval/prompts/judge_prompts.py"
SUFFIXES = {"": "FREE_FORM_PROMPT"} | {name: f"FREE_FORM_PROMPT_{name}" for name in ("BBH", "GSM8k", "MATH")}
REQUESTS = {
    "free-form": "gpt_judge_for_closeended_freeform",
    "multiple-choice": "gpt_judge_for_closeended_multiplechoice",
}
SLOTS = {"free-form": ("prompt", "gold_ans", "response"), "multiple-choice": ("prompt", "options", "response")}


class Slot(str):
    """The name of a value in a request's text."""


class Wording(NamedTuple):
    """The words of a checkout."""

    multiple_choice: str
    """The last line of a question with options."""
    free_form: dict[str, str]
    """The last lines of a question without, by benchmark; "" for all others."""
    judge: dict[str, tuple[tuple[str, tuple[str, ...]], ...]]
    """By split: (role, text in pieces, some of them Slots) of each message."""
    sha256: str
    """Of all of it."""


def read_wording(checkout: str | Path) -> Wording:
    """The wording in a checkout of MixEval. Its two files of Python are parsed, never executed.

    Raises InputError where they are not there, or not of the form that is known.
    """
    root = Path(checkout)
    prompts, judge = _assigned(root / PROMPTS), _assigned(root / JUDGE)
    free_form = {name: _text(prompts, constant, root / PROMPTS) for name, constant in SUFFIXES.items()}
    requests = {split: _request(judge, name, root / JUDGE, SLOTS[split]) for split, name in REQUESTS.items()}
    multiple_choice = _text(prompts, "MULTI_CHOICE_PROMPT", root / PROMPTS)
    named = repr((multiple_choice, sorted(free_form.items()), sorted(requests.items())))
    return Wording(multiple_choice, free_form, requests, hashlib.sha256(named.encode()).hexdigest())


def _assigned(path: Path) -> dict[str, ast.expr]:
    """The expressions that are assigned to names at a file's top."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "not Python"
        raise InputError(f"{path}: cannot be read ({why}); give the folder of a MixEval checkout") from None
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    return {node.targets[0].id: node.value for node in assigned}  # pyright: ignore[reportAttributeAccessIssue]


def _text(assigned: dict[str, ast.expr], name: str, path: Path) -> str:
    value = assigned.get(name)
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        raise InputError(f"{path}: {name} is not a text in it; give a checkout of MixEval as it is published")
    return value.value


def _request(
    assigned: dict[str, ast.expr], name: str, path: Path, slots: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The messages that a lambda gives: a list of {"role": text, "content": text with values}."""
    value = assigned.get(name)
    messages = value.body.elts if isinstance(value, ast.Lambda) and isinstance(value.body, ast.List) else []
    made = [_message(node) for node in messages]
    found = {piece for message in made if message for piece in message[1] if isinstance(piece, Slot)}
    if not made or None in made or found != set(slots):
        raise InputError(f"{path}: {name} is not of the known form; give a checkout of MixEval as it is published")
    return tuple(message for message in made if message)


def _message(node: ast.expr) -> tuple[str, tuple[str, ...]] | None:
    if not isinstance(node, ast.Dict):
        return None
    fields = {k.value: v for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)}
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, ast.Constant) or len(fields) != 2:
        return None
    pieces = content.values if isinstance(content, ast.JoinedStr) else [content]
    made = [_piece(piece) for piece in pieces]
    return None if None in made else (str(role.value), tuple(piece for piece in made if piece is not None))


def _piece(node: ast.expr | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.format_spec is None:
        return Slot(node.value.id)
    return None


# --- what is asked -------------------------------------------------------------------------------------------------


def format_prompt(entry: Mapping[str, Any], split: Split, wording: Wording) -> str:
    """What a chat model is asked, as one user message without a system message. Nothing is stripped."""
    lines = [str(entry["prompt"])]
    if _has_context(entry):
        lines.insert(0, str(entry["context"]))
    if split == "multiple-choice":
        return "\n".join([*lines, options(entry), wording.multiple_choice])
    suffix = wording.free_form.get(entry["benchmark_name"], wording.free_form[""])
    return "Question: " + "\n".join([*lines, suffix])


def _has_context(entry: Mapping[str, Any]) -> bool:
    context = str(entry.get("context"))
    return context.lower() not in ("none", "null") and context.replace(" ", "") != ""


def options(entry: Mapping[str, Any]) -> str:
    """The options of a question, a line each: "A. ..."."""
    return "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(entry["options"]))


def judge_messages(entry: Mapping[str, Any], response: str, split: Split, wording: Wording) -> list[dict[str, str]]:
    """What the judge is asked about a response: free-form how right it is, multiple-choice which option it takes."""
    values = {"prompt": str(entry["prompt"]), "response": response}
    if split == "multiple-choice":
        values["options"] = options(entry)
    else:
        values["gold_ans"] = "; ".join(f"<answer {i}> {answer}" for i, answer in enumerate(entry["target"], 1))
    return [
        {"role": role, "content": "".join(values[piece] if isinstance(piece, Slot) else piece for piece in pieces)}
        for role, pieces in wording.judge[split]
    ]


# --- what is said --------------------------------------------------------------------------------------------------


def parse_score(text: str) -> float | None:
    """The score in a judge's answer: the first number in [[ ]], else the first in [ ]; None unless it is in [0, 1]."""
    match = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    if match is None or re.fullmatch(
        r"0+[1-9]\d*|.*[^0-9.].*", match[1]
    ):  # "01": no number of Python's, nor upstream's
        return None
    score = float(match[1])
    return score if 0 <= score <= 1 else None


def parse_option(text: str) -> str | None:
    """The option letter in a judge's answer: the first in [[ ]], else the first in [ ]; None where there is none."""
    match = re.search(r"\[\[([A-Z])\]\]", text) or re.search(r"\[([A-Z])\]", text)
    return match[1] if match else None


# --- the tables ----------------------------------------------------------------------------------------------------


def aggregate(
    scores: Mapping[Split, Mapping[str, float]], entries: Mapping[Split, Mapping[str, Mapping[str, Any]]], mode: Mode
) -> dict[str, float]:
    """The overall score and that of each benchmark, fractions from 0 to 1.

    scores: of each split by id; every id of entries has one. Means are rounded to three digits within a split, as
    upstream does. "table4_compat": the overall is the mean of both splits', and of a benchmark that is in both the
    multiple-choice score counts alone (MixEval until 2024-09-12; the paper's Table 4, whose queries therefore sum to
    988 and not to 1,000). "merged": the two are weighted by their numbers of queries (since then). Raises InputError
    where a score is missing.
    """
    means: dict[Split, dict[str, tuple[float, int]]] = {}
    for split in SPLITS:
        values: dict[str, list[float]] = defaultdict(list)
        for name, entry in entries.get(split, {}).items():
            if name not in scores.get(split, {}):
                raise InputError(f"{split} {name}: has no score; every query needs one")
            for key in ("overall", entry["benchmark_name"]):
                values[key].append(scores[split][name])
        means[split] = {key: (round(sum(v) / len(v), 3), len(v)) for key, v in values.items()}
    free_form, multiple_choice = (means[split] for split in SPLITS)
    if mode == "table4_compat":
        both = [m["overall"][0] for m in means.values() if m]
        table = {"overall": sum(both) / len(both)} if both else {}
        return table | {k: v for m in means.values() for k, (v, _) in m.items() if k != "overall"}
    table = {}
    for key in dict.fromkeys([*free_form, *multiple_choice]):
        parts = [m[key] for m in means.values() if key in m]
        table[key] = sum(value * n for value, n in parts) / sum(n for _, n in parts)
    return table
