"""Which prompts a run is about: files of pairs as prompts, one side of them as own answers, another file's prompts."""

import json
import re

import pytest

from data.rows.records import load_preferences
from revise import recipes
from revise.loopback import Reply, serve
from revise.prompts import Prompts, PromptsConfig
from system.errors import InputError
from tests.revise.commands import command, judged, read_rows, released, revise, run, write_rows


def here(name, folder, base, *more, **kw):
    """The command in this process."""
    arguments = command(name, folder, base, *more, **kw)[4:]
    {
        "clair": recipes.clair_main,
        "judge-on-policy": recipes.judge_main,
        "judge-off-policy": recipes.off_policy_main,
        "stronger-preferred": recipes.stronger_main,
    }[name](arguments)


def items(path, *, response_from=None, **settings):
    config = PromptsConfig(prompts=str(path), out=str(path.parent / "out.jsonl"), **settings)
    return list(Prompts(config, response_from=response_from))


# --- pairs as prompts ----------------------------------------------------------------------------------------------


def test_the_losers_of_released_pairs_are_revised_by_the_real_command(tmp_path):
    rows = write_rows(tmp_path / "released.jsonl", [released(i) for i in range(6)])
    with serve(revise) as server:
        found = run(command("clair", tmp_path, server.base, "--response-from", "rejected", rows=rows))
        assert server.n_seen == 6
    assert found.returncode == 0, found.stderr
    assert "6 pairs of 6 prompts" in found.stderr and "not used: rational, chosen" in found.stderr
    made = read_rows(tmp_path / "pairs.jsonl")
    assert [row["rejected"] for row in made] == [released(i)["rejected"] for i in range(6)]
    assert made[0]["chosen"][-1]["content"] == "The heron is bird number 0, I think."
    assert made[0]["prompt"] == "Name bird 0." and made[0]["provenance"]["settings"]["response_from"] == "rejected"


def test_the_winners_can_be_the_own_answers_and_tables_hold_pairs_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "released.parquet"
    parquet.write_table(pa.Table.from_pylist([released(i) for i in range(3)]), path)
    chosen, rejected = items(path, response_from="chosen"), items(path, response_from="rejected")
    assert [item.row["response"] for item in chosen] == [f"The heron is bird number {i}, I think." for i in range(3)]
    assert [item.row["response"] for item in rejected] == [f"The otter is bird number {i}, I think." for i in range(3)]


def dialogue(answer):
    return f"\n\nHuman: Hello.\n\nAssistant: Hi.\n\nHuman: Name a bird.\n\nAssistant: {answer}"


@pytest.mark.parametrize(
    ("row", "n_messages", "own"),
    [
        (released(0), 1, "The otter is bird number 0, I think."),
        ({"chosen": dialogue("A heron."), "rejected": dialogue("An otter.")}, 3, "An otter."),
        # whole conversations go further back than the last question, which stands alone in "prompt"
        (
            {
                "prompt": "Name a bird.",
                **{
                    name: [
                        {"role": "system", "content": "Be brief."},
                        {"role": "user", "content": "Name a bird."},
                        {"role": "assistant", "content": text},
                    ]
                    for name, text in (("chosen", "A heron."), ("rejected", "An otter."))
                },
            },
            2,
            "An otter.",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Name a bird."},
                    {"role": "assistant", "content": "A heron."},
                ],
                "rejected_response": "An otter.",
            },
            1,
            "An otter.",
        ),
        ({"prompt": "Name a bird.", "chosen": "A heron.", "rejected": "An otter."}, 1, "An otter."),
    ],
    ids=["released", "dialogues", "further back", "ms-swift", "texts"],
)
def test_the_prompt_of_a_pair_is_what_both_answers_answer(tmp_path, row, n_messages, own):
    path = write_rows(tmp_path / "pairs.jsonl", [row])
    (item,) = items(path, response_from="rejected")
    assert len(item.prompt) == n_messages and item.row["response"] == own
    (record,) = load_preferences(path)
    assert record.prompt == item.prompt
    (bare,) = items(path)
    assert bare.prompt == item.prompt and "response" not in bare.row


def test_a_pair_that_is_none_keeps_its_prompt_and_has_no_own_answer(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "x", "rejected": "x"}])
    assert [item.prompt[0].content for item in items(path)] == ["a"]
    with pytest.raises(InputError, match=r"pairs\.jsonl:1: .*are equal"):
        items(path, response_from="rejected")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "response": "b"}, "neither"),
        ({"prompt": "a", "completion": "b"}, "not a pair of texts, which --response-from needs"),
        (released(0, response="b"), '"response" is there, but --response-from takes another answer'),
        (
            {
                "prompt": "a",
                "chosen": "b",
                "rejected": [
                    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]},
                    {"role": "tool", "content": "x"},
                    {"role": "assistant", "content": "c"},
                ],
            },
            '"rejected" has tool calls, but own answers have to be text',
        ),
    ],
)
def test_what_cannot_be_an_own_answer_is_one_sentence_with_its_line(tmp_path, row, said):
    path = write_rows(tmp_path / "pairs.jsonl", [row])
    with pytest.raises(InputError, match=r"pairs\.jsonl:1: ") as fault:
        items(path, response_from="rejected")
    assert said in str(fault.value)


def test_two_own_answers_are_not_in_a_pair_and_the_judge_says_so(tmp_path):
    rows = write_rows(tmp_path / "released.jsonl", [released(0)])
    with pytest.raises(InputError, match=r"^--response-from: gives one own answer to a prompt, but two are judged"):
        here("judge-on-policy", tmp_path, "http://127.0.0.1:9/v1", "--response-from", "rejected", rows=rows)


# --- another file's prompts ----------------------------------------------------------------------------------------


def test_a_recipe_is_restricted_to_another_files_prompts_by_the_real_command(tmp_path, capsys):
    rows = write_rows(tmp_path / "ultrafeedback.jsonl", [judged(i) for i in range(20)])
    only = write_rows(tmp_path / "released.jsonl", [released(i) for i in (7, 3, 99)])
    more = ["--only-prompts", only]
    found = run([*command("judge-off-policy", tmp_path, None, *more, rows=rows)])
    assert found.returncode == 0, found.stderr
    assert f"{rows}: 2 of 20 rows have the prompts of {only}; 1 of its 3 prompts are missing" in found.stderr
    assert [row["prompt"] for row in read_rows(tmp_path / "pairs.jsonl")] == ["Name bird 3.", "Name bird 7."]
    assert read_rows(tmp_path / "pairs.jsonl")[0]["provenance"]["row"] == 3


def test_prompts_are_matched_by_their_text_whoever_holds_them(tmp_path):
    """Blanks around it, tools beside it and the form of the row make no other prompt; another system message does."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    rows = [
        {"prompt": " Name bird 1.\n", "tools": tools},
        {"prompt": [{"role": "user", "content": "Name bird 2."}]},
        {"instruction": "Name bird 3."},
        {"prompt": "Name bird 4.", "system": "Be brief."},
        {"prompt": "name bird 5."},
    ]
    path = write_rows(tmp_path / "prompts.jsonl", rows)
    only = write_rows(tmp_path / "only.jsonl", [released(i) for i in range(1, 6)])
    assert [item.number for item in items(path, only_prompts=str(only))] == [0, 1, 2]


def test_a_prompt_is_taken_as_often_as_the_other_file_has_it(tmp_path):
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": p} for p in "abaaba"])
    only = write_rows(tmp_path / "only.jsonl", [{"prompt": p} for p in "aab"])
    assert [item.number for item in items(path, only_prompts=str(only))] == [0, 1, 2]


def test_the_draw_is_among_what_is_left(tmp_path):
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"p{i}"} for i in range(40)])
    only = write_rows(tmp_path / "only.jsonl", [{"prompt": f"p{i}"} for i in range(0, 40, 2)])
    found = [item.number for item in items(path, only_prompts=str(only), sample=5, seed=3)]
    assert len(found) == 5 and all(number % 2 == 0 for number in found)
    assert found != [item.number for item in items(path, only_prompts=str(only), sample=5, seed=4)]
    with pytest.raises(InputError, match=r"^--sample: 21 of 20 prompts cannot be drawn"):
        items(path, only_prompts=str(only), sample=21)


def test_files_without_a_prompt_in_common_are_one_sentence(tmp_path):
    path, only = (write_rows(tmp_path / f"{n}.jsonl", [{"prompt": n}]) for n in ("here", "there"))
    with pytest.raises(
        InputError, match=r"^--only-prompts: none of the 1 prompts of .*there\.jsonl is in .*here\.jsonl"
    ):
        items(path, only_prompts=str(only))
    write_rows(only, [{"prompt": 3}])
    with pytest.raises(InputError, match=r"there\.jsonl:1: "):
        items(path, only_prompts=str(only))


def test_the_other_file_is_not_written_over(tmp_path):
    rows = write_rows(tmp_path / "prompts.jsonl", [judged(0)])
    only = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Name bird 0.", "provenance": {"recipe": "clair"}}])
    with pytest.raises(InputError, match=r"^--out: .*pairs\.jsonl is also read, and would be overwritten"):
        here("judge-off-policy", tmp_path, None, "--only-prompts", only, rows=rows)


def test_ultrafeedback_is_named_where_no_row_is_judged(tmp_path):
    rows = write_rows(tmp_path / "released.jsonl", [released(0)])
    with pytest.raises(InputError, match=rf"--prompts openbmb/UltraFeedback --only-prompts {re.escape(str(rows))}$"):
        here("judge-off-policy", tmp_path, None, rows=rows)
    assert not (tmp_path / "pairs.jsonl").exists()


def test_four_sets_are_made_on_the_prompts_of_the_released_pairs(tmp_path):
    only = write_rows(tmp_path / "released.jsonl", [released(i) for i in (2, 5, 11)])
    ultrafeedback = write_rows(tmp_path / "ultrafeedback.jsonl", [judged(i) for i in range(12)])

    def reply(seen):
        if seen.body["model"] == "llama":
            return Reply.chat(f"answer {seen.number}")
        if "{student_solution_1}" in seen.text:
            return Reply.chat("Both are fine.\n\n[1]")
        return revise(seen) if "{student_solution}: " in seen.text else Reply.chat(f"A stronger answer {seen.number}.")

    made = {}
    with serve(reply) as server:
        target = ["--target-endpoint", server.base, "--target-name", "llama"]
        for name, rows, more in (
            ("clair", only, ["--response-from", "rejected"]),
            ("judge-on-policy", only, target),
            ("judge-off-policy", ultrafeedback, ["--only-prompts", only]),
            ("stronger-preferred", only, ["--response-from", "rejected"]),
        ):
            out = tmp_path / f"{name}.jsonl"
            here(name, tmp_path, server.base, *more, "--out", out, rows=rows)
            made[name] = read_rows(out)
    wanted = [f"Name bird {i}." for i in (2, 5, 11)]
    assert {name: [row["prompt"] for row in rows] for name, rows in made.items()} == dict.fromkeys(made, wanted)
    own = [released(i)["rejected"] for i in (2, 5, 11)]
    assert [row["rejected"] for row in made["clair"]] == own == [row["rejected"] for row in made["stronger-preferred"]]
    assert json.dumps(made["judge-off-policy"][0]["chosen"]).count("answer 0 to 2") == 1
