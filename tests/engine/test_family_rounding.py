"""Where families round in bfloat16: norms and embeddings against transformers' own, to the last bit."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding
from transformers.models.granite.modeling_granite import GraniteRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.olmo3.modeling_olmo3 import Olmo3RMSNorm

from engine.model import SHAPES, Transformer, raw_config, read_config

NORMS = {  # a shape of the family, cut down -> its norm in transformers
    "llama3-8b": LlamaRMSNorm,
    "granite3.3-8b": GraniteRMSNorm,
    "olmo2-7b": Olmo2RMSNorm,
    "olmo3-7b": Olmo3RMSNorm,
    "gemma2-9b": Gemma2RMSNorm,
    "gemma3-4b": Gemma3RMSNorm,
}


def small(shape: str, **changes: object) -> Transformer:
    """A model of that family with one layer."""
    raw = raw_config(shape, 1) | {"vocab_size": 32, "intermediate_size": 64, "layer_types": None} | changes
    return Transformer(read_config(raw, shape)).bfloat16()


def numbers(*size: int) -> torch.Tensor:
    """Normal ones, in bfloat16."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("shape", NORMS)
def test_a_norm_in_bfloat16_is_transformers_to_the_last_bit(shape):
    assert shape in SHAPES
    ours = small(shape).norm
    theirs = NORMS[shape](ours.weight.numel(), eps=ours.eps).bfloat16()
    with torch.no_grad():
        ours.weight.copy_(ours.weight + 0.3 * numbers(ours.weight.numel()))
        theirs.weight.copy_(ours.weight)
        x = 3 * numbers(64, ours.weight.numel())
        assert torch.equal(ours(x), theirs(x))
        others = {kind: kind(ours.weight.numel(), eps=ours.eps).bfloat16() for kind in (LlamaRMSNorm, Olmo2RMSNorm)}
        for other in others.values():
            other.weight.copy_(ours.weight)
        assert any(not torch.equal(other(x), ours(x)) for other in others.values())  # they do round differently


def test_gemmas_embedding_factor_is_rounded_first_and_granites_is_not():
    gemma = small("gemma3-4b", hidden_size=640)
    theirs = Gemma3TextScaledWordEmbedding(32, 640, 0, embed_scale=640**0.5).bfloat16()
    ids = torch.arange(1, 32)
    with torch.no_grad():
        gemma.embed.weight.copy_(numbers(32, 640))
        theirs.weight.copy_(gemma.embed.weight)
        assert torch.equal(gemma.embedded(ids), theirs(ids))
        assert not torch.equal(gemma.embedded(ids), gemma.embed(ids) * 640**0.5)  # 25.25, not 25.298
        granite = small("granite3.3-8b", embedding_multiplier=12.3)
        granite.embed.weight.copy_(numbers(32, granite.config.hidden_size))
        assert torch.equal(granite.embedded(ids), granite.embed(ids) * 12.3)
        rounded = torch.tensor(12.3).bfloat16()
        assert not torch.equal(granite.embedded(ids), granite.embed(ids) * rounded)
