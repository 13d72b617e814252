"""Peers of every family (tests/family_table.py), made with transformers: random weights, and what they compute.

A peer is computed in float64 throughout: where transformers asks for float32 (norms, softmax, angles) it is given
float64 instead.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode

from data.forest import Forest, PackingOptions, pack
from data.rows import Example
from engine import weights
from engine.model import Transformer
from tests import tiny
from tests.family_table import Variant

# Prompt and two responses: within and beyond windows of 7 and original contexts of 16, on both sides of the latter and
# at it, one-token responses and prompts.
LENGTHS = [(5, 4, 6), (10, 6, 7), (1, 1, 12), (20, 3, 25), (30, 24, 1), (3, 30, 9)]
BETA = 0.3


class Float64(TorchFunctionMode):
    """Gives float64 to whoever asks torch for float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.float:
            return args[0].double()
        wide = [torch.float64 if x is torch.float32 else x for x in args]
        return func(*wide, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})


@contextmanager
def lifted() -> Iterator[None]:
    """Lets transformers make and compute models in float64, without an island of float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64():
            yield
    finally:
        torch.set_default_dtype(before)


def write_peer(folder: Path, variant: Variant) -> Path:
    """A folder of a model with random weights, norms, biases and activations, in float32."""
    write_config(folder, variant)
    config = transformers.AutoConfig.from_pretrained(folder)
    peer = class_of(variant)(config)
    generator = torch.Generator().manual_seed(len(variant.name))
    adds_one = "gemma" in variant.architecture.lower()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            is_norm = "norm" in name and name.endswith(".weight") and parameter.dim() == 1
            mean = 1.0 if is_norm and not adds_one else 0.0
            std = 0.3 if is_norm or parameter.dim() == 1 else 0.2
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
    peer.float().save_pretrained(folder)
    write_config(folder, variant)
    return folder


def write_config(folder: Path, variant: Variant) -> None:
    """The variant's config.json, in its own spelling."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(variant.raw, indent=2) + "\n")
    (folder / "generation_config.json").write_text("{}\n")


def class_of(variant: Variant) -> Any:
    """transformers' class of it."""
    return getattr(transformers, variant.architecture)


def load_peer(folder: Path, variant: Variant, dtype: torch.dtype) -> Any:
    """transformers' model of a folder."""
    return class_of(variant).from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def name_in_peer(tensor: str) -> str:
    """What transformers calls a tensor of a checkpoint in memory: a wrapper's text has other names there."""
    for theirs, its in (("language_model.model.", "model.language_model."), ("language_model.lm_head", "lm_head")):
        if tensor.startswith(theirs):
            return its + tensor.removeprefix(theirs)
    return tensor


def peer_logps(peer: Any, examples: Sequence[Example]) -> Tensor:
    """[S] summed log-probs of each response, each sequence by itself, in the logits' dtype, with gradient."""
    found = []
    for example in examples:
        for response in example.responses:
            ids = torch.tensor([*example.prompt.tolist(), *response.tolist()])
            logits = peer(input_ids=ids[None]).logits[0, len(example.prompt) - 1 : -1]
            taken = logits.log_softmax(dim=-1).gather(1, ids[len(example.prompt) :, None])
            found.append(taken.sum())
    return torch.stack(found)


def apo_zero(logps: Tensor, reference: Tensor) -> Tensor:
    """Of log-probs [S] of pairs, chosen and rejected in turn: the sum of 1 - sigmoid(beta z_w) + sigmoid(beta z_l)."""
    scores = (BETA * (logps - reference)).sigmoid()
    return (1 - scores[0::2] + scores[1::2]).sum()


def forest_of(model: Transformer, examples: Sequence[Example]) -> Forest:
    """Packed as a run packs them for this model."""
    return pack(examples, PackingOptions(divides_at=model.config.originals))


@dataclass
class Subject:
    """A variant's folder, and its models, each made when it is first asked for."""

    variant: Variant
    folder: Path

    @cached_property
    def examples(self) -> list[Example]:
        """What log-probs are computed of."""
        return tiny.random_examples(LENGTHS, seed=5)

    @cached_property
    def peer(self) -> Any:
        """transformers' model in float64; to be computed with while it is `lifted`."""
        with lifted():
            return load_peer(self.folder, self.variant, torch.float64)

    @cached_property
    def exact(self) -> Tensor:
        """[S] the peer's log-probs."""
        with lifted(), torch.no_grad():
            return peer_logps(self.peer, self.examples)

    @cached_property
    def as_it_is(self) -> Tensor:
        """[S] the log-probs of transformers' float64, which has islands of float32."""
        with torch.no_grad():
            return peer_logps(load_peer(self.folder, self.variant, torch.float64), self.examples)

    @cached_property
    def reference(self) -> Tensor:
        """[S] fixed log-probs of a reference, near the policy's, so that no sigmoid is flat."""
        noise = torch.randn(len(self.exact), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return self.exact + 3 * noise

    @cached_property
    def narrow(self) -> Transformer:
        """Ours in float32."""
        return weights.load(self.folder)

    @cached_property
    def ours(self) -> Transformer:
        """Ours in float64."""
        return weights.load(self.folder, torch.float64)
