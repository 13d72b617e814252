"""What an answer's bytes mean: the text that counts, the thoughts before it, why there is none."""

import json

import pytest

from revise.client import reading, wire
from revise.client.control_tokens import cut
from revise.client.reading import Unreadable, read_answer
from revise.client.thoughts import Said, split
from revise.client.wire import Request

ASKED = Request({"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50})
AS_IS = ASKED._replace(as_is=True)
CUT = "truncated: the thoughts took all 50 tokens"


def completion(content="hello", *, finish="stop", message=None, **more):
    said = {"role": "assistant", "content": content} | (message or {})
    return {"choices": [{"message": said, "finish_reason": finish}], "model": "gpt", "id": "a1"} | more


def read(value, request=ASKED, accepted=()):
    return read_answer(json.dumps(value).encode(), request, accepted)


def test_a_completion_is_read_with_its_counts():
    found = read(completion(usage={"prompt_tokens": 7, "completion_tokens": 3}))
    assert found == ("hello", "stop", "gpt", 7, 3, True, "a1", None, "", None, "")


@pytest.mark.parametrize(
    "usage",
    [
        *(None, {}, [], "7", {"prompt_tokens": 1}),
        *({"prompt_tokens": n, "completion_tokens": 1} for n in (-1, 10**12, True, 1.5, None)),
    ],
)
def test_tokens_that_cannot_be_true_are_estimated_and_marked(usage):
    found = read(completion("y" * 80, usage=usage))
    assert (found.tokens_in, found.tokens_out, found.is_counted) == (104, 20, False)  # 400 / 4 + 4, 80 / 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": []}, "no choices"),
        ({"choices": [{}]}, "a choice without a message"),
        ({"choices": ["x"]}, "a choice without a message"),
        (completion(None), "null content"),
        (completion({"text": "x"}), "content that is a dict"),
        (completion([{"type": "image_url", "image_url": {}}]), "content with a part of type image_url"),
        (completion("  \n"), "empty"),
        (completion("x", finish="content_filter"), "refused"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "refused"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, "a tool call"),
        (completion("x", finish="tool_calls"), "a tool call"),
    ],
)
def test_an_answer_without_a_text_has_a_reason(answer, reason):
    assert read(answer).fault == reason


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "an empty body"),
        (b" \n", "an empty body"),
        (b"<html>busy</html>", "HTML, not JSON"),
        (b'{"choices": [{"message', "not JSON"),
        (b'{"choices": [], "usage": NaN}', "NaN is not JSON"),
        (b'{"choices": [], "choices": []}', "the key 'choices' occurs twice"),
        ('{"choices": "ä"}'.encode("latin-1"), "not UTF-8"),
        (b"[" * 3000, "nested deeper|not JSON"),
        (b'{"choices": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper"),
        (b"[]", "a list, not an object"),
        (b'{"object": "list"}', "JSON without choices"),
        (b'{"choices": [], "error": {"message": "overloaded"}}', "an error with status 200: overloaded"),
    ],
)
def test_what_is_no_completion_is_unreadable(raw, reason):
    with pytest.raises(Unreadable, match=reason):
        read_answer(raw, ASKED)


REWARD = Request({"model": "r", "messages": []}, path=wire.REWARD_PATH)


@pytest.mark.parametrize(
    ("data", "score"),
    [
        ([{"data": [1.5]}], 1.5),
        ([{"data": [[-2]]}], -2.0),
        ([{"data": 0.25}], 0.25),
        ([{"label": "LABEL_0", "probs": [0.75]}], 0.75),
    ],
)
def test_a_reward_is_one_number(data, score):
    assert float(read({"data": data}, REWARD).text) == score


@pytest.mark.parametrize(
    "data", [[], [{"data": [1, 2]}], [{"data": True}], [{"data": None}], [{}], None, [{"data": []}]]
)
def test_anything_else_is_no_reward(data):
    with pytest.raises(Unreadable):
        read({"data": data}, REWARD)


# --- why it ended --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "finish", ["stop", "STOP", "Stop", "end_turn", "endTurn", "END-TURN", "eos", "EOS_TOKEN", "stop_sequence",
               "FINISH_REASON_STOP", None, ""],
)  # fmt: skip
def test_whole_is_what_is_known_to_be_whole(finish):
    assert read(completion(finish=finish)).fault is None


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        *((name, "truncated") for name in ("length", "max_tokens", "MAX_TOKENS", "model_length", "maxTokens",
                                           "max_output_tokens", "model_context_window_exceeded")),
        *((name, "refused") for name in ("content_filter", "SAFETY", "RECITATION", "refusal", "guardrail_intervened")),
        *((name, "a tool call") for name in ("tool_use", "function_call", "TOOL_CALLS")),
        *((name, "broken off by the server") for name in ("error", "abort", "network_error")),
        ("pause_turn", "unknown finish reason: 'pause_turn'; --accept-finish-reason pause_turn accepts it"),
        ("COMPLETE", "unknown finish reason: 'COMPLETE'; --accept-finish-reason COMPLETE accepts it"),
        ({"type": "x"}, 'unknown finish reason: \'{"type":"x"}\'; --accept-finish-reason {"type":"x"} accepts it'),
    ],
)  # fmt: skip
def test_every_other_end_sets_an_answer_aside_unless_it_is_accepted(finish, reason):
    found = read(completion("a text", finish=finish))
    assert (found.fault, found.text) == (reason, "a text")
    if isinstance(finish, str):
        assert read(completion("a text", finish=finish), accepted=[finish.lower()]).fault is None
    assert read(completion("a text", finish=finish), accepted=["other"]).fault == reason


@pytest.mark.parametrize("finish", ["length", "MAX_TOKENS", "pause_turn", "SAFETY", "stop", None])
def test_what_is_measured_counts_as_it_came(finish):
    """The evaluated model's own answers and AlpacaEval's one token: upstream counts them."""
    text = "<think>\nhm\n</think>\n\nm<|eot_id|> \ufffd"
    assert read(completion(text, finish=finish), AS_IS)[:2] == (text, finish)
    assert read(completion(text, finish=finish), AS_IS).fault is None
    assert read(completion(text, finish="content_filter"), AS_IS).fault == "refused"
    assert read(completion("", finish=finish), AS_IS).fault == "empty"
    assert AS_IS.key == ASKED.key  # it is not part of the question


# --- thoughts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nhm, [1]?\n</think>\n\nHeron.",
        "\n <think>hm, [1]?</think>Heron.\n",
        "hm, [1]?\n</think>\n\nHeron.",
        "<think>\nhm, [1]?</think>\n\nHeron.",
        "[THINK]hm, [1]?[/THINK]Heron.",
        "<seed:think>hm, [1]?</seed:think>Heron.",
        "<|START_THINKING|>hm, [1]?<|END_THINKING|>Heron.",
        "<|channel>thought\nhm, [1]?<channel|>Heron.",
        "<thought>hm, [1]?</thought>\nHeron.",
        "◁think▷hm, [1]?◁/think▷Heron.",
        "<|channel|>analysis<|message|>hm, [1]?<|end|><|start|>assistant<|channel|>final<|message|>Heron.",
        "<|channel|>analysis<|message|>hm, [1]?<|end|><|start|>assistant<|channel|>final<|message|>Heron.<|return|>",
        "<|start|>assistant<|channel|>analysis<|message|>hm, [1]?<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>text<|message|>Heron.<|end|>",
        "analysishm, [1]?assistantfinalHeron.",
    ],
)
def test_thoughts_are_not_the_answer(text):
    found = read(completion(text))
    assert (found.text, found.reasoning, found.fault, found.cut_at) == ("Heron.", "hm, [1]?", None, "")


def test_the_last_closing_tag_ends_the_thoughts():
    text = "<think>The format is </think>.\nSo: <think>again</think> Heron."
    assert split(text) == Said("The format is </think>.\nSo: <think>again", "Heron.")


@pytest.mark.parametrize(
    "text",
    ["Analysis of birds: the assistant final.", "analysis of birds", "A <thought> of a heron.</thought>", "",
     "It writes `<think>a</think>` before the answer.", 'It splits at "</think>".', "x <|channel|>final<|message|> y"],
)  # fmt: skip
def test_a_text_that_only_looks_like_thoughts_is_an_answer(text):
    assert split(text) == Said("", text)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("It writes <think>a</think> before the answer.", ""),
        ("The heron </think> is a bird.", "What does </think> do?"),
        ("<think>It is </think>.</think>The tag </think> ends it.", "What does </think> do?"),
    ],
)
def test_where_thoughts_cannot_be_told_there_is_no_answer(text, asked):
    with pytest.raises(ValueError, match="thoughts that cannot be told from the answer"):
        split(text, asked)
    assert split("<think>The tag.</think>It ends it.", asked or "</think>").answer == "It ends it."
    request = Request({"messages": [{"role": "user", "content": asked}]})
    assert (read(completion(text), request).fault or "").startswith("thoughts that cannot be told from the answer")


def test_tags_in_what_a_model_said_before_are_no_question_about_them():
    turns = [{"role": "assistant", "content": "<think>a</think>b"}, {"role": "user", "content": "And?"}]
    assert read(completion("hm\n</think>\nHeron."), Request({"messages": turns})).text == "Heron."


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_in_a_field_of_their_own_are_kept(name):
    found = read(completion("Heron.", message={name: "hm"}))
    assert (found.text, found.reasoning) == ("Heron.", "hm")


@pytest.mark.parametrize(
    "thinking",
    [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "thinking", "thinking": "hm"},
     {"type": "reasoning", "text": "hm"}],
)  # fmt: skip
def test_parts_are_told_apart(thinking):
    found = read(completion([thinking, {"type": "text", "text": "The "}, {"type": "text", "text": "heron."}]))
    assert (found.text, found.reasoning, found.fault) == ("The heron.", "hm", None)


@pytest.mark.parametrize(
    ("content", "beside"),
    [("", {"reasoning_content": "hm " * 40}), (None, {"reasoning": "hm"}), ("", {}), (None, {}),
     ("<think>hm hm", {}), ("<think>hm</think>\n", {}), ("<|channel|>analysis<|message|>hm", {}),
     ("analysisWe hm", {})],
)  # fmt: skip
def test_an_answer_that_ends_inside_its_thoughts_is_truncated(content, beside):
    usage = {"prompt_tokens": 7, "completion_tokens": 50}
    assert read(completion(content, finish="length", message=beside, usage=usage)).fault == CUT
    assert read(completion("Heron and", finish="length", message=beside, usage=usage)).fault == "truncated"


@pytest.mark.parametrize(
    ("content", "beside"),
    [(None, {"reasoning_content": "Heron."}), ("", {"reasoning": "Heron."}), ("<think>Heron.", {}),
     ("<think>Heron.</think>", {}), ([{"type": "thinking", "thinking": "Heron."}], {})],
)  # fmt: skip
def test_an_answer_that_is_all_thoughts_is_none(content, beside):
    found = read(completion(content, message=beside))
    assert (found.fault, found.reasoning) == (reading.NO_ANSWER, "Heron.")


# --- tokens of templates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behind", "at"),
    [
        ("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIs there more?", "<|eot_id|>"),
        ("<|im_end|>", "<|im_end|>"),
        ("\n<end_of_turn>\n<start_of_turn>user\nThanks!", "<end_of_turn>"),
        ("</s> [INST] more", "</s>"),
        ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    ],
)
def test_an_answer_ends_at_the_first_end_of_its_turn(behind, at):
    found = read(completion(f"The heron.{behind}"))
    assert (found.text, found.cut_at, found.fault) == ("The heron.", at, None)


@pytest.mark.parametrize(
    ("text", "token"),
    [("<|eot_id|>The heron.", "<|eot_id|>"),
     ("<|start_header_id|>assistant\n\nHeron.<|eot_id|>", "<|start_header_id|>"),
     ("The [INST] heron.", "[INST]"), ("The heron.<|im_start|>user", "<|im_start|>")],
)  # fmt: skip
def test_what_is_left_of_a_broken_template_is_no_answer(text, token):
    assert read(completion(text)).fault == f"control tokens: {token}"


@pytest.mark.parametrize(
    "text",
    ["Llama 3 ends a turn with `<|eot_id|>`, a token.", 'stop=["<|im_end|>"]', "It is <s>an otter</s> a heron.",
     "```\n<|im_start|>user\nhi<|im_end|>\n```\nThat is ChatML.", "f <| x |> g", "⟨x⟩ is <|x|>"],
)  # fmt: skip
def test_tokens_that_are_spoken_of_are_no_leak(text):
    assert cut(text) == (text, "")


def test_tokens_that_stand_in_what_was_asked_are_no_leak():
    request = Request({"messages": [{"role": "user", "content": "What does <|eot_id|> do?"}]})
    text = "The token <|eot_id|> ends a turn."
    assert read(completion(text), request)[:1] == (text,)
    assert read(completion(text)).text == "The token"


@pytest.mark.parametrize("text", ["The heron\x00.", "The h\ufffdron."])
def test_what_no_text_holds_sets_an_answer_aside(text):
    assert read(completion(text)).fault == "NUL or U+FFFD in it"


# --- each name that is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_each_field_of_thoughts_is_one(name):
    usage = {"prompt_tokens": 7, "completion_tokens": 5000}
    found = read(completion("", finish="length", message={name: "hm"}, usage=usage))
    assert (found.reasoning, found.fault) == ("hm", "truncated: the thoughts took all 5,000 tokens")


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "redacted_thinking"])
@pytest.mark.parametrize("text", ["text", "output_text"])
def test_each_type_of_a_part_is_known(kind, text):
    found = read(completion([{"type": kind, "thinking": "hm"}, {"type": text, "text": "Heron."}]))
    assert (found.text, found.reasoning, found.fault) == ("Heron.", "hm", None)


def test_thoughts_of_a_field_and_of_the_text_are_both_kept():
    found = read(completion("<think>two</think>Heron.", message={"reasoning": "one"}))
    assert (found.text, found.reasoning) == ("Heron.", "one\n\ntwo")
    assert found.tokens_out == len("<think>two</think>Heron.one") // 4  # thoughts are paid for, too


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
     ("<mm:think>", "</mm:think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
     ("<|START_THINKING|>", "<|END_THINKING|>"), ("◁think▷", "◁/think▷"), ("<|channel>thought", "<channel|>"),
     ("<thought>", "</thought>"), ("<thinking>", "</thinking>")],
)  # fmt: skip
def test_each_models_tags_part_its_thoughts_from_its_answer(opening, closing):
    found = read(completion(f"{opening}\nhm\n{closing}\n\nHeron."))
    assert (found.text, found.reasoning, found.fault) == ("Heron.", "hm", None)
    usage = {"prompt_tokens": 7, "completion_tokens": 50}
    assert read(completion(f"{opening}\nhm", finish="length", usage=usage)).fault == CUT


@pytest.mark.parametrize(
    "token",
    ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|return|>",
     "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "<turn|>", "<｜end▁of▁sentence｜>", "<|eos|>",
     "<eos>", "</s>"],
)  # fmt: skip
def test_each_models_end_of_turn_ends_its_answer(token):
    found = read(completion(f"The heron.{token}more"))
    assert (found.text, found.cut_at) == ("The heron.", token)


@pytest.mark.parametrize(
    "token",
    ["<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|python_tag|>", "<|im_start|>", "<|start|>",
     "<|channel|>", "<|message|>", "<|call|>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>",
     "<|SYSTEM_TOKEN|>", "<start_of_turn>", "<|turn>", "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
     "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<bos>", "[INST]", "[/INST]", "<<SYS>>",
     "<</SYS>>"],
)  # fmt: skip
def test_each_other_token_of_a_template_sets_an_answer_aside(token):
    fault = read(completion(f"The {token} heron.")).fault
    assert fault == f"control tokens: {token}"


def test_harmonys_first_final_message_is_the_answer_and_what_follows_is_said():
    final = "<|start|>assistant<|channel|>final<|message|>"
    text = f"<|channel|>analysis<|message|>hm<|end|>{final}Heron.<|end|>{final}Otter.<|return|>"
    found = read(completion(text))
    assert (found.text, found.reasoning, found.cut_at) == ("Heron.", "hm", "<|end|>")


@pytest.mark.parametrize("text", ["<|channel|>analysis<|message|>", "<think>", "<think>\n"])
def test_an_answer_that_ends_in_its_thoughts_is_none_though_they_are_empty(text):
    assert read(completion(text)).fault == reading.NO_ANSWER


def test_a_token_that_is_spoken_of_hides_no_other_one():
    assert cut("`<|eot_id|>` ends it.<|eot_id|>more") == ("`<|eot_id|>` ends it.", "<|eot_id|>")
    assert cut("```\nhi<|im_end|>\nmore").text == "```\nhi"  # a block of code that nothing closes is none
    assert cut("The heron.</s><s>more").text == "The heron."  # <s> behind it strikes nothing through


@pytest.mark.parametrize(
    ("message", "fault"),
    [({"function_call": {"name": "f"}}, "a tool call"), ({"content": {"a": 1}}, "content that is a dict"),
     ({"content": [{"type": "image"}]}, "content with a part of type image"), ({"content": None}, "null content")],
)  # fmt: skip
def test_what_is_measured_has_to_be_a_text(message, fault):
    said = {"choices": [{"message": {"content": "x"} | message, "finish_reason": "stop"}]}
    assert read(said, AS_IS).fault == read(said).fault == fault


def test_thoughts_that_cannot_be_told_are_truncated_where_the_answer_was_cut():
    text = "It writes <think>a</think> before the"
    assert read(completion(text, finish="length")).fault == "truncated"


def test_a_rewards_tokens_are_those_that_were_read():
    found = read({"data": [{"data": [1.5]}], "usage": {"prompt_tokens": 9, "total_tokens": 9}}, REWARD)
    assert (found.tokens_in, found.tokens_out, found.is_counted) == (9, 0, True)


def test_an_error_that_is_not_plain_json_was_not_paid_for():
    raw = b'{"error": {"message": "busy", "wait": NaN}, "choices": [{"message": {"content": "x"}}]}'
    with pytest.raises(Unreadable):
        read_answer(raw, ASKED)
