"""What engine.score writes: a line a row, in the file's order, with every completion that the row has."""

import json

import pytest
import torch

from data.rows import Example, Limits, encode, read_records
from data.text import Chat, Tokenizer
from engine import score
from system import InputError
from tests import tiny
from tests.data import templates
from tests.engine.padded import padded_logps, padded_token_logps

PAIR = {"prompt_ids": [5, 6], "chosen_ids": [6, 7, 8, 1], "rejected_ids": [6, 9, 1]}
LABELLED = {"prompt_ids": [5], "completion_ids": [6, 7], "label": False}
ALONE = {"prompt_ids": [9, 8], "completion_ids": [3]}
SEVERAL = {"prompt_ids": [7, 7], "completions_ids": [[2, 3], [4, 5, 6], [7]], "scores": [2, 1, 3.5]}
TWO = {"prompt_ids": [7, 7], "completions_ids": [[2, 3], [4, 5, 6]], "scores": [1, 2]}
ALIKE = {"prompt_ids": [4], "completions_ids": [[2, 3], [4]], "scores": [2, 2]}
UNRATED = {"prompt_ids": [4], "completions_ids": [[2, 3], [4], [2, 3]]}
ONE = {"prompt_ids": [4], "completions_ids": [[2, 3]]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("score") / "model", vocab_size=101)


def scored(model, tmp_path, rows, **flags):
    """The lines that are written for rows."""
    data, out = tiny.write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "logps.jsonl"
    argv = ["--model", str(model), "--data", str(data), "--out", str(out), "--dtype", "float32"]
    score.main(
        [*argv, *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value)))]
    )
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.pop("place") for line in found] == [f"{data}:{i + 1}" for i in range(len(rows))]
    return found


def expected(prompt, *responses):
    """By the slow way, each alone."""
    ids = [torch.tensor(one).numpy() for one in responses]
    with torch.no_grad():
        logps = padded_logps(
            tiny.random_llama(vocab_size=101).double(), [Example("", torch.tensor(prompt).numpy(), tuple(ids))]
        )
    return pytest.approx(logps.tolist(), abs=1e-3)


def test_a_pair_has_its_sides_and_a_completion_its_label(model, tmp_path):
    pair, labelled, alone = scored(model, tmp_path, [PAIR, LABELLED, ALONE])
    assert pair.keys() == {"logps/chosen", "tokens/chosen", "logps/rejected", "tokens/rejected"}
    assert [pair["logps/chosen"], pair["logps/rejected"]] == expected([5, 6], [6, 7, 8, 1], [6, 9, 1])
    assert (pair["tokens/chosen"], pair["tokens/rejected"]) == (4, 3)
    assert [labelled.pop("logps/completion")] == expected([5], [6, 7])
    assert labelled == {"tokens/completion": 2, "label": False}
    assert alone.keys() == {"logps/completion", "tokens/completion"}


@pytest.mark.parametrize("row", [SEVERAL, TWO, ALIKE, UNRATED, ONE])
def test_every_completion_of_a_row_is_scored_as_they_stand_there(model, tmp_path, row):
    """Not the best and the worst alone, and whatever they are rated: nothing is compared."""
    (line,) = scored(model, tmp_path, [row])
    assert line.pop("logps/completions") == expected(row["prompt_ids"], *row["completions_ids"])
    assert line.pop("tokens/completions") == [len(ids) for ids in row["completions_ids"]]
    assert line == ({"scores": row["scores"]} if "scores" in row else {})


def test_rows_of_all_kinds_stand_in_one_file(model, tmp_path):
    rows = [SEVERAL, PAIR, ONE, LABELLED, TWO, ALONE, UNRATED] * 12  # more than are computed together
    together = scored(model, tmp_path, rows, micro_tokens=16)
    for i, row in enumerate(rows[:7]):
        (tmp_path / f"{i}").mkdir()
        (alone,) = scored(model, tmp_path / f"{i}", [row])
        for line in together[i::7]:
            assert line.keys() == alone.keys()
            assert all(line[name] == pytest.approx(alone[name], abs=1e-4) for name in line)


def test_what_rows_say_in_numbers_goes_along(model, tmp_path):
    rated = PAIR | {"chosen_score": 4, "rejected_score": 2}
    pair, single = scored(model, tmp_path, [rated, LABELLED | {"score": 0.5}])
    assert pair["scores"] == [4.0, 2.0] and single["scores"] == [0.5]


def test_a_row_that_has_both_is_its_pair(model, tmp_path):
    (line,) = scored(model, tmp_path, [SEVERAL | PAIR])
    assert line["tokens/chosen"] == 4 and "logps/completions" not in line


def test_completions_are_cut_one_by_one_and_bad_ones_named(model, tmp_path):
    (line,) = scored(model, tmp_path, [SEVERAL], max_response_tokens=2)
    assert line["tokens/completions"] == [2, 2, 1]
    with pytest.raises(InputError, match=r'rows.jsonl:1: "completions_ids\[1\]" has to be a list of token ids'):
        (tmp_path / "bad").mkdir()
        scored(model, tmp_path / "bad", [UNRATED | {"completions_ids": [[2], ["x"]]}])


def test_of_a_response_of_several_messages_what_the_assistant_says_is_scored(tmp_path):
    """A call, the tool's answer, and what is made of it: as much less as the tool says, whatever that is."""
    folder = tiny.write_model(tmp_path / "model", vocab_size=480)
    templates.write(folder, templates.TEMPLATES["Llama-3.1"], eos=templates.end_of("Llama-3.1"))
    call = {"type": "function", "function": {"name": "think", "arguments": {"Where": "Jul"}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call]}

    def answer(heard):
        return [calls, {"role": "tool", "content": heard}, {"role": "assistant", "content": "Today"}]

    rows = [{"prompt": "Where", "chosen": answer("26"), "rejected": answer("26 Jul 2024 call call call")}]
    (line,) = scored(folder, tmp_path, rows)
    chat = Chat(Tokenizer(folder))
    (record,) = read_records(tmp_path / "rows.jsonl", roles=chat.roles)
    (cut,) = encode([record], chat, Limits(), n_ids=480)
    sides = [[int(flags.sum()), len(flags)] for flags in cut.example.predicted]
    assert (line["tokens/chosen"], line["tokens/rejected"]) == (sides[0][0], sides[1][0])
    assert sides[0][0] == sides[1][0] < sides[0][1] < sides[1][1]
    model, values = tiny.random_llama(vocab_size=480).double(), []
    with torch.no_grad():
        for logps, flags in zip(padded_token_logps(model, [cut.example]), cut.example.predicted, strict=True):
            values.append(logps[torch.from_numpy(flags)].sum().item())
    assert [line["logps/chosen"], line["logps/rejected"]] == pytest.approx(values, abs=5e-3)
