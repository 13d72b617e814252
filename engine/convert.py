"""A checkpoint folder in another dtype, to be served or shared: rounded once, with what that leaves of training.

    python -m engine.convert --model runs/first/epoch-18 --out aligned-bf16 --dtype bfloat16
    python -m engine.convert --model runs/first/epoch-18 --out aligned-bf16 --dtype bfloat16 --rounding stochastic \\
        --base path/to/Llama-3-8B-Instruct

One tensor at a time is held. The model card of a run's folder comes along, with a line of what was done. With --base
the written folder is read again and compared with the model that training began with: how much of the change survives.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data.rows import find_model
from engine import weights
from engine.config import Rounding
from engine.model import Place, Transformer, is_narrower, name_of
from engine.run import CARD, front_of
from engine.weights import CHUNK, Cast, Checkpoint, Survival, Tally
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m engine.convert --model runs/first/epoch-18 --out aligned-bf16 --dtype bfloat16"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write a copy of a checkpoint folder with weights of another dtype, which transformers and vLLM can load."""

    model: PathText
    """Model to convert: a checkpoint folder (Hugging Face layout, safetensors) or a hub id."""
    out: PathText
    """Folder to write the converted model to. It must not exist yet."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Dtype of the weights in --out."""
    rounding: Rounding = "nearest"
    """How weights are rounded to bfloat16. stochastic rounds up or down at random, so that updates too small for
    bfloat16 survive on average, but adds noise to every log-prob. Choose stochastic for an fp32 checkpoint whose
    updates are too small for bfloat16; --base shows how much survives."""
    seed: int = 0
    """Random seed of stochastic rounding. The same seed gives the same weights, bit for bit; to get those of a run with
    --save-rounding stochastic, give the number of the checkpoint's step."""
    base: PathText | None = None
    """Model that training started from: checkpoint folder or hub id. The command then prints how much of the training's
    change of the weights survives the conversion. Unset: nothing is compared."""
    config: PathText | None = None
    """YAML file of settings with the names of these flags. Flags on the command line win over the file."""

    def __post_init__(self) -> None:
        weights.check_asked(self.dtype, self.rounding, self.seed)


class Stored(weights.SingleProcess):
    """The weights of a folder, read tensor by tensor as they are asked for."""

    def __init__(self, checkpoint: Checkpoint, model: Transformer) -> None:
        """model: of the folder's shape, on the meta device."""
        self._checkpoint = checkpoint
        self._places: dict[Tensor, Place] = {p: model.config.place(name) for name, p in model.named_parameters()}

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """All rows of a parameter, in the file's dtype."""
        place = self._places[parameter]
        rows = self._checkpoint.part(place, 0, len(parameter))
        weights.check_finite(self._checkpoint.folder, place.tensor, rows)
        return rows, 0


def convert(folder: Path, out: Path, cast: Cast) -> None:
    """Writes `out` from a checkpoint folder: all of it, or nothing.

    Raises InputError where the folder cannot be read, `out` exists, or a weight is beyond the dtype's range.
    """
    model = weights.build(folder)
    with Checkpoint(folder) as checkpoint:
        checkpoint.compare(model)
        weights.save(model, out, cast=cast, parts=Stored(checkpoint, model), beside=card_of(folder, cast))


def card_of(folder: Path, cast: Cast) -> dict[str, str]:
    """The model card of a run's folder, with what was done to it since; none where the card is a stranger's."""
    if not front_of(folder / CARD):
        return {}
    stored = name_of(weights.stored_dtypes(folder).main)
    how = f", rounded {'to the nearest' if cast.rounding == 'nearest' else f'stochastically with seed {cast.seed}'}"
    how = how if is_narrower(cast.dtype, getattr(torch, stored)) else ""
    said = (
        f"**Converted** from {stored} to {name_of(cast.dtype)} since{how}: the numbers above are of the weights before."
    )
    return {CARD: f"{(folder / CARD).read_text(encoding='utf-8')}\n{said}\n"}


def survival(base: Path, before: Path, after: Path) -> Survival | None:
    """How much of the change from `base` to `before` is left in `after`; None where there is no change.

    Raises InputError where a folder cannot be read, or their models are not of one shape.
    """
    model = weights.build(before)
    configs = [check_shape(folder, model).config for folder in (base, before, after)]
    tally = Tally()
    with Checkpoint(base) as first, Checkpoint(before) as second, Checkpoint(after) as third:
        for name, parameter in model.named_parameters():
            stands = [(c, config.place(name)) for c, config in zip((first, second, third), configs, strict=True)]
            for start, stop in _pieces(parameter):
                b, x, y = (c.part(place, start, stop).double() for c, place in stands)
                tally.add(x - b, y - b)
    return tally.result()


def check_shape(folder: Path, model: Transformer) -> Transformer:
    """The model in a folder, on the meta device. Raises InputError unless it can be read, and has a model's shapes."""
    if weights.is_adapter(folder):
        raise InputError(f"{folder}: is an adapter, not a whole model; merge it first: engine.merge --adapter {folder}")
    own = weights.build(folder)
    weights.check(folder, own)
    theirs, ours = ({name: p.shape for name, p in m.named_parameters()} for m in (own, model))
    if different := sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name)):
        name = model.config.place(different[0]).tensor
        raise InputError(
            f"{folder}: {name} has another shape than in {model.source}; give the model that it was trained from"
        )
    return own


def _pieces(parameter: Tensor) -> Iterator[tuple[int, int]]:
    """Rows from .. to of a parameter, a chunk of numbers at a time."""
    n = max(1, CHUNK // max(1, parameter[:1].numel()))
    return ((start, min(start + n, len(parameter))) for start in range(0, len(parameter), n))


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ConvertConfig, argv, command="python -m engine.convert", example=EXAMPLE)
    folder, out = find_model(config.model), Path(config.out)
    if weights.is_adapter(folder):
        raise InputError(
            f"--model {config.model}: is an adapter, not a whole model; use engine.merge to write it into its base"
        )
    base = find_model(config.base) if config.base else None
    files.check_new_file(out)
    if base is not None:
        check_shape(base, weights.build(folder))
    cast = Cast(dtype=getattr(torch, config.dtype), rounding=config.rounding, seed=config.seed)
    convert(folder, out, cast)
    stored = weights.stored_dtypes(folder)
    rounded = [dtype for dtype in (stored.main, *stored.others.values()) if is_narrower(cast.dtype, dtype)]
    if left := not_copied(folder, out):
        cli.notify(f"{folder}: not copied, because it is no part of a checkpoint: {', '.join(left)}")
    if base is not None:
        found = survival(base, folder, out)
        print(f"{out}: {found}" if found else f"{out}: {folder} does not differ from the base {base}")
    elif rounded:
        cli.notify(f"{out}: rounded from {name_of(rounded[0])}; --base DIR would say how much of the training is left")
    print(out)


def not_copied(folder: Path, out: Path) -> list[str]:
    """Names of a folder's files that are neither its weights nor in `out`."""
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix != ".safetensors" and p.name != weights.INDEX and not (out / p.name).exists()
    )


if __name__ == "__main__":
    cli.run(main)
