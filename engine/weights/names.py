"""What the files of a checkpoint folder are called, and which dtypes their tensors may have."""

import torch

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Of a checkpoint's numbers, by safetensors' name."""
WHOLE = "model.safetensors"
"""The file of a model that is not divided."""
INDEX = "model.safetensors.index.json"
"""The file that says which tensor stands in which shard."""
