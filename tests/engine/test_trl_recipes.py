"""Recipes that people bring: files with exactly the keys of alignment-handbook's, with values for a tiny model.

The keys are those of the repository huggingface/alignment-handbook at commit
925acdfe4b2b4e38c3dabd1851bc418f0b656351, of every file of recipes/*/dpo and recipes/*/orpo.
"""

import json
import math
import shutil

import pytest
import yaml

from engine import train
from engine.config import ALIASES, TrainConfig, trl_names
from system import InputError, cli
from tests import tiny
from tests.metrics import lines

OF_ALL = (
    *("model_name_or_path", "torch_dtype", "dataset_num_proc", "bf16", "beta", "gradient_accumulation_steps"),
    *("gradient_checkpointing", "learning_rate", "logging_steps", "lr_scheduler_type", "num_train_epochs"),
    *("output_dir", "per_device_train_batch_size", "save_strategy", "seed"),
)
OF_DPO = (*OF_ALL, "dataset_mixture", "do_eval", "eval_strategy", "warmup_ratio")
MEASURED = (*OF_DPO, "eval_steps", "hub_model_id", "max_prompt_length", "optim", "per_device_eval_batch_size")
LONG = (*MEASURED, "log_level", "max_length", "push_to_hub")
SAVED = ("save_steps", "save_total_limit")
SCAN = (*MEASURED, *SAVED, "gradient_checkpointing_kwargs", "hub_model_revision", "loss_type")
SMOLLM2 = (*LONG, "gradient_checkpointing_kwargs", "hub_private_repo", "report_to")
RECIPES = {
    "constitutional-ai/dpo/config_anthropic.yaml": (*LONG, *SAVED, "do_train"),
    "pref_align_scan/dpo/config_openhermes.yaml": (*SCAN, "do_train"),
    "pref_align_scan/dpo/config_zephyr.yaml": SCAN,
    "smollm2/dpo/config.yaml": SMOLLM2,
    "smollm2/dpo/config_smol.yaml": SMOLLM2,
    "smollm3/dpo/apo.yaml": (
        *(*OF_DPO, *SAVED, "attn_implementation", "gradient_checkpointing_kwargs", "hub_strategy", "log_level"),
        *("logging_strategy", "loss_type", "lr_scheduler_kwargs", "max_grad_norm", "max_length", "model_revision"),
        *("overwrite_output_dir", "padding_free", "push_to_hub", "report_to", "run_name", "trust_remote_code"),
        "use_liger_kernel",
    ),
    "starchat2-15b/dpo/config_v0.1.yaml": (*LONG, "gradient_checkpointing_kwargs", "report_to"),
    "zephyr-141b-A35b/orpo/config_full.yaml": (
        *(*OF_ALL, "attn_implementation", "chat_template", "dataset_name", "dataset_train_split"),
        *("gradient_checkpointing_kwargs", "hub_model_id", "log_level", "max_length", "max_prompt_length"),
        *("model_revision", "optim", "push_to_hub", "report_to", "warmup_steps"),
    ),
    "zephyr-7b-beta/dpo/config_full.yaml": (*LONG, *SAVED, "gradient_checkpointing_kwargs"),
    "zephyr-7b-beta/dpo/config_qlora.yaml": (
        *(name for name in LONG if name != "dataset_mixture"),
        *(*SAVED, "attn_implementation", "dataset_mixer", "dataset_splits", "gradient_checkpointing_kwargs"),
        *("load_in_4bit", "lora_alpha", "lora_dropout", "lora_r", "lora_target_modules", "use_peft"),
    ),
    "zephyr-7b-gemma/dpo/config_full.yaml": (*LONG, "gradient_checkpointing_kwargs", "report_to"),
}
VALUES = {  # what the recipes say there, where they say one thing; numbers of steps and rows for a tiny run
    "attn_implementation": "flash_attention_2", "beta": 0.05, "bf16": True, "dataset_num_proc": 12, "do_eval": True,
    "do_train": True, "eval_steps": 2, "eval_strategy": "steps", "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "hub_model_id": "mine",
    "hub_model_revision": "v1.0", "hub_private_repo": True, "hub_strategy": "every_save", "learning_rate": "1.0e-06",
    "load_in_4bit": True, "log_level": "info", "logging_steps": 10, "logging_strategy": "steps", "lora_alpha": 4,
    "lora_dropout": 0.05, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "loss_type": "sigmoid",
    "lr_scheduler_type": "cosine", "max_grad_norm": 0.2, "max_length": 1024, "max_prompt_length": 512,
    "model_revision": "main", "num_train_epochs": 1, "optim": "adamw_torch", "overwrite_output_dir": True,
    "padding_free": True, "per_device_eval_batch_size": 4, "per_device_train_batch_size": 2, "push_to_hub": True,
    "report_to": ["tensorboard", "wandb"], "run_name": "mine", "save_steps": 3, "save_strategy": "steps",
    "save_total_limit": 1, "seed": 42, "torch_dtype": "bfloat16", "trust_remote_code": True, "use_liger_kernel": True,
    "use_peft": True, "warmup_ratio": 0.1, "warmup_steps": 100,
}  # fmt: skip
SMOLLM3 = {
    "do_eval": False, "eval_strategy": "no", "gradient_accumulation_steps": 2, "loss_type": "apo_zero",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "lr_scheduler_type": "cosine_with_min_lr", "max_length": 24576,
    "model_revision": "it-SFT", "per_device_train_batch_size": 1, "report_to": ["wandb"], "save_steps": 0.5,
}  # fmt: skip
TEMPLATE = tiny.TEMPLATE + "{% if add_generation_prompt and not enable_thinking %}<think>\n\n</think>{% endif %}"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def pair(i, *, thinks=None):
    """A row of two conversations, as ultrafeedback_binarized and smoltalk2 have them."""
    prompt, (a, b) = f"Say {WORDS[i % 10]} and {WORDS[i % 7]}", (WORDS[i % 9], WORDS[(i + 3) % 8])
    row = {"prompt": prompt, "source": "made up"} | {
        side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{side} {word} {i}"}]
        for side, word in (("chosen", a), ("rejected", b))
    }
    return row if thinks is None else row | {"chat_template_kwargs": {"enable_thinking": thinks}}


@pytest.fixture
def where(tmp_path):
    """A folder with a tiny model and rows: splits by names, and by a card with a configuration."""
    rows = [pair(i) for i in range(24)]
    model = tiny.write_model(tmp_path / "model", [TEMPLATE, *map(str, rows)], max_position_embeddings=4096)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    for name in ("train_prefs", "test_prefs"):
        (tmp_path / "binarized").mkdir(exist_ok=True)
        tiny.write_rows(tmp_path / "binarized" / f"{name}.jsonl", rows)
    smoltalk = tmp_path / "smoltalk"
    smoltalk.mkdir()
    splits = ""
    for name, thinks in (("llama_no_think", False), ("qwen_think", True)):
        tiny.write_rows(smoltalk / f"{name}.jsonl", [pair(i, thinks=thinks) for i in range(24)])
        splits += f"  - split: {name}\n    path: {name}.jsonl\n"
    (smoltalk / "README.md").write_text(f"---\nconfigs:\n- config_name: Preference\n  data_files:\n{splits}---\n")
    return tmp_path


def recipe(where, name):
    """A file with the keys of one of the handbook's, at `where`."""
    columns = ["chosen", "rejected"]
    binarized = [
        {"id": f"{where}/binarized", "config": "default", "split": split, "columns": [*columns], "weight": 1.0}
        for split in ("train_prefs", "test_prefs")
    ]
    smoltalk = [
        {"id": f"{where}/smoltalk", "config": "Preference", "split": split, "weight": weight}
        | {"columns": [*columns, "prompt", "chat_template_kwargs"]}
        for split, weight in (("llama_no_think", 0.5), ("qwen_think", 0.25))
    ]
    values = VALUES | {
        "model_name_or_path": f"{where}/model", "output_dir": f"{where}/out", "dataset_name": f"{where}/binarized",
        "dataset_train_split": "train_prefs", "dataset_splits": ["train_prefs", "test_prefs"],
        "chat_template": TEMPLATE,
        "dataset_mixer": {f"{where}/binarized": 1.0},
        "dataset_mixture": {"datasets": binarized, "test_split_size": 8, "seed": 0},
    }  # fmt: skip
    if name.startswith("smollm3"):
        values |= SMOLLM3 | {"dataset_mixture": {"datasets": smoltalk}}
    if "/orpo/" in name:
        values |= {"lr_scheduler_type": "inverse_sqrt", "optim": "adamw_bnb_8bit"}
    if name.startswith("constitutional"):
        values |= {"optim": "rmsprop", "lr_scheduler_type": "linear", "torch_dtype": None}
    path = where / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: values[key] for key in RECIPES[name]}, sort_keys=False))
    return path


def parse(path, *flags):
    return cli.parse(
        TrainConfig,
        ["--config", str(path), *flags],
        command="python -m engine.train",
        example="...",
        peer=trl_names,
        aliases=ALIASES,
    )


def test_the_recipe_of_smollm3_runs(where, capsys):
    shutil.rmtree(where / "model")
    kind = {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "num_hidden_layers": 4}
    texts = [TEMPLATE, *(str(pair(i)) for i in range(24))]
    model = tiny.write_model(where / "model", texts, max_position_embeddings=4096, tie_word_embeddings=True, **kind)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    config = parse(recipe(where, "smollm3/dpo/apo.yaml"))
    said = capsys.readouterr().err
    result = train.run(config)
    made = lines(result.out)
    n = 24 // 2 + 24 // 4  # shares of the two data sets
    assert len(made) == n // 2 == 9  # in steps of 1 x 2 examples
    # transformers: ceil(0.1 * 9) = 1 step of warm-up, then half a cosine from 1e-6 to a tenth of it
    factors = [0.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * (k - 1) / 8)) / 2 for k in range(1, 9)]
    assert [line["learning_rate"] for line in made] == pytest.approx([1e-6 * f for f in factors], abs=1e-12)
    assert made[0]["loss"] == pytest.approx(1.0, abs=1e-6)  # APO-zero's where policy and reference are one
    # save_steps: 0.5 of 9 steps is every 5; the newest folder alone is kept
    assert [path.name for path in result.checkpoints] == ["epoch-01"]
    assert config.checkpoints.steps_between_folders(9) == 5
    for line in (
        "model_revision: it-SFT: left out",
        "trust_remote_code: true: left out",
        "push_to_hub: true: left out",
        "max_length: 24576 is --max-tokens 24576 here",
        "save_strategy: steps and save_steps 0.5 is --save-every 0.5 here",
        "dataset_mixture: weights 0.5, 0.25 is --data-weights 0.5 0.25 here",
    ):
        assert line in said
    first = (result.out / "first_example.txt").read_text()
    assert "assistant" in first
    written = json.loads((result.checkpoints[0] / "config.json").read_text())
    assert written["architectures"] == ["SmolLM3ForCausalLM"] and written["model_type"] == "smollm3"


def test_rows_of_smollm3_have_their_own_template_settings(where):
    """A prompt that does not think has the thought that its template closes; one that does has none."""
    config = parse(recipe(where, "smollm3/dpo/apo.yaml"))
    inputs = train.TrainingInputs(config)
    tokenizer = inputs.chat.tokenizer
    shown = [tokenizer.decode(example.prompt.tolist()) for example in inputs.examples]
    assert sum("<think>" in text for text in shown) == 12 and len(shown) == 18


WITH_ADAPTER = "zephyr-7b-beta/dpo/config_qlora.yaml"
CHANGES = {  # what has to change in those that cannot be had here
    "zephyr-141b-A35b/orpo/config_full.yaml": ["chat_template", "optim", "lr_scheduler_type"],
}


IN_FAST_TESTS = {*CHANGES, WITH_ADAPTER, "zephyr-7b-beta/dpo/config_full.yaml"}
OTHERS = [
    pytest.param(name, marks=[] if name in IN_FAST_TESTS else [pytest.mark.slow])
    for name in RECIPES
    if not name.startswith("smollm3")
]


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_of_the_handbook_is_a_run_here_or_one_list_of_what_to_change(where, name):
    trainer = ["--trl-trainer", "orpo"] if "/orpo/" in name else []
    path = recipe(where, name)
    if name in CHANGES:
        with pytest.raises(InputError) as fault:
            parse(path, *trainer)
        head, *listed = str(fault.value).split("\n")
        assert head.endswith(f"{len(CHANGES[name])} things have to change")
        assert sorted(line.strip().partition(":")[0] for line in listed) == sorted(CHANGES[name])
        return
    config = parse(path, *trainer)
    assert (config.objective.loss, config.objective.beta) == ("dpo", 0.05)
    assert (config.data.max_tokens, config.data.max_prompt_tokens) == (1024, 512)
    result = train.run(config)
    n_rows = 24 if name == WITH_ADAPTER else 48 - 8  # 24, and the other split is held out; or of both 8 are
    assert result.n_steps == math.ceil(n_rows / 4)  # 2 x 2 examples a step
    if name == WITH_ADAPTER:
        asked = config.adapters
        assert (asked.rank, asked.alpha, asked.targets, asked.base_dtype) == (4, 4.0, ("q_proj", "v_proj"), "nf4")
        written = json.loads((result.checkpoints[-1] / "adapter_config.json").read_text())
        assert (written["r"], written["lora_alpha"], written["target_modules"]) == (4, 4, ["q_proj", "v_proj"])
    assert {"eval_loss"} <= {key for line in lines(result.out) for key in line}
