"""What a user sees of a row: every token, what is predicted, what was cut, and nothing that acts on a terminal."""

import os
import re
import sys

import pytest

from data.rows.examples import Limits, encode
from data.rows.records import Ratings, Record
from data.show import BAR, show, visible
from data.text import Message
from data.text.chat import Chat
from data.text.tokenizer import Tokenizer
from tests import forks, tiny
from tests.data import templates
from tests.rows import answers

LONG = "one two three four five six seven eight nine ten"
ANSI = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model(
        tmp_path_factory.mktemp("tmp") / "model", [LONG, "user assistant system\n\n question answer"]
    )


@pytest.fixture(scope="module")
def chat(folder):
    return Chat(Tokenizer(folder))


def cut_of(chat, prompt="question", responses=("answer", "one two"), **limits):
    form = "pairs" if len(responses) == 2 else "single"
    record = Record(
        "rows.jsonl:7", form, (Message("user", prompt),), answers(*responses), None, Ratings((4.0, 1.5), 2.0)
    )
    (cut,) = encode([record], chat, Limits(**limits), n_ids=1000)
    return cut


def sections(text):
    """{heading: body} of the plain view, without the lines below the tokens."""
    text = re.sub(r"\n(revised|token weights|tokens that are not special|not predicted): .*", "", text)
    parts = re.split(r"\n(prompt|chosen|rejected|completion(?: \d+, best first)?): ", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_token_is_shown_once_and_control_tokens_with_their_ids(chat):
    cut = cut_of(chat)
    shown = sections(show(cut, chat))
    names = ("prompt", "chosen", "rejected")
    for name, ids in zip(names, (cut.example.prompt, *cut.example.responses), strict=True):
        heading, _, body = shown[name].partition("\n")
        assert heading.startswith(f"{len(ids)} tokens (")
        cells = body.removesuffix("\n").replace("\u23ce\n", "\n").split(BAR)
        assert len(cells) == len(ids)
        for cell, i in zip(cells, ids.tolist(), strict=True):
            control = re.fullmatch(r"\[(<\|.*\|>) (\d+)\]", cell)
            if chat.tokenizer.is_control(i):
                assert control and int(control[2]) == i and chat.tokenizer.added[control[1]] == i
            else:
                assert cell == chat.tokenizer.decode([i])
    assert shown["chosen"].rstrip().endswith(f"[<|eot_id|> {chat.end_of_turn}]")
    assert "predicted by none" in shown["prompt"] and "each is predicted" in shown["chosen"]


def test_parts_are_called_by_what_rows_call_them(chat):
    for form, texts, names in (
        ("single", ["one"], ["completion"]),
        ("pairs", ["one", "two"], ["chosen", "rejected"]),
        ("ranked", ["one", "two", "three"], [f"completion {i}, best first" for i in (1, 2, 3)]),
    ):
        record = Record("rows.jsonl:7", form, (Message("user", "question"),), answers(*texts), None, Ratings())
        (cut,) = encode([record], chat, Limits(), n_ids=400)
        text = show(cut, chat)
        assert list(sections(text)) == ["prompt", *names]
        assert not re.search("trunk|branch|tree", text)


def test_the_head_names_the_row_its_kind_and_the_template(chat):
    first, second = show(cut_of(chat), chat).split("\n")[:2]
    assert first == "rows.jsonl:7: a pair, scores 4, 1.5, own score 2"
    assert second == "template: <built-in Llama-3>"


def test_what_was_cut_is_shown_where_it_stood(chat):
    whole = cut_of(chat, LONG, (LONG, "one"))
    cut = cut_of(
        chat, LONG, (LONG, "one"), prompt_tokens=len(whole.example.prompt) - 3, response_tokens=4, keep_prompt="end"
    )
    text = show(cut, chat)
    shown = sections(text)
    gone = chat.tokenizer.decode([i for i, kept in zip(cut.whole_prompt, cut.kept, strict=True) if not kept])
    assert (
        f"{len(cut.example.prompt)} tokens, 3 cut (" in shown["prompt"]
        and f"\u27e6cut: {gone}\u27e7" in shown["prompt"]
    )
    assert shown["chosen"].rstrip().partition("\u27e6")[2].endswith(f"[<|eot_id|> {chat.end_of_turn}]\u27e7")
    n, n_chosen = len(cut.whole_prompt), len(cut.whole_responses[0])
    assert "note: a response does not end with the end-of-turn token\n" in text
    assert f"note: the prompt was cut: 3 of {n} tokens are gone\n" in text
    assert text.endswith(f"note: chosen was cut: {n_chosen - 4} of {n_chosen} tokens are gone\n")
    assert "note" not in show(whole, chat)


def below(text):
    """{heading: the lines below the tokens of its part}."""
    parts = re.split(r"\n(prompt|chosen|rejected|completion(?: \d+, best first)?): ", text)
    found = [re.findall(r"\n((?:revised|token weights): .*)", part) for part in parts[2::2]]
    return dict(zip(parts[1::2], found, strict=True))


def test_what_was_revised_of_a_pair_stands_below_its_tokens(chat):
    shown = below(show(cut_of(chat, "q", ("one two three four six", "one two four five six")), chat))
    n = [len(ids) + 1 for ids in chat.tokenizer.encode(["one two three four six", "one two four five six"])]
    of_word = [len(ids) for ids in chat.tokenizer.encode([" three", " five"], goes_on=True)]
    assert shown == {
        "prompt": [],
        "chosen": [f'revised: {of_word[0]} of {n[0]} tokens: " three"'],
        "rejected": [f'revised: {of_word[1]} of {n[1]} tokens: " five"'],
    }
    shown = below(show(cut_of(chat, "q", ("one two three", "one")), chat))
    assert shown["chosen"][0].endswith(' tokens: " two three"')
    assert re.fullmatch(r"revised: 0 of \d+ tokens", shown["rejected"][0])


def test_a_completion_alone_has_nothing_that_was_revised(chat):
    assert below(show(cut_of(chat, "q", ("one",)), chat)) == {"prompt": [], "completion": []}


def test_revised_tokens_are_underlined_in_colour(chat):
    text = show(cut_of(chat, "q", ("one two", "one six")), chat, colour=True).partition("chosen: ")[2]
    chosen = text.partition("rejected: ")[0].partition("revised: ")[0]
    assert [ANSI.sub("", cell) for cell in re.findall(r"\x1b\[1;4;32m.*?\x1b\[0m", chosen)] == [
        chat.tokenizer.text_of_tokens([i]) for i in chat.tokenizer.encode([" two"], goes_on=True)[0]
    ]


def test_a_long_list_of_revised_words_is_cut_and_says_how_many_places_are_left(chat):
    one = " ".join(f"{LONG} same" for _ in range(60))
    two = " ".join("other same" for _ in range(60))
    (said,) = below(show(cut_of(chat, "q", (one, two), response_tokens=20_000), chat))["chosen"]
    shown, _, rest = said.partition(" and in ")
    n_places = shown.count('"') // 2
    assert 1000 < len(shown) < 1200 and rest == f"{60 - n_places} further places"
    (said,) = below(show(cut_of(chat, "q", (one, "other"), response_tokens=20_000), chat))["chosen"]
    assert " ... " in said and said.count('"') == 2 and len(said) < 500


def test_token_weights_stand_below_their_tokens():
    ids = ((5, 6, 7), (5, 8))
    record = Record("rows.jsonl:1", "pairs", (4,), ids, None, Ratings(), ((1.0, 0.5, -2.0), (0.0, 1e9)))
    (cut,) = encode([record], None, Limits(response_tokens=2), n_ids=10)
    assert below(show(cut, None)) == {
        "prompt": [],
        "chosen": ['revised: 1 of 2 tokens: " 6 "', f"token weights: 1{BAR}0.5"],
        "rejected": ['revised: 1 of 2 tokens: " 8 "', f"token weights: 0{BAR}1e+09"],
    }


def test_two_tokens_that_begin_a_text_are_noted(chat):
    cut = cut_of(chat)
    doubled = cut._replace(
        example=cut.example._replace(prompt=cut.example.prompt[[0, *range(len(cut.example.prompt))]]),
        whole_prompt=[cut.whole_prompt[0], *cut.whole_prompt],
        kept=[True, *cut.kept],
    )
    assert "note: the token that begins a text (BOS) occurs more than once" in show(doubled, chat)


def test_letters_of_several_tokens_are_shown_whole(chat):
    text = show(cut_of(chat, "世界 \U0001f642"), chat)
    assert "世(3 tokens)" in text and "\U0001f642" in text and "\ufffd" not in text


def test_colours_change_no_text(chat):
    cut = cut_of(chat, LONG, (LONG, "one"), response_tokens=4)
    plain, coloured = show(cut, chat), show(cut, chat, colour=True)
    assert ANSI.search(coloured) and not ANSI.search(plain)
    assert ANSI.sub("", coloured) == plain


def test_nothing_of_a_row_acts_on_a_terminal(chat):
    evil = "\x1b[2J\x1b]52;c;cHduZWQ=\x07 \x9b31m \u202eabc\u2066 \x00\x08\x7f\r\u200b end"
    text = show(cut_of(chat, evil, (evil, "b")), chat)
    assert not [c for c in text if c != "\n" and not c.isprintable()]
    assert visible("\x1b\r\u202e\n") == "\u241b\u240d\\u202e\u23ce"


def test_ids_without_a_tokenizer_are_shown_as_numbers():
    record = Record("rows.jsonl:1", "single", (5, 6), ((7,),))
    (cut,) = encode([record], None, Limits(), n_ids=10)
    assert sections(show(cut, None))["prompt"].split("\n")[1] == f" 5 {BAR} 6 "


def run(*arguments, **env):
    command = [sys.executable, "-m", "data.show", *map(str, arguments)]
    return forks.run(command, env=os.environ | env)


def test_the_command_shows_a_row(folder, tmp_path):
    rows = [{"prompt": "question", "chosen": "answer", "rejected": c} for c in ("one", "two")]
    file = tiny.write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": ""}])
    done = run(file, "--model", folder, "--row", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{file}:2: a pair\n") and f"t{BAR}wo" in done.stdout and not ANSI.search(done.stdout)
    assert ANSI.search(run(file, "--model", folder, FORCE_COLOR="1").stdout) and "not used" not in done.stdout
    bad = run(file, "--model", folder, "--row", 3)
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.startswith(f"error: {file}:3: ")
    beyond = run(file, "--model", folder, "--row", 4)
    assert beyond.returncode == 2 and "has fewer than 4 rows; lower --row" in beyond.stderr


@pytest.mark.slow
def test_the_command_cuts_as_the_trainer_does_and_holds_to_the_models_context(folder, tmp_path):
    row = {"prompt_ids": [5] * 300, "chosen_ids": [6] * 300, "rejected_ids": [7] * 9}
    file = tiny.write_rows(tmp_path / "rows.jsonl", [row])
    told = (file, "--model", folder)
    long = run(*told)
    said = "600 tokens after the cut, but the model's context (max_position_embeddings) has 512; lower "
    assert long.returncode == 2 and long.stderr.startswith(f"error: {file}:1: {said}")
    assert run(*told, "--beyond-context").stdout.startswith(f"{file}:1: a pair\n")
    cut = run(*told, "--max-tokens", "310").stdout
    assert cut.endswith("note: chosen was cut: 290 of 300 tokens are gone\n"), cut[-200:]
    assert "prompt: 300 tokens (" in cut and "rejected: 9 tokens (" in cut
    gone = run(*told, "--max-tokens", "300")
    assert gone.returncode == 2 and "a prompt of 300 tokens leaves nothing of --max-tokens 300" in gone.stderr


def test_the_command_names_what_of_a_row_is_not_used(folder, tmp_path):
    message = {"role": "assistant", "content": "answer", "weight": 1}
    row = {"prompt": "question", "chosen": [message], "rejected": str([message | {"content": "one"}]), "id": 7}
    done = run(tiny.write_rows(tmp_path / "rows.jsonl", [row]), "--model", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        "note: not used: id, messages' weight\nnote: 1 texts are messages, and are read as such (--keep-json-text "
        "keeps them as text)\n"
    )


def test_the_command_shows_token_weights_and_names_the_row_of_those_that_are_none(folder, tmp_path):
    row = {"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4], "w": [0.5, 2], "rejected_token_weights": [1]}
    file = tiny.write_rows(tmp_path / "rows.jsonl", [row, row | {"w": [1]}])
    told = (file, "--model", folder, "--columns", "chosen_token_weights=w")
    done = run(*told)
    assert f"\ntoken weights: 0.5{BAR}2\n" in done.stdout and "\ntoken weights: 1\n" in done.stdout, done.stderr
    bad = run(*told, "--row", 2)
    said = '"chosen_token_weights" has 1 numbers; it has to be a list of 2 finite numbers, one per token id'
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", f"error: {file}:2: {said}\n")


def test_the_numbers_that_an_objective_asks_for_are_shown(folder, tmp_path):
    row = {"prompt": "question", "chosen": "answer", "rejected": "one", "own_score": 2, "gap": 0.5, "trust": -1}
    file = tiny.write_rows(tmp_path / "rows.jsonl", [row])
    told = (file, "--model", folder, "--columns", "margin=gap")
    done = run(*told, "--fields", "margin, trust")
    assert done.stdout.startswith(f"{file}:1: a pair, own score 2, margin 0.5, trust -1\n"), done.stderr
    lacking = run(*told, "--fields", "margin,trusted")
    said = f'error: {file}:1: no finite number under "trusted"; correct --fields or the row\n'
    assert (lacking.returncode, lacking.stdout, lacking.stderr) == (2, "", said)
    unknown = run(*told)
    assert unknown.returncode == 2 and "--columns: 'margin' is not a known column" in unknown.stderr


def qwen3(folder):
    templates.write(folder, templates.TEMPLATES["Qwen3"])
    return Chat(Tokenizer(folder))


def test_tokens_that_are_not_special_are_named_and_have_a_colour(tmp_path):
    chat = qwen3(tmp_path)
    record = Record(
        "rows.jsonl:7", "single", (Message("user", "<think> 2+2?"),), ((Message("assistant", "4 <tool_call> x"),),)
    )
    (cut,) = encode([record], chat, Limits(), n_ids=1000)
    text = show(cut, chat)
    think, closed, call = (chat.tokenizer.added[t] for t in ("<think>", "</think>", "<tool_call>"))
    prompt, answer = text.split("\ncompletion: ")
    assert "tokens that are not special" not in prompt and f"[<think> {think}]" not in prompt  # a user's text
    assert f"\ntokens that are not special: <think> {think}, </think> {closed}, <tool_call> {call}\n" in answer
    assert f"[<think> {think}]{BAR}" in answer and f"[<|im_end|> {chat.end_of_turn}]" in answer
    painted = show(cut, chat, colour=True)
    assert f"\x1b[1;36m[<think> {think}]" in painted and f"\x1b[1;35m[<|im_end|> {chat.end_of_turn}]" in painted
    assert ANSI.sub("", painted) == text


def test_what_is_not_predicted_of_a_response_is_shown_apart(tmp_path):
    chat = qwen3(tmp_path)
    turns = (Message("assistant", "I look."), Message("tool", "3 C"), Message("assistant", "3."))
    record = Record("rows.jsonl:7", "single", (Message("user", "Cold?"),), (turns,))
    (cut,) = encode([record], chat, Limits(), n_ids=1000)
    text = show(cut, chat)
    (between,) = re.findall(r'\nnot predicted: "(.*)"\n', text)
    assert "3 C" in between and "I look." not in between and between.endswith("assistant\u23ce")
    assert "are predicted, the others seen" in text


def test_a_thought_that_is_lacking_is_noted(tmp_path):
    templates.write(tmp_path, templates.TEMPLATES["R1-Distill-Llama"], eos=templates.end_of("R1-Distill-Llama"))
    chat = Chat(Tokenizer(tmp_path))
    cut = cut_of(chat, "2+2?", ("hm</think>4", "5"))
    assert "note: the prompt opens a thought, and a response neither continues nor ends it" in show(cut, chat)
    assert "note" not in show(cut_of(chat, "2+2?", ("hm</think>4", "hm</think>5")), chat)
