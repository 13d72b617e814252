"""Tiny models, tokenizers and rows for the tests: made on the spot, seeded."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders as token_decoders
from tokenizers import models, pre_tokenizers, processors, trainers

from data.rows.examples import Example
from engine import weights
from engine.model import Llama, read_config, rotations
from engine.model.transformer import Rotations
from system.neighbours import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{"
    r"1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

TEMPLATE = (  # Llama-3's
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SHAPES = {  # what is particular to each family
    "llama2": {"num_key_value_heads": 4, "rope_theta": 10000.0},
    "llama3": {"num_key_value_heads": 2, "rope_theta": 500000.0},
    "llama3.1": {
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama3.2": {"num_key_value_heads": 2, "rope_theta": 500000.0, "tie_word_embeddings": True},
}


def environment(*before: Path) -> dict[str, str]:
    """Of a process that finds this checkout's packages, after the folders named, and computes with one thread."""
    path = os.pathsep.join(filter(None, (*map(str, before), str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def raw_config(shape: str = "llama3", **changes: object) -> dict:
    """A config.json of a tiny model."""
    plain = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return plain | SHAPES[shape] | changes


def random_llama(
    shape: str = "llama3", *, seed: int = 0, std: float = 0.2, dtype=torch.float32, **changes: object
) -> Llama:
    """A Llama with normal weights; at a deviation of 0.02 a wrong rotary base would stay unseen."""
    model = Llama(read_config(raw_config(shape, **changes), "config.json"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model.to(dtype)


def turned(model: Llama, n: int, dtype: torch.dtype = torch.float32) -> Rotations:
    """cos and sin of a model's layers for one sequence of n tokens."""
    positions = torch.arange(n)
    return rotations(model.config.ropes, positions, torch.full_like(positions, n), dtype)


def write_tokenizer(folder: Path, texts: Sequence[str], vocab_size: int = 400) -> None:
    """A BPE of Llama-3's form, trained on the texts, with its control tokens; no chat template of its own."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = token_decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(CONTROL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(CONTROL)
    bos = (CONTROL[0], tokenizer.token_to_id(CONTROL[0]))
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{CONTROL[0]} $A", special_tokens=[bos]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": CONTROL[0], "eos_token": "<|end_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_model(
    folder: Path, texts: Sequence[str] = (), *, shape: str = "llama3", vocab_size: int = 400, **changes
) -> Path:
    """A checkpoint folder: a random tiny Llama, with a tokenizer where texts are given."""
    if texts:
        changes |= {"bos_token_id": vocab_size - 5, "eos_token_id": vocab_size - 4}
    weights.save(random_llama(shape, vocab_size=vocab_size, **changes), folder)
    if texts:
        write_tokenizer(folder, texts, vocab_size)
    return folder


def random_examples(
    lengths: Sequence[tuple[int, ...]], *, vocab_size: int = 101, seed: int = 0, labels: Sequence[bool] = ()
) -> list[Example]:
    """Examples of random ids; each row gives the prompt's length and those of the responses."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, vocab_size, n).astype(np.int32)

    return [
        Example(f"rows.jsonl:{i + 1}", ids(p), tuple(ids(r) for r in rs), labels[i] if labels else None)
        for i, (p, *rs) in enumerate(lengths)
    ]


def write_work(folder: Path, model: str = "m") -> Path:
    """A working directory with a plain folder for each of our packages, and in its data/ a model and rows of text."""
    for name in PACKAGES:
        (folder / name).mkdir(parents=True)
    write_model(folder / "data" / model, ["some words"] * 20)
    (folder / "data" / model / "chat_template.jinja").write_text(TEMPLATE)
    write_rows(folder / "data/rows.jsonl", [{"prompt": "some", "chosen": "words", "rejected": "some"}] * 4)
    return folder


def write_rows(path: Path, rows: Sequence[dict]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
