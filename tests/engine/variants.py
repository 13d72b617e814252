"""Models of the variants of tests/family_table.py, without transformers."""

import torch

from engine.model import Transformer, read_config
from tests.family_table import VARIANTS

NAMED = {variant.name: variant for variant in VARIANTS}


def model_of(name: str) -> Transformer:
    """A model of a variant with random weights, norms and biases, in float64."""
    model = Transformer(read_config(NAMED[name].raw, "config.json")).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter + 0.3 * drawn if parameter.dim() == 1 else 0.2 * drawn)
    return model
