"""Hugging Face checkpoint folders: read straight into a model, and written back as transformers and vLLM read them.

build   config.json -> a model on the meta device: shapes, no memory
fill    each parameter's rows -> the part of it that is held here (all of it, or a rank's shard)
load    both, for a model held whole
save    a model -> safetensors shards, index, config, generation config, the tokenizer that came with it
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data import InputError
from data.faults import point
from data.files import naming, whole_folder
from data.tokenizer import FILES as TOKENIZER_FILES
from data.tokenizer import read_json
from engine import safetensors_header
from engine.llama import Llama, LlamaConfig

Local = Callable[[Tensor], tuple[Tensor, int]]
"""The part of a parameter that is held here, and its first row: (parameter, 0) where it is held whole."""

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
SHARD_BYTES = 5 * 10**9
_NAMES = {  # ours -> Hugging Face's
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    **{f"attention.{x}": f"self_attn.{x}_proj" for x in "qkvo"},
    **{f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
# Buffers that older releases carry, and the copy of the embedding that some tied checkpoints do.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq")


def checkpoint_name(name: str) -> str:
    """Hugging Face's name of one of our parameters: blocks.3.mlp.up.weight is model.layers.3.mlp.up_proj.weight."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.weight", name)
    assert match is not None  # every parameter of a Llama is a weight
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.weight"


def build(folder: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model that the folder's config.json describes, on the meta device. Raises InputError."""
    config = LlamaConfig.parse(read_json(folder / "config.json"), folder / "config.json")
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.source = folder
    return model


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Llama:
    """The whole model in a folder, in `dtype` on `device`. Raises InputError where the folder cannot be used."""
    model = build(Path(folder), dtype).to_empty(device=device)
    fill(model, Path(folder))
    return model


def check(folder: Path, model: Llama) -> None:
    """Raises InputError unless the folder's tensors are exactly the model's: names, shapes and a float dtype."""
    with Checkpoint(folder) as checkpoint:
        checkpoint.compare(model)


def fill(model: Llama, folder: Path, local: Local = lambda parameter: (parameter, 0)) -> None:
    """Reads into every parameter of the model the rows that are held here; nothing else is read.

    Values are converted to the parameter's dtype. Raises InputError where the folder does not fit the model.
    """
    with Checkpoint(folder) as checkpoint, torch.no_grad():
        checkpoint.compare(model)
        for name, parameter in model.named_parameters():
            held, start = local(parameter)
            rows = checkpoint.rows(checkpoint_name(name), start, start + held.shape[0])
            if not rows.isfinite().all():
                raise InputError(f"{folder}: {checkpoint_name(name)} holds NaN or infinity; copy the weights anew")
            held.copy_(rows)


class Checkpoint:
    """The safetensors files of a folder, opened once."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where there are none, one is missing or damaged, or the index reaches out of the folder."""
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        self._weight_map = _read_index(index) if index.is_file() else None
        if self._weight_map is None:
            _check_has_weights(folder)
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        for name in sorted(set(self._weight_map.values())) if self._weight_map else ["model.safetensors"]:
            try:
                self._open_file(name)
            except InputError:
                self._stack.close()
                raise
        if self._weight_map is not None:
            self._check_index(index)

    def _open_file(self, name: str) -> None:
        path = self.folder / name
        for tensor in safetensors_header.read(path):
            if tensor in self._where:
                raise InputError(f"{path}: {tensor} stands in {self._where[tensor]} too; copy the folder anew")
            self._where[tensor] = name
        try:
            self._open[name] = self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (OSError, SafetensorError) as fault:
            raise InputError(f"{path}: cannot be read ({fault}); copy it anew") from None

    def _check_index(self, index: Path) -> None:
        """Raises InputError unless the index names just what the files hold, and all shards that lie beside it."""
        named = self._weight_map or {}
        for tensor, file in named.items():
            if self._where.get(tensor) != file:
                raise InputError(f"{index}: {tensor} is not in {file}; copy the folder anew")
        for tensor, file in self._where.items():
            if tensor not in named and not _IGNORED.fullmatch(tensor):
                raise InputError(f"{index}: does not name {tensor}, which is in {file}; copy the folder anew")
        stray = sorted(p.name for p in self.folder.glob("model-*-of-*.safetensors") if p.name not in named.values())
        if stray:
            raise InputError(f"{index}: does not name {stray[0]}, which lies beside it; copy the folder anew")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, read from the file and nothing more."""
        return self._open[self._where[name]].get_slice(name)[start:stop]

    def compare(self, model: Llama) -> None:
        """Raises InputError unless names, shapes and dtypes are the model's."""
        expected = {checkpoint_name(n): tuple(p.shape) for n, p in model.named_parameters()}
        extra = [n for n in self._where if n not in expected and not _IGNORED.fullmatch(n)]
        if model.config.tied:
            extra = [n for n in extra if n != "lm_head.weight"]
        for what, found in (("lacks", [n for n in expected if n not in self._where]), ("has the unknown", extra)):
            if found:
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                raise InputError(
                    f"{self.folder}: {what} {found[0]}{more}; weights and config.json have to belong together"
                )
        announced = _announced_dtype(model.config.raw)
        for name, shape in expected.items():
            path, tensor = self.folder / self._where[name], self._open[self._where[name]].get_slice(name)
            if tuple(tensor.get_shape()) != shape:
                raise InputError(
                    f"{path}: {name} is {tensor.get_shape()}, config.json says {list(shape)}; "
                    "weights and config.json have to belong together"
                )
            kind = tensor.get_dtype()
            if kind not in DTYPES:
                raise InputError(f"{path}: {name} is {kind}; it has to be {', '.join(DTYPES)}")
            if announced is not None and kind not in (announced, "F32"):  # float32 holds whatever was announced
                raise InputError(
                    f"{path}: {name} is {kind}, config.json announces {announced}; correct the one or the other"
                )

    def dtype(self) -> torch.dtype:
        """The dtype of the embedding: what the folder is written back in."""
        name = checkpoint_name("embed.weight")
        return DTYPES[self._open[self._where[name]].get_slice(name).get_dtype()]


def _read_index(index: Path) -> dict[str, str]:
    """Which file holds each tensor. Raises InputError where a name could lead out of the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise InputError(f"{index}: no weight_map of tensor names to files; copy it anew")
    for file in sorted(set(weight_map.values())):
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise InputError(
                f"{index}: {file!r} is not a .safetensors file in this folder; files beside the index only"
            )
    return weight_map


def _check_has_weights(folder: Path) -> None:
    if not os.path.lexists(folder / "model.safetensors"):
        pickles = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.p*t*")]
        what = f"only pickles ({pickles[0]}), which can run code" if pickles else "no model.safetensors"
        raise InputError(f"{folder}: {what}; give a folder with safetensors weights")


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that a folder's weights are stored in. Raises InputError."""
    with Checkpoint(folder) as checkpoint:
        return checkpoint.dtype()


def save(
    model: Llama,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    stop_ids: Sequence[int] = (),
    beside: Mapping[str, str] | None = None,
    whole: Callable[[Tensor], Tensor] = lambda parameter: parameter,
    writes: bool = True,
    replaces: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers and vLLM load: all of it, or nothing.

    dtype: of the stored weights; the source folder's, or the model's own where it came from none. stop_ids: every id
    that ends an answer, for generation_config.json. beside: text files that the source lacks, by name: the chat
    template that the model was trained with, say. whole: gives a sharded parameter whole (a collective: every rank
    calls save); writes: whether this rank writes what is gathered. One tensor at a time is held. Raises InputError
    where the folder exists, unless it is replaced.
    """
    if dtype is None:
        dtype = stored_dtype(model.source) if model.source else next(model.parameters()).dtype
    tensors = [(checkpoint_name(n), p) for n, p in model.named_parameters()]
    shards = _shards([(name, tuple(p.shape)) for name, p in tensors], dtype, shard_bytes)
    if not writes:
        for _, parameter in tensors:
            whole(parameter)
        return
    with whole_folder(Path(folder), replaces=replaces) as temporary:
        parameters = iter(tensors)
        for file, shapes in shards.items():
            _write_shard(temporary / file, shapes, (whole(p) for _, p in _take(parameters, len(shapes))), dtype)
        if len(shards) > 1:
            total = sum(p.numel() * dtype.itemsize for _, p in tensors)
            index = {"metadata": {"total_size": total}, "weight_map": {n: f for f, ts in shards.items() for n, _ in ts}}
            _write_json(temporary / "model.safetensors.index.json", index)
        _write_json(temporary / "config.json", _config_for(model.config.raw, dtype))
        _write_json(temporary / "generation_config.json", _generation_config(model.source, model.config.raw, stop_ids))
        for name in TOKENIZER_FILES:
            if model.source and (model.source / name).is_file():
                shutil.copyfile(model.source / name, temporary / name)
        for name, text in (beside or {}).items():
            if not (temporary / name).exists():
                (temporary / name).write_text(text, encoding="utf-8")


def _shards(tensors: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype, limit: int) -> dict[str, list]:
    """Files of at most `limit` bytes (one tensor at least) and the tensors in each, in order."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = []
    filled = 0
    for name, shape in tensors:
        size = torch.Size(shape).numel() * dtype.itemsize
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape))
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def _take(items: Iterator[tuple[str, nn.Parameter]], n: int) -> Iterator[tuple[str, nn.Parameter]]:
    return (next(items) for _ in range(n))


def _write_shard(path: Path, shapes: list, tensors: Iterator[Tensor], dtype: torch.dtype) -> None:
    """A safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes one after the other.

    Written here because the library's save_file takes all tensors at once and ignores the umask (mode 0600).
    """
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes:
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with naming(path), open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            point("write", path)
            file.write(tensor.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)


def _announced_dtype(raw: dict[str, Any]) -> str | None:
    """The dtype that a config.json promises, as safetensors calls it; None where it promises none that is known."""
    named = raw.get("dtype", raw.get("torch_dtype"))
    known = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
    return known.get(named) if isinstance(named, str) else None


def _config_for(raw: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    key = "torch_dtype" if "torch_dtype" in raw else "dtype"  # transformers 5 writes the latter
    return raw | {key: name}


def _generation_config(source: Path | None, raw: dict[str, Any], stop_ids: Sequence[int]) -> dict[str, Any]:
    path = source / "generation_config.json" if source else None
    made = read_json(path) if path and path.is_file() else {k: raw[k] for k in ("bos_token_id",) if k in raw}
    if stop_ids:
        made["eos_token_id"] = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    return made


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
