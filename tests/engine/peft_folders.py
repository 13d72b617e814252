"""Adapter folders as PEFT writes them, and models as it and transformers read them, for the tests."""

from pathlib import Path

import torch


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
    made.save_pretrained(folder)
    return folder
