"""What a row may look like, and where and how each fault is told."""

import json
import os

import pytest

from data import load_preferences
from data.rows.json_rows import MAX_DEPTH
from data.rows.records import Ratings, Record, read_prompts, read_records
from data.rows.sources import Reading
from data.text import Message
from system import InputError
from tests import tiny
from tests.rows import answers

USER, ANSWER, OTHER = ({"role": r, "content": c} for r, c in [("user", "q"), ("assistant", "a"), ("assistant", "b")])
SYSTEM = {"role": "system", "content": "be brief"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
Q = (Message("user", "q"),)


def write(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def load(tmp_path, *rows, **arguments):
    return load_preferences(tiny.write_rows(tmp_path / "rows.jsonl", rows), **arguments)


def fault_of(tmp_path, row):
    """The one sentence about a row, which stands on line 2, behind its file and line."""
    line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
    file = write(tmp_path, json.dumps(PAIR).encode() + b"\n" + line + b"\n")
    good, fault = read_records(file)
    assert isinstance(good, Record) and isinstance(fault, InputError)
    location, colon, sentence = str(fault).partition(f"{file}:2: ")
    assert location == "" and colon
    assert "\n" not in sentence
    return sentence


CONVERSATION = [SYSTEM, USER, ANSWER, {"role": "user", "content": "and?"}]
LONG = tuple(Message(m["role"], m["content"]) for m in CONVERSATION)
SHARED = [("human", "q"), ("gpt", "a")]


def rated(response, score):
    return {"model": "m", "response": response, "overall_score": score, "annotations": {}}


FORMS = {
    "all text": (PAIR, "pairs", Q, ("a", "b"), None),
    "prompt as messages": (PAIR | {"prompt": CONVERSATION}, "pairs", LONG, ("a", "b"), None),
    "responses as messages": (PAIR | {"chosen": [ANSWER], "rejected": [OTHER]}, "pairs", Q, ("a", "b"), None),
    "one response as messages": (PAIR | {"chosen": [ANSWER]}, "pairs", Q, ("a", "b"), None),
    "responses repeat the prompt": (
        {"prompt": CONVERSATION, "chosen": [*CONVERSATION, ANSWER], "rejected": [*CONVERSATION, OTHER]},
        "pairs",
        LONG,
        ("a", "b"),
        None,
    ),
    "UltraFeedback's: a text prompt that both repeat": (
        {"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "implicit prompt": ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "pairs", Q, ("a", "b"), None),
    "implicit prompt of several turns": (
        {"chosen": [*CONVERSATION, ANSWER], "rejected": [*CONVERSATION, OTHER]},
        "pairs",
        LONG,
        ("a", "b"),
        None,
    ),
    "implicit prompt beside a null": (
        {"prompt": None, "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "desirable": ({"prompt": "q", "completion": "a", "label": True}, "unpaired", Q, ("a",), True),
    "undesirable": ({"prompt": [USER], "completion": [ANSWER], "label": False}, "unpaired", Q, ("a",), False),
    "completion": ({"prompt": "q", "completion": "a"}, "single", Q, ("a",), None),
    "completion repeats the prompt": ({"prompt": "q", "completion": [USER, ANSWER]}, "single", Q, ("a",), None),
    "messages": ({"messages": [*CONVERSATION, ANSWER]}, "single", LONG, ("a",), None),
    "ids of a pair": (
        {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 0]},
        "pairs",
        (1, 2),
        ((3,), (4, 0)),
        None,
    ),
    "ids with a label": (
        {"prompt_ids": [1], "completion_ids": [3, 4], "label": False},
        "unpaired",
        (1,),
        ((3, 4),),
        False,
    ),
    "ids of a completion": ({"prompt_ids": [1], "completion_ids": [2**31 - 1]}, "single", (1,), ((2**31 - 1,),), None),
    "ids win over text": (
        {**PAIR, "prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]},
        "pairs",
        (1,),
        ((2,), (3,)),
        None,
    ),
    "HH's transcripts": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b",
        },
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "HH's transcripts of several turns": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: and? Human: is\n\nmore\n\nAssistant: c\n\nd",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: and? Human: is\n\nmore\n\nAssistant: b",
        },
        "pairs",
        (*Q, Message("assistant", "a"), Message("user", "and? Human: is\n\nmore")),
        ("c\n\nd", "b"),
        None,
    ),
    "sharegpt's conversation": (
        {"conversations": [{"from": "system", "value": "be brief"}, *[{"from": f, "value": v} for f, v in SHARED]]},
        "single",
        (Message("system", "be brief"), *Q),
        ("a",),
        None,
    ),
    "sharegpt's pair": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "UltraFeedback's own: the best over the worst": (
        {"instruction": "q", "models": ["x"], "completions": [rated("c", 7), rated("b", 2.5), rated("a", 9)]},
        "pairs",
        Q,
        ("a", "b"),
        None,
        (9.0, 2.5),
    ),
    "UltraFeedback's own: of several the first": (
        {"instruction": "q", "completions": [rated("b", 1), rated("a", 2), rated("x", 2), rated("y", 1)]},
        "pairs",
        Q,
        ("a", "b"),
        None,
        (2.0, 1.0),
    ),
    "scores of a pair": (PAIR | {"chosen_score": 4, "rejected_score": 1.5}, "pairs", Q, ("a", "b"), None, (4.0, 1.5)),
    "scores by UltraFeedback's other names": (
        PAIR | {"score_chosen": 4, "score_rejected": -1, "own_score": 3},
        "pairs",
        Q,
        ("a", "b"),
        None,
        (4.0, -1.0),
        3.0,
    ),
    "texts with scores": (
        {"prompt": "q", "completions": ["c", "b", "a"], "scores": [7, 2.5, 9]},
        "pairs",
        Q,
        ("a", "b"),
        None,
        (9.0, 2.5),
    ),
    "texts, best first": ({"prompt": "q", "completions": ["a", "c", "b"]}, "pairs", Q, ("a", "b"), None),
    "win rates, a value and a weight": (
        PAIR | {"chosen_prob": 0.75, "rejected_prob": 0, "value": 2, "weight": 0.5},
        "pairs",
        Q,
        ("a", "b"),
        None,
        None,
        None,
        (0.75, 0.0),
        2.0,
        0.5,
    ),
    "a value that means something else": (PAIR | {"value": "dear", "weight": []}, "pairs", Q, ("a", "b"), None),
    "a pair beside completions": (PAIR | {"completions": ["x"]}, "pairs", Q, ("a", "b"), None),
    "score of a completion": ({"prompt": "q", "completion": "a", "score": 3}, "single", Q, ("a",), None, (3.0,)),
    "one score alone": (PAIR | {"chosen_score": 4, "rejected_score": None}, "pairs", Q, ("a", "b"), None),
    "own score of a completion": (
        {"prompt": "q", "completion": "a", "label": True, "own_score": 0},
        "unpaired",
        Q,
        ("a",),
        True,
        None,
        0.0,
    ),
    "a transcript beside its prompt": (
        {
            "prompt": "\n\nHuman: q\n\nAssistant:",
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b",
        },
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "a prompt that is a transcript": (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "nulls of a table of several forms": (
        {"messages": [USER, ANSWER], "chosen": None, "rejected": None, "completion": None, "label": None},
        "single",
        Q,
        ("a",),
        None,
    ),
    "a message of both kinds": (
        PAIR | {"prompt": [{"role": None, "content": None, "from": "human", "value": "q"}]},
        "pairs",
        Q,
        ("a", "b"),
        None,
    ),
    "extra fields": (PAIR | {"score": 0.5, "source": {"x": [None]}}, "pairs", Q, ("a", "b"), None),
    "empty system message": (
        PAIR | {"prompt": [SYSTEM | {"content": ""}, USER]},
        "pairs",
        (Message("system", ""), *Q),
        ("a", "b"),
        None,
    ),
}


@pytest.mark.parametrize("case", FORMS.values(), ids=FORMS)
def test_a_row_of_every_form_is_read(tmp_path, case):
    row, form, prompt, responses, label, *rated = case
    responses = answers(*responses) if isinstance(responses[0], str) else responses
    (record,) = load(tmp_path, row)
    assert record == Record(f"{tmp_path}/rows.jsonl:1", form, prompt, responses, label, Ratings(*rated))
    assert record.is_tokenised == ("prompt_ids" in row)


def test_rows_whose_answers_are_rated_alike_are_left_out(tmp_path):
    ties = {"instruction": "q", "completions": [rated("a", 3), rated("b", 3)]}
    file = tiny.write_rows(tmp_path / "rows.jsonl", [ties, PAIR, ties])
    kinds = [type(item).__name__ for item in read_records(file)]
    assert kinds == ["Tie", "Record", "Tie"]
    assert [r.location for r in load_preferences(file)] == [f"{file}:2"]


def test_ranked_reading_keeps_all_completions_best_first(tmp_path):
    rows = [
        {"prompt": "q", "completions": ["c", "b", "a"], "scores": [7, 2.5, 9]},
        {"instruction": "q", "completions": [rated("b", 1), rated("a", 2), rated("x", 2)]},
        {"prompt_ids": [1], "completions_ids": [[5], [6]], "scores": [0, 1]},
        PAIR | {"chosen_score": 3, "rejected_score": 1},
    ]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    found = [(r.form, r.responses, r.ratings.scores) for r in read_records(file, Reading(ranked=True))]
    assert found == [
        ("ranked", answers("a", "c", "b"), (9.0, 7.0, 2.5)),
        ("ranked", answers("a", "x", "b"), (2.0, 2.0, 1.0)),
        ("ranked", ((6,), (5,)), (1.0, 0.0)),
        ("pairs", answers("a", "b"), (3.0, 1.0)),
    ]


def test_listed_reading_keeps_all_completions_as_the_row_has_them(tmp_path):
    rows = [
        {"prompt": "q", "completions": ["c", "b", "a"], "scores": [7, 2.5, 9]},
        {"instruction": "q", "completions": [rated("b", 2), rated("b", 2)]},  # alike, and rated alike
        {"prompt": "q", "completions": ["a"]},
        {"prompt_ids": [1], "completions_ids": [[5], [6]], "completions_token_weights": [[1], [2]]},
        PAIR | {"completions": ["x", "y"]},
        {"prompt": "q", "answers": [{"answer": "a", "rank": 2}, {"answer": "b", "rank": 1}]},
        {"context": [USER], "response1": "a", "response2": "b", "overall_preference": 0},
    ]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    found = [(r.form, r.responses, r.ratings.scores) for r in read_records(file, Reading(listed=True))]
    assert found == [
        ("listed", answers("c", "b", "a"), (7.0, 2.5, 9.0)),
        ("listed", answers("b", "b"), (2.0, 2.0)),
        ("listed", answers("a"), None),
        ("listed", ((5,), (6,)), None),
        ("pairs", answers("a", "b"), None),
        ("listed", answers("a", "b"), None),
        ("listed", answers("a", "b"), None),
    ]
    assert list(read_records(file, Reading(listed=True)))[3].token_weights == ((1.0,), (2.0,))
    (none,) = read_records(tiny.write_rows(tmp_path / "none.jsonl", [{"prompt": "q", "completions": []}]),
                           Reading(listed=True))  # fmt: skip
    assert str(none).endswith('none.jsonl:1: "completions" has to be a list of one or more')


def test_a_role_is_known_where_a_template_names_it(tmp_path):
    turns = [USER, ANSWER, {"role": "critic", "content": "42"}]
    file = tiny.write_rows(tmp_path / "rows.jsonl", [PAIR | {"prompt": turns}])
    (fault,) = read_records(file)
    assert str(fault) == (
        f"{file}:1: \"prompt\"[2] has the role 'critic'; roles are system, user, assistant, tool; name the one that it "
        "is: --roles NAME=user"
    )
    (record,) = read_records(file, roles=("system", "user", "assistant", "critic"))
    assert isinstance(record, Record) and record.prompt[2] == Message("critic", "42")


def test_content_is_trimmed_at_both_ends_and_nowhere_else(tmp_path):
    turns = [{"role": "user", "content": "\n q  q\t"}]
    text, messages = load(
        tmp_path,
        {"prompt": " q\n\nq ", "chosen": "\u00a0 a\n", "rejected": "\tb  b"},
        {"prompt": turns, "chosen": [{"role": "assistant", "content": " a "}], "rejected": "b"},
    )
    assert text.prompt[0].content == "q\n\nq" and text.texts == ("a", "b  b")
    assert messages.prompt[0].content == "q  q" and messages.texts == ("a", "b")


def test_an_implicit_prompt_is_compared_after_trimming(tmp_path):
    (record,) = load(tmp_path, {"chosen": [{"role": "user", "content": "q "}, ANSWER], "rejected": [USER, OTHER]})
    assert record.prompt == Q and record.texts == ("a", "b")


def test_records_come_in_the_files_order_with_their_lines(tmp_path):
    file = write(tmp_path, f"{json.dumps(PAIR)}\n\n  \r\n{json.dumps(PAIR | {'prompt': 'z'})}")  # no last line end
    assert [(r.location, r.prompt[0].content) for r in load_preferences(file)] == [
        (f"{file}:1", "q"),
        (f"{file}:4", "z"),
    ]


def deep(levels):
    return '{"prompt": ' + "[" * levels + "]" * levels + ', "chosen": "a", "rejected": "b"}'


def ids(**changes):
    return {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]} | changes


FAULTS = {
    "invalid JSON": ('{"prompt": q}', "not JSON (Expecting value, column 12)"),
    "cut off": ('{"prompt": "q", "chosen": "a', "not JSON (Unterminated string starting at, column 27)"),
    "two rows in a line": (json.dumps(PAIR) * 2, "not JSON (Extra data, column 48)"),
    "NaN": (
        '{"prompt": "q", "chosen": "a", "rejected": "b", "s": NaN}',
        "NaN is not JSON ('s'); fix or delete the line",
    ),
    "infinity": ('{"s": -Infinity}', "-Infinity is not JSON"),
    "a number too large": ('{"prompt": "q", "s": 1e999}', "a number too large for a float"),
    "an integer without end": ('{"s": ' + "1" * 5000 + "}", "a number of more than 4,300 digits"),
    "key twice": ('{"prompt": "q", "prompt": "z"}', "the key 'prompt' occurs twice"),
    "key twice inside": ('{"prompt": [{"role": "user", "role": "user"}]}', "the key 'role' occurs twice"),
    "lone surrogate": ('{"prompt": "q\\ud83d", "chosen": "a", "rejected": "b"}', "text with half of a surrogate pair"),
    "lone surrogate in a key": ('{"\\udc00": 1}', "text with half of a surrogate pair"),
    "lone surrogate inside": ('{"a": [{"b": "\\udc00"}]}', "text with half of a surrogate pair"),
    "deep": (deep(MAX_DEPTH), f"nested deeper than {MAX_DEPTH} levels"),
    "very deep": (deep(200_000), f"nested deeper than {MAX_DEPTH} levels"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not UTF-8 (byte 13)"),
    "a list": ("[1]", "a list, not an object such as"),
    "a null": ("null", "a NoneType, not an object such as"),
    "nothing known": ({"question": "q"}, 'neither "chosen" and "rejected" nor "completion" nor "messages"'),
    "empty object": ("{}", 'neither "chosen" and "rejected" nor "completion" nor "messages"'),
    "no prompt": ({"chosen": "a", "rejected": "b"}, '"prompt" is missing'),
    "prompt null": (PAIR | {"prompt": None}, '"prompt" is missing'),
    "no rejected": ({"prompt": "q", "chosen": "a"}, '"rejected" is missing'),
    "no chosen": ({"prompt": "q", "rejected": "a"}, '"chosen" is missing'),
    "chosen null": (PAIR | {"chosen": None}, '"chosen" is missing'),
    "no prompt for a completion": ({"completion": "a", "label": True}, '"prompt" is missing'),
    "prompt a number": (PAIR | {"prompt": 5}, '"prompt" is a int; it has to be text or a list of messages'),
    "prompt an object": (PAIR | {"prompt": {"text": "q"}}, '"prompt"[0] is not a message'),
    "chosen a number": (PAIR | {"chosen": 1.5}, '"chosen" is a float; it has to be text'),
    "chosen a bool": (PAIR | {"chosen": True}, '"chosen" is a bool; it has to be text'),
    "messages text": ({"messages": "q"}, '"messages" is a str; it has to be text or a list of messages'),
    "message text": (PAIR | {"prompt": ["q"]}, '"prompt"[0] is not a message'),
    "message without content": (PAIR | {"prompt": [{"role": "user"}]}, '"prompt"[0] is not a message'),
    "message without role": (PAIR | {"prompt": [USER, {"content": "q"}]}, '"prompt"[1] is not a message'),
    "content a number": (PAIR | {"prompt": [USER | {"content": 1}]}, '"prompt[0].content" is a int; it has to be text'),
    "a part without text": (
        PAIR | {"prompt": [USER | {"content": [{"type": "text"}]}]},
        '"prompt[0].content[0].text" is a NoneType; it has to be text',
    ),
    "a part that is text": (
        PAIR | {"prompt": [USER | {"content": ["q"]}]},
        '"prompt[0].content[0]" is a str; parts are',
    ),
    "no parts": (PAIR | {"prompt": [USER | {"content": []}]}, '"prompt[0].content" is empty'),
    "a picture": (
        PAIR
        | {"prompt": [USER | {"content": [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {}}]}]},
        "\"prompt[0].content[1]\" is a part of the type 'image_url', but only text can be trained on; take the part or",
    ),
    "bad role": (
        PAIR | {"prompt": [USER | {"role": "narrator"}]},
        "\"prompt\"[0] has the role 'narrator'; roles are system, user, assistant, tool; name the one that it",
    ),
    "role a list": (PAIR | {"prompt": [USER | {"role": []}]}, '"prompt"[0] has the role []'),
    "empty prompt": (PAIR | {"prompt": ""}, '"prompt" is empty'),
    "blank prompt": (PAIR | {"prompt": " \n"}, '"prompt" is empty'),
    "empty chosen": (PAIR | {"chosen": ""}, '"chosen" is empty'),
    "blank rejected": (PAIR | {"rejected": "\t"}, '"rejected" is empty'),
    "empty messages": (PAIR | {"prompt": []}, '"prompt" is empty'),
    "empty content": (PAIR | {"prompt": [USER | {"content": " "}]}, '"prompt[0].content" is empty'),
    "empty answer": (PAIR | {"chosen": [ANSWER | {"content": ""}]}, '"chosen[0].content" is empty'),
    "equal pair": (PAIR | {"rejected": "a"}, '"chosen" and "rejected" are equal; a pair has to differ'),
    "equal when trimmed": (PAIR | {"rejected": [ANSWER | {"content": "a\n"}]}, '"chosen" and "rejected" are equal'),
    "equal implicit pair": (
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        '"chosen" and "rejected" are equal',
    ),
    "equal ids": (ids(rejected_ids=[2]), '"chosen_ids" and "rejected_ids" are equal'),
    "label as text": ({"prompt": "q", "completion": "a", "label": "good"}, "\"label\" is 'good'; it has to be true or"),
    "label a number": ({"prompt": "q", "completion": "a", "label": 2}, '"label" is 2; it has to be true or false'),
    "label a share": ({"prompt": "q", "completion": "a", "label": 0.8}, '"label" is 0.8; it has to be true or false'),
    "tools called without a name": (
        PAIR | {"prompt": [USER, ANSWER | {"tool_calls": [{"id": "x"}]}, USER]},
        '"prompt[1].tool_calls" is a list; it has to be a list of {"type": "function", "function"',
    ),
    "prompt ends with an answer": (PAIR | {"prompt": [USER, ANSWER]}, "the prompt has to end with a user message"),
    "prompt of the system only": (PAIR | {"prompt": [SYSTEM]}, "the prompt has to end with a user message"),
    "implicit prompts differ": (
        {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "z"}, OTHER]},
        "the prompt has to end with a user message",
    ),
    "chosen of another prompt": (
        PAIR | {"chosen": [USER | {"content": "z"}, ANSWER]},
        '"chosen" has to be one assistant message, alone or after the prompt',
    ),
    "chosen of two turns": (
        PAIR | {"chosen": [ANSWER, USER, ANSWER]},
        '"chosen" has to be one assistant message, alone or after the prompt',
    ),
    "chosen by the user": (PAIR | {"chosen": [USER | {"content": "z"}]}, '"chosen" has to be one assistant message'),
    "messages without an answer": ({"messages": [USER]}, '"messages" has to end with a user message and its assistant'),
    "messages of the user": ({"messages": [USER, USER]}, '"messages" has to end with a user message and its assistant'),
    "messages of answers": ({"messages": [ANSWER, ANSWER]}, "the prompt has to end with a user message"),
    "ids as text": (ids(prompt_ids="1 2"), '"prompt_ids" has to be a list of token ids'),
    "a transcript without an answer": (
        {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        '"chosen[1].content" is empty',
    ),
    "a transcript of another prompt": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: z\n\nAssistant: b"},
        "the prompt has to end with a user message",
    ),
    "a score of text": (PAIR | {"chosen_score": "4"}, "\"chosen_score\" is '4'; it has to be a number"),
    "a score of truth": (PAIR | {"own_score": True}, '"own_score" is True; it has to be a number'),
    "completions without scores": (
        {"instruction": "q", "completions": [{"response": "a"}, {"response": "b"}]},
        '"completions[0].overall_score" is None; it has to be a number',
    ),
    "scores of another number": (
        {"prompt": "q", "completions": ["a", "b"], "scores": [1]},
        '"scores" has to be a list of 2 numbers, one per completion',
    ),
    "a win rate above 1": (PAIR | {"chosen_prob": 1.5}, '"chosen_prob" is 1.5; it has to be between 0 and 1'),
    "completions that are none": ({"instruction": "q", "completions": "a"}, '"completions" has to be a list'),
    "no completions": ({"instruction": "q", "completions": []}, '"completions" has to be a list'),
    "names that are not ours": (
        {"question": "q", "winner": "a"},
        'neither "chosen" and "rejected" nor "completion" nor "messages", only "question", "winner"; name its columns',
    ),
    "ids with a float": (ids(chosen_ids=[1.0]), '"chosen_ids" has to be a list of token ids'),
    "ids with a bool": (ids(chosen_ids=[True]), '"chosen_ids" has to be a list of token ids'),
    "ids below 0": (ids(rejected_ids=[-1]), '"rejected_ids" has to be a list of token ids'),
    "ids beyond int32": (ids(rejected_ids=[2**31]), '"rejected_ids" has to be a list of token ids'),
    "empty ids": (ids(prompt_ids=[]), '"prompt_ids" is empty'),
    "no prompt_ids": ({"chosen_ids": [1], "rejected_ids": [2]}, '"prompt_ids" is missing'),
    "no rejected_ids": ({"prompt_ids": [1], "chosen_ids": [1]}, '"rejected_ids" is missing'),
    "ids with a label as text": (
        {"prompt_ids": [1], "completion_ids": [2], "label": "no"},
        "\"label\" is 'no'; it has to be true or false",
    ),
}


@pytest.mark.parametrize(("row", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_by_file_and_line(tmp_path, row, sentence):
    assert fault_of(tmp_path, row).startswith(sentence)


def test_the_deepest_row_allowed_is_read(tmp_path):
    levels = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)  # the row itself and what is beside its keys are levels too
    assert load_preferences(write(tmp_path, json.dumps(PAIR)[:-1] + f', "extra": {levels}}}'))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file or folder; give a file"):
        load_preferences(tmp_path / "absent.jsonl")


def test_a_file_of_another_kind_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "rows.txt").write_text(json.dumps(PAIR))
    with pytest.raises(InputError, match=r"rows\.txt: rows are read from \.jsonl, \.json, .*; convert it"):
        load_preferences(tmp_path / "rows.txt")


def test_an_empty_folder_is_told_as_one(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(InputError, match=r"rows\.jsonl: contains no files of rows \(\.jsonl, \.json"):
        load_preferences(tmp_path / "rows.jsonl")


@pytest.mark.timeout(20)  # opening a pipe that nobody writes to waits for ever
def test_a_pipe_is_refused_and_not_opened(tmp_path, monkeypatch):
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    opened = []
    really = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(path) or really(path, *rest, **more))
    with pytest.raises(InputError, match=r"rows\.jsonl: not a regular file"):
        load_preferences(pipe)
    assert opened == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    file = write(tmp_path, json.dumps(PAIR))
    file.chmod(0)
    with pytest.raises(InputError, match=r"rows\.jsonl: cannot be read \(Permission denied\)"):
        load_preferences(file)


def test_a_name_that_is_too_long_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        load_preferences(tmp_path / ("a" * 300 + ".jsonl"))


def test_a_row_that_is_too_long_is_a_fault_and_the_next_is_read(tmp_path):
    row = json.dumps(PAIR)
    file = write(tmp_path, "\n".join([row, json.dumps(PAIR | {"chosen": "a" * 3 * 2**20}), row]))
    one, fault, three = read_records(file, Reading(max_row_mb=1))
    assert isinstance(one, Record) and isinstance(three, Record) and three.location.endswith(":3")
    assert str(fault) == f"{file}:2: longer than 1 MB; shorten it, or raise --max-row-mb"


def test_a_row_that_would_take_a_gigabyte_is_one_by_default(tmp_path):
    """Encoding a row takes some 250 bytes of memory for each of its own."""
    row = json.dumps(PAIR)
    file = write(tmp_path, "\n".join([json.dumps(PAIR | {"chosen": "a" * 25 * 2**20}), row]))
    fault, two = read_records(file)
    assert str(fault) == f"{file}:1: longer than 4 MB; shorten it, or raise --max-row-mb" and two.location.endswith(
        ":2"
    )


@pytest.mark.parametrize("content", ["", "\n \n\r\n", "\ufeff"], ids=["empty", "blank", "a mark only"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"rows\.jsonl: no row can be used; rows have the form \{\"prompt\""):
        load_preferences(write(tmp_path, content))


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    row = json.dumps(PAIR)
    records = load_preferences(write(tmp_path, f"\ufeff{row}\r\n{row}\r\n"))
    assert [r.texts for r in records] == [("a", "b")] * 2


def test_a_byte_order_mark_in_a_later_row_is_a_fault(tmp_path):
    assert fault_of(tmp_path, "\ufeff" + json.dumps(PAIR)).startswith("not JSON")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_lines_end_at_line_feeds_only(tmp_path, mark):
    text = json.dumps(PAIR | {"chosen": f"a{mark}a"}, ensure_ascii=ord(mark) < 32)
    first, second = load_preferences(write(tmp_path, text + "\n" + json.dumps(PAIR)))
    assert first.texts[0] == f"a{mark}a" and second.location.endswith(":2")


def test_any_script_is_read_as_written(tmp_path):
    text = "Grüße, 世界 🙂 e\u0301"
    (record,) = load_preferences(write(tmp_path, json.dumps(PAIR | {"chosen": text}, ensure_ascii=False)))
    assert record.texts[0] == text
    (escaped,) = load_preferences(write(tmp_path, json.dumps(PAIR | {"chosen": text}, ensure_ascii=True)))
    assert escaped.texts[0] == text  # a whole surrogate pair is one character


@pytest.mark.parametrize("bad", [1, 10, 11, 13])
def test_ten_faults_are_listed_and_the_rest_counted(tmp_path, bad):
    rows = [PAIR] * 2 + [PAIR | {"chosen": ""}] * bad
    with pytest.raises(InputError) as fault:
        load(tmp_path, *rows)
    first, *lines = str(fault.value).split("\n")
    assert first == f"{bad} of {bad + 2} rows cannot be used; fix them, or leave them out: --skip-bad-rows"
    listed = [
        f'  {tmp_path}/rows.jsonl:{i + 3}: "chosen" is empty; write it or delete the row' for i in range(min(bad, 10))
    ]
    assert lines == listed + [f"  ... and {bad - 10} more"] * (bad > 10)


def test_bad_rows_are_skipped_where_asked_for(tmp_path):
    records = load(tmp_path, PAIR | {"chosen": ""}, PAIR, {"prompt": 1}, skip_bad_rows=True)
    assert [r.location for r in records] == [f"{tmp_path}/rows.jsonl:2"]


def test_skipping_every_row_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no row can be used"):
        load(tmp_path, PAIR | {"chosen": ""}, skip_bad_rows=True)


def test_prompts_are_read_from_rows_of_any_form(tmp_path):
    rows = [PAIR, {"prompt": CONVERSATION}, {"prompt_ids": [1, 2], "prompt": "unused"}]
    file = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    assert [p[:2] for p in read_prompts(file)] == [(f"{file}:1", Q), (f"{file}:2", LONG), (f"{file}:3", (1, 2))]


def test_faults_of_prompts_are_listed_too(tmp_path):
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "q"}, {"prompt": ""}, {"text": "q"}])
    with pytest.raises(InputError) as fault:
        read_prompts(file)
    assert str(fault.value).split("\n") == [
        "2 of 3 rows cannot be used; fix or delete them",
        f'  {file}:2: "prompt" is empty; write it or delete the row',
        f'  {file}:3: "prompt" is missing; every row needs it',
    ]


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"rows\.jsonl: no prompts; write lines such as"):
        read_prompts(write(tmp_path, "\n"))
