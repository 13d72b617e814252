"""A config.json's rotary positions, in both spellings.

transformers 5 writes rope_parameters; releases of before have rope_scaling, and rope_theta beside it. Where two places
say different things the file is refused: transformers goes by rope_scaling, who edits it by what he sees first.
"""

import math
from typing import Any

from engine.model.families.config_file import ConfigFile
from engine.model.rope import Dynamic, Linear, Llama3, LongRope, Rope, Scaling, Yarn

USUAL = ("default", "linear", "dynamic", "yarn", "llama3")
NAMES = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")


def of_all_layers(file: ConfigFile, head_size: int, theta: float = 10000.0, kinds: tuple[str, ...] = USUAL) -> Rope:
    """The one rope of a model. theta: where the file says none. kinds: that the family has."""
    given = {key: file.mapping(key) for key in ("rope_parameters", "rope_scaling")}
    said = {key: _beside(file, key, rope) for key, rope in given.items() if rope}
    read = {key: made(file, rope, head_size, theta, kinds) for key, rope in said.items()}
    if len(set(read.values())) == 2:
        ours, theirs = (_facts(read[key], head_size) for key in given)
        name = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        raise file.refused(
            f"rope_parameters comes to {name} = {ours.get(name)!r}, rope_scaling to {theirs.get(name)!r}; "
            "remove the one that is not of this model"
        )
    return next(iter(read.values()), None) or made(file, _beside(file, "rope_scaling", {}), head_size, theta, kinds)


def by_kind(file: ConfigFile, head_size: int, full: float, sliding: float, scalings: tuple[str, ...]) -> list[Rope]:
    """The ropes of full and of sliding layers. full, sliding: thetas where the file has none. Scaling is of the full
    layers alone where it stands in rope_scaling, which is of neither.
    """
    named = file.mapping("rope_parameters")
    scaling = file.mapping("rope_scaling")
    if named and not set(named) <= {"full_attention", "sliding_attention"}:
        raise file.refused(
            "rope_parameters has to be by kind of layer, full_attention and sliding_attention: transformers takes no "
            "other here"
        )
    if file.get("partial_rotary_factor") not in (None, 1):
        raise file.refused("partial_rotary_factor is not supported here; this family rotates whole heads")
    if "type" in scaling and "rope_type" not in scaling:
        raise file.refused("rope_scaling says type, which transformers does not read here; write rope_type")
    made_of = []
    for kind, theta in (("full_attention", full), ("sliding_attention", sliding)):
        inside = named.get(kind) or {}
        if not isinstance(inside, dict):
            raise file.refused(f"rope_parameters: {kind} = {inside!r}; it has to be an object, or absent")
        if inside.get("truncate") is False:
            raise file.refused(f"rope_parameters: truncate of {kind} is not read by transformers; remove it")
        given = inside | (scaling if kind == "full_attention" else {})
        made_of.append(made(file, {"rope_theta": theta} | given, head_size, theta, scalings))
    return made_of


def made(file: ConfigFile, rope: dict[str, Any], head_size: int, theta: float, kinds: tuple[str, ...]) -> Rope:
    """What the keys of one object come to."""
    share = 1.0 if rope.get("partial_rotary_factor") is None else rope["partial_rotary_factor"]
    if share != 1 and "longrope" not in kinds:
        raise file.refused(f"partial_rotary_factor = {share!r} is not supported; this family rotates whole heads")
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 < share <= 1:
        raise file.refused(f"partial_rotary_factor = {share!r}; it has to be above 0 and at most 1")
    size = int(head_size * share)
    if size % 2 or not size:
        raise file.refused(
            f"partial_rotary_factor = {share!r} rotates {size} numbers of a head; it has to be an even one"
        )
    inside = ConfigFile(rope, file.location)
    return Rope(
        theta=inside.positive("rope_theta", theta), size=size, scaling=_scaling(file, inside, size, theta, kinds)
    )


def _beside(file: ConfigFile, key: str, rope: dict[str, Any]) -> dict[str, Any]:
    """An object with what stands beside it in the file. Raises InputError where the two differ."""
    beside = {name: file.get(name) for name in NAMES}
    for name, value in beside.items():
        if value is not None and rope.get(name) is not None and rope[name] != value:
            raise file.refused(
                f"{name} = {value!r}, and {key} has {name} = {rope[name]!r}; remove the one that is not of this model"
            )
    return beside | {name: value for name, value in rope.items() if value is not None}


def _facts(rope: Rope, head_size: int) -> dict[str, Any]:
    """A rope by the names in a file."""
    kind = "default" if rope.scaling is None else type(rope.scaling).__name__.lower()
    found = {"rope_type": kind, "rope_theta": rope.theta, "partial_rotary_factor": rope.size / head_size}
    return found | (vars(rope.scaling) if rope.scaling else {})


def kind_of(file: ConfigFile, rope: dict[str, Any]) -> str:
    """A rope's type, by whichever name it has."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        raise file.refused(f"rope_type {kind!r} beside type {rope['type']!r}; remove the wrong one")
    return kind


def _scaling(file: ConfigFile, rope: ConfigFile, size: int, theta: float, kinds: tuple[str, ...]) -> Scaling | None:
    kind = kind_of(file, rope.raw)
    if kind not in kinds:
        raise file.refused(f"rope type {kind!r} is not supported; it has to be {', '.join(kinds[:-1])} or {kinds[-1]}")
    if kind == "default":
        return None
    if kind == "longrope":
        return _longrope(file, rope, size)
    if kind == "linear":
        return Linear(factor=rope.positive("factor"))
    if kind == "dynamic":
        rope.positive("factor")
        return Dynamic(context=file.count("max_position_embeddings"))
    original = rope.count("original_max_position_embeddings", file.get("max_position_embeddings"))
    if kind == "yarn":
        return _yarn(file, rope, original, theta)
    return Llama3(
        factor=rope.positive("factor"),
        low_freq_factor=rope.positive("low_freq_factor"),
        high_freq_factor=rope.positive("high_freq_factor"),
        original_max_position_embeddings=original,
    )


def _yarn(file: ConfigFile, rope: ConfigFile, original: int, theta: float) -> Yarn:
    if rope.positive("rope_theta", theta) == 1:
        raise file.refused("rope_theta = 1 beside yarn; it has to be above 1")
    given = rope.get("factor")
    factor = rope.positive("factor") if given is not None else file.count("max_position_embeddings") / original

    def grown(share: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0

    shares = [rope.get(name) for name in ("mscale", "mscale_all_dim")]
    if rope.get("attention_factor") is not None:
        magnitude = rope.positive("attention_factor")
    elif all(shares):
        magnitude = grown(rope.positive("mscale")) / grown(rope.positive("mscale_all_dim"))
    else:
        magnitude = grown(1.0)
    return Yarn(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=rope.positive("beta_fast") if rope.get("beta_fast") else 32.0,
        beta_slow=rope.positive("beta_slow") if rope.get("beta_slow") else 1.0,
        truncate=rope.flag("truncate", True),
        magnitude=magnitude,
    )


def _longrope(file: ConfigFile, rope: ConfigFile, size: int) -> LongRope:
    original = rope.count("original_max_position_embeddings")
    factors = {}
    for name in ("short_factor", "long_factor"):
        value = rope.get(name)
        if not isinstance(value, list) or len(value) != size // 2 or not all(_is_positive(x) for x in value):
            raise file.refused(f"{name}: it has to be a list of {size // 2} numbers above 0, half of what is rotated")
        factors[name] = tuple(map(float, value))
    ratio = (
        rope.positive("factor") if rope.get("factor") is not None else file.count("max_position_embeddings") / original
    )
    magnitude = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
    if rope.get("attention_factor") is not None:
        magnitude = rope.positive("attention_factor")
    return LongRope(**factors, original_max_position_embeddings=original, magnitude=magnitude)


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30
