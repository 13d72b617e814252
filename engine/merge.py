"""An adapter added to its base: a plain checkpoint folder, which transformers, vLLM and every command here load.

    python -m engine.merge --adapter runs/lora/epoch-03 --out merged
    python -m engine.merge --model path/to/Llama-3-8B-Instruct --adapter runs/lora/epoch-03 --out merged-bf16 \\
        --dtype bfloat16 --data pairs.jsonl

W + s B A is summed in float32, one tensor at a time. What of the adapter's change is left in what was written is said:
over the weights, and with --data over the log-ratios of responses.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from data.forest import PackingOptions
from data.rows import Example, RowSettings, find_model, open_model, read_examples
from data.text import Chat, stop_ids
from engine import weights
from engine.config import BaseDtype, Rounding
from engine.distributed import Ranks
from engine.model import FusedForward, ModelConfig, Transformer, is_narrower, name_of
from engine.run import CARD, front_of
from engine.step import MicroBatching, score_examples
from engine.weights import AdapterFolder, Cast
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m engine.merge --adapter runs/lora/epoch-03 --out merged"
DTYPES = ("float32", "bfloat16", "float16")
OF_AN_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "engine.json", CARD)
"""Files of an adapter's folder that have no place in a model's; the card has, where it is one of ours."""
OF_A_CARD = {
    r"^library_name: .*$": "library_name: transformers",
    r"^base_model_relation: adapter$": "base_model_relation: finetune",
    r"^## How to load it\n(?:(?!## ).*\n)*": "",
    r" The base's weights are not in this folder\.": "",
}
"""What an adapter's card says that does not hold for whole weights, and what does."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig(RowSettings):
    """Merge a LoRA adapter into its base model and write a plain checkpoint, which transformers and vLLM can load. The
    flags for rows, chat template and truncation affect only the optional check with --data, and need it."""

    adapter: PathText
    """Adapter to merge: a folder in PEFT format, such as an epoch folder of a run with --lora-rank, or a hub id."""
    out: PathText
    """Folder to write the merged model to. It must not exist yet."""
    model: PathText | None = None
    """Base model: checkpoint folder or hub id. Unset: the base that the adapter's configuration names."""
    dtype: Annotated[str, tyro.conf.arg(metavar="{float32,bfloat16,float16}")] = "float32"
    """Dtype of the weights in --out. The adapter is always added in float32 and the sum rounded afterwards."""
    rounding: Rounding | None = None
    """How merged weights are rounded to bfloat16. stochastic rounds up or down at random, so that the adapter's
    changes, most of which are too small for bfloat16, survive on average. Unset: stochastic for bfloat16, nearest
    otherwise."""
    seed: int = 0
    """Random seed of stochastic rounding. The same seed gives the same weights, bit for bit."""
    base_dtype: BaseDtype | None = None
    """Dtype that the base's matrices are rounded to, or quantised to and back, before the adapter is added to them.
    Unset: the dtype that the adapter was trained on (engine.json in its folder); where that is not known, they stay as
    they are stored."""
    data: PathText | None = None
    """Rows for a check of the result: log-ratios of their responses under the merged model are compared with those of
    the adapter on its base, in float32. A .jsonl, .json, .csv or .parquet file, a folder of such files, or a hub id.
    Unset: no check."""
    skip_bad_rows: bool = False
    """Skip rows of --data that cannot be used, and report how many there are. By default such rows are an error."""
    micro_tokens: int = 8192
    """Maximum number of tokens per forward pass over --data; a longer single row is still taken. Lower it to save
    memory."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype in ("int8", "nf4"):
            raise InputError(
                f"--dtype {self.dtype}: merged weights are not written quantised, since that would lose most of what "
                f"the adapter changed; write --dtype bfloat16, and quantise the folder where it is served"
            )
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        weights.check_asked(self.dtype, self.rounding, self.seed)
        if self.micro_tokens < 1:
            raise InputError(f"--micro-tokens: {self.micro_tokens} has to be above 0")
        of_rows = [*fields(RowSettings), *(f for f in fields(self) if f.name in ("skip_bad_rows", "micro_tokens"))]
        if self.data is None and (given := [f.name for f in of_rows if getattr(self, f.name) != f.default]):
            raise InputError(
                f"--{given[0].replace('_', '-')}: applies to the rows of --data; add --data, or leave it out"
            )

    @property
    def cast(self) -> Cast:
        """How sums become what is stored."""
        rounding = self.rounding or ("stochastic" if self.dtype == "bfloat16" else "nearest")
        return Cast(dtype=getattr(torch, self.dtype), rounding=rounding, seed=self.seed)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(MergeConfig, argv, command="python -m engine.merge", example=EXAMPLE)
    out, cast = Path(config.out), config.cast
    files.check_new_file(out)
    found = weights.read_adapter(find_model(config.adapter))
    base = weights.base_of(found) if config.model is None else find_model(config.model)
    shape = weights.build_adapted(found, torch.float32, base, config.base_dtype).config  # faults show here
    chat = _chat_of(found, base)
    examples = [] if config.data is None else _rows(config, shape, found, base)
    if config.model is not None:
        weights.say_if_of_another(found, config.model, base)
    say_how_held(found, base, config.base_dtype)
    survived = weights.merge(
        found,
        base,
        out,
        cast,
        base_dtype=config.base_dtype,
        stop_ids=stop_ids(base, chat),
        beside=_template_of(chat, base) | card_of(found, base, cast),
    )
    if left := not_copied(found, out):
        cli.notify(f"{found.folder}: not copied, because it is no part of a checkpoint: {', '.join(left)}")
    cli.notify(f"{out}: {survived or f'the adapter {found.folder} changes nothing of {base}'}")
    if examples:
        cli.notify(f"{out}: {kept_of(found, base, out, examples, config)}")
    print(out)


def _chat_of(found: AdapterFolder, base: Path) -> Chat | None:
    """The chat of the merged model; None where it will have no tokenizer, or no template that can be used."""
    try:
        return open_model(str(found.folder), base=base)[1]
    except InputError:  # nothing is rendered here: it says but which tokens end an answer
        return None


def _template_of(chat: Chat | None, base: Path) -> dict[str, str]:
    """The base's chat template, where it counts and the adapter's tokenizer takes the place of the file that has it."""
    if chat is None or chat.tokenizer.folder == base or not chat.template.location.is_relative_to(base):
        return {}
    return {"chat_template.jinja": chat.template.source}


def _rows(config: MergeConfig, shape: ModelConfig, found: AdapterFolder, base: Path) -> list[Example]:
    """The rows of --data. Raises InputError."""
    assert config.data is not None
    _, chat = open_model(str(found.folder), config, base=base)
    rows = read_examples(
        [config.data],
        chat,
        config.limits_in(shape.context, shape.longest),
        dataclasses.replace(config.reading, listed=True),
        n_ids=shape.vocab_size,
        skip_bad_rows=config.skip_bad_rows,
    )
    cli.notify(rows.report())
    return rows.examples


def say_how_held(found: AdapterFolder, base: Path, asked: str | None) -> None:
    """Says where the adapter is added to other numbers than the base's folder has."""
    held = asked or found.base_dtype
    stored = weights.stored_dtypes(base)
    if held is None or (held in DTYPES and not is_narrower(getattr(torch, held), stored.main)):
        return
    how = f"rounded to {held}" if held in DTYPES else f"quantised to {held} and dequantised"
    cli.notify(
        f"{base}: its {name_of(stored.main)} matrices are {how}, as --base-dtype says"
        if asked
        else f"{base}: its {name_of(stored.main)} matrices are {how}, because the adapter was trained on these; "
        "--base-dtype float32 would add it to the stored ones"
    )


def card_of(found: AdapterFolder, base: Path, cast: Cast) -> dict[str, str]:
    """The model card of a run's adapter, with what was done to it since; none where the card is a stranger's."""
    path = found.folder / CARD
    if not front_of(path):
        return {}
    text = path.read_text(encoding="utf-8")
    for adapters_word, models in OF_A_CARD.items():
        text = re.sub(adapters_word, models, text, count=1, flags=re.MULTILINE)
    how = "" if cast.dtype == torch.float32 else ", rounded to the nearest"
    how = f", rounded stochastically with seed {cast.seed}" if cast.rounding == "stochastic" else how
    return {
        CARD: f"{text}\n**Merged** into {base.name} since: these are whole weights, summed in float32 and written in "
        f"{name_of(cast.dtype)}{how}; the numbers above are of the adapter beside its base.\n"
    }


def not_copied(found: AdapterFolder, out: Path) -> list[str]:
    """Names of an adapter folder's files that are neither the adapter nor in `out`."""
    there = sorted(p.name for p in found.folder.iterdir())
    left = [name for name in there if name not in OF_AN_ADAPTER and not (out / name).exists()]
    return left + ([CARD] if CARD in there and not (out / CARD).exists() else [])


@dataclass(frozen=True)
class Kept:
    """What a merged folder keeps of an adapter's log-ratios."""

    n: int
    """Responses."""
    share: float
    """Slope of the folder's log-ratios on the adapter's, 1 where all is kept."""
    error: float
    """Length of their difference, as a multiple of the length of the adapter's."""

    def __str__(self) -> str:
        return (
            f"of the adapter's log-ratios of {self.n:,} responses {self.share:.1%} survive, with an error "
            f"{self.error:.2g} times their size"
        )


def kept_of(
    found: AdapterFolder, base: Path, out: Path, examples: Sequence[Example], config: MergeConfig
) -> Kept | str:
    """What the folder `out` keeps of the adapter's log-ratios, policy against base, on these responses; in words where
    there are none.
    """
    ranks = Ranks.join(dtype=torch.float32, has_adapter=True)  # which wraps nothing
    plain = weights.build(base, base_dtype=config.base_dtype or found.base_dtype)
    plain_logps = _logps(plain, base, examples, ranks, config)
    adapted = weights.build_adapted(found, torch.float32, base, config.base_dtype)
    expected = _logps(adapted, found.folder, examples, ranks, config) - plain_logps
    kept = _logps(weights.build(out), out, examples, ranks, config) - plain_logps
    length = float(expected.square().sum())
    if not length:
        return f"the adapter moves none of the log-probs of {len(expected):,} responses"
    error = float((kept - expected).square().sum())
    return Kept(len(expected), float(kept @ expected) / length, (error / length) ** 0.5)


def _logps(model: Transformer, folder: Path, examples: Sequence[Example], ranks: Ranks, config: MergeConfig) -> Tensor:
    """[responses] log-probs in nats, float64, of a model on the meta device whose weights are in a folder."""
    fused = ranks.place(FusedForward(model)).eval()
    weights.fill(model, folder, ranks.local)
    packing = PackingOptions(divides_at=model.config.originals)
    batching = MicroBatching(micro_tokens=config.micro_tokens, packing=packing)
    return torch.cat([logps.cpu() for logps in score_examples(fused, examples, ranks, batching)])


if __name__ == "__main__":
    cli.run(main)
