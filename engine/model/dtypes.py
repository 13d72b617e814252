"""Dtypes as people write them, which of two has fewer digits, and those of a folder whose tensors have several."""

from collections.abc import Mapping
from typing import NamedTuple

import torch


class StoredDtypes(NamedTuple):
    """The dtypes that a checkpoint folder's weights are stored in."""

    main: torch.dtype
    """Of the embedding, which stands for the folder's."""
    others: Mapping[str, torch.dtype] = {}
    """Of the tensors that have another one, by their names in the folder."""
    extra_bytes: int = 0
    """What these take beyond what they would take in the main one."""
    carried_bytes: int = 0
    """Of tensors that do not train, and go into every folder as they are."""

    def __str__(self) -> str:
        n, names = len(self.others), sorted({name_of(dtype) for dtype in self.others.values()})
        return name_of(self.main) + (f", {n} tensor{'s' * (n != 1)} in {' and '.join(names)}" if names else "")


def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    """Whether numbers of a dtype have fewer binary digits than those of another."""
    return torch.finfo(dtype).eps > torch.finfo(than).eps
