"""Writes docs/models.md: which models run, what each has that Llama has not, what was checked and what is refused; and
docs/own-family.md: how to add one.

    python -m examples.models_page

A test compares both with what this would write.
"""

import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from engine.model import FAMILIES, SHAPES, ModelConfig, raw_config, read_config
from engine.planning import MemoryInputs, TokenStatistics, capped_flops, cost, memory
from system import InputError

SCALINGS = {"Linear": "linear", "Dynamic": "dynamic", "Yarn": "YaRN", "Llama3": "llama3", "LongRope": "LongRoPE"}
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TABLE = ROOT / "tests/family_table.py"
REFUSED: dict[str, dict[str, Any]] = {
    "a mixture of experts": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"},
    "linear attention, Mamba": {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"},
    "models that see or hear, but for two": {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"
    },
    "encoders": {"architectures": ["BertForMaskedLM"], "model_type": "bert"},
    "any other": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
    "quantised weights": raw_config("llama3-8b") | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "EmbeddingGemma": raw_config("gemma3-4b") | {"use_bidirectional_attention": True},
    "a file whose rope says two things": raw_config("llama3-8b") | {"rope_parameters": {"rope_theta": 10_000.0}},
}  # fmt: skip
HEAD = """# Models

The models that run, how they were tested, and what is refused. `python -m examples.models_page` writes this page from
the families in `engine/model/families/`.

Each of these is loaded from safetensors, trained, sampled and scored, and written under the names that it came with, so
that transformers and vLLM load the folder. `--model` takes a folder or a hub id; the family is recognised. One block
(`engine/model/transformer.py`) computes all of them: the differences between families are its options. Another one can
[be added](own-family.md).

"""
CHECKED = """
## What was checked

Each family, in as many variants as the table above says (`tests/family_table.py`), on tiny models with random weights,
norms and biases that the tests create with transformers 5.23. Sequences are longer than windows and original contexts
(`./launch.sh test --all -k families`):

| what | tolerance |
|---|---|
| log-probs of responses in float32, against transformers in float64 | 2e-6, relative |
| the same in float64, with transformers' float32 parts (norms, softmax, rotary angles) raised to float64 | 1e-10 |
| gradients of every parameter under APO-zero, in float64 | 1e-9, and 1e-13 where they are 0 |
| a packed batch against each sequence alone | the same |
| sixteen tokens, sampled greedily, against transformers' `generate` | equal |
| a written folder, loaded in transformers | nothing missing or unexpected, equal logits |
| the training log of two ranks, against one | 1e-5 |

Some versions of transformers (5.2 is one) stretch the positions of all of OLMo 3's layers, where the released model
stretches only the full layers. They compute another model and were not used for the comparison.

**No released checkpoint of a family other than Llama's was run**, because none was at hand. Run were
SmolLM2-135M-Instruct, whose architecture is Llama's ([results](results.md)), and eight billion parameters of Llama's
shape with random weights ([performance](performance.md)). For the other families, correct numbers of a release rest on
the tests above, and on reading `config.json` as transformers does.

**Chat templates**: the token ids of 200 conversations each, of several turns, with and without system messages, equal
those of transformers' `apply_chat_template`. The templates have the form of Qwen 2.5 and 3, SmolLM3, Granite 3.0 and
3.1, OLMo 2, 3 and 3 Think, Phi-3, Phi-4 and Phi-4-mini, EXAONE 4, Apertus, Gemma 2 and 3, and Mistral v1, v3, v7 and
tekken (`./launch.sh test --all -k family_templates`); the tokenizers are stand-ins too.
"""
NOTES = """
## Notes on single features

**Precision.** Compute in bfloat16 or float32. In float16 Gemma 2 and 3 overflow: their activations reach about 800,000,
and 65,504 is the largest number. Norms are computed in float32 in every family and rounded where the family does: OLMo
and Gemma multiply with the norm's weights before rounding, the others after. Gemma's embedding factor is first rounded
to the dtype of the weights, as in transformers (25.25 for 25.298 in bfloat16), so a model trained in bfloat16 keeps the
factor that it was released with.

**Windows** are distances between positions: a token of a response sees back into its prompt as in a conversation of its
own. The CUDA kernel and the CPU masks apply them; generation keeps all keys and masks them.

**Softcaps** (only Gemma 2 caps attention scores). No kernel caps scores, so a layer with a cap processes each document
with plain matrix products. Its scores are held for one document at a time and recomputed in the backward pass. {caps}

**LongRoPE** (Phi-3.5, Phi-4-mini) has two sets of frequencies: one for sequences up to the original context and one for
longer ones, counting prompt and response together. If two responses to one prompt are on different sides of this limit,
each is computed with its own copy of the prompt, because the prompt's keys differ; otherwise they share it. The
response's last token counts, although nothing is predicted from it.

**Dynamic RoPE** beyond `max_position_embeddings` is refused, with a message that names this key. There every length has
its own frequencies: transformers uses those of the longest sequence of a batch, and vLLM computes something else again.
Within the limit, dynamic RoPE changes nothing.

**Models that see** (Gemma 3 from 4B on, Mistral Small 3.1 and later, Ministral 3): the language model inside is
trained. The vision tower and its projector (`vision_tower`, `multi_modal_projector`) are copied byte for byte into
every folder that is written. Pictures in rows are refused. The constants of Apertus' activation (`act_fn.beta`,
`act_fn.eps`) are used, and copied in the same way.

**config.json** is read in both spellings, that of 2024 (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of
transformers 5 (`rope_parameters`, `dtype`), and written back unchanged except for the dtype.
[Files](files.md#the-folder-of-a-model) lists what is done if two places contradict each other. A missing key has the
meaning of its family: Gemma's and SmolLM3's heads are tied, Mistral's window is 4,096, Apertus' positions are stretched
like Llama 3's.

## Where vLLM differs

According to vLLM's sources, log-probs computed here equal vLLM's up to rounding, with these exceptions. Check them
before you score answers here that vLLM sampled:

- LongRoPE: vLLM uses long or short frequencies for all sequences, depending on `--max-model-len` and not on a
  sequence's own length.
- Dynamic RoPE: vLLM has one fixed base for all lengths, which never equals transformers', not even within
  `max_position_embeddings`.
- OLMo 3: equal to this project (positions stretched only in the full layers) since vLLM's pull request 24534. A later
  one, 43419, would have changed that, and measured worse.

This was read in vLLM's sources and issues, not measured.
"""


def main() -> None:
    """The command."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The pages' texts, by their names."""
    models = (HEAD, _families(), "\n", _releases(), CHECKED, _refused(), NOTES.format(caps=_caps()))
    return {"models.md": "".join(models), "own-family.md": _adding()}


def _families() -> str:
    lines = ["| models | `model_type` | `architectures` | beside Llama | variants compared |", "|---|---|---|---|---|"]
    compared = Counter(variant.architecture for variant in runpy.run_path(str(TABLE))["VARIANTS"])
    for f in FAMILIES:
        name = f"`{f.model_type}` | `{f.architecture}`"
        lines += [f"| {f.title} | {name} | {f.differs or '–'} | {compared[f.architecture]} |"]
    return "\n".join(lines) + "\n"


def _releases() -> str:
    """What the block is made of in a release of each."""
    lines = [
        "The options of the block in one release of each, by its `config.json`. `--shape` of `engine.plan`",
        "and `engine.bench` takes these names. Memory and hours on one GPU:",
        "[scaling](scaling.md#other-families-on-one-gpu).", "",
        "| shape | 10^9 parameters | norms | of q and k | windows | positions | MLP | further |", "|" + "---|" * 8,
    ]  # fmt: skip
    for name in SHAPES:
        if name != "tiny":
            config = read_config(raw_config(name), name)
            cells = (_norms(config), _qk_norm(config), _windows(config), _positions(config), _mlp(config))
            lines += [f"| `{name}` | {config.n_parameters / 1e9:.2f} | {' | '.join(cells)} | {_further(config)} |"]
    lines += [
        "",
        "`phi4-mini` is without LongRoPE's factors and `gemma3-4b` without its vision tower; no number needs them.",
    ]
    return "\n".join(lines) + "\n"


def _norms(config: ModelConfig) -> str:
    sides = {"before": "before", "behind": "after", "both": "before and after"}[config.norms]
    return sides + (", of 1 + w" if config.norm_adds_one else "")


def _qk_norm(config: ModelConfig) -> str:
    return {"none": "–", "each_head": "each head", "all_heads": "all heads together"}[config.qk_norm]


def _windows(config: ModelConfig) -> str:
    windows = [layer.window for layer in config.layers if layer.window is not None]
    if not windows:
        return "–"
    share = "all layers" if len(windows) == config.n_layers else f"{len(windows)} of {config.n_layers} layers"
    return f"{windows[0]:,} in {share}"


def _positions(config: ModelConfig) -> str:
    """Each kind of RoPE with the layers that have it."""
    said = []
    for rope, n in Counter(layer.rope for layer in config.layers).items():
        if rope is None:
            what = "none"
        else:
            what = f"theta {rope.theta:,.0f}"
            what += "" if rope.scaling is None else f", {SCALINGS[type(rope.scaling).__name__]}"
            what += "" if rope.size == config.head_size else f", {rope.size} of {config.head_size} numbers"
            what += "" if rope.growth is None else ", queries grow"
        said.append(what + ("" if n == config.n_layers else f" in {n}"))
    return "; ".join(said)


def _mlp(config: ModelConfig) -> str:
    return {"silu": "SwiGLU", "gelu_tanh": "GeGLU (tanh)", "xielu": "xIELU, no gate"}[config.activation]


def _further(config: ModelConfig) -> str:
    found = {
        "biases on q, k, v": config.qkv_bias,
        f"scores capped at {config.attention_cap:g}" if config.attention_cap else "": config.attention_cap,
        f"logits capped at {config.logit_cap:g}" if config.logit_cap else "": config.logit_cap,
        "scaled embedding": config.embed_factor != 1,
        "a scale of its own": config.attention_scale is not None,
        "scaled branches and logits": config.residual_factor != 1,
        "fused matrices": bool(config.names.fused),
        "tied": config.tied,
    }
    return ", ".join(what for what, is_so in found.items() if is_so) or "–"


def _refused() -> str:
    lines = [
        "", "## What is refused", "",
        "Before any weights are read, with a message that says why (shown here without the file's name):", "",
        "| | says |", "|---|---|",
    ]  # fmt: skip
    for what, raw in REFUSED.items():
        try:
            read_config(raw, "config.json")
        except InputError as fault:
            said = re.sub(r"; it has to be one of .*", "; it has to be one of the above", str(fault))
            lines += [f"| {what} | {said.removeprefix('config.json: ')} |"]
    lines += [
        "",
        "A LoRA adapter is given as a folder of its own, which names its base ([LoRA](lora.md)). An adapter inside the",
        "folder of a whole model is refused, because transformers would apply it to that model.",
    ]
    return "\n".join(lines) + "\n"


def _caps() -> str:
    """What Gemma 2's caps cost at the paper's lengths, by the plan."""
    shape, load = read_config(raw_config("gemma2-9b"), "gemma2-9b"), TokenStatistics.of_the_paper(16)
    step = 3 * cost.forward_of_example(shape, load)
    head = 2 * load.rows * shape.hidden_size * shape.vocab_size
    setting = MemoryInputs(shape=shape, device="cuda", dtype=torch.bfloat16, most_scores=load.most_scores)
    scores = memory.OF_SCORE * shape.n_heads * setting.most_scores
    return (
        f"For `gemma2-9b` with the paper's lengths this takes {capped_flops(shape, load.documents) / step:.1%} more "
        f"operations per step, and {scores / 1e9:.1f} GB for the scores of the\nlongest sequence. Capped logits are "
        f"recomputed too: {head / step:.1%} more. These counts are for a kernel's products; plain\nproducts also "
        "compute the half of the scores that is masked. The speed on a GPU was not measured."
    )


def _adding() -> str:
    """EXAONE 4's page and its rows in the tests, as they are."""
    code = (ROOT / "engine/model/families/exaone4.py").read_text(encoding="utf-8").strip()
    rows = (ROOT / "tests/family_table.py").read_text(encoding="utf-8").splitlines()
    shown = "\n".join(line for line in rows if line.startswith("    _exaone4("))
    return f"""# Add an architecture

You have a dense model whose architecture is not in the list of [models](models.md). If its blocks are put together
from options that are there already, it takes three steps: a file and its name in `FAMILIES`, rows in the tests, and
the page.

## 1. Say how its config.json is read

A family is one file in `engine/model/families/`. It defines what each key and each missing key of `config.json` means,
what the weights are called, and what is refused. EXAONE 4 was added in this way. This is its whole file,
`engine/model/families/exaone4.py`; the names of its weights are OLMo's:

```python
{code}
```

Then add the family to `FAMILIES` in `engine/model/families/__init__.py`.

## 2. Add it to the tests

Rows in `tests/family_table.py` go through every test under [what was checked](models.md#what-was-checked), in as many
variants as the family has:

```python
VARIANTS = (
    ...,
{shown}
)
```

```
./launch.sh test --all -k families
```

## 3. Write the page again

```
./launch.sh pages      # takes a minute or two
```

## If the block lacks an option

A new option is a field of `ModelConfig` (`engine/model/model_config.py`) and a line or two in
`engine/model/transformer.py`. Its memory and its operations are counted in `engine/planning/memory.py` and
`engine/planning/flops.py`, whose tests measure both.
"""


if __name__ == "__main__":
    main()
