"""Log-probs of given responses, by the trainer's own forward pass.

    python -m engine.score --model DIR --data FILE --out FILE
    python -m engine.score --model BASE --adapter DIR --data FILE --out FILE

A line a row, in the file's order. Of a pair it has logps/chosen, tokens/chosen, logps/rejected and tokens/rejected, of
one completion logps/completion and tokens/completion, of several the lists logps/completions and tokens/completions as
the row has them. What the row says of its responses goes along: "label", and "scores" in their order.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from data.forest import PackingOptions
from data.rows import Example, RowSettings, open_model, read_examples
from engine import weights
from engine.config import AdapterSettings, host
from engine.distributed import Ranks
from engine.model import FusedForward, ModelConfig
from engine.step import MicroBatching, score_examples
from system import cli, files
from system.flags import PathText

EXAMPLE = "python -m engine.score --model path/to/llama --data pairs.jsonl --out logps.jsonl"


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(RowSettings, AdapterSettings):
    """Compute the log-probs of given responses under a model, in nats, summed over the tokens of each response."""

    model: PathText
    """Model to score with: a checkpoint folder (Hugging Face layout, safetensors), an adapter's folder, or a hub id."""
    data: PathText
    """Rows with prompts and responses: a .jsonl, .json, .csv or .parquet file, a folder of such files, or a hub id."""
    out: PathText
    """File for the result: one JSON line per row with its place in --data, the log-prob and number of tokens of each
    response, and the row's label and scores. It must not exist yet."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""
    skip_bad_rows: bool = False
    """Skip rows that cannot be used, and report how many there are. By default such rows are an error."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype to compute in. Unset: bfloat16 on a GPU (float32 weights are rounded), float32 on the CPU."""
    micro_tokens: int = 8192
    """Maximum number of tokens per forward pass; a longer single example is still taken. Lower it to save memory."""


def shape_of(folder: Path, *, base: Path | None = None) -> ModelConfig:
    """The shape of the checkpoint in a folder. base: of an adapter, the folder of another base than it names.

    Raises InputError where the folder cannot be used.
    """
    model = weights.build(folder, base=base)
    weights.check(folder, model)
    return model.config


def score_under(
    folder: Path,
    examples: Sequence[Example],
    *,
    dtype: str | None = None,
    micro_tokens: int = ScoreConfig.micro_tokens,
    base: Path | None = None,
    base_dtype: str | None = None,
) -> Iterator[Tensor]:
    """Log-probs of examples' responses under the checkpoint in a folder: [K] nats each, float64, in order. Collective.

    The folder is one that `shape_of` takes. base, base_dtype: as `weights.build` takes them.
    """
    host.keep_pages()
    is_frozen = weights.is_adapter(folder) or base_dtype is not None
    ranks = Ranks.join(dtype=getattr(torch, dtype) if dtype else None, has_adapter=is_frozen)
    model = weights.build(folder, ranks.dtype if is_frozen else torch.float32, base=base, base_dtype=base_dtype)
    weights.say_if_rounded(model.base_source or folder, ranks.dtype)
    fused = ranks.place(FusedForward(model)).eval()
    weights.fill(model, folder, ranks.local)
    packing = PackingOptions(divides_at=model.config.originals)
    found = score_examples(fused, examples, ranks, MicroBatching(micro_tokens=micro_tokens, packing=packing))
    yield from tqdm(found, "scored", len(examples), unit="row", disable=None if ranks.is_rank0 else True)
    ranks.wait()


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ScoreConfig, argv, command="python -m engine.score", example=EXAMPLE)
    files.check_new_file(Path(config.out))
    folder, base = weights.find_adapted(config.model, config.adapter, config.base_dtype)
    _, chat = open_model(str(folder), config, base=base)
    shape = shape_of(folder, base=base)
    rows = read_examples(
        [config.data],
        chat,
        config.limits_in(shape.context, shape.longest),
        replace(config.reading, listed=True),
        n_ids=shape.vocab_size,
        skip_bad_rows=config.skip_bad_rows,
    )
    cli.notify(rows.report())
    found = score_under(
        folder,
        rows.examples,
        dtype=config.dtype,
        micro_tokens=config.micro_tokens,
        base=base,
        base_dtype=config.base_dtype,
    )
    lines = [_line(e, logps) for e, logps in zip(rows.examples, found, strict=True)]
    if os.environ.get("RANK", "0") == "0":
        files.write_text(Path(config.out), "".join(lines))


def _line(example: Example, logps: Tensor) -> str:
    values: dict[str, object] = {"place": example.location}
    if example.is_listed:
        values |= {"logps/completions": logps.tolist(), "tokens/completions": example.lengths}
    else:
        names = ("chosen", "rejected") if len(logps) == 2 else ("completion",)
        for name, logp, n in zip(names, logps.tolist(), example.lengths, strict=True):
            values |= {f"logps/{name}": logp, f"tokens/{name}": n}
    said = {"label": example.label, "scores": example.ratings.scores}
    return json.dumps(values | {name: value for name, value in said.items() if value is not None}) + "\n"


if __name__ == "__main__":
    cli.run(main, is_distributed=True)
