"""What tensors and dtypes are called."""

import pytest
import torch

from engine.model import name_of
from engine.model.dtypes import is_narrower
from tests import tiny


@pytest.mark.parametrize("shape", ["llama2", "llama3.2"])
def test_every_parameter_has_the_name_that_transformers_gives_it(shape):
    transformers = pytest.importorskip("transformers")
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tiny.raw_config(shape)))
    ours = tiny.random_llama(shape)
    theirs = {name: tuple(p.shape) for name, p in peer.named_parameters()}
    assert {ours.config.place(name).tensor: tuple(p.shape) for name, p in ours.named_parameters()} == theirs


def test_dtypes_are_written_as_people_do_and_fewer_digits_are_narrower():
    assert name_of(torch.bfloat16) == "bfloat16" and name_of(torch.float32) == "float32"
    order = [torch.bfloat16, torch.float16, torch.float32, torch.float64]  # 8, 11, 24 and 53 digits
    assert [[is_narrower(a, b) for b in order] for a in order] == [[i < j for j in range(4)] for i in range(4)]
