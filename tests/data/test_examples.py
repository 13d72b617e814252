"""Records as examples: what is cut, what is counted, what is refused, and the forms that objectives take."""

import json

import numpy as np
import pytest

from data.rows import examples
from data.rows.dataset import Rows
from data.rows.examples import CHUNK, Example, Limits, encode, in_form
from data.rows.records import Ratings, Record
from data.text import Message
from data.text.chat import Chat
from data.text.tokenizer import Tokenizer
from system import InputError
from tests import tiny
from tests.rows import answers

LONG = "one two three four five six seven eight nine ten"
WIDE = Limits(prompt_tokens=10_000, response_tokens=10_000)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder, [LONG, "user assistant system\n\n"])
    return Chat(Tokenizer(folder))


def pair(prompt="q", chosen="a", rejected="b", location="rows.jsonl:1"):
    messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return Record(location, "pairs", messages, answers(chosen, rejected))


def ids_pair(prompt=(1, 2, 3), chosen=(4, 5), rejected=(6,)):
    return Record("rows.jsonl:1", "pairs", prompt, (chosen, rejected))


def read(records, chat, limits, *, n_ids):
    """The rows that come of records: examples, faults, counts."""
    rows = Rows("rows.jsonl")
    for item in encode(records, chat, limits, n_ids=n_ids):
        rows.add(item)
    return rows


def encoded(records, chat, limits=WIDE, n_ids=400):
    made = read(records, chat, limits, n_ids=n_ids)
    assert made.skipped == []
    return made


def header(chat, role):
    """The ids of Llama-3's header, written out."""
    start, end = (chat.tokenizer.added[f"<|{side}_header_id|>"] for side in ("start", "end"))
    name, blank = chat.tokenizer.encode([role, "\n\n"])
    return [start, *name, end, *blank]


def test_text_becomes_ids_with_headers_bos_and_end_of_turn(chat):
    (example,) = encoded([pair(LONG, "one", "two")], chat).examples
    bos, eot = chat.tokenizer.bos_id, chat.tokenizer.added["<|eot_id|>"]
    (content, one, two) = chat.tokenizer.encode([LONG, "one", "two"])
    expected = [bos, *header(chat, "user"), *content, eot, *header(chat, "assistant")]
    assert example.prompt.tolist() == expected and example.prompt.dtype == np.int32
    assert [r.tolist() for r in example.responses] == [[*one, eot], [*two, eot]]
    assert example.responses[0].dtype == np.int32 and example.location == "rows.jsonl:1"


def test_rows_keep_their_order_location_and_label_across_chunks(chat):
    n = CHUNK + 3
    records = [
        Record(f"rows.jsonl:{i}", "unpaired", (Message("user", f"{i}"),), answers(f"{i} one"), i % 3 == 0)
        for i in range(n)
    ]
    assert [len(chunk) for chunk in examples._chunks(records)] == [CHUNK, 3]
    made = encoded(records, chat)
    assert [e.location for e in made.examples] == [r.location for r in records]
    assert [e.label for e in made.examples] == [r.label for r in records]
    for i in (0, CHUNK - 1, CHUNK, n - 1):
        assert chat.tokenizer.decode(made.examples[i].responses[0]) == f"{i} one"


def test_a_chunk_of_long_rows_ends_sooner():
    long = Record(
        "rows.jsonl:1", "unpaired", (Message("user", "q"),), answers("x" * (examples.CHUNK_LETTERS // 2)), True
    )
    assert [len(chunk) for chunk in examples._chunks([long] * 5)] == [2, 2, 1]


@pytest.mark.parametrize("keep", ["end", "start"])
@pytest.mark.parametrize("gone", [1, 3, 7])
def test_a_long_prompt_loses_content_only(chat, keep, gone):
    eot = chat.tokenizer.added["<|eot_id|>"]
    (content,) = chat.tokenizer.encode([LONG])
    head, tail = [chat.tokenizer.bos_id, *header(chat, "user")], [eot, *header(chat, "assistant")]
    limit = len(head) + len(content) + len(tail) - gone
    made = encoded([pair(LONG)], chat, Limits(prompt_tokens=limit, keep_prompt=keep))
    kept = content[gone:] if keep == "end" else content[:-gone]
    assert made.examples[0].prompt.tolist() == [*head, *kept, *tail]
    assert made.cut_prompts == 1 and made.cut_responses == 0


@pytest.mark.parametrize("keep", ["end", "start"])
def test_the_oldest_or_the_newest_turn_goes_first_and_every_header_stays(chat, keep):
    turns = (Message("user", "one two three"), Message("assistant", "four five"), Message("user", "six seven eight"))
    eot = chat.tokenizer.added["<|eot_id|>"]
    contents = chat.tokenizer.encode([m.content for m in turns])
    tokens = [[i, False] for i in [chat.tokenizer.bos_id]]
    for message, content in zip(turns, contents, strict=True):
        tokens += [[i, False] for i in header(chat, message.role)] + [[i, True] for i in content] + [[eot, False]]
    tokens += [[i, False] for i in header(chat, "assistant")]
    gone = len(contents[0]) + 1 if keep == "end" else len(contents[2]) + 1  # a whole content, and one token more
    of_content = [i for i, (_, is_content) in enumerate(tokens) if is_content]
    dropped = set(of_content[:gone] if keep == "end" else of_content[-gone:])
    expected = [token for i, (token, _) in enumerate(tokens) if i not in dropped]
    made = encoded([pair(turns)], chat, Limits(prompt_tokens=len(tokens) - gone, keep_prompt=keep))
    assert made.examples[0].prompt.tolist() == expected


def test_a_prompt_that_just_fits_is_not_cut(chat):
    n = len(encoded([pair(LONG)], chat).examples[0].prompt)
    made = encoded([pair(LONG)], chat, Limits(prompt_tokens=n))
    assert made.cut_prompts == 0 and len(made.examples[0].prompt) == n


def test_a_limit_that_leaves_no_content_is_a_fault_of_the_row(chat):
    fixed = 1 + len(header(chat, "user")) + 1 + len(header(chat, "assistant"))
    made = read([pair(LONG)], chat, Limits(prompt_tokens=fixed), n_ids=400)
    assert made.examples == []
    assert made.skipped == [
        f"rows.jsonl:1: the template's own tokens in this prompt, {fixed}, exceed the limit; raise --max-prompt-tokens"
    ]
    assert len(encoded([pair(LONG)], chat, Limits(prompt_tokens=fixed + 1)).examples[0].prompt) == fixed + 1


def test_a_prompt_that_spells_control_tokens_is_cut_too(chat):
    text = "<|eot_id|>" + LONG + "<|start_header_id|>"
    whole = encoded([pair(text)], chat).examples[0].prompt
    made = encoded([pair(text)], chat, Limits(prompt_tokens=len(whole) - 4))
    n = 1 + len(header(chat, "user"))
    assert made.examples[0].prompt.tolist() == [*whole[:n], *whole[n + 4 :]]


@pytest.mark.parametrize("keep", ["end", "start"])
def test_a_prompt_whose_control_word_was_cut_in_two_loses_content_only(tmp_path, keep):
    """A control token in the BPE's own vocabulary too: its spelling is encoded in two halves."""
    tiny.write_tokenizer(tmp_path, [LONG, "user assistant system\n\n"])
    file = tmp_path / "tokenizer.json"
    description = json.loads(file.read_text())
    at = description["model"]["vocab"]["endofturn"] = len(description["model"]["vocab"]) + len(tiny.CONTROL)
    description["added_tokens"].append(description["added_tokens"][0] | {"id": at, "content": "endofturn"})
    file.write_text(json.dumps(description))
    chat = Chat(Tokenizer(tmp_path))
    text = "endofturn " + LONG
    whole = encoded([pair(text)], chat).examples[0].prompt.tolist()
    n_head, n_tail = 1 + len(header(chat, "user")), 1 + len(header(chat, "assistant"))
    head, content, tail = whole[:n_head], whole[n_head:-n_tail], whole[-n_tail:]
    assert chat.tokenizer.decode(content) == text and at not in content
    made = encoded([pair(text)], chat, Limits(prompt_tokens=len(whole) - 3, keep_prompt=keep))
    kept = content[3:] if keep == "end" else content[:-3]
    assert made.examples[0].prompt.tolist() == [*head, *kept, *tail]


@pytest.mark.parametrize("over", [0, 1, 2])
def test_a_long_response_loses_its_end_and_with_it_the_end_of_turn(chat, over):
    whole = [r.tolist() for r in encoded([pair("q", LONG, "b")], chat).examples[0].responses]
    made = encoded([pair("q", LONG, "b")], chat, Limits(response_tokens=len(whole[0]) - over))
    chosen, rejected = made.examples[0].responses
    assert chosen.tolist() == whole[0][: len(whole[0]) - over] and rejected.tolist() == whole[1]
    assert (chat.end_of_turn in chosen) == (over == 0) and made.cut_responses == (over > 0)
    assert chat.end_of_turn == rejected[-1]


def test_every_cut_is_counted(chat):
    records = [pair(LONG, LONG, "x " + LONG), pair(LONG, LONG, "b"), pair("q", "a", "b"), pair("q", "b", "a")]
    n = len(encoded([pair("q")], chat).examples[0].prompt)
    made = encoded(records, chat, Limits(prompt_tokens=n, response_tokens=4))
    assert (made.cut_prompts, made.cut_responses) == (2, 3)
    assert made.cut_shares == made.facts()["cut_shares"] == {"prompts": 0.5, "chosen": 0.5, "rejected": 0.25}
    said = "2 prompts and 3 responses cut (50.0 % of prompts, 50.0 % of chosen, 25.0 % of rejected)"
    assert made.report() == f"rows.jsonl: 4 rows, {said}"


def test_cut_completions_are_one_side_and_what_is_whole_is_not_said():
    single = Record("rows.jsonl:1", "single", (1,), ((2, 3, 4),))
    ranked = Record("rows.jsonl:1", "ranked", (1,), ((2, 3), (4,), (5,)))
    made = encoded([single, ranked], None, Limits(response_tokens=2))
    assert made.cut_shares == {"prompts": 0, "completions": 0.25}
    assert made.report().endswith("0 prompts and 1 responses cut (25.0 % of completions)")
    assert encoded([ranked], None).report() == "rows.jsonl: 1 rows, 0 prompts and 0 responses cut"


def test_pairs_that_the_cut_makes_equal_are_skipped_and_others_go_on(chat):
    records = [pair(LONG, LONG, LONG + " x"), pair("q", LONG, "b", location="rows.jsonl:2")]
    made = read(records, chat, Limits(response_tokens=4), n_ids=400)
    assert [e.location for e in made.examples] == ["rows.jsonl:2"]
    assert made.skipped == [
        'rows.jsonl:1: "chosen" and "rejected" are the same 4 token ids after the cut; a pair has to differ: raise '
        "--max-response-tokens"
    ]


def test_prompts_that_leave_no_room_are_left_out_and_counted(chat):
    n = len(encoded([pair("q")], chat).examples[0].prompt)
    limits = Limits(prompt_tokens=None, response_tokens=None, tokens=n + 1)
    made = encoded([pair(LONG), pair("q"), pair(LONG)], chat, limits)
    assert (len(made.examples), made.n_too_long, made.facts()["too_long_prompts"]) == (1, 2, 2)
    assert [len(r) for r in made.examples[0].responses] == [1, 1] and made.cut_responses == 2
    assert ", 2 rows left out because their prompts leave no room for a response" in made.report()


@pytest.mark.parametrize("with_chat", [True, False])
def test_rows_of_ids_are_taken_as_they_are(chat, with_chat):
    made = encoded([ids_pair()], chat if with_chat else None, n_ids=7)
    (example,) = made.examples
    assert example.prompt.tolist() == [1, 2, 3] and [r.tolist() for r in example.responses] == [[4, 5], [6]]
    assert made.cut_prompts == made.cut_responses == 0


def test_rows_of_ids_are_cut_like_text_and_keep_bos(chat):
    bos = chat.tokenizer.bos_id
    records = [ids_pair((bos, 1, 2, 3, 4), (5, 6, 7)), ids_pair((9, 1, 2, 3, 4), (5, 6))]
    made = encoded(records, chat, Limits(prompt_tokens=3, response_tokens=2))
    assert [e.prompt.tolist() for e in made.examples] == [[bos, 3, 4], [2, 3, 4]]
    assert [e.responses[0].tolist() for e in made.examples] == [[5, 6], [5, 6]]
    assert (made.cut_prompts, made.cut_responses) == (2, 1)
    start = encoded(records, chat, Limits(prompt_tokens=3, keep_prompt="start"))
    assert [e.prompt.tolist() for e in start.examples] == [[bos, 1, 2], [9, 1, 2]]


@pytest.mark.parametrize("record", [ids_pair((1, 9)), ids_pair(chosen=(9,)), ids_pair(rejected=(1, 9, 2))])
def test_an_id_outside_the_vocabulary_is_a_fault(record):
    made = read([record], None, WIDE, n_ids=9)
    assert made.skipped == ["rows.jsonl:1: token id 9 is outside the model's vocabulary of 9"] and not made.examples
    assert len(read([record], None, WIDE, n_ids=10).examples) == 1


def test_a_tokenizer_larger_than_the_model_is_a_fault_of_the_row(chat):
    made = read([pair()], chat, WIDE, n_ids=200)
    (fault,) = made.skipped
    assert fault.startswith("rows.jsonl:1: token id ") and fault.endswith("outside the model's vocabulary of 200")


def test_text_without_a_tokenizer_is_a_fault_and_other_rows_go_on():
    made = read([pair(location="rows.jsonl:1"), ids_pair()], None, WIDE, n_ids=100)
    assert made.skipped == [
        "rows.jsonl:1: a row of text, but the model folder has no tokenizer; give rows of token ids"
    ]
    assert len(made.examples) == 1


def test_a_row_that_the_template_refuses_does_not_move_the_others(chat, tmp_path):
    tiny.write_tokenizer(tmp_path, [LONG])
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|start_header_id|>{{ m.role }}\n{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}"
    )
    strict = Chat(Tokenizer(tmp_path))
    refused = pair((Message("system", "x"), Message("user", "q")), location="rows.jsonl:2")
    made = read([pair("one"), refused, pair("three", "four", location="rows.jsonl:3")], strict, WIDE, n_ids=400)
    assert [e.location for e in made.examples] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert strict.tokenizer.decode(made.examples[1].responses[0]) == "four"
    (fault,) = made.skipped
    assert fault.startswith("rows.jsonl:2: the chat template ") and "no system; change the row" in fault


def example(n_responses, label=None):
    ids = [np.asarray([i], dtype=np.int32) for i in range(3)]
    return Example("rows.jsonl:5", ids[0], tuple(ids[1 : 1 + n_responses]), label)


def test_a_pair_is_a_pair():
    assert in_form([example(2)], "pairs") == [example(2)]


def test_a_pair_makes_two_labelled_examples_next_to_each_other():
    e = example(2)
    desirable, undesirable = in_form([e], "unpaired")
    assert desirable == Example(e.location, e.prompt, (e.responses[0],), True)
    assert undesirable == Example(e.location, e.prompt, (e.responses[1],), False)


def test_a_pair_gives_its_chosen_response_alone():
    e = example(2)
    assert in_form([e], "single") == [Example(e.location, e.prompt, (e.responses[0],))]


@pytest.mark.parametrize("label", [True, False])
def test_a_labelled_completion_stays_one(label):
    assert in_form([example(1, label)], "unpaired") == [example(1, label)]


def test_single_responses_are_those_of_the_side_with_their_score():
    e = example(2)._replace(ratings=Ratings((3.0, 1.0), 2.0, (0.9, 0.1), 0.5, 7.0))
    (w,), (l,) = (in_form([e], "single", side=side) for side in ("chosen", "rejected"))  # noqa: E741
    assert w.responses == e.responses[:1] and l.responses == e.responses[1:]
    assert (w.ratings, l.ratings) == (Ratings((3.0,), 2.0, None, 0.5, 7.0), Ratings((1.0,), 2.0, None, 0.5, 7.0))


def test_what_is_said_of_tokens_goes_with_their_response():
    flags, weights = ([np.array([True]), np.array([False])], [np.array([0.5]), np.array([2.0])])
    e = example(2)._replace(revised=tuple(flags), token_weights=tuple(weights))
    (w,), (l,) = (in_form([e], "single", side=side) for side in ("chosen", "rejected"))  # noqa: E741
    found = {"apart": in_form([e], "unpaired"), "sides": [w, l]}
    for made in found.values():
        assert [(m.revised, m.token_weights) for m in made] == [
            ((f,), (x,)) for f, x in zip(flags, weights, strict=True)
        ]
    assert in_form([e], "pairs") == [e] and e.revised is not None
    assert all(m.revised is None and m.token_weights is None for m in in_form([example(2)], "unpaired"))


def test_ranked_rows_have_equally_many_responses():
    assert in_form([example(2)], "ranked") == [example(2)]
    with pytest.raises(InputError, match="3 responses, but the first row has 2; all rows need equally many"):
        three = Example("rows.jsonl:6", *example(2)[1:2], (example(1).responses[0],) * 3)
        in_form([example(2), three], "ranked")


def test_a_completion_stays_one():
    assert in_form([example(1)], "single") == [example(1)]


@pytest.mark.parametrize(
    ("made", "form", "kind"),
    [
        (example(1), "pairs", 'a completion without "label"'),
        (example(1, True), "pairs", 'a completion with a "label"'),
        (example(1), "unpaired", 'a completion without "label"'),
        (example(1, True), "single", 'a completion with a "label"'),
        (example(1, False), "single", 'a completion with a "label"'),
        (example(1), "ranked", 'a completion without "label"'),
    ],
)
def test_a_row_that_cannot_be_had_in_a_form_is_named(made, form, kind):
    with pytest.raises(InputError) as fault:
        in_form([made], form)
    assert str(fault.value) == f"rows.jsonl:5: this objective trains on rows of the form {form}, but this is {kind}"
