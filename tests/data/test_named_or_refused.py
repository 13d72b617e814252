"""Rows of which other trainers lose something: taken with all that they say, or refused by what would be lost."""

import json

import pytest

from data.rows import NotUsed, Reading, Record, read_records
from data.rows.sources import parse_columns
from data.text import Message, spelled_control
from system import InputError
from tests import tiny

Q = [{"role": "user", "content": "2+2?"}]
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
CALL = {"name": "tide", "arguments": {"harbour": "Brest"}}
CALLS = [{"type": "function", "function": CALL}]


def read(tmp_path, *rows, columns=None, **reading):
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    return list(read_records(file, Reading(columns=parse_columns(columns), **reading)))


def record_of(tmp_path, row, **reading):
    (found,) = read(tmp_path, row, **reading)
    assert isinstance(found, Record), found
    return found


def fault_of(tmp_path, row, **reading):
    (found,) = read(tmp_path, row, **reading)
    assert isinstance(found, InputError)
    location, _, sentence = str(found).partition(f"{tmp_path}/rows.jsonl:1: ")
    assert location == ""
    return sentence


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


# --- thoughts ------------------------------------------------------------------------------------------------------

THOUGHTS = {
    "reasoning_content": answer("4", reasoning_content="two and two"),
    "thinking": answer("4", thinking="two and two"),
    "reasoning": answer("4", reasoning="two and two"),
    "two names of the same": answer("4", reasoning="two and two", reasoning_content="two and two"),
    "a part": answer([{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "4"}]),
    "a part of parts": answer(
        [{"type": "thinking", "thinking": [{"type": "text", "text": "two and two"}]}, {"type": "text", "text": "4"}]
    ),
    "a part of the other name": answer([{"type": "reasoning", "text": "two and two"}, {"type": "text", "text": "4"}]),
}


@pytest.mark.parametrize("message", THOUGHTS.values(), ids=THOUGHTS)
def test_thoughts_are_read_under_each_of_their_names(tmp_path, message):
    found = record_of(tmp_path, PAIR | {"chosen": [message]})
    assert found.conversations[0] == (Message("assistant", "4", "two and two"),) and not found.unused


def test_thoughts_that_differ_are_not_chosen_from(tmp_path):
    row = PAIR | {"chosen": [answer("4", thinking="two and two", reasoning="one and three")]}
    assert fault_of(tmp_path, row).startswith('"chosen"[0] has different thoughts in thinking, reasoning; keep one')
    assert record_of(tmp_path, row, ignored=("reasoning",)).conversations[0][0].reasoning_content == "two and two"


def test_a_thought_behind_the_text_is_no_part_that_can_be_taken(tmp_path):
    parts = [{"type": "text", "text": "4"}, {"type": "thinking", "thinking": "two and two"}]
    assert '"chosen[0].content[1]" is a part of the type' in fault_of(tmp_path, PAIR | {"chosen": [answer(parts)]})


def test_thoughts_of_a_user_are_a_fault(tmp_path):
    row = PAIR | {"prompt": [{"role": "user", "content": "2+2?", "thinking": "hm"}]}
    assert fault_of(tmp_path, row) == '"prompt"[0] has "thinking" but is the user\'s, not an assistant\'s'


# --- calls ---------------------------------------------------------------------------------------------------------

FUNCTION = {"name": "tide", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


def test_the_older_names_of_calls_and_tools_are_read(tmp_path):
    asked = {"role": "assistant", "content": None, "function_call": CALL}
    row = {"prompt": Q, "chosen": [asked, {"role": "function", "name": "tide", "content": "04:10"}, answer("At four.")],
           "rejected": "No.", "functions": [FUNCTION]}  # fmt: skip
    found = record_of(tmp_path, row)
    assert found.conversations[0] == (
        Message("assistant", "", tool_calls=CALLS),
        Message("tool", "04:10", name="tide"),
        Message("assistant", "At four."),
    )
    assert found.context.tools == [TOOL] and not found.unused


def test_calls_under_two_names_are_not_chosen_from(tmp_path):
    row = PAIR | {"chosen": [answer("", function_call=CALL, tool_calls=CALLS)]}
    assert fault_of(tmp_path, row).startswith('"chosen"[0] has "tool_calls" and "function_call"; keep one')
    assert fault_of(tmp_path, PAIR | {"tools": [TOOL], "functions": [{"name": "x"}]}).startswith(
        '"tools" and "functions" differ'
    )


def test_messages_that_are_calls_belong_to_the_assistant_before_them(tmp_path):
    def call(harbour):
        return {"role": "tool_call", "content": json.dumps(CALL | {"arguments": {"harbour": harbour}})}

    told = {"role": "tool_response", "content": "04:10"}
    row = PAIR | {"prompt": Q, "chosen": [answer("I look."), call("Brest"), call("Cork"), told, told, answer("Four.")]}
    first, *rest = record_of(tmp_path, row).conversations[0]
    assert first.content == "I look."
    assert first.tool_calls is not None
    assert [c["function"]["arguments"]["harbour"] for c in first.tool_calls] == ["Brest", "Cork"]
    assert rest == [Message("tool", "04:10"), Message("tool", "04:10"), Message("assistant", "Four.")]


def test_sharegpts_calls_are_an_assistants(tmp_path):
    turns = [("human", "When?"), ("function_call", json.dumps(CALL)), ("observation", "04:10"), ("gpt", "At four.")]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns], "tools": json.dumps([FUNCTION])}
    found = record_of(tmp_path, row)
    assert found.messages == (
        Message("user", "When?"),
        Message("assistant", "", tool_calls=CALLS),
        Message("tool", "04:10"),
    )
    assert found.texts == ("At four.",) and found.context.tools == [FUNCTION]


def test_a_call_that_is_none_is_told(tmp_path):
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "tide(Brest)"}]}
    assert fault_of(tmp_path, row).startswith(
        '"conversations"[1] has the role \'function_call\' but is no call {"name": ..., "arguments": ...} in JSON; '
        "correct it, or name its role: --roles function_call=assistant"
    )


def test_tools_in_a_column_of_another_name_are_not_left_behind(tmp_path):
    row = PAIR | {"tools": None, "tool_defs": json.dumps([TOOL])}
    assert fault_of(tmp_path, row).startswith(
        '"tool_defs" is there, and describes tools; call it that: --columns tools'
    )
    assert record_of(tmp_path, row, columns="tools=tool_defs").context.tools == [TOOL]
    assert record_of(tmp_path, PAIR | {"tool_name": "tide"}).unused == ("tool_name",)


def test_keys_of_tools_that_are_null_are_not_there(tmp_path):
    properties = {"harbour": {"type": "string", "default": None}, "speed": None}
    padded = [{"type": "function", "function": {"name": "tide", "description": None,
               "parameters": {"type": "object", "properties": properties, "required": None}}}]  # fmt: skip
    bare = {"type": "object", "properties": {"harbour": {"type": "string", "default": None}}}
    found = record_of(tmp_path, PAIR | {"tools": padded})
    assert found.context.tools == [{"type": "function", "function": {"name": "tide", "parameters": bare}}]


# --- flags ---------------------------------------------------------------------------------------------------------

FLAGS = {
    "an answer of weight 0": ([*Q, answer("4", weight=0)], '"messages"[1] has "weight": 0, but is trained'),
    "an answer without loss": ([*Q, answer("4", loss=False)], '"messages"[1] has "loss": False, but is trained'),
    "a half": ([*Q, answer("4", weight=0.5)], '"messages"[1] has "weight": 0.5, but is trained'),
    "an earlier answer that is to be trained": (
        [*Q, answer("4", trainable=True), *Q, answer("4")],
        '"messages"[1] has "trainable": True, but is not trained, as it comes before the response',
    ),
}


@pytest.mark.parametrize(("messages", "sentence"), FLAGS.values(), ids=FLAGS)
def test_flags_that_say_otherwise_than_what_is_trained_are_a_fault(tmp_path, messages, sentence):
    assert fault_of(tmp_path, {"messages": messages}).startswith(sentence)
    names = ("weight", "loss", "trainable")
    assert record_of(tmp_path, {"messages": messages}, ignored=names).texts == ("4",)


def test_flags_that_agree_are_named(tmp_path):
    messages = [{**Q[0], "weight": 0}, answer("5", weight=0), *Q, answer("4", weight=1)]
    assert record_of(tmp_path, {"messages": messages}).unused == ("messages' weight",)
    pair = PAIR | {"prompt": Q, "chosen": [answer("4", loss=True)], "rejected": [answer("5", loss=1.0)]}
    assert record_of(tmp_path, pair).unused == ("messages' loss",)


def test_a_mask_beside_the_messages_has_to_be_what_is_trained(tmp_path):
    row = {"messages": [*Q, answer("5"), *Q, answer("4")]}
    assert record_of(tmp_path, row | {"loss_mask": [0, 0, 0, 1]}).unused == ("loss_mask",)
    for mask in ([0, 1, 0, 1], [0, 0, 0, 0], [1]):
        said = fault_of(tmp_path, row | {"loss_mask": mask})
        assert said.startswith(
            '"loss_mask" differs from what is trained, all that the assistant says in responses'
        ) and ("[0, 0, 0, 1]" in said)


# --- which answer is better ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beside",
    [
        {"labels": 0},
        {"winner": "model_b"},
        {"better_response_id": 1},
        {"safer_response_id": 0},
        {"preference": "b"},
        {"score_a": 1, "score_b": 9},
    ],
)
def test_columns_do_not_hide_which_answer_is_better(tmp_path, beside):
    row = {"prompt": "2+2?", "answer_a": "4", "answer_b": "5", **beside}
    columns, (name, *_) = "chosen=answer_a,rejected=answer_b", beside
    assert fault_of(tmp_path, row, columns=columns).startswith(
        f'"{name}" is there, and may say that answer_b is better than answer_a, against --columns; write rows'
    )
    assert record_of(tmp_path, row, columns=columns, ignored=tuple(beside)).texts == ("4", "5")
    assert record_of(tmp_path, row, columns="completion=answer_a").texts == ("4",)  # not a pair


# --- lists, and what is told of them -------------------------------------------------------------------------------


def test_messages_that_stand_as_columns_are_messages(tmp_path):
    chosen = {"role": ["user", "assistant"], "content": ["2+2?", "4"]}
    rejected = {"content": ["2+2?", "5"], "role": ["user", "assistant"], "name": None}
    found = record_of(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert found.messages == (Message("user", "2+2?"),) and found.texts == ("4", "5")
    assert "has the role" in fault_of(tmp_path, {"chosen": chosen | {"content": ["4"]}, "rejected": rejected})


TOLD = {
    "an answer that goes on with a user's turn": (
        {"chosen": [*Q, answer("4")], "rejected": [*Q, answer("4"), {"role": "user", "content": "more"}]},
        "after a prompt of 1 messages, where the conversations part, it continues with a user message",
    ),
    "dialogues that part early": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
         "rejected": "\n\nHuman: a\n\nAssistant: x"},
        "after a prompt of 1 messages, where the conversations part, it continues with a user message",
    ),
    "an answer of the role system": (
        PAIR | {"prompt": Q, "chosen": [*Q, {"role": "system", "content": "4"}]},
        "after the prompt comes a message of the role system (if that is the answer: --roles system=assistant)",
    ),
    "several worse answers": (
        PAIR | {"rejected": ["5", "6"]},
        '"rejected"[0] is not a message {"role": ..., "content": ...}; several answers to a prompt are {"prompt", '
        '"completions": [the best, ...]}',
    ),
    "the older ranking rows": (
        {"instruction": "Shorten.", "input": "A, a.", "output": ["A.", "B."]},
        '; several answers to a prompt are {"prompt", "completions": [the best, ...]}',
    ),
    "a prompt that an answer has begun": (
        PAIR | {"prompt": [*Q, answer("It is")]},
        "it ends with the assistant's, and responses cannot continue one",
    ),
    "blanks at the ends alone": (PAIR | {"chosen": "  4", "rejected": "4\n"}, "are equal, blanks at their ends aside"),
    "a label beside a rejected answer": (
        {"messages": [*Q, answer("4")], "rejected_response": "5", "label": True},
        '"label" is there beside a rejected answer, so the row is neither a pair nor one labelled answer',
    ),
    "a question": (
        {"question": "q", "chosen": "a", "rejected": "b"},
        'if "question" is the prompt: --columns prompt=question',
    ),
    "other names of pairs": (
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        "--columns prompt=instruction,chosen=chosen_response,rejected=rejected_response,",
    ),
    "ms-swift's older rows": ({"query": "q", "response": "r"}, "--columns prompt=query,completion=response,"),
    "turns of input and output": ({"conversation": [{"input": "q"}]}, "--columns messages=conversation,"),
    "answers by number": ({"question": "q", "answer_0": "a", "answer_1": "b"}, "--columns prompt=question,chosen=...,"),
    "numpy's array": (
        PAIR | {"chosen": "array([{'role': 'assistant', 'content': '4'}], dtype=object)"},
        '"chosen" is an array of messages as numpy prints it; write the column as JSON',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "sentence"), TOLD.values(), ids=TOLD)
def test_what_cannot_be_used_is_told_with_its_remedy(tmp_path, row, sentence):
    assert sentence in fault_of(tmp_path, row)


def test_a_label_that_a_pairs_rest_stands_beside_is_of_the_conversation(tmp_path):
    row = {"messages": [*Q, answer("4")], "label": False, "images": [{"bytes": None, "path": ""}]}
    found = record_of(tmp_path, row | {"rejected_response": "4"})
    assert (found.form, found.label, found.unused) == ("unpaired", False, ("rejected_response",))


@pytest.mark.parametrize(("label", "truth"), [("1.0", True), ("0.0", False), (1.0, True)])
def test_labels_of_a_table_with_holes_are_labels(tmp_path, label, truth):
    assert record_of(tmp_path, {"prompt": "q", "completion": "a", "label": label}).label is truth


CODE = "    y = x + 1\n    return y"


@pytest.mark.parametrize(
    ("answer_of", "n"),
    [
        (CODE, 1),
        ("\n\n" + CODE, 1),
        ("\treturn x\n\treturn y", 1),
        (" The first.\nThe second.", 0),
        ("\n\nThe first.\n    The second.", 0),
        ("    The only one.", 0),
        ("def f(x):\n" + CODE, 0),
    ],
)
def test_answers_that_lose_the_indent_of_their_first_line_are_counted(tmp_path, answer_of, n):
    for chosen in (answer_of, [answer(answer_of)], [*Q, answer(answer_of)]):
        found = record_of(tmp_path, PAIR | {"chosen": chosen})
        assert found.texts[0] == answer_of.strip()
        not_used = NotUsed()
        not_used.add(found)
        assert not_used.facts() == ({"answers_without_their_indent": 1} if n else {})
        assert [said.startswith("1 answers begin with blanks, as code does; they are trimmed") for said in
                not_used.sentences()] == [True] * n  # fmt: skip


def test_keys_beside_the_rows_of_a_file_are_named(tmp_path, capfd):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"version": "1.1", "data": [PAIR], "license": "made up"}))
    (found,) = read_records(file)
    assert isinstance(found, Record)
    assert capfd.readouterr().err == f'{file}: not used: what stands beside "data" (version, license)\n'


def test_markers_of_another_format_are_counted_as_such():
    assert spelled_control(["Cod.\n<extra_id_1>User\nAnother."]) == ("<extra_id_1>",)
