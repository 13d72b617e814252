"""An adapter added to its base, written as a plain checkpoint: no adapter is left, and nothing that knows of one.

matrices of the blocks   W + s B A: W as it was held beside the adapter (rounded, or quantised and made again), the sum
                         in float32
what trained whole       as the adapter's folder has it
all else                 as the base's folder has it: norms, biases, what a model that sees carries
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from data.text import has_tokenizer
from engine.model import FrozenLinear, Quantisation, Transformer, adapters
from engine.weights.adapters import AdapterFolder, fill_adapter
from engine.weights.checkpoint import Checkpoint
from engine.weights.kept import BESIDE, read_beside
from engine.weights.reading import build, build_adapted, check_finite, placed
from engine.weights.rounding import CHUNK, Cast
from engine.weights.survival import Survival, Tally
from engine.weights.writing import SingleProcess, save


def merge(
    found: AdapterFolder,
    base: Path,
    out: Path,
    cast: Cast,
    *,
    base_dtype: str | None = None,
    stop_ids: Sequence[int] = (),
    beside: Mapping[str, str] | None = None,
) -> Survival | None:
    """Writes a base with an adapter in it: all of it, or nothing. One tensor is held besides the adapter.

    base_dtype: how the base's matrices were held beside the adapter, where that is not what its folder says. stop_ids,
    beside: as of `save`. Gives what is left of the adapter's change in what was written; None where it changes nothing.
    Raises InputError where the two do not belong together, `out` exists, or a sum is beyond the dtype's range.
    """
    adapted = build_adapted(found, torch.float32, base, base_dtype)
    model = build(base)
    model.beside = files_beside(found, base)
    with Checkpoint(base) as checkpoint:
        sums = _Sums(adapted, model, checkpoint, cast, out)
        save(model, out, cast=Cast(dtype=cast.dtype), stop_ids=stop_ids, beside=beside, parts=sums)
    return sums.tally.result()


class _Sums(SingleProcess):
    """A merged model's tensors as they are stored, each made as it is asked for: who saves them rounds nothing."""

    def __init__(self, adapted: Transformer, model: Transformer, checkpoint: Checkpoint, cast: Cast, out: Path) -> None:
        """adapted: the base with its adapter, model: the base alone, both on the meta device."""
        assert adapted.adapter is not None and adapted.adapter_folder is not None
        self.tally = Tally()
        self._checkpoint, self._cast, self._out = checkpoint, cast, out
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self._config, self._scale = model.config, adapted.adapter.scale
        self._layers = {f"{n}.weight": m for n, m in adapted.named_modules() if isinstance(m, FrozenLinear)}
        own = {name: (p, torch.empty(p.shape)) for name, p in adapters.own_parameters(adapted).items()}
        there: dict[Tensor, Tensor] = dict(own.values())
        fill_adapter(adapted, adapted.adapter_folder, lambda parameter: (there[parameter], 0))
        self._whole = {name: tensor for name, (_, tensor) in own.items() if not name.endswith(("lora_A", "lora_B"))}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}  # A [r, in] and B [out, r] by the name of their W
        layers = adapters.layers_of(adapted)
        for module in adapted.adapter.modules:
            for part in (parts := layers[module]):  # of a fused matrix they share one A
                self._factors[f"{part.name}.weight"] = own[f"{parts[0].name}.lora_A"][1], own[f"{part.name}.lora_B"][1]

    def local(self, parameter: Tensor) -> tuple[Tensor, int]:
        """All rows of a parameter of the merged model, in the dtype that is stored."""
        name = self._names[parameter]
        place = self._config.place(name)
        rows = self._checkpoint.part(place, 0, len(parameter))
        check_finite(self._checkpoint.folder, place.tensor, rows)
        if name in self._layers:
            rows = _as_held(rows, self._layers[name])
        merged, change = self._merged(name, rows)
        with placed(self._out):
            written = self._cast(place.tensor, merged, place.first)
        if change is None and torch.promote_types(rows.dtype, written.dtype) == written.dtype:
            self.tally.add_unchanged(rows.numel())
        else:
            self._count(rows, change, written)
        return written, 0

    def _merged(self, name: str, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """A parameter with the adapter in it, and what that adds, in float32; (rows, None) where it leaves it alone.

        rows: the base's.
        """
        if name in self._whole:
            return self._whole[name], self._whole[name] - rows.float()
        if name not in self._factors:
            return rows, None
        a, b = self._factors[name]
        change = (b * self._scale) @ a
        return rows + change, change

    def _count(self, rows: Tensor, change: Tensor | None, written: Tensor) -> None:
        """What is left of a change, a chunk of numbers at a time."""
        flat, stored = rows.reshape(-1), written.reshape(-1)
        added = None if change is None else change.reshape(-1)
        for at in range(0, len(flat), CHUNK):
            part = slice(at, at + CHUNK)
            kept = stored[part].double() - flat[part].double()
            self.tally.add(torch.zeros_like(kept) if added is None else added[part].double(), kept)


def _as_held(rows: Tensor, layer: FrozenLinear) -> Tensor:
    """A matrix [out, in] as a frozen layer on the meta device computes with it, in float32."""
    kind: torch.dtype | Quantisation | None = layer.kind
    if kind is None:
        assert layer.weight is not None
        return rows.to(layer.weight.dtype).float()
    held = FrozenLinear(nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta"), kind)
    held.to_empty(device="cpu").quantise(rows, 0)
    return held.matrix()


def files_beside(found: AdapterFolder, base: Path) -> dict[str, bytes]:
    """What goes beside an adapter's weights, merged or trained further, by relative path: its tokenizer and chat
    template where it has them, for it was trained with these; how the base samples, and is shown images.
    """
    given = read_beside(base)
    own = {name: content for name, content in read_beside(found.folder).items() if name not in BESIDE}
    if has_tokenizer(found.folder):
        given = {name: content for name, content in given.items() if name in BESIDE}
    return given | own
