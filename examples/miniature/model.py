"""Make and train the tiny Llama of the miniature examples, which answers questions about animals (the field guide). An
existing model is reused unless its data or settings have changed.

    python -m examples.miniature.model runs/tiny

This writes the model into runs/tiny/model and the prompts into runs/tiny/prompts.jsonl, and the prompts again in three
parts for a recipe of several rounds, prompts-1.jsonl to prompts-3.jsonl.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from data.text import LLAMA3_TEMPLATE, LLAMA3_TOKENS
from engine import train, weights
from engine.config import TrainConfig
from engine.model import Transformer, read_config
from examples.miniature import world
from system import cli, files

VOCABULARY = 512
CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", *LLAMA3_TOKENS)
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": VOCABULARY - 5,
    "eos_token_id": VOCABULARY - 4,
}
TRAINING = {"batch_size": 64, "lr": 3e-3, "warmup_steps": 20, "optimizer": "adamw", "epochs": 1, "micro_tokens": 4096}
STEPS = 200
SEED = 0
N_QUESTIONS = 3264  # all that there are
N_TEST = 500  # never seen by any model before it is tested
N_PARTS = 3  # that the prompts come in too
N_PROMPTS = 1024  # for preference pairs; the rest of the questions is the corpus's


def split_questions() -> tuple[list[world.Question], list[world.Question], list[world.Question]]:
    """Questions of the corpus, of the preference pairs, and of the test: no question in two of them."""
    everything = world.questions(N_QUESTIONS, SEED)
    return everything[N_TEST + N_PROMPTS :], everything[N_TEST : N_TEST + N_PROMPTS], everything[:N_TEST]


def base_model(root: Path, seed: int = SEED) -> Path:
    """The folder of the trained model, made below root where it is not there yet. seed: of its weights and its corpus;
    which questions are the corpus's is the same for all.
    """
    recipe = json.dumps([SHAPE, TRAINING, STEPS, seed, CONTROL, Path(world.__file__).read_text()], sort_keys=True)
    folder = root / f"base-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    questions, _, _ = split_questions()
    drawn = (questions[i] for i in rng.integers(len(questions), size=STEPS * int(TRAINING["batch_size"])))
    rows = [{"prompt": q.prompt, "completion": world.noisy_answer(q, rng)} for q in drawn]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_random_model(folder / "random", [text for row in rows[:2000] for text in row.values()], seed)
    result = train.run(
        TrainConfig(
            model=str(folder / "random"),
            data=(str(folder / "corpus.jsonl"),),
            loss="sft",
            out=str(folder / "run"),
            seed=seed,
            **TRAINING,
        )  # pyright: ignore[reportArgumentType]
    )
    shutil.move(result.checkpoints[-1], folder / "model")
    return folder / "model"


def _write_random_model(folder: Path, texts: list[str], seed: int) -> None:
    """Random weights, and a byte-level BPE of Llama-3's form learnt from the texts."""
    model = Transformer(read_config(SHAPE, "the miniature's shape"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.08, generator=generator)
    weights.save(model, folder)
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(CONTROL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(CONTROL))
    bos = (CONTROL[0], tokenizer.token_to_id(CONTROL[0]))
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{CONTROL[0]} $A", special_tokens=[bos]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": CONTROL[0], "eos_token": CONTROL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": LLAMA3_TEMPLATE}, indent=2))


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.miniature.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder for the model and the prompts")
    folder = parser.parse_args(argv).folder
    made, link = base_model(folder), folder / "model"
    if not link.exists():
        link.symlink_to(made.relative_to(folder))
    _, prompts, _ = split_questions()
    rows = [{"prompt": q.prompt} for q in prompts]
    files.write_rows(folder / "prompts.jsonl", rows)
    each = len(rows) // N_PARTS
    for part in range(N_PARTS):
        files.write_rows(folder / f"prompts-{part + 1}.jsonl", rows[part * each : (part + 1) * each])
    print(link)


if __name__ == "__main__":
    cli.run(main)
