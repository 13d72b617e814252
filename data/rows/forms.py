"""The forms that a row may have, and what is wrong with one of none.

    pairs      {"prompt": str | [messages], "chosen": str | [messages], "rejected": str | [messages]}
               {"chosen": [messages], "rejected": [messages]}             both begin with the prompt
               {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}            HH's dialogues
               {"messages" | "conversations": [messages], "chosen", "rejected"}           axolotl's, LLaMA-Factory's
               {"instruction", "input", "history": [[str, str], ...], "chosen", "rejected"}         LLaMA-Factory's
               {"messages": [messages], "rejected_messages": [messages] | "rejected_response": str}      ms-swift's
               {"input": {"messages", "tools"}, "preferred_output": [messages], "non_preferred_output"}    OpenAI's
               {"context": [messages], "response1", "response2", "overall_preference": -3 ... 3}        HelpSteer3's
    ranked     {"prompt", "completions": [str | [messages], ...], "scores": [number, ...]}, pairs
               {"instruction", "completions": [{"response", "overall_score"}, ...]}                UltraFeedback's
               {"prompt", "answers": [{"answer", "rank"}, ...]}                                           Nectar's
    unpaired   {"prompt", "completion", "label": true | false}
               {"messages" | "conversations": [messages], "label"}
               {"instruction", "input", "history", "output", "kto_tag"}                              LLaMA-Factory's
    single     {"prompt", "completion"}, {"messages" | "conversations": [messages]}, {"instruction", ..., "output"}
    ids        "prompt_ids" with "chosen_ids", "rejected_ids" or "completion_ids" or "completions_ids", and beside
               the last four a number for each token, "chosen_token_weights" and so on: taken as they are

A string prompt is one user message, or HH's dialogue up to "Assistant:". data/rows/turns.py says what a message may be.
A response is one message of the assistant, or several with what tools said between them. Where answers are whole
conversations that begin with the prompt, that part is recognised; where they go further back than a prompt that they
end with, the conversation counts.

Beside any form of text: "system" or "system_prompt" is the system message; "tools", "documents" and
"chat_template_kwargs" go to the template; what a row says in numbers (Ratings) is carried along. "images", "audio",
"video" and what else carries meaning and is not used here are faults of the row. Every other column is named as not
used. Columns that are null count as absent.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal

from data.rows import numbers
from data.rows.fields import Fields, is_empty, parsed_text
from data.rows.prompts import (
    CONVERSATIONS,
    Messages,
    alpaca_prompt,
    context_of,
    given_prompt,
    needed_prompt,
    prompt_alone,
    prompt_of_input,
    refuse_another_order,
    refuse_what_is_lost,
    with_system,
)
from data.rows.record import PromptRow, Ratings, Record, Tie
from data.rows.sources import Reading
from data.rows.turns import Turns, transcript
from data.text import REMEDY, ROLES, Message, spelled_control
from system import InputError


def parse_record(
    row: dict[str, Any], location: str, *, roles: Collection[str] = ROLES, reading: Reading | None = None
) -> Record:
    """The record in one row. roles: those that a message may have beside the usual ones.

    Raises InputError, located, where a field is missing, empty or of the wrong type; Tie, which is one, where all
    completions of a row are rated alike and are to be ranked.
    """
    form = _Form(row, location, roles, reading or Reading())
    record = form.record()
    if record.is_tokenised:
        return replace(record, unused=tuple(form.row.unused()))
    prompt, context = with_system(form.row, form.read, record.messages), context_of(form.row, form.tools)
    refuse_what_is_lost(form.row)
    if record.form == "pairs" and reading is not None:
        refuse_another_order(form.row, reading.columns)
    form.read.check_flags(record.conversations)
    form.check_mask(record)
    unused = (*form.row.unused(), *form.read.unused)
    counts = {"n_parsed": form.read.n_parsed, "n_indented": form.read.n_indented}
    return replace(record, prompt=prompt, context=context, unused=unused, **counts)


def parse_prompt(
    row: dict[str, Any], location: str, *, roles: Collection[str] = ROLES, reading: Reading | None = None
) -> PromptRow:
    """The prompt of a row of any form. Raises InputError, located."""
    form = _Form(row, location, roles, reading or Reading())
    if "prompt_ids" in form.row:
        ids = numbers.ids(form.row["prompt_ids"], "prompt_ids", location)
        return PromptRow(location, ids, row, unused=tuple(form.row.unused()))
    alone, tools = prompt_alone(form.row, form.read)
    prompt, context = with_system(form.row, form.read, alone), context_of(form.row, tools)
    refuse_what_is_lost(form.row, of_answers=False)
    unused = (*form.row.unused(), *form.read.unused)
    return PromptRow(location, prompt, row, context, unused, form.read.n_parsed)


class _Form:
    """One row on its way to a record. Every method raises InputError, located."""

    def __init__(self, row: dict[str, Any], location: str, roles: Collection[str], reading: Reading) -> None:
        self.row, self.location, self._reading = Fields(row, location), location, reading
        self.read = Turns(
            location,
            known=roles,
            names=reading.roles,
            ignored=reading.ignored,
            keeps_json_text=reading.keeps_json_text,
        )
        self.tools: Any = None
        """Those that stand inside of OpenAI's "input"."""

    def check_mask(self, record: Record) -> None:
        """Refuses a "loss_mask" that says otherwise than what is trained: what the assistant says in the response."""
        if is_empty(mask := self.row.peek("loss_mask")):
            return
        trained = [False] * len(record.prompt) + [m.role == "assistant" for m in record.conversations[0]]
        if mask != trained:  # 1 is True
            raise InputError(
                f'{self.location}: "loss_mask" differs from what is trained, all that the assistant says in responses: '
                f"{[int(flag) for flag in trained]}; take the row out, or ignore it: --ignore-columns loss_mask"
            )

    def record(self) -> Record:
        """The record, without what may stand beside any form."""
        row = self.row
        numbers.check_weights(row)
        has_pair = "chosen" in row or "rejected" in row or "chosen_ids" in row
        if ("completions" in row or "completions_ids" in row) and (self._reading.ranked or not has_pair):
            return self._rated()
        if "chosen_ids" in row or "completion_ids" in row or "prompt_ids" in row:
            return self._tokenised()
        if has_pair:
            answers = self._answer("chosen"), self._answer("rejected")
            return self._pair(*answers, given_prompt(row, self.read, answers))
        if "preferred_output" in row or "non_preferred_output" in row:
            names = ("preferred_output", "non_preferred_output")
            prompt, self.tools = prompt_of_input(row, self.read)
            return self._pair(self._answer(names[0]), self._answer(names[1]), prompt, names)
        named = next((name for name in CONVERSATIONS if name in row), None)
        if named and ("rejected_messages" in row or "rejected_response" in row) and not self._is_labelled(named):
            return self._with_rejected(named)
        if "completion" in row:
            answer = self._answer("completion")
            return self._completion(answer, "completion", given_prompt(row, self.read, (answer,)))
        if named:
            return self._conversation(named)
        if "answers" in row:
            return self._answers()
        if "response1" in row and "response2" in row:
            return self._preferred()
        if "instruction" in row and "output" in row:
            return self._completion(self._answer("output"), "output", alpaca_prompt(row, self.read))
        raise InputError(
            f'{self.location}: neither "chosen" and "rejected" nor "completion" nor "messages", only {_names(row)}; '
            f"name its columns with --columns {_likely_columns(row)}, or see data/rows/forms.py for the forms"
        )

    def _is_labelled(self, name: str) -> bool:
        """Whether a label beside a rejected answer is of the conversation: where that ends with this answer."""
        if numbers.label(self.row) is None:
            return False
        rejected = self.row.peek("rejected_response")
        ends = self.read.messages(self.row.peek(name), name)[-1].content
        if isinstance(rejected, str) and ends == rejected.strip():
            return True
        raise InputError(
            f'{self.location}: "label" is there beside a rejected answer, so the row is neither a pair nor one '
            "labelled answer; ignore one of them: --ignore-columns label"
        )

    # --- pairs -----------------------------------------------------------------------------------------------------

    def _answer(self, name: str) -> Any:
        """An answer's field: messages where it holds such, else what it is."""
        value = self.read.unpacked(self.row[name], name)
        if isinstance(value, (list, dict)):
            value = self.read.messages(value, name)
        return value

    def _pair(
        self, chosen: Any, rejected: Any, given: Messages | None, names: tuple[str, str] = ("chosen", "rejected")
    ) -> Record:
        if self._are_dialogues(chosen, rejected, given):
            chosen, rejected = whole = [
                self.read.messages(transcript(text), name) for text, name in zip((chosen, rejected), names, strict=True)
            ]
            if given is not None and _shared(whole)[-len(given) :] != given:  # they begin with the prompt's words
                given = None
        prompt = self._prompt_of([chosen, rejected], given)
        responses = self.read.response(chosen, names[0], prompt), self.read.response(rejected, names[1], prompt)
        return self._as_pair(prompt, responses, names)

    def _are_dialogues(self, chosen: Any, rejected: Any, given: Messages | None) -> bool:
        """Whether answers are written dialogues of several turns: where no prompt is given, or where they hold it. Else
        they are text, whatever it looks like.
        """
        turns = transcript(chosen), transcript(rejected)
        if not turns[0] or not turns[1] or min(map(len, turns)) < 2:  # pyright: ignore[reportArgumentType]
            return False
        prompt = self.row.peek("prompt")
        if given is None or (isinstance(prompt, str) and all(_begins(text, prompt) for text in (chosen, rejected))):
            return True
        whole = [tuple(Message(t["role"], t["content"].strip()) for t in some or ()) for some in turns]
        return all(m[: len(given)] == given for m in whole) or _shared(whole)[-len(given) :] == given

    def _prompt_of(self, answers: list[Any], given: Messages | None) -> Messages:
        """The prompt: the given one, or that which all answers begin with, if they go further back or none is given."""
        whole = [answer for answer in answers if isinstance(answer, tuple)]
        if given is None:
            if len(whole) < len(answers):
                self._check_not_templated(answers)
                if (likely := _likely(self.row, "prompt")) is not None:
                    raise InputError(
                        f'{self.location}: "prompt" is missing; if "{likely}" is the prompt: --columns prompt={likely}'
                    )
                self.row["prompt"]  # is missing
            return self.read.checked_prompt(_shared(whole))
        if len(whole) < len(answers):
            return given
        shared = _shared(whole)
        return shared if len(shared) > len(given) and shared[-len(given) :] == given else given

    def _check_not_templated(self, answers: list[Any]) -> None:
        """Refuses texts without a prompt that are whole conversations in a template's words."""
        spelled = [spelled_control([answer]) if isinstance(answer, str) else () for answer in answers]
        if all(spelled):
            raise InputError(
                f'{self.location}: "prompt" is missing, and the answers went through a chat template already ('
                f"they contain {' '.join(spelled[0])}); {REMEDY}"
            )

    def _as_pair(
        self,
        prompt: Messages,
        responses: tuple[Messages, Messages],
        names: tuple[str, str],
    ) -> Record:
        if responses[0] == responses[1]:
            raw = [self.row.peek(name) for name in names]
            aside = ", blanks at their ends aside" if all(isinstance(x, str) for x in raw) and raw[0] != raw[1] else ""
            raise InputError(f'{self.location}: "{names[0]}" and "{names[1]}" are equal{aside}; a pair has to differ')
        return Record(self.location, "pairs", prompt, responses, None, self._ratings(("chosen", "rejected")))

    def _with_rejected(self, name: str) -> Record:
        """ms-swift's rows: a conversation that ends with the chosen answer, and another end or conversation."""
        chosen = self._whole(name)
        if "rejected_messages" in self.row:
            return self._pair(chosen, self._answer("rejected_messages"), None, (name, "rejected_messages"))
        prompt = self.read.checked_prompt(_before_answer(chosen))
        rejected = self.read.response(self._answer("rejected_response"), "rejected_response", prompt)
        return self._as_pair(prompt, (self.read.response(chosen, name, prompt), rejected), (name, "rejected_response"))

    def _preferred(self) -> Record:
        """HelpSteer3's preferences: below 0 the first is better, above it the second."""
        prompt = self.read.prompt(self.row["context"], "context")
        value = self.row["overall_preference"]
        preference = numbers.number(value, "overall_preference", self.location)
        if preference == 0 and not self._reading.listed:
            raise Tie(f"{self.location}: its 2 completions are rated alike, so that none is better")
        names = ("response1", "response2") if preference <= 0 else ("response2", "response1")
        pair = self._pair(self._answer(names[0]), self._answer(names[1]), prompt, names)
        return replace(pair, form="listed") if preference == 0 else pair

    # --- several completions ---------------------------------------------------------------------------------------

    def _rated(self) -> Record:
        """Several completions to one prompt: all, best first, or the best over the worst; of equals the first."""
        row, is_tokenised = self.row, "completions_ids" in self.row
        name = "completions_ids" if is_tokenised else "completions"
        if is_tokenised:
            prompt: tuple[Any, ...] = self._ids("prompt_ids")
        else:
            found = alpaca_prompt(row, self.read) if "instruction" in row else given_prompt(row, self.read)
            prompt = needed_prompt(row, self.read, found)
        items = self._list(name)
        responses: list[Any] = [
            numbers.ids(item, f"{name}[{i}]", self.location)
            if is_tokenised
            else self._one_of(item, f"{name}[{i}]", "response", ("overall_score",), prompt)
            for i, item in enumerate(items)
        ]
        weights = numbers.listed_weights(row, responses)
        return self._ranked(prompt, responses, self._scores(items), weights)

    def _answers(self) -> Record:
        """Nectar's answers, by rank: 1 is the best."""
        prompt = needed_prompt(self.row, self.read, given_prompt(self.row, self.read))
        items = self._list("answers")
        for i, item in enumerate(items):
            if not isinstance(item, dict) or "answer" not in item or "rank" not in item:
                raise InputError(f'{self.location}: "answers[{i}]" is not {{"answer": ..., "rank": ...}}')
        responses = [self._one_of(item, f"answers[{i}]", "answer", ("rank",), prompt) for i, item in enumerate(items)]
        ranks = [numbers.number(item["rank"], f"answers[{i}].rank", self.location) for i, item in enumerate(items)]
        record = self._ranked(prompt, responses, [-rank for rank in ranks], None)
        return replace(record, ratings=record.ratings._replace(scores=None))  # places in an order are no scores

    def _list(self, name: str) -> list[Any]:
        items, fewest = self._unwritten(self.row[name]), 1 if self._reading.listed else 2
        if not isinstance(items, list) or len(items) < fewest:
            raise InputError(f'{self.location}: "{name}" has to be a list of {("one", "two")[fewest - 1]} or more')
        return items

    def _unwritten(self, value: Any) -> Any:
        """A list, be it written as text; anything else as it is."""
        found = parsed_text(value) if isinstance(value, str) else value
        return found if isinstance(found, list) else value

    def _one_of(self, item: Any, name: str, key: str, others: tuple[str, ...], prompt: tuple[Any, ...]) -> Messages:
        """One of several completions: a response, or an object that holds it under a key."""
        is_message = isinstance(item, dict) and key not in item and ("role" in item or "from" in item)
        if isinstance(item, dict) and not is_message:
            for other, value in item.items():
                if other not in (key, *others) and not is_empty(value):
                    self.read.unused[f"{name.partition('[')[0]}' {other}"] = None
            item = item.get(key)
        item = self.read.unpacked(item, f"{name}.{key}")
        return self.read.response(item, name if isinstance(item, (list, dict)) else f"{name}.{key}", prompt)

    def _scores(self, items: list[Any]) -> list[float] | None:
        """The scores of completions: their own, or the list beside them; None where there are none."""
        if "scores" in self.row:
            values, names = self._unwritten(self.row["scores"]), [f"scores[{i}]" for i in range(len(items))]
        elif any(isinstance(item, dict) and "role" not in item and "from" not in item for item in items):
            values = [item.get("overall_score") if isinstance(item, dict) else None for item in items]
            names = [f"completions[{i}].overall_score" for i in range(len(items))]
        else:
            return None
        if not isinstance(values, list) or len(values) != len(items):
            raise InputError(f'{self.location}: "scores" has to be a list of {len(items)} numbers, one per completion')
        return [numbers.number(value, name, self.location) for value, name in zip(values, names, strict=True)]

    def _ranked(
        self,
        prompt: tuple[Any, ...],
        responses: list[Any],
        scores: list[float] | None,
        weights: tuple[tuple[float, ...], ...] | None,
    ) -> Record:
        keeps_all, ratings = self._reading.ranked, self._ratings(())
        if self._reading.listed:  # in the row's order, whatever they are rated
            ratings = ratings._replace(scores=None if scores is None else tuple(scores))
            return Record(self.location, "listed", prompt, tuple(responses), None, ratings, weights)
        order = list(range(len(responses)) if keeps_all else (0, len(responses) - 1))
        if scores is not None:
            if len(set(scores)) < 2:
                raise Tie(f"{self.location}: its {len(scores)} completions are rated alike, so that none is better")
            order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable: of equals the first
            if not keeps_all:  # of the worst, too, the first
                order = [order[0], scores.index(min(scores))]
            ratings = ratings._replace(scores=tuple(scores[i] for i in order))
        responses, weights = [responses[i] for i in order], weights and tuple(weights[i] for i in order)
        if responses[0] == responses[-1]:
            raise InputError(f"{self.location}: the best and the worst completion are equal; a pair has to differ")
        form: Literal["pairs", "ranked"] = "ranked" if keeps_all else "pairs"
        return Record(self.location, form, prompt, tuple(responses), None, ratings, weights)

    # --- one completion --------------------------------------------------------------------------------------------

    def _completion(self, answer: Any, name: str, given: Messages | None) -> Record:
        prompt = self._prompt_of([answer], given)
        return self._labelled(prompt, self.read.response(answer, name, prompt))

    def _conversation(self, name: str) -> Record:
        """A conversation that ends with the answer."""
        messages = self._whole(name)
        return self._labelled(self.read.checked_prompt(messages[:-1]), messages[-1:])

    def _whole(self, name: str) -> Messages:
        messages = self.read.messages(self.row[name], name)
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise InputError(f'{self.location}: "{name}" has to end with a user message and its assistant answer')
        return messages

    def _labelled(self, prompt: tuple[Any, ...], response: tuple[Any, ...], weights: Any = None) -> Record:
        label = numbers.label(self.row)
        form: Literal["unpaired", "single"] = "single" if label is None else "unpaired"
        return Record(self.location, form, prompt, (response,), label, self._ratings(), weights)

    # --- token ids -------------------------------------------------------------------------------------------------

    def _tokenised(self) -> Record:
        prompt = self._ids("prompt_ids")
        if "completion_ids" in self.row:
            (ids,) = found = (self._ids("completion_ids"),)
            return self._labelled(prompt, ids, numbers.token_weights(self.row, ("completion",), found))
        pair = self._ids("chosen_ids"), self._ids("rejected_ids")
        if pair[0] == pair[1]:
            raise InputError(f'{self.location}: "chosen_ids" and "rejected_ids" are equal; a pair has to differ')
        names = ("chosen", "rejected")
        weights = numbers.token_weights(self.row, names, pair)
        return Record(self.location, "pairs", prompt, pair, None, self._ratings(names), weights)

    def _ids(self, name: str) -> tuple[int, ...]:
        return numbers.ids(self.row[name], name, self.location)

    def _ratings(self, names: tuple[str, ...] = ("",)) -> Ratings:
        return numbers.ratings(self.row, names, asked=self._reading.fields)


def _begins(text: str, prompt: str) -> bool:
    return text.strip().startswith(prompt.strip())


_LIKELY = {
    "prompt": ("question", "query", "instruction", "input", "history", "problem"),
    "chosen": ("chosen_response", "response_chosen", "preferred", "accepted"),
    "rejected": ("rejected_response", "response_rejected", "rejected_answer", "dispreferred"),
    "completion": ("response", "answer", "output"),
    "messages": ("conversation", "dialogue", "dialog", "turns", "chat"),
}
"""Names under which data sets have what our columns hold: they are proposed, never taken."""


def _likely(row: Fields, ours: str) -> str | None:
    return next((name for name in _LIKELY[ours] if not is_empty(row.peek(name))), None)


def _likely_columns(row: Fields) -> str:
    """What to write behind --columns for a row of none of the forms."""
    found = {ours: name for ours in _LIKELY if (name := _likely(row, ours))}
    if "chosen" in found or "rejected" in found or not {"completion", "messages"} & {*found}:
        names = [name for name in ("prompt", "chosen", "rejected") if name not in row]
    else:
        names = ["messages"] if "messages" in found else [x for x in ("prompt", "completion") if x not in row]
    return ",".join(f"{name}={found.get(name, '...')}" for name in names if name != "prompt" or name in found)


def _names(row: Fields) -> str:
    return ", ".join(f'"{name[:40]}"' for name in list(row)[:8]) or "nothing"


def _shared(conversations: list[Messages]) -> Messages:
    """What conversations have in common before their answers: up to the last message that an answer can follow."""
    if len(conversations) == 1:
        return _before_answer(conversations[0])
    w, l = conversations  # noqa: E741
    n = 0
    while n < min(len(w), len(l)) - 1 and w[n] == l[n]:
        n += 1
    while n and w[n - 1].role == "assistant":  # both answers begin with it
        n -= 1
    return w[:n]


def _before_answer(messages: Messages) -> Messages:
    """A conversation up to its last user message."""
    n = len(messages)
    while n and messages[n - 1].role in ("assistant", "tool"):
        n -= 1
    return messages[:n]
