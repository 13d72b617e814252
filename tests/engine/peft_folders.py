"""Adapter folders as PEFT writes them, and models as it and transformers read them, for the tests."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def write_adapter(folder: Path, model: Path, *, b: float = 0.0, seed: int = 0, rank: int = 4, **settings) -> Path:
    """An adapter of every linear layer, saved by PEFT. b: the size of B's numbers, which PEFT begins with zeros of."""
    import peft
    from transformers import AutoModelForCausalLM

    asked = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    made = peft.get_peft_model(base, peft.LoraConfig(**(asked | settings)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(b * torch.randn(parameter.shape, generator=generator))
            elif "modules_to_save" in name:
                parameter.add_(b * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(folder)
    return folder


def logits_in_peft(model: Path, adapter: Path, ids: Sequence[int]) -> Tensor:
    """[T, V] float32 of one sequence, by a base of transformers with an adapter that PEFT has put beside it."""
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return _logits(peft.PeftModel.from_pretrained(base, adapter), ids)


def logits_in_transformers(folder: Path, ids: Sequence[int]) -> Tensor:
    """[T, V] float32 of one sequence, by what transformers makes of a folder alone: a model's, or an adapter's."""
    from transformers import AutoModelForCausalLM

    return _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)


def _logits(model: torch.nn.Module, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([list(ids)])).logits[0]
