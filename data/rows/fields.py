"""The fields of one row: what is there, what has been read, and messages that are written as text.

A column that is null counts as absent, and of those that may be missing an empty one too. Which columns were read is
kept, so that the others can be named (`Fields.unused`): nothing that a row says is dropped without a word.
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from data.rows.json_rows import MAX_DEPTH, check_value
from system import InputError

KEEP = "or leave it as text: --keep-json-text"


class Fields:
    """The columns of a row, by name, without nulls."""

    __slots__ = ("_row", "_used", "location")

    def __init__(self, row: dict[str, Any], location: str) -> None:
        """location: "FILE:LINE", for messages."""
        self.location = location
        self._row = {name: value for name, value in row.items() if value is not None}
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the column is there, be it empty."""
        return name in self._row

    def __iter__(self) -> Iterator[str]:
        """Its columns' names."""
        return iter(self._row)

    def __getitem__(self, name: str) -> Any:
        """A column's value, which counts as read. Raises InputError where it is missing."""
        if name not in self._row:
            raise InputError(f'{self.location}: "{name}" is missing; every row needs it')
        self._used.add(name)
        return self._row[name]

    def peek(self, name: str) -> Any:
        """A column's value, or None, without reading it."""
        return self._row.get(name)

    def take(self, name: str) -> Any:
        """A column's value, which counts as read; None where it is not there or empty."""
        value = self._row.get(name)
        if value is None or is_empty(value):
            return None
        self._used.add(name)
        return value

    def use(self, *names: str) -> None:
        """Counts columns as read."""
        self._used.update(names)

    def leave(self, *names: str) -> None:
        """Counts columns as not read after all."""
        self._used.difference_update(names)

    def unused(self) -> Iterator[str]:
        """Columns that hold something and were not read."""
        return (name for name, value in self._row.items() if name not in self._used and not is_empty(value))


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, blank text, a list or an object without anything in it."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value or value.isspace()
    return isinstance(value, (list, tuple, dict)) and all(
        map(is_empty, value.values() if isinstance(value, dict) else value)
    )


def messages_in_text(text: str, place: str) -> Any:
    """The messages that a text is as a whole, as JSON or as Python prints them: a list of them, or one. None where it
    is anything else.

    place: "FILE:LINE: "FIELD"", for messages. Raises InputError for messages as numpy prints them, which no parser
    reads back, and for what no row may hold.
    """
    text = text.strip()
    if "role" not in text and "from" not in text:
        return None
    is_array = _ARRAY.fullmatch(text)
    text = is_array[1] if is_array else text
    if text[:1] + text[-1:] not in ("[]", "{}"):
        return None
    if is_array or (found := parsed_text(text)) is None:
        if are_messages(parsed_text(_BETWEEN_MESSAGES.sub(r"}, {", text))):
            raise InputError(
                f"{place} is an array of messages as numpy prints it; write the column as JSON "
                f"(frame[column].map(lambda x: json.dumps(list(x)))) or the file as parquet, {KEEP}"
            )
        return None
    if not are_messages(found):
        return None

    def refuse(what: str) -> NoReturn:
        raise InputError(f"{place}: {what}; fix or delete the row")

    check_value(found, refuse, MAX_DEPTH)
    return found


_ARRAY = re.compile(r"array\((.*?)(?:,\s*dtype=object)?\)", re.DOTALL)
_BETWEEN_MESSAGES = re.compile(r"\}\s*\{")


def parsed_text(text: str) -> Any:
    """A text as JSON or as a Python literal; None where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def are_messages(value: Any) -> bool:
    """Whether a value is a list of objects that look like messages, or one such object."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(item, dict) and _is_message(item) for item in value)
    return isinstance(value, dict) and _is_message(value)


def _is_message(item: dict[Any, Any]) -> bool:
    if isinstance(item.get("role"), str):
        return "content" in item or "tool_calls" in item
    return isinstance(item.get("from"), str) and isinstance(item.get("value"), str)


def object_or_text(value: Any, what: str, is_right: Callable[[Any], bool], place: str) -> Any:
    """A value that may be written as text (JSON, or Python's repr). what: what it has to be, for messages.

    Raises InputError where it is anything else.
    """
    found = parsed_text(value) if isinstance(value, str) else value
    if not is_right(found):
        kind = "other text" if isinstance(value, str) else f"a {type(value).__name__}"
        raise InputError(f"{place} is {kind}; it has to be {what}, or that as JSON text")

    def refuse(said: str) -> NoReturn:
        raise InputError(f"{place}: {said}; fix or delete the row")

    if isinstance(value, str):
        check_value(found, refuse, MAX_DEPTH)
    return found
