"""Where the prompt of a row stands, by its form, and what may stand beside it: the system message, the template's."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from data.rows.fields import Fields, is_empty, object_or_text, parsed_text
from data.rows.turns import MEDIA, Turns
from data.text import NO_CONTEXT, Message, TemplateContext
from system import InputError

SYSTEM = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations")
OF_ANSWERS = ("tool_calls", "reasoning_content")
OF_FORMS = ("input", "history", "context")
"""Columns that say something in some forms, and would be lost in the others."""
OF_TEMPLATES = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
"""What a template is given by other ways than its arguments."""

Messages = tuple[Message, ...]


def given_prompt(row: Fields, read: Turns, answers: Collection[Any] = ()) -> Messages | None:
    """The prompt that stands in a field of its own; None where the answers hold it. answers: as they were read."""
    if "prompt" in row:
        return read.prompt(row["prompt"], "prompt")
    for name in CONVERSATIONS:
        if name in row:
            return _beside_answers(row, read, name, answers)
    return alpaca_prompt(row, read) if "instruction" in row else None


def needed_prompt(row: Fields, read: Turns, prompt: Messages | None) -> Messages:
    """The prompt, or what is said where there is none."""
    return read.prompt(row["prompt"], "prompt") if prompt is None else prompt


def _beside_answers(row: Fields, read: Turns, name: str, answers: Collection[Any]) -> Messages | None:
    """Messages beside answers: the prompt, or once more the conversation that one of the answers is."""
    value = read.unpacked(row[name], name)
    if isinstance(value, str):
        return read.prompt(value, name)
    messages = read.messages(value, name)
    if messages[-1].role == "assistant" and messages in answers:
        row.leave(name)
        return None
    return read.checked_prompt(messages)


def alpaca_prompt(row: Fields, read: Turns) -> Messages:
    """LLaMA-Factory's prompt: the turns of "history", then the instruction and, on a new line, the input."""
    said, history = row.take("input"), row.take("history")
    if said is None and history is None:
        return read.prompt(row["instruction"], "instruction")
    turns: list[dict[str, str]] = []
    for i, (question, answer) in enumerate([] if history is None else _history(history, row.location)):
        turns.append({"role": "user", "content": read.text(question, f"history[{i}][0]")})
        turns.append({"role": "assistant", "content": read.text(answer, f"history[{i}][1]")})
    parts = {"instruction": row.take("instruction"), "input": said}
    row.use("instruction")
    for name, part in parts.items():
        if part is not None:
            read.text(part, name)
    text = "\n".join(part for part in parts.values() if part is not None)
    return read.messages([*turns, {"role": "user", "content": text}], "instruction")


def _history(value: Any, location: str) -> list[Any]:
    def is_right(found: Any) -> bool:
        return isinstance(found, (list, tuple)) and all(
            isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in found
        )

    return object_or_text(value, "a list of [question, answer]", is_right, f'{location}: "history"')


def prompt_of_input(row: Fields, read: Turns) -> tuple[Messages, Any]:
    """The prompt and the tools of OpenAI's "input": {"messages", "tools"}, or the messages alone."""
    value = read.object(row["input"], "messages")
    if not isinstance(value, dict) or "role" in value:
        return read.prompt(value, "input"), None
    for key, item in value.items():
        if key not in ("messages", "tools") and not is_empty(item):
            read.unused[f"input's {key}"] = None
    if value.get("messages") is None:
        raise InputError(f'{row.location}: "input.messages" is missing; every row needs it')
    return read.prompt(value["messages"], "input.messages"), value.get("tools")


def prompt_alone(row: Fields, read: Turns) -> tuple[Messages, Any]:
    """The prompt of a row whose answers are not looked at, and the tools that stand inside of it."""
    if "prompt" in row:
        return read.prompt(row["prompt"], "prompt"), None
    if "instruction" in row:
        return alpaca_prompt(row, read), None
    for name in CONVERSATIONS:
        if name in row:
            messages = read.messages(row[name], name)
            while messages and messages[-1].role == "assistant":
                messages = messages[:-1]
            return read.checked_prompt(messages), None
    if "preferred_output" in row or isinstance(row.peek("input"), dict):
        return prompt_of_input(row, read)
    if "response1" in row and "context" in row:
        return read.prompt(row["context"], "context"), None
    return read.prompt(row["prompt"], "prompt"), None


# --- beside any form -----------------------------------------------------------------------------------------------


def with_system(row: Fields, read: Turns, prompt: Messages) -> Messages:
    """The prompt behind the message of "system" or "system_prompt"."""
    found = {name: value for name in SYSTEM if (value := row.take(name)) is not None}
    if not found:
        return prompt
    texts = {name: _system_text(row, read, name, value) for name, value in found.items()}
    name, text = next(iter(texts.items()))
    if len({*texts.values()}) > 1:
        raise InputError(f'{row.location}: "system" and "system_prompt" differ; keep one of the two')
    if prompt[0].role != "system":
        return (Message("system", text), *prompt)
    if prompt[0].content and prompt[0].content != text:
        raise InputError(f'{row.location}: "{name}" is another system message than that of the prompt; keep one')
    return (prompt[0]._replace(content=text), *prompt[1:])


def _system_text(row: Fields, read: Turns, name: str, value: Any) -> str:
    found = read.unpacked(value, name)
    if found is value and not isinstance(value, dict):
        return read.content(value, name)
    message, *others = read.messages(found, name)
    if others or message.role != "system":
        raise InputError(
            f'{row.location}: "{name}" contains messages other than a system message; put them into the prompt'
        )
    return message.content


def context_of(row: Fields, input_tools: Any) -> TemplateContext:
    """What the template is given: "tools", "documents", "chat_template_kwargs".

    input_tools: those of OpenAI's "input".
    """
    tools = _objects(row.take("tools"), f'{row.location}: "tools"')
    if functions := _objects(row.take("functions"), f'{row.location}: "functions"'):  # their older name, at OpenAI
        functions = [f if "function" in f else {"type": "function", "function": f} for f in functions]
        if tools and tools != functions:
            raise InputError(f'{row.location}: "tools" and "functions" differ; keep one of the two')
        tools = functions
    of_input = _objects(None if is_empty(input_tools) else input_tools, f'{row.location}: "input.tools"')
    if tools and of_input and tools != of_input:
        raise InputError(f'{row.location}: "tools" and "input.tools" differ; keep one of the two')
    tools, of_input = _without_nulls(tools), _without_nulls(of_input)
    documents = _objects(row.take("documents"), f'{row.location}: "documents"')
    kwargs = row.take("chat_template_kwargs")
    if kwargs is not None:
        kwargs = object_or_text(
            kwargs,
            "an object of names and values",
            lambda found: isinstance(found, dict) and all(isinstance(name, str) for name in found),
            f'{row.location}: "chat_template_kwargs"',
        )
        if taken := [name for name in kwargs if name in OF_TEMPLATES]:
            raise InputError(
                f'{row.location}: "chat_template_kwargs" names {taken[0]!r}, which is given elsewhere; remove it there'
            )
    if not (tools or of_input or documents or kwargs):
        return NO_CONTEXT
    return TemplateContext(tools or of_input, documents, kwargs or {})


def _objects(value: Any, place: str) -> list[dict[str, Any]] | None:
    if value is None:
        return None

    def is_right(found: Any) -> bool:
        return isinstance(found, (list, tuple)) and all(isinstance(item, dict) for item in found)

    return list(object_or_text(value, "a list of objects", is_right, place)) or None


def _are_tools(value: Any) -> bool:
    """Whether a value is descriptions of tools, be they written as text."""
    found = parsed_text(value) if isinstance(value, str) else value
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(tool, dict) and ("function" in tool or {"name", "parameters"} <= {*tool}) for tool in found)
    )


OF_ORDER = {"label", "labels", "winner", "preference", "preferred", "better", "safer", "best", "choice", "vote"}
"""Words in the names of columns that say which of two answers is the better one."""


def refuse_another_order(row: Fields, columns: Sequence[tuple[str, str]]) -> None:
    """Raises InputError for a pair that --columns has made, where an unread column says which answer is the better
    one: rows would be the wrong way round.
    """
    theirs = dict(columns)
    if not {"chosen", "rejected"} & {*theirs}:
        return
    scores = [
        f"score{name[name.rfind('_') :]}" for ours, name in columns if ours in ("chosen", "rejected") and "_" in name
    ]
    for name in row.unused():
        if OF_ORDER & {*re.split("[^a-z]+", name.lower())} or name in scores:
            raise InputError(
                f'{row.location}: "{name}" is there, and may say that {theirs.get("rejected", "rejected")} is better '
                f"than {theirs.get('chosen', 'chosen')}, against --columns; write rows whose chosen is the better one, "
                f"or ignore the column if it always is: --ignore-columns {name}"
            )


def _without_nulls(value: Any) -> Any:
    """Descriptions of tools without keys that are null, with which tables fill up what other rows' tools have; a null
    default or constant says something.
    """
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k in ("default", "const")}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def refuse_what_is_lost(row: Fields, *, of_answers: bool = True) -> None:
    """Raises InputError for a column that carries meaning and that nothing has read. of_answers: those that belong to
    answers, too.
    """
    for name in row.unused():
        if name in MEDIA or (name.startswith("rejected_") and name.removeprefix("rejected_") in MEDIA):
            mend = "but only text can be trained on; take the row out"
        elif name in OF_ANSWERS and of_answers:
            mend = "beside the messages; put it into the message that it belongs to"
        elif "tool" in name and _are_tools(row.peek(name)):
            mend = f"and describes tools; call it that: --columns tools={name}"
        elif name == "context":
            mend = "and has no place in a row of this form; write it into the prompt"
        elif name in OF_FORMS:
            mend = (
                'and belongs to an "instruction", as in LLaMA-Factory\'s rows; call the prompt that: --columns '
                "instruction=prompt"
            )
        else:
            continue
        raise InputError(f'{row.location}: "{name}" is there, {mend}, or ignore it: --ignore-columns {name}')
