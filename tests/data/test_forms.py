"""Rows as people have them: the forms of other tools and data sets, what stands beside them, named or refused."""

import ast
import csv
import json

import pytest

from data.rows import Reading, ReadingSettings, Record, RowSettings, load_preferences, read_prompts, read_records
from data.text import Message, TemplateContext
from system import InputError
from tests import tiny


def say(role, content, **more):
    return Message(role, content, **more)


def messages(*turns):
    """Messages of (role, content), as rows hold them."""
    return [{"role": role, "content": content} for role, content in turns]


def pair(*prompt, best="4", worst="5"):
    """What becomes of a pair of plain answers to a prompt of (role, content)."""
    return "pairs", tuple(say(*turn) for turn in prompt), ((say("assistant", best),), (say("assistant", worst),)), None


def single(*prompt, answer="4", label=None):
    form = "single" if label is None else "unpaired"
    return form, tuple(say(*turn) for turn in prompt), ((say("assistant", answer),),), label


Q = ("user", "2+2?")
PIRATE = ("system", "You are a pirate.")
ASKED = {"prompt": "2+2?"}
ANSWERS = {"chosen": "4", "rejected": "5"}
PAIR = ASKED | ANSWERS
SAID = {"completion": "4"}
FOUR, FIVE = ([{"role": "assistant", "content": c}] for c in "45")
WHOLE = {"chosen": messages(Q, ("assistant", "4")), "rejected": messages(Q, ("assistant", "5"))}
LONG = (Q, ("assistant", "4"), ("user", "And 3+3?"))
TASK = "Write a dialogue that begins with a greeting."
DIALOGUES = {
    "chosen": "Human: Hello\n\nAssistant: Hi, what is it?",
    "rejected": "Human: Hello\n\nAssistant: What.",
}
HH = {name: f"\n\nHuman: 2+2?\n\nAssistant: {c}" for name, c in (("chosen", "4"), ("rejected", "5"))}
RATED = [{"response": c, "overall_score": s, "model": "m"} for c, s in (("5", 1), ("4", 9))]

FORMS = {
    # a system message beside any form
    "system beside a pair": (PAIR | {"system": "You are a pirate."}, pair(PIRATE, Q)),
    "system_prompt beside a pair": (PAIR | {"system_prompt": " You are a pirate.\n"}, pair(PIRATE, Q)),
    "both say the same": (
        PAIR | {"system": "You are a pirate.", "system_prompt": "You are a pirate. "},
        pair(PIRATE, Q),
    ),
    "the prompt has it already": (
        {"system": "You are a pirate.", "prompt": messages(PIRATE, Q)} | ANSWERS,
        pair(PIRATE, Q),
    ),
    "the prompt has an empty one": (
        {"system": "You are a pirate.", "prompt": messages(("system", ""), Q)} | ANSWERS,
        pair(PIRATE, Q),
    ),
    "an empty system": (PAIR | {"system": " ", "system_prompt": None}, pair(Q)),
    "system beside whole conversations": (WHOLE | {"system": "You are a pirate."}, pair(PIRATE, Q)),
    "system beside HH's dialogues": (HH | {"system": "You are a pirate."}, pair(PIRATE, Q)),
    "system beside a completion": (ASKED | SAID | {"system": "You are a pirate."}, single(PIRATE, Q)),
    "system beside a label": (
        ASKED | SAID | {"label": False, "system": "You are a pirate."},
        single(PIRATE, Q, label=False),
    ),
    "system beside messages": (
        {"messages": messages(Q, ("assistant", "4")), "system": "You are a pirate."},
        single(PIRATE, Q),
    ),
    "system beside UltraFeedback's": (
        {"instruction": "2+2?", "completions": RATED, "system": "You are a pirate."},
        pair(PIRATE, Q),
    ),
    "system beside sharegpt's pair": (
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "system": "You are a pirate.",
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        pair(PIRATE, Q),
    ),
    # LLaMA-Factory's instruction, input, history
    "instruction and input": (
        {"instruction": "Add.", "input": "2 and 2"} | ANSWERS,
        pair(("user", "Add.\n2 and 2")),
    ),
    "instruction alone": ({"instruction": "2+2?", "input": ""} | ANSWERS, pair(Q)),
    "input alone": ({"instruction": "", "input": "2+2?"} | ANSWERS, pair(Q)),
    "history": (
        {"instruction": "And 3+3?", "history": [["2+2?", "4"]]} | ANSWERS,
        pair(*LONG),
    ),
    "instruction, input and output": (
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "You are a pirate.", "history": []},
        single(PIRATE, ("user", "Add.\n2 and 2")),
    ),
    "kto_tag": (
        {"instruction": "2+2?", "input": None, "output": "4", "kto_tag": False},
        single(Q, label=False),
    ),
    "kto_tag beside conversations": (
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "kto_tag": True},
        single(Q, label=True),
    ),
    # labels
    "labelled messages": ({"messages": messages(Q, ("assistant", "4")), "label": True}, single(Q, label=True)),
    "labelled conversations": (
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "label": 0},
        single(Q, label=False),
    ),
    "label 1": (ASKED | SAID | {"label": 1}, single(Q, label=True)),
    "label 0.0, as a table of floats has it": (ASKED | SAID | {"label": 0.0}, single(Q, label=False)),
    "label as text": (ASKED | SAID | {"label": "True"}, single(Q, label=True)),
    "label as a digit in text": (ASKED | SAID | {"label": "0"}, single(Q, label=False)),
    "label of token ids": (
        {"prompt_ids": [1], "completion_ids": [2], "label": 1},
        ("unpaired", (1,), ((2,),), True),
    ),
    # where the prompt stands
    "messages beside answers": ({"messages": messages(Q)} | ANSWERS, pair(Q)),
    "messages beside answers as one message each": (
        {"messages": messages(PIRATE, Q), "chosen": FOUR[0], "rejected": FIVE[0]},
        pair(PIRATE, Q),
    ),
    "messages beside answers that repeat them": ({"messages": messages(Q)} | WHOLE, pair(Q)),
    "messages beside answers are once more the chosen conversation": (
        WHOLE | {"messages": WHOLE["chosen"]},
        pair(Q),
    ),
    "messages beside a prompt (ultrafeedback_binarized)": (PAIR | WHOLE | {"messages": WHOLE["chosen"]}, pair(Q)),
    "a completion as one message": (ASKED | {"completion": FOUR[0], "label": True}, single(Q, label=True)),
    "a completion that holds its prompt": ({"completion": messages(Q, ("assistant", "4"))}, single(Q)),
    "one message as the prompt": (PAIR | {"prompt": {"role": "user", "content": "2+2?"}}, pair(Q)),
    "written dialogues as answers": (
        {"prompt": TASK} | DIALOGUES,
        pair(("user", TASK), best=DIALOGUES["chosen"], worst=DIALOGUES["rejected"]),
    ),
    "written dialogues that begin with the prompt": (HH | {"prompt": "2+2?"}, pair(Q)),
    "written dialogues that begin with the prompt's own words": (HH | {"prompt": "Human: 2+2?"}, pair(Q)),
    "written dialogues that end with the prompt": (
        {
            "prompt": "And 3+3?",
            "chosen": "\n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: And 3+3?\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: And 3+3?\n\nAssistant: 5",
        },
        pair(*LONG),
    ),
    "a written dialogue as a completion": (
        {"prompt": TASK, "completion": DIALOGUES["chosen"]},
        single(("user", TASK), answer=DIALOGUES["chosen"]),
    ),
    "HH's prompt": ({"prompt": "\n\nHuman: 2+2?\n\nAssistant:"} | ANSWERS, pair(Q)),
    "HH's prompt and a blank": ({"prompt": "\n\nHuman: 2+2?\n\nAssistant: "} | ANSWERS, pair(Q)),
    "HH's prompt and a newline": ({"prompt": "\n\nHuman: 2+2?\n\nAssistant:\n"} | ANSWERS, pair(Q)),
    "HH's prompt of several turns, and a blank": (
        {"prompt": "\n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: And 3+3?\n\nAssistant: "} | ANSWERS,
        pair(*LONG),
    ),
    "conversations go further back than the prompt": (
        {
            "prompt": "And 3+3?",
            "chosen": messages(*LONG, ("assistant", "4")),
            "rejected": messages(*LONG, ("assistant", "5")),
        },
        pair(*LONG),
    ),
    "conversations have a system message, the prompt has none": (
        {
            "prompt": "2+2?",
            "chosen": messages(PIRATE, Q, ("assistant", "4")),
            "rejected": messages(PIRATE, Q, ("assistant", "5")),
        },
        pair(PIRATE, Q),
    ),
    "the same beside a completion": (
        ASKED | {"completion": messages(PIRATE, Q, ("assistant", "4")), "label": True},
        single(PIRATE, Q, label=True),
    ),
    # other tools' and data sets'
    "OpenAI's preferences": (
        {
            "input": {"messages": messages(PIRATE, Q), "tools": [], "parallel_tool_calls": True},
            "preferred_output": FOUR,
            "non_preferred_output": FIVE,
        },
        pair(PIRATE, Q),
    ),
    "OpenAI's preferences with messages as input": (
        {"input": messages(Q), "preferred_output": FOUR, "non_preferred_output": FIVE},
        pair(Q),
    ),
    "ms-swift's rejected messages": (
        {"messages": messages(Q, ("assistant", "4")), "rejected_messages": messages(Q, ("assistant", "5"))},
        pair(Q),
    ),
    "ms-swift's rejected response": (
        {"messages": messages(*LONG, ("assistant", "4")), "rejected_response": "5"},
        pair(*LONG),
    ),
    "Nectar's": (
        {
            "prompt": "\n\nHuman: 2+2?\n\nAssistant: ",
            "answers": [
                {"answer": "3", "model": "a", "rank": 2.0},
                {"answer": "4", "model": "b", "rank": 1.0},
                {"answer": "5", "model": "c", "rank": 3.0},
            ],
            "turns": 1,
            "num_responses": 3,
            "good_natured": True,
        },
        pair(Q),
    ),
    "HelpSteer3's, the first is better": (
        {"context": messages(Q), "response1": "4", "response2": "5", "overall_preference": -2},
        pair(Q),
    ),
    "HelpSteer3's, the second is better": (
        {"context": messages(Q), "response1": "5", "response2": "4", "overall_preference": 1},
        pair(Q),
    ),
    "completions as messages": (
        ASKED | {"completions": [FIVE, FOUR[0]], "scores": [1, 2]},
        pair(Q),
    ),
    # messages
    "Human and Assistant": (
        {name: [{"role": "Human", "content": "2+2?"}, {"role": "Assistant", "content": c}]
         for name, c in ANSWERS.items()},
        pair(Q),
    ),
    "human, gpt, in capitals": (
        {name: [{"from": "HUMAN", "value": "2+2?"}, {"from": "GPT", "value": c}] for name, c in ANSWERS.items()},
        pair(Q),
    ),
    "developer, model, function, observation": (
        {
            "prompt": messages(
                ("developer", "You are a pirate."), Q, ("model", "Calling."), ("function", "4"), ("bot", "Once more."),
                ("observation", "4"),
            )
        }
        | ANSWERS,
        pair(PIRATE, Q, ("assistant", "Calling."), ("tool", "4"), ("assistant", "Once more."), ("tool", "4")),
        Reading(roles=(("bot", "assistant"),)),
    ),
    "a role that is asked for counts before a known one": (
        PAIR | {"prompt": messages(("model", "2+2?"))},
        pair(Q),
        Reading(roles=(("MODEL", "user"),)),
    ),
    "content in parts": (
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2? "}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "4"}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "5"}]}],
        },
        pair(Q),
    ),
    # absent
    "nulls and nothing": (
        PAIR | {"system": "", "tools": [], "images": [], "context": "", "input": None, "history": [], "audio": [None],
                "documents": [], "chat_template_kwargs": {}, "tool_calls": [], "reasoning_content": ""},
        pair(Q),
    ),
    "let go": (
        PAIR | {"context": "Oslo", "images": ["x.png"], "videos": ["y"], "history": "old"},
        pair(Q),
        Reading(ignored=("context", "images", "videos", "history")),
    ),
    "messages with pictures that are let go": (
        PAIR | {"prompt": [{"role": "user", "content": "2+2?", "images": ["x.png"]}]},
        pair(Q),
        Reading(ignored=("images",)),
    ),
}  # fmt: skip


def record_of(tmp_path, row, reading=None):
    (found,) = read_records(tiny.write_rows(tmp_path / "rows.jsonl", [row]), reading)
    assert isinstance(found, Record), found
    return found


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
def test_a_row_of_every_form_says_what_its_tool_means_by_it(tmp_path, case):
    row, (form, prompt, responses, label), *reading = case
    found = record_of(tmp_path, row, *reading)
    assert (found.form, found.prompt, found.responses, found.label) == (form, prompt, responses, label)
    assert found.context == TemplateContext()


# --- messages that are written as text -----------------------------------------------------------------------------

TEXTS = {
    "JSON answers that hold the prompt": (
        ASKED | {name: json.dumps(value) for name, value in WHOLE.items()},
        pair(Q),
        2,
    ),
    "a JSON prompt and JSON answers": (
        {"prompt": json.dumps(messages(PIRATE, Q)), "chosen": json.dumps(FOUR), "rejected": json.dumps(FIVE[0])},
        pair(PIRATE, Q),
        3,
    ),
    "a JSON completion": (ASKED | {"completion": json.dumps(FOUR), "label": True}, single(Q, label=True), 1),
    "Python's repr": (ASKED | {name: repr(value) for name, value in WHOLE.items()}, pair(Q), 2),
    "JSON messages": (
        {"messages": json.dumps(messages(Q, ("assistant", "4"))), "label": "0"},
        single(Q, label=False),
        1,
    ),
    "sharegpt's as text": (
        {"conversations": str([{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}])},
        single(Q),
        1,
    ),
    "ms-swift's as text": (
        {
            "messages": json.dumps(messages(Q, ("assistant", "4"))),
            "rejected_messages": json.dumps(messages(Q, ("assistant", "5"))),
        },
        pair(Q),
        2,
    ),
    "OpenAI's as text": (
        {"input": json.dumps(messages(Q)), "preferred_output": repr(FOUR), "non_preferred_output": repr(FIVE)},
        pair(Q),
        3,
    ),
    "OpenAI's input as text": (
        {"input": json.dumps({"messages": messages(Q)}), "preferred_output": "4", "non_preferred_output": "5"},
        pair(Q),
        1,
    ),
    "a system message as text": (PAIR | {"system": json.dumps(messages(PIRATE))}, pair(PIRATE, Q), 1),
    "a list of completions as text": (ASKED | {"completions": '["4", "6", "5"]', "scores": "[3, 2, 1]"}, pair(Q), 0),
    "completions as text": (ASKED | {"completions": [repr(FOUR), repr(FIVE)]}, pair(Q), 2),
    "other lists and objects stay text": (
        {"prompt": "[1, 2]", "chosen": '{"role": 4}', "rejected": '["role"]'},
        pair(("user", "[1, 2]"), best='{"role": 4}', worst='["role"]'),
        0,
    ),
    "text behind it makes it text": (
        ASKED | {"chosen": json.dumps(FOUR) + " is right", "rejected": "5"},
        pair(Q, best=json.dumps(FOUR) + " is right"),
        0,
    ),
}


@pytest.mark.parametrize("case", TEXTS.values(), ids=TEXTS)
def test_messages_that_are_written_as_text_are_messages_and_counted(tmp_path, case):
    row, (form, prompt, responses, label), n = case
    found = record_of(tmp_path, row)
    assert (found.form, found.prompt, found.responses, found.label) == (form, prompt, responses, label)
    assert found.n_parsed == n


def test_messages_in_a_table_of_text_are_messages(tmp_path):
    row = ASKED | {name: json.dumps(value) for name, value in WHOLE.items()}
    row |= {"tools": json.dumps([{"name": "f"}]), "chat_template_kwargs": '{"enable_thinking": false}'}
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    (found,) = load_preferences(tmp_path / "rows.csv")
    assert (found.form, found.prompt, found.responses, found.label) == pair(Q) and found.n_parsed == 2
    assert found.context == TemplateContext(tools=[{"name": "f"}], kwargs={"enable_thinking": False})


def test_text_stays_text_where_that_is_asked_for(tmp_path):
    row = ASKED | {"chosen": json.dumps(FOUR), "rejected": json.dumps(FIVE)}
    found = record_of(tmp_path, row, Reading(keeps_json_text=True))
    assert found.texts == (json.dumps(FOUR), json.dumps(FIVE)) and found.n_parsed == 0


def test_an_array_that_numpy_has_printed_is_a_fault_with_its_remedy(tmp_path):
    printed = "[{'role': 'user', 'content': '2+2?'}\n {'role': 'assistant', 'content': '4'}]"
    with pytest.raises(SyntaxError):
        ast.literal_eval(printed)
    file = tiny.write_rows(tmp_path / "rows.jsonl", [PAIR | {"chosen": printed}])
    (fault,) = read_records(file)
    assert str(fault).startswith(f'{file}:1: "chosen" is an array of messages as numpy prints it; write')
    assert "json.dumps" in str(fault) and "--keep-json-text" in str(fault)


def test_half_of_a_surrogate_pair_in_messages_as_text_is_a_fault(tmp_path):
    chosen = '[{"role": "assistant", "content": "\\ud83d"}]'
    (fault,) = read_records(tiny.write_rows(tmp_path / "rows.jsonl", [PAIR | {"chosen": chosen}]))
    assert '"chosen": text with half of a surrogate pair' in str(fault)


# --- tools, thoughts, several messages -----------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]
AS_TEXT = [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]


@pytest.mark.parametrize("written", [lambda x: x, json.dumps, repr], ids=["objects", "JSON", "repr"])
def test_what_the_template_is_given_beside_the_messages(tmp_path, written):
    kwargs, documents = {"enable_thinking": False}, [{"title": "t", "text": "x"}]
    row = PAIR | {"tools": written(TOOLS), "documents": written(documents), "chat_template_kwargs": written(kwargs)}
    found = record_of(tmp_path, row)
    assert found.context == TemplateContext(TOOLS, documents, kwargs) and not found.unused
    (prompt,) = read_prompts(tmp_path / "rows.jsonl")
    assert prompt.context == found.context and prompt.prompt == found.prompt


def test_tools_of_openais_input_are_the_rows(tmp_path):
    row = {"input": {"messages": messages(Q), "tools": TOOLS, "parallel_tool_calls": False},
           "preferred_output": FOUR, "non_preferred_output": FIVE}  # fmt: skip
    found = record_of(tmp_path, row)
    assert found.context.tools == TOOLS and found.unused == ("input's parallel_tool_calls",)
    assert read_prompts(tmp_path / "rows.jsonl")[0].context.tools == TOOLS


def test_calls_thoughts_and_names_are_carried(tmp_path):
    called = {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning_content": "look it up\n"}
    told = {"role": "tool", "content": "3 C", "tool_call_id": "c1", "name": "weather"}
    row = {
        "prompt": "Weather?",
        "chosen": [called, told, {"role": "assistant", "content": "3 degrees", "reasoning_content": None}],
        "rejected": [{"role": "assistant", "content": "", "tool_calls": json.dumps(AS_TEXT)}],
    }
    found = record_of(tmp_path, row)
    assert found.responses == (
        (
            say("assistant", "", reasoning_content="look it up\n", tool_calls=CALLS),
            say("tool", "3 C", tool_call_id="c1", name="weather"),
            say("assistant", "3 degrees"),
        ),
        (say("assistant", "", tool_calls=AS_TEXT),),
    )
    assert not found.unused


def test_answers_that_begin_with_the_same_call_hold_it_both(tmp_path):
    begin = [*messages(("user", "Weather?")), {"role": "assistant", "content": "", "tool_calls": CALLS}]
    row = {
        "chosen": [*begin, *messages(("tool", "3 C"), ("assistant", "3 degrees"))],
        "rejected": [*begin, *messages(("tool", "30 C"), ("assistant", "30 degrees"))],
    }
    found = record_of(tmp_path, row)
    assert found.prompt == (say("user", "Weather?"),)
    assert [[m.role for m in response] for response in found.conversations] == [["assistant", "tool", "assistant"]] * 2


# --- what is refused -----------------------------------------------------------------------------------------------

FAULTS = {
    "two system messages": (
        PAIR | {"system": "a", "prompt": messages(("system", "b"), Q)},
        '"system" is another system message than that of the prompt; keep one',
    ),
    "system and system_prompt": (PAIR | {"system": "a", "system_prompt": "b"}, '"system" and "system_'),
    "a system that is a user's": (
        PAIR | {"system": messages(("user", "a"))[0]},
        '"system" contains messages other than a system message',
    ),
    "a system that is no text": (PAIR | {"system": 5}, '"system" is a int; it has to be text'),
    "context": (PAIR | {"context": "Oslo"}, '"context" is there, and has no place in a row of this form; write'),
    "input": (PAIR | {"input": "Oslo"}, '"input" is there, and belongs to an "instruction"'),
    "history": (PAIR | {"history": [["a", "b"]]}, '"history" is there, and belongs to an "instruction"'),
    "images": (PAIR | {"images": ["x"]}, '"images" is there, but only text can be trained on; take the row out'),
    "audio": (PAIR | {"audio": {"path": "x"}}, '"audio" is there, but only text can be trained on'),
    "videos": (PAIR | {"videos": ["x"]}, '"videos" is there, but only text can be trained on'),
    "rejected images": (PAIR | {"rejected_images": ["x"]}, '"rejected_images" is there, but only text can'),
    "images in a message": (
        PAIR | {"prompt": [{"role": "user", "content": "q", "images": ["x"]}]},
        '"prompt"[0] has "images", but only text can be trained on',
    ),
    "calls beside the messages": (
        PAIR | {"tool_calls": CALLS},
        '"tool_calls" is there, beside the messages; put it into the message that it belongs to, or ignore it',
    ),
    "thoughts beside the messages": (PAIR | {"reasoning_content": "hm"}, '"reasoning_content" is there, beside the'),
    "tools that are text": (
        PAIR | {"tools": "weather"},
        '"tools" is other text; it has to be a list of objects, or that as JSON text',
    ),
    "tools that are one object": (PAIR | {"tools": TOOLS[0]}, '"tools" is a dict; it has to be a list of objects'),
    "tools that are names": (PAIR | {"tools": ["weather"]}, '"tools" is a list; it has to be a list of objects'),
    "documents that are texts": (PAIR | {"documents": ["x"]}, '"documents" is a list; it has to be a list of objects'),
    "kwargs that are a list": (
        PAIR | {"chat_template_kwargs": ["enable_thinking"]},
        '"chat_template_kwargs" is a list; it has to be an object of names and values',
    ),
    "kwargs that are the template's own": (
        PAIR | {"chat_template_kwargs": {"enable_thinking": True, "add_generation_prompt": True}},
        "\"chat_template_kwargs\" names 'add_generation_prompt', which is given elsewhere; remove it there",
    ),
    "tools and other tools": (
        {"input": {"messages": messages(Q), "tools": TOOLS}, "tools": [{"name": "f"}], "preferred_output": FOUR,
         "non_preferred_output": FIVE},
        '"tools" and "input.tools" differ',
    ),
    "a user who calls": (
        PAIR | {"prompt": [{"role": "user", "content": "q", "tool_calls": CALLS}]},
        '"prompt"[0] has "tool_calls" but is the user\'s; only assistants call tools',
    ),
    "a user who thinks": (
        PAIR | {"prompt": [{"role": "user", "content": "q", "reasoning_content": "hm"}]},
        '"prompt"[0] has "reasoning_content" but is the user\'s, not an assistant\'s',
    ),
    "thoughts that are no text": (
        PAIR | {"chosen": [{"role": "assistant", "content": "4", "reasoning_content": ["hm"]}]},
        '"chosen[0].reasoning_content" is a list; it has to be text',
    ),
    "arguments that are a list": (
        PAIR | {"chosen": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": [1]}]}]},
        '"chosen[0].tool_calls" is a list; it has to be a list of {"type": "function"',
    ),
    "an answer that ends with a tool": (
        PAIR | {"chosen": [{"role": "assistant", "content": "", "tool_calls": CALLS}, *messages(("tool", "3 C"))]},
        '"chosen" has to be one assistant message, alone or after the prompt, or several with what tools said between',
    ),
    "two answers in a row": (
        PAIR | {"chosen": [*FOUR, *FOUR]},
        '"chosen" has to be one assistant message, alone or after the prompt',
    ),
    "a history of texts": (
        {"instruction": "q", "history": ["a", "b"]} | ANSWERS,
        '"history" is a list; it has to be a list of [question, answer]',
    ),
    "an input that is no text": ({"instruction": "q", "input": 5} | ANSWERS, '"input" is a int; it has to be text'),
    "labels that differ": (
        ASKED | SAID | {"label": True, "kto_tag": False},
        '"label" and "kto_tag" differ; keep one of the two',
    ),
    "a label that is a class": (
        {"messages": messages(Q, ("assistant", "4")), "label": "math"},
        "\"label\" is 'math'; it has to be true or false (1, 0); correct it, or ignore it: --ignore-columns label",
    ),
    "OpenAI's input without messages": (
        {"input": {"tools": []}, "preferred_output": FOUR, "non_preferred_output": FIVE},
        '"input.messages" is missing',
    ),
    "a pair without its worse half": (
        {"input": {"messages": messages(Q)}, "preferred_output": FOUR},
        '"non_preferred_output" is missing',
    ),
    "Nectar's without ranks": (
        ASKED | {"answers": [{"answer": "4"}, {"answer": "5"}]},
        '"answers[0]" is not {"answer": ..., "rank": ...}',
    ),
    "HelpSteer3's without a preference": (
        {"context": messages(Q), "response1": "4", "response2": "5"},
        '"overall_preference" is missing',
    ),
    "messages beside answers that are no prompt": (
        {"messages": messages(Q, ("assistant", "6"))} | ANSWERS,
        "the prompt has to end with a user message",
    ),
    "one conversation that goes further back": (
        {"prompt": "2+2?", "chosen": messages(PIRATE, Q, ("assistant", "4")), "rejected": "5"},
        '"chosen" has to be one assistant message, alone or after the prompt',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_used_is_told_by_file_and_line(tmp_path, row, sentence):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [PAIR, row])
    good, fault = read_records(file)
    assert isinstance(good, Record) and isinstance(fault, InputError)
    assert str(fault).startswith(f"{file}:2: {sentence}")


def test_answers_that_are_rated_alike_make_no_pair(tmp_path):
    alike = {"context": messages(Q), "response1": "4", "response2": "5", "overall_preference": 0}
    ranks = ASKED | {"answers": [{"answer": "4", "rank": 1}, {"answer": "5", "rank": 1}]}
    found = read_records(tiny.write_rows(tmp_path / "rows.jsonl", [alike, ranks]))
    assert [type(item).__name__ for item in found] == ["Tie", "Tie"]


def test_ranked_answers_are_kept_best_first(tmp_path):
    row = ASKED | {"answers": [{"answer": c, "rank": r} for c, r in (("3", 2), ("4", 1), ("5", 3))]}
    found = record_of(tmp_path, row, Reading(ranked=True))
    assert found.form == "ranked" and found.texts == ("4", "3", "5") and found.ratings.scores is None


# --- what is not used is named -------------------------------------------------------------------------------------

UNUSED = {
    "columns": (PAIR | {"id": 1, "source": "toy", "empty": "", "nothing": None, "none": []}, ("id", "source")),
    "keys of messages": (
        PAIR | {"prompt": [{"role": "user", "content": "q", "weight": 0, "date": None}]},
        ("messages' weight",),
    ),
    "keys of parts": (
        PAIR | {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q", "cache": {"x": 1}}]}]},
        ("content's cache",),
    ),
    "text beside ids": (
        PAIR | {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "system": "s", "images": ["x"]},
        ("prompt", "chosen", "rejected", "system", "images"),
    ),
    "a label of a pair": (PAIR | {"label": True}, ("label",)),
    "one score alone": (PAIR | {"chosen_score": 4}, ("chosen_score",)),
    "a number that is none": (PAIR | {"value": "dear", "weight": 2}, ("value",)),
    "messages once more": (PAIR | {"messages": WHOLE["chosen"]}, ("messages",)),
    "of completions": (
        {"instruction": "2+2?", "completions": RATED, "models": ["m"]},
        ("models", "completions' model"),
    ),
    "a number that nobody asks for": (PAIR | {"margin": 2}, ("margin",)),
}


@pytest.mark.parametrize(("row", "names"), UNUSED.values(), ids=UNUSED)
def test_what_nothing_reads_is_named(tmp_path, row, names):
    assert record_of(tmp_path, row).unused == names


def test_a_number_that_is_asked_for_is_used(tmp_path):
    assert record_of(tmp_path, PAIR | {"margin": 2, "x": 1}, Reading(fields=("margin",))).unused == ("x",)


# --- flags ---------------------------------------------------------------------------------------------------------


def test_flags_say_how_rows_are_read():
    reading = RowSettings(
        columns="system=persona", ignore_columns="id, context", roles="bot=assistant", keep_json_text=True
    ).reading
    assert reading.columns == (("system", "persona"),) and reading.ignored == ("id", "context")
    assert reading.roles == (("bot", "assistant"),) and reading.keeps_json_text


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("bot", "--roles: 'bot' is not of the form critic=user,bot=assistant"),
        ("bot=narrator", "--roles: bot=narrator: narrator is not a role; roles are system, user, assistant, tool"),
        ("bot=user,bot=assistant", "--roles: .* is not of the form"),
    ],
)
def test_roles_that_cannot_be_are_refused(roles, said):
    with pytest.raises(InputError, match=said):
        ReadingSettings(roles=roles)


def test_columns_may_be_called_otherwise_and_be_missing_here_and_there(tmp_path):
    rows = [PAIR | {"persona": "You are a pirate."}, PAIR, PAIR | {"persona": None}]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    found = load_preferences(file, reading=ReadingSettings(columns="system=persona").reading)
    assert [r.messages[0].role for r in found] == ["system", "user", "user"]
    with pytest.raises(InputError, match=r"rows\.jsonl: no row has 'person'; correct --columns"):
        load_preferences(file, reading=ReadingSettings(columns="system=person").reading)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (PAIR | {"system": "You are a pirate."}, (PIRATE, Q)),
        ({"instruction": "Add.", "input": "2 and 2", "output": "4"}, (("user", "Add.\n2 and 2"),)),
        ({"messages": messages(Q)}, (Q,)),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, (Q,)),
        ({"prompt": json.dumps(messages(PIRATE, Q))}, (PIRATE, Q)),
        ({"input": {"messages": messages(Q)}, "preferred_output": FOUR}, (Q,)),
        ({"context": messages(Q), "response1": "a", "response2": "b", "overall_preference": 1}, (Q,)),
    ],
)
def test_prompts_are_read_from_rows_of_every_form(tmp_path, row, prompt):
    (found,) = read_prompts(tiny.write_rows(tmp_path / "rows.jsonl", [row]))
    assert found.prompt == tuple(say(*turn) for turn in prompt)


def test_a_prompt_that_would_lose_something_is_a_fault(tmp_path):
    with pytest.raises(InputError, match='"context" is there, and has no place in a row of this form'):
        read_prompts(tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "q", "context": "Oslo"}]))
