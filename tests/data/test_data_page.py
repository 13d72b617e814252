"""docs/data.md: every row of its tables is read as the page says, and nothing that it says is lost."""

import json
import re
from pathlib import Path

import pytest

from data.rows.forms import parse_record
from data.rows.record import Record
from data.rows.sources import Reading

PAGE = Path(__file__).parents[2] / "docs/data.md"
KINDS = {"pair": "pairs", "ranked": "ranked", "labelled completion": "unpaired", "completion": "single"}
NOT_SAID = {"role", "from", "user", "assistant", "system", "human", "gpt", "function", "type", "text", "object"}


def table(title):
    """(first cell, row, last cell) of each line of the table under a line that begins so."""
    lines = PAGE.read_text().split(title, 1)[1].split("\n\n")[1].splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return [pytest.param(json.loads(row.strip("`")), last, id=first) for first, row, last in cells]


FORMS = table("`--columns chosen=winner,rejected=loser`.")
BESIDE = table("These fields may stand beside any form of text")


def leaves(value):
    """The texts in a row; those written as JSON count by what stands in them."""
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    if isinstance(value, (dict, list)):
        return {leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves(item)}
    return {value.strip()} if isinstance(value, str) else set()


def said(record: Record) -> str:
    """All that a record holds, as one text."""
    return json.dumps([record.prompt, record.responses, record.context, record.ratings.numbers()], default=str)


def test_the_page_has_the_forms_that_its_sources_name():
    names = " ".join(param.id for param in FORMS)
    for name in (
        "HH",
        "axolotl",
        "LLaMA-Factory",
        "sharegpt",
        "ms-swift",
        "OpenAI",
        "HelpSteer3",
        "UltraFeedback",
        "Nectar",
    ):
        assert name in names
    assert {param.values[1] for param in FORMS} == set(KINDS)


@pytest.mark.parametrize(("row", "kind"), FORMS)
def test_a_row_of_each_form_is_read_as_the_page_says(row, kind):
    record = parse_record(row, "rows.jsonl:1", reading=Reading(ranked=kind == "ranked"))
    assert record.form == KINDS[kind] and record.unused == ()
    if record.is_tokenised:
        assert (record.prompt, record.responses) == ((1, 2), ((3, 4), (5,)))
        return
    assert record.texts[0] == "4" and record.messages[-1].content.endswith("2+2" + "?" * ("Add." not in str(row)))
    assert record.texts[1:2] in ((), ("5",), ("four",)) and record.label == (True if "label" in kind else None)
    found = said(record)
    for leaf in leaves(row) - NOT_SAID:
        for text in re.split("Human:|Assistant:", leaf):
            assert json.dumps(text.strip())[1:-1] in found


@pytest.mark.parametrize(("row", "what"), BESIDE)
def test_what_stands_beside_a_form_is_read_as_the_page_says(row, what):
    record = parse_record(row, "rows.jsonl:1")
    assert record.form == "pairs" and record.unused == ()
    found = said(record)
    for leaf in leaves(row) - NOT_SAID:
        assert json.dumps(leaf)[1:-1] in found
    for name in {"chosen_score"} & row.keys():
        assert record.ratings.scores == (row[name], row["rejected_score"])
