"""What a family's page gives, and what nearly all of them read alike."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine.model.families.config_file import ConfigFile
from engine.model.model_config import Layer, ModelConfig
from engine.model.rope import Rope


@dataclass(frozen=True)
class Family:
    """A kind of model that runs here."""

    model_type: str
    """transformers' name of it."""
    architecture: str
    """What its files have under architectures."""
    read: Callable[[ConfigFile], ModelConfig]
    title: str
    """What people call it."""
    differs: str
    """What it has that Llama has not, in a few words."""


def sizes(
    file: ConfigFile, *, eps: float = 1e-6, tied: bool = False, kv_as_heads: bool = False, head_size: int | None = None
) -> dict[str, Any]:
    """The sizes of a model by ModelConfig's names. eps, tied: where the file does not say. head_size: what an absent
    head_dim means; None: that the heads divide the hidden size.
    """
    if head_size is None or ("head_dim" in file.raw and file.get("head_dim") is None):
        head_size = file.equal_share
    found = file.count("head_dim", head_size)
    n_heads, n_kv_heads = file.n_heads, file.n_kv_heads(as_heads=kv_as_heads)
    if n_heads % n_kv_heads or found % 2:
        raise file.refused(
            f"{n_heads} heads of size {found} with {n_kv_heads} kv heads; heads have to be a multiple of kv heads, and "
            "of even size"
        )
    return {
        "model_type": file.get("model_type"),
        "vocab_size": file.count("vocab_size"),
        "hidden_size": file.count("hidden_size"),
        "intermediate_size": file.count("intermediate_size"),
        "n_layers": file.n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_size": found,
        "rms_norm_eps": file.positive("rms_norm_eps", eps),
        "tied": file.flag("tie_word_embeddings", tied),
        "context": file.count("max_position_embeddings") if file.get("max_position_embeddings") else None,
        "raw": file.raw,
    }


def layers(ropes: Iterable[Rope | None], windows: Iterable[int | None]) -> tuple[Layer, ...]:
    """A layer of each."""
    return tuple(Layer(rope=rope, window=window) for rope, window in zip(ropes, windows, strict=True))


def biases(file: ConfigFile, *, mlp: bool = True) -> dict[str, Any]:
    """attention_bias (q, k, v and o) and mlp_bias, by ModelConfig's names. mlp: whether the family has the second."""
    attention = file.flag("attention_bias")
    return {"qkv_bias": attention, "o_bias": attention, "mlp_bias": file.flag("mlp_bias") if mlp else False}
