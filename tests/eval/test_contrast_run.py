"""How much the pairs of a run differ, by the command that measures it after training: rows are read as the run did."""

import json

import pytest

from eval import contrast_run
from system.errors import InputError
from tests import tiny

PAIR = {"prompt": "Name a bird.", "chosen": "The heron.", "rejected": "The otter."}
TEXTS = ["Name a bird. The heron. The otter."] * 10


def run_of(tmp_path, rows, **settings):
    """A run's folder, which has ended."""
    run = tmp_path / "run"
    run.mkdir()
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    lines = [f"model: {settings.pop('model', tmp_path / 'gone')}", f"data: [{data}]"]
    (run / "config.yaml").write_text("\n".join([*lines, *(f"{k}: {v}" for k, v in settings.items())]) + "\n")
    return run


def found(run):
    return {line["metric"]: line["value"] for line in contrast_run.measure(run)}


def test_columns_are_called_and_bad_rows_skipped_as_the_run_had_it(tmp_path):
    rows = [{"prompt": "Name a bird.", "best": "The heron.", "worst": "The otter."}, {"prompt": "No answers."}]
    run = run_of(tmp_path, rows, columns="'chosen=best,rejected=worst'", skip_bad_rows="true")
    values = found(run)
    assert values["pairs"] == 1 and values["Jaccard of words, %"] == pytest.approx(100 / 3)
    written = [json.loads(line) for line in (run / "eval/scores.jsonl").read_text().splitlines()]
    assert {line["metric"]: line["value"] for line in written} == values
    text = (run / "config.yaml").read_text()
    for without, said in (
        ("skip_bad_rows: true\n", "rows.jsonl:2"),
        ("columns: 'chosen=best,rejected=worst'\n", "no row can be used"),
    ):
        (run / "config.yaml").write_text(text.replace(without, ""))
        with pytest.raises(InputError, match=said):
            found(run)


def test_token_ids_are_read_as_the_models_text(tmp_path):
    model = tiny.write_model(tmp_path / "model", TEXTS)
    from data.text import Tokenizer

    encode = Tokenizer(model).encode
    ids = dict(zip(PAIR, encode(list(PAIR.values())), strict=True))
    rows = [{f"{name}_ids": x for name, x in ids.items()}]
    of_ids = found(run_of(tmp_path, rows, model=model))
    (tmp_path / "text").mkdir()
    assert of_ids == found(run_of(tmp_path / "text", [PAIR], model=model)) and "Jaccard of tokens, %" in of_ids


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}, "a pair of token ids"),
        ({"prompt": "Name a bird.", "completion": "The heron.", "label": True}, "not a pair"),
    ],
)
def test_rows_that_have_no_contrast_are_refused_and_nothing_is_written(tmp_path, row, said):
    run = run_of(tmp_path, [row] * 2)
    with pytest.raises(InputError, match=rf"rows.jsonl:1: {said}"):
        contrast_run.measure(run)
    assert not (run / "eval").exists()
