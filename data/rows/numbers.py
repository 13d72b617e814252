"""What rows say in numbers: ratings, labels, token ids and their weights. Every function raises InputError, located."""

import math
from collections.abc import Sequence
from typing import Any

from data.rows.fields import Fields
from data.rows.record import Ratings
from system import InputError

_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def label(row: Fields) -> bool | None:
    """Whether a completion is desirable ("label", LLaMA-Factory's "kto_tag"); None where the row does not say."""
    found = [(name, row[name]) for name in ("label", "kto_tag") if name in row]
    known = [(name, value, _truth(value)) for name, value in found]
    for name, value, truth in known:
        if truth is None:
            raise InputError(
                f'{row.location}: "{name}" is {value!r}; it has to be true or false (1, 0); correct it, or ignore it: '
                f"--ignore-columns {name}"
            )
    if len({truth for _, _, truth in known}) > 1:
        raise InputError(f'{row.location}: "label" and "kto_tag" differ; keep one of the two')
    return known[0][2] if known else None


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return _LABELS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def ratings(row: Fields, names: tuple[str, ...] = ("",), *, asked: Sequence[str] = ()) -> Ratings:
    """What the row says of the responses of these names; "" is a single one, whose score is "score".

    asked: further numbers that are kept; where it has no finite number under such a name, none is.
    """
    scores = [optional(row, f"{n}_score", f"score_{n}") if n else _plain(row, "score") for n in names]
    probs = [optional(row, f"{n}_prob") if n else None for n in names]
    for name, prob in zip(names, probs, strict=True):
        if prob is not None and not 0 <= prob <= 1:
            raise InputError(f'{row.location}: "{name}_prob" is {prob!r}; it has to be between 0 and 1')
    if not (known_scores := _all_or_none(scores)):
        row.leave(*(x for n in names for x in (f"{n}_score", f"score_{n}")))
    if not (known_probs := _all_or_none(probs)):
        row.leave(*(f"{n}_prob" for n in names))
    return Ratings(
        known_scores,
        optional(row, "own_score", "score_own"),
        known_probs,
        _plain(row, "value"),  # names of so many meanings that text under them is none of ours
        _plain(row, "weight") if "weight" in asked else weight(row),
        tuple((name, found) for name in asked if (found := _plain(row, name)) is not None),
    )


def _plain(row: Fields, name: str) -> float | None:
    """A finite number, or None; what is none is not read."""
    if (found := finite(row.peek(name))) is not None:
        row.use(name)
    return found


def weight(row: Fields) -> float | None:
    """How much the row counts: a number that is not negative; None where it does not say."""
    value = row.take("weight")
    if value is None:
        return None
    found = finite(value)
    if found is None or found < 0:
        raise InputError(
            f'{row.location}: "weight" is {value!r}; it is how much the row counts, a number from 0 up: correct it, or '
            "ignore it: --ignore-columns weight"
        )
    return found


def optional(row: Fields, *names: str) -> float | None:
    """The number under the first of these names that the row has."""
    return next((number(row[name], name, row.location) for name in names if name in row), None)


def number(value: Any, name: str, location: str) -> float:
    """A finite number."""
    if (found := finite(value)) is None:
        raise InputError(f'{location}: "{name}" is {value!r}; it has to be a number')
    return found


def finite(value: Any) -> float | None:
    """A finite number, or None: a bool is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def _all_or_none(values: list[float | None]) -> tuple[float, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if known and len(known) == len(values) else None


def ids(value: Any, name: str, location: str) -> tuple[int, ...]:
    """Token ids, at least one."""
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise InputError(f'{location}: "{name}" has to be a list of token ids')
    if not value:
        raise InputError(f'{location}: "{name}" is empty; write it or delete the row')
    return tuple(value)


def check_weights(row: Fields) -> None:
    """Refuses token weights of what is no list of ids: whose tokens they are meant for cannot be known."""
    for name in ("chosen", "rejected", "completion", "completions"):
        if f"{name}_token_weights" in row and f"{name}_ids" not in row:
            raise InputError(
                f'{row.location}: "{name}_token_weights" without "{name}_ids"; token weights belong to token ids: give '
                "these, or take the weights out"
            )


def token_weights(
    row: Fields, names: tuple[str, ...], ids: tuple[tuple[int, ...], ...]
) -> tuple[tuple[float, ...], ...] | None:
    """The weights of responses of these names, all or none of which have to have them."""
    names = tuple(f"{name}_token_weights" for name in names)
    if not any(name in row for name in names):
        return None
    for name in names:
        if name not in row:
            there = next(n for n in names if n in row)
            raise InputError(f'{row.location}: "{there}" without "{name}"; give both or none')
    return tuple(_weights(row[name], name, len(i), row.location) for name, i in zip(names, ids, strict=True))


def listed_weights(row: Fields, ids: Sequence[tuple[Any, ...]]) -> tuple[tuple[float, ...], ...] | None:
    """The token weights of completions, a list beside the list of each one's ids; None where there are none."""
    name = "completions_token_weights"
    if name not in row:
        return None
    lists = row[name]
    if not isinstance(lists, list) or len(lists) != len(ids):
        raise InputError(f'{row.location}: "{name}" has to be a list of {len(ids)} lists, one per completion')
    return tuple(
        _weights(w, f"{name}[{k}]", len(i), row.location) for k, (w, i) in enumerate(zip(lists, ids, strict=True))
    )


def _weights(value: Any, name: str, n: int, location: str) -> tuple[float, ...]:
    wanted = f"{n} finite number{'s' * (n != 1)}, one per token id"
    if not isinstance(value, list):
        raise InputError(f'{location}: "{name}" is a {type(value).__name__}; it has to be a list of {wanted}')
    if len(value) != n:
        raise InputError(f'{location}: "{name}" has {len(value)} numbers; it has to be a list of {wanted}')
    return tuple(number(w, f"{name}[{i}]", location) for i, w in enumerate(value))
