"""The memory table of docs/adapters.md: what engine.plan says of an adapter of rank 16 beside several kinds of bases.

For examples.real.lora_page, which writes the page.
"""

import contextlib
import io
import json
from typing import Any

from engine import plan
from eval.tables import Table, to_markdown
from system import InputError

RANK = 16
CARDS = (16, 24, 40, 48, 80)
"""GB of one GPU."""
MODELS = (
    ("llama3-8b", "bfloat16"), ("llama3-8b", "int8"), ("llama3-8b", "nf4"),
    ("qwen3-8b", "bfloat16"), ("qwen3-8b", "int8"), ("qwen3-8b", "nf4"),
    ("llama3-70b", "int8"), ("llama3-70b", "nf4"),
)  # fmt: skip


def text() -> str:
    """The table as Markdown."""
    rows = [(shape, held, *(cell(planned(shape, held, card)) for card in CARDS)) for shape, held in MODELS]
    header = ("model", "base", *(f"{card} GB" for card in CARDS))
    return (
        to_markdown(Table("memory", f"One GPU, an adapter of rank {RANK}", header, rows, 2)).rstrip()
        + "\n\nEach cell has the memory of a run, the most tokens of a pass, and how many blocks are recomputed\n"
        "in the backward pass (activation checkpointing). It is calculated, by\n"
        f"`engine.plan --shape SHAPE --gpus 1 --gpu-memory GB --lora-rank {RANK} --base-dtype BASE`.\n"
    )


def planned(shape: str, held: str, card: int) -> dict[str, Any]:
    """The layout that engine.plan chooses for a base that is held like this."""
    said = io.StringIO()
    asked = ["--shape", shape, "--gpus", "1", "--gpu-memory", str(card)]
    try:
        with contextlib.redirect_stdout(said):
            plan.main([*asked, "--lora-rank", str(RANK), "--base-dtype", held, "--json"])
    except InputError:  # nothing fits, which it says behind what it has printed
        if not said.getvalue():
            raise
    return json.loads(said.getvalue())["layouts"][0]  # those behind it hold the base in fewer bits


def cell(layout: dict[str, Any]) -> str:
    """A layout in words."""
    if not layout["fits"]:
        return "no"
    again = f", {layout['recompute_blocks']} recomputed" if layout["recompute_blocks"] else ""
    return f"{sum(layout['bytes'].values()) / 1e9:.1f} GB: {layout['pass_tokens']:,} tokens{again}"
