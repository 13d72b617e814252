"""What a config.json says of a model, read as transformers reads it, and refused where it contradicts itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.model.quantised import REMEDY, quantised_by
from system import InputError

MOST_LAYERS = 4096  # of a config.json that is believed; Llama-3-405B has 126


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Llama-3.1's scaling of the rotary frequencies."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a model, from a Hugging Face config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    rms_norm_eps: float
    rope_theta: float
    scaling: Scaling | None
    tied: bool
    context: int | None
    """Most positions, where the file says so."""
    raw: dict[str, Any]
    """config.json as it was read, to be written back."""

    @staticmethod
    def parse(raw: dict[str, Any], location: str | Path) -> "LlamaConfig":
        """The configuration in a parsed config.json. Raises InputError where it is not a Llama that runs here."""
        names = raw.get("architectures") or [raw.get("model_type")]
        if names not in (["LlamaForCausalLM"], ["llama"]):
            raise InputError(
                f'{location}: the architecture {names!r} is not supported; it has to be ["LlamaForCausalLM"]'
            )
        for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
            if raw.get(key, plain) != plain:
                raise InputError(f"{location}: {key} = {raw[key]!r} is not supported; Llama has {plain!r}")
        if (raw.get("model_type") or "llama") != "llama":
            raise InputError(
                f"{location}: architectures says {names[0]}, and model_type, by which transformers goes, says "
                f"{raw['model_type']!r}; correct the one or the other"
            )
        if raw.get("transformers_weights") not in (None, "model.safetensors", "model.safetensors.index.json"):
            raise InputError(
                f"{location}: transformers_weights = {raw['transformers_weights']!r} is not supported; the weights "
                "have to be model.safetensors, or shards with an index"
            )
        if raw.get("auto_map"):
            raise InputError(f"{location}: auto_map is not supported; give a plain bf16, fp16 or fp32 checkpoint")
        if found := quantised_by(raw):
            raise InputError(f"{location}: {found[0]} says that the weights are quantised ({found[1]}); {REMEDY}")
        n_heads = _count(raw, "num_attention_heads", location)
        hidden = _count(raw, "hidden_size", location)
        rope = _rope(raw, location)
        config = LlamaConfig(
            vocab_size=_count(raw, "vocab_size", location),
            hidden_size=hidden,
            intermediate_size=_count(raw, "intermediate_size", location),
            n_layers=_count(raw, "num_hidden_layers", location, most=MOST_LAYERS),
            n_heads=n_heads,
            n_kv_heads=_count(raw, "num_key_value_heads", location, n_heads),
            head_size=_count(raw, "head_dim", location, max(1, hidden // n_heads)),
            rms_norm_eps=_positive(raw, "rms_norm_eps", location, 1e-6),
            rope_theta=rope.theta,
            scaling=rope.scaling,
            tied=_flag(raw, "tie_word_embeddings", location),
            context=_count(raw, "max_position_embeddings", location) if raw.get("max_position_embeddings") else None,
            raw=raw,
        )
        if config.n_heads % config.n_kv_heads or config.head_size % 2:
            raise InputError(
                f"{location}: {config.n_heads} heads of size {config.head_size} with {config.n_kv_heads} kv heads; "
                "heads have to be a multiple of kv heads, and of even size"
            )
        return config

    @property
    def n_parameters(self) -> int:
        """Parameters of the model, tied weights counted once."""
        attention = 2 * self.hidden_size * self.head_size * (self.n_heads + self.n_kv_heads)
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.n_layers * block + self.hidden_size + (2 - self.tied) * self.vocab_size * self.hidden_size


def _count(
    raw: dict[str, Any], key: str, location: str | Path, default: int | None = None, *, most: int = 2**24 - 1
) -> int:
    value = raw.get(key) if raw.get(key) is not None else default
    if type(value) is not int or not 0 < value <= most:
        raise InputError(f"{location}: {key} = {value!r}; it has to be a whole number above 0, {most:,} at most")
    return value


def _flag(raw: dict[str, Any], key: str, location: str | Path) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{location}: {key} = {value!r}; it has to be true or false")
    return value


def _mapping(raw: dict[str, Any], key: str, location: str | Path) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{location}: {key} = {value!r}; it has to be an object, or absent")
    return value


def _positive(raw: dict[str, Any], key: str, location: str | Path, default: float | None) -> float:
    value = raw.get(key) if raw.get(key) is not None else default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
        raise InputError(f"{location}: {key} = {value!r}; it has to be a number above 0")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class _Rope:
    theta: float
    scaling: Scaling | None

    def said(self) -> dict[str, Any]:
        """What it comes to, by the names in the file."""
        plain = {"rope_type": "llama3" if self.scaling else "default", "rope_theta": self.theta}
        return plain | (vars(self.scaling) if self.scaling else {})


def _rope(raw: dict[str, Any], location: str | Path) -> _Rope:
    """The rotary positions. transformers 5 writes rope_parameters, Meta's releases have rope_scaling.

    theta stands in it or beside it. Raises InputError where two places say different things: transformers goes by
    rope_scaling, who edits the file by what he sees first.
    """
    given = {key: _mapping(raw, key, location) for key in ("rope_parameters", "rope_scaling")}
    read = {key: _one_rope(raw, key, rope, location) for key, rope in given.items() if rope}
    said = [rope.said() for rope in read.values()]
    if len(said) == 2 and said[0] != said[1]:
        key = next(key for key in {**said[0], **said[1]} if said[0].get(key) != said[1].get(key))
        raise InputError(
            f"{location}: rope_parameters comes to {key} = {said[0].get(key)!r}, rope_scaling to {said[1].get(key)!r}; "
            "take out the one that is not of this model"
        )
    return next(iter(read.values()), None) or _one_rope(raw, "rope_scaling", {}, location)


def _one_rope(raw: dict[str, Any], key: str, rope: dict[str, Any], location: str | Path) -> _Rope:
    names = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")
    beside = {name: raw.get(name) for name in names}
    for name, value in beside.items():
        if value is not None and rope.get(name) is not None and rope[name] != value:
            raise InputError(
                f"{location}: {name} = {value!r}, and {key} has {name} = {rope[name]!r}; "
                "take out the one that is not of this model"
            )
    rope = beside | {name: value for name, value in rope.items() if value is not None}
    if rope["partial_rotary_factor"] not in (None, 1):
        factor = rope["partial_rotary_factor"]
        raise InputError(f"{location}: partial_rotary_factor = {factor!r} is not supported; Llama turns whole heads")
    return _Rope(theta=_positive(rope, "rope_theta", location, 10000.0), scaling=_scaling(raw, rope, location))


def _scaling(raw: dict[str, Any], rope: dict[str, Any], location: str | Path) -> Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        raise InputError(f"{location}: rope_type {kind!r} beside type {rope['type']!r}; take out the wrong one")
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"{location}: rope type {kind!r} is not supported; it has to be default or llama3")
    return Scaling(
        factor=_positive(rope, "factor", location, None),
        low_freq_factor=_positive(rope, "low_freq_factor", location, None),
        high_freq_factor=_positive(rope, "high_freq_factor", location, None),
        original_max_position_embeddings=_count(
            rope, "original_max_position_embeddings", location, raw.get("max_position_embeddings")
        ),
    )
