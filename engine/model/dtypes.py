"""Dtypes as people write them, and which of two has fewer digits."""

import torch


def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    """Whether numbers of a dtype have fewer binary digits than those of another."""
    return torch.finfo(dtype).eps > torch.finfo(than).eps
