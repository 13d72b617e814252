"""A config.json, read key by key: every value is checked where it is taken, and named where it cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from system import InputError

MOST_LAYERS = 4096  # of a config.json that is believed; Llama-3-405B has 126
KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class ConfigFile:
    """The keys of a model's text part, and where they stand."""

    raw: dict[str, Any]
    location: str | Path

    def refused(self, what: str) -> InputError:
        """An error at this file."""
        return InputError(f"{self.location}: {what}")

    def get(self, key: str) -> Any:
        """Its value; None where it is absent or null."""
        return self.raw.get(key)

    def count(self, key: str, default: int | None = None, *, most: int = 2**24 - 1) -> int:
        """A whole number above 0."""
        value = default if self.raw.get(key) is None else self.raw[key]
        if type(value) is not int or not 0 < value <= most:
            raise self.refused(f"{key} = {value!r}; it has to be a whole number above 0, {most:,} at most")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = default if self.raw.get(key) is None else self.raw[key]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.refused(f"{key} = {value!r}; it has to be a number above 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = default if self.raw.get(key) is None else self.raw[key]
        if not isinstance(value, bool):
            raise self.refused(f"{key} = {value!r}; it has to be true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; an empty one where there is none."""
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            raise self.refused(f"{key} = {value!r}; it has to be an object, or absent")
        return value

    def only(self, key: str, wanted: object, default: object) -> None:
        """Raises InputError where a key has another value than the one that is built."""
        if self.raw.get(key, default) != wanted:
            raise self.refused(f"{key} = {self.raw.get(key, default)!r} is not supported; it has to be {wanted!r}")

    @property
    def n_layers(self) -> int:
        """Its number of layers."""
        return self.count("num_hidden_layers", most=MOST_LAYERS)

    @property
    def n_heads(self) -> int:
        """Its number of query heads."""
        return self.count("num_attention_heads")

    def n_kv_heads(self, *, as_heads: bool) -> int:
        """as_heads: whether a file without the key means as many as query heads; null always does."""
        if not as_heads and "num_key_value_heads" not in self.raw:
            raise self.refused("num_key_value_heads is missing; write how many heads of keys and values there are")
        return self.count("num_key_value_heads", self.n_heads)

    @property
    def equal_share(self) -> int:
        """A head's size where the heads divide the hidden size."""
        return max(1, self.count("hidden_size") // self.n_heads)

    def kinds(self, by_default: Sequence[bool]) -> list[bool]:
        """Which layers slide: as layer_types says, else as by_default does."""
        given = self.raw.get("layer_types")
        if given is None:
            return list(by_default)
        if not isinstance(given, list) or len(given) != self.n_layers or not all(kind in KINDS for kind in given):
            raise self.refused(
                f"layer_types = {given!r}; it has to name {' or '.join(KINDS)} for each of the {self.n_layers} layers"
            )
        return [kind == "sliding_attention" for kind in given]

    def windows(self, slides: Sequence[bool], default: int | None) -> list[int | None]:
        """Each layer's window. default: of a file without sliding_window."""
        if not any(slides):
            return [None] * len(slides)
        if self.raw.get("sliding_window", default) is None:
            raise self.refused(
                "some layers use sliding attention, and sliding_window is null; write how many tokens they see"
            )
        window = self.count("sliding_window", default)
        return [window if does else None for does in slides]
