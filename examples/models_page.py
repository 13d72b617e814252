"""Writes docs/models.md: which models run, what each has that Llama has not, what was checked and what is refused.

    python -m examples.models_page

A test compares the page with what this would write.
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

Written by `python -m examples.models_page` from the pages of families in `engine/model/families/`.

These run: they load from safetensors, train, are sampled and scored, and are written back under the names that they
came with, so that transformers and vLLM load the folder. `--model` takes a folder or a hub id of any of them; nothing
has to be said about its family. One block computes all (`engine/model/transformer.py`): what families differ in is an
option of it.

"""
CHECKED = """
## What was checked

Each family, in as many variants as the table above says (`tests/family_table.py`), on tiny models with random weights,
norms and biases that the tests make with transformers 5.23 on the spot; sequences are longer than windows and
original contexts (`./launch.sh test --all -k families`):

| what | held to |
|---|---|
| log-probs of responses in float32, against transformers in float64 | 2e-6, relative |
| the same in float64, with transformers' float32 islands (norms, softmax, rotary angles) lifted to float64 | 1e-10 |
| gradients of every parameter under APO-zero, in float64 | 1e-9, and 1e-13 where they are 0 |
| a packed forest against each sequence alone | the same |
| sixteen tokens, greedily, against transformers' `generate` | equal |
| a folder that was written, in transformers | nothing missing or unexpected, equal logits |
| what two ranks log in training, against one | 1e-5 |

Some versions of transformers (5.2 is one) stretch the positions of all of OLMo 3's layers and not of its full ones
alone: they are no yardstick, and compute another model than the released one.

**No released checkpoint of a family but Llama's was run**: none was at hand. What was run for real is
SmolLM2-135M-Instruct, whose architecture is Llama's ([results](results.md)), and eight billion parameters of Llama's
shape with random weights ([performance](performance.md)). That the numbers of a release come out right rests on the
tests above, and on reading `config.json` as transformers does.

**Chat templates**: token ids of 200 conversations each, of several turns, with and without system messages, equal
those of transformers' `apply_chat_template` for templates of the form of Qwen 2.5 and 3, SmolLM3, Granite 3.0 and
3.1, OLMo 2, 3 and 3 Think, Phi-3, Phi-4 and Phi-4-mini, EXAONE 4, Apertus, Gemma 2 and 3, and Mistral v1, v3, v7 and
tekken (`./launch.sh test --all -k family_templates`), with tokenizers that are stand-ins too.
"""
NOTES = """
## What to know

**Precision.** Compute in bfloat16 or float32. In float16 Gemma 2 and 3 overflow: their activations reach some
800,000, and 65,504 is the largest number. Norms are computed in float32 in every family, and rounded where the family
does: OLMo and Gemma multiply with the norm's weights before they round, the others after. Gemma's embedding factor is
rounded to the weights' dtype first, as in transformers (25.25 for 25.298 in bfloat16), so that a model trained in
bfloat16 has the factor that it was released with.

**Windows** are distances of positions: a token of a response sees back into its prompt as it would in a conversation of
its own. The kernel on CUDA and the masks on the CPU know them; generation keeps all keys and masks them.

**Softcaps** (Gemma 2; no other family caps scores). No kernel caps scores, so that a layer with a cap goes document by
document through plain products, whose scores are there at once and are made again in the backward pass.
{caps}

**LongRoPE** (Phi-3.5, Phi-4-mini) has two sets of frequencies: one for sequences up to the original context, one for
longer ones, prompt and response together. Two responses to one prompt that lie on both sides are computed, each with
a prompt of its own, since the keys of the two prompts differ; rows whose responses lie on one side share it as ever.
The response's last token counts, though nothing is predicted from it.

**Dynamic RoPE** beyond `max_position_embeddings` is refused, by a sentence that names that key: there every length
has frequencies of its own, in transformers those of the longest sequence of a batch, and vLLM computes a third thing.
Within it dynamic RoPE is none.

**Models that see** (Gemma 3 from 4B on, Mistral Small 3.1 and later, Ministral 3): the language model inside trains.
The vision tower and what joins it to the text (`vision_tower`, `multi_modal_projector`) are carried through byte for
byte into every folder that is written; pictures in rows are refused. Apertus' constants of its activation
(`act_fn.beta`, `act_fn.eps`) are carried in the same way, and computed with.

**config.json** is read in both spellings, the hub's of 2024 (`rope_theta`, `rope_scaling`, `torch_dtype`) and
transformers 5's (`rope_parameters`, `dtype`), and written back as it was but for the dtype. Where two places say
different things it is refused. A key that is absent means what it means in that family: Gemma's and SmolLM3's heads
are tied, Mistral's window is 4,096, Apertus' positions are stretched as Llama 3's.

## Where vLLM differs

As far as its sources say, log-probs that are computed here equal those of vLLM up to rounding, but for these; look
before answers sampled there
are scored here:

- LongRoPE: long or short frequencies for all sequences, by `--max-model-len`, and not by a sequence's own length.
- Dynamic RoPE: one fixed base for all lengths, which is never transformers', not even within `max_position_embeddings`.
- OLMo 3: as here (positions stretched in the full layers alone) since its pull request 24534; a later one, 43419, would
  have changed that, and measured worse.

This was read in vLLM's sources and issues, not measured.
"""


def main() -> None:
    """The command."""
    (DOCS / "models.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The page's text."""
    return "".join((HEAD, _families(), "\n", _releases(), CHECKED, _refused(), NOTES.format(caps=_caps()), _adding()))


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
        "The options in a release of each, by its `config.json`; `--shape` of `engine.plan` and `engine.bench` takes",
        "the names. Memory and hours on one GPU: [scaling](scaling.md#other-families-on-one-gpu).", "",
        "| shape | 10^9 parameters | norms | of q and k | windows | positions | MLP | further |", "|" + "---|" * 8,
    ]  # fmt: skip
    for name in SHAPES:
        if name != "tiny":
            config = read_config(raw_config(name), name)
            cells = (_norms(config), _qk_norm(config), _windows(config), _positions(config), _mlp(config))
            lines += [f"| `{name}` | {config.n_parameters / 1e9:.2f} | {' | '.join(cells)} | {_further(config)} |"]
    lines += [
        "",
        "Of `phi4-mini` LongRoPE's factors are left out, of `gemma3-4b` what sees: no number here depends on them.",
    ]
    return "\n".join(lines) + "\n"


def _norms(config: ModelConfig) -> str:
    return {"both": "on both sides"}.get(config.norms, config.norms) + (", of 1 + w" if config.norm_adds_one else "")


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
        "Before any weights are read, by a sentence that says why; here without the place in front of it:", "",
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
        "A LoRA adapter is given by its own folder, and its base is found by its name ([docs/lora.md](lora.md)); one",
        "that lies beside a whole model is refused: transformers would lay it over that.",
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
        f"For `gemma2-9b` on the paper's lengths that is {capped_flops(shape, load.documents) / step:.1%} more "
        f"operations a step, and {scores / 1e9:.1f} GB for the scores of the\nlongest sequence; logits with a cap are "
        f"not kept either, but made again: {head / step:.1%} more. That counts products as a\nkernel would do them: "
        "plain ones compute the half of the scores, too, that nobody sees. Their speed on a GPU is not\nmeasured here."
    )


def _adding() -> str:
    """EXAONE 4's page and its rows in the tests, as they are."""
    code = (ROOT / "engine/model/families/exaone4.py").read_text(encoding="utf-8").strip()
    rows = (ROOT / "tests/family_table.py").read_text(encoding="utf-8").splitlines()
    shown = "\n".join(line for line in rows if line.startswith("    _exaone4("))
    return f"""
## How to add a family

One that needs no new option of the block is a page, a name in the table and a row in the tests. EXAONE 4 was added in
that way, last. Its page, `engine/model/families/exaone4.py`, whole:

```python
{code}
```

It says how `config.json` is read, with what each absent key means, what the weights are called (OLMo's names serve),
and what is refused. `FAMILIES` in `engine/model/families/__init__.py` names it, and these are its rows in
`tests/family_table.py`, each of which goes through all that is listed under [what was checked](#what-was-checked):

```python
VARIANTS = (
    ...,
{shown}
)
```

Then `python -m examples.models_page` writes this page anew. An option that no family had is a field of `ModelConfig`
(`engine/model/model_config.py`), a line or two in `engine/model/transformer.py`, and what it keeps and computes in
`engine/planning/memory.py` and `engine/planning/flops.py`, whose tests measure both.
"""


if __name__ == "__main__":
    main()
