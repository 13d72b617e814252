"""What a run has to have in common with the one that it goes on with: nothing that decides its numbers is left out."""

import json

import pytest
import torch

import engine
from data.rows.records import Ratings
from engine.config import FLAGS, TrainConfig
from engine.run.identity import CONTENT, DAY, FREE, LATER, LATER_ARGUMENTS, OF_ROWS, SAME_NUMBERS, compare, identity
from engine.step import Objective
from engine.weights import save
from system import InputError
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity") / "model"
    save(tiny.random_llama(), folder)
    return folder


ROWS = tiny.random_examples([(3, 2, 4), (5, 1, 6)])


def made(folder, *, rows=ROWS, heldout=(), settings=None, dtype=torch.float32, is_split=False, **flags):
    asked = TrainConfig(**{"model": "m", "data": "d", "out": "o"} | flags)
    return identity(asked, settings or {"beta": 0.1}, folder, rows, heldout, dtype=dtype, is_split=is_split)


def differs(folder, **named):
    """The names under which an identity is another."""
    before, now = made(folder), made(folder, **named)
    return {name for name in before | now if before.get(name) != now.get(name)}


def test_every_setting_is_in_it_but_those_that_may_change(model):
    """A setting that is added decides the run until somebody says that it does not."""
    called = {"disable": "without", "master_weights": "master"}
    left_out = {*FREE, *CONTENT, *LATER, *OF_ROWS, "hyperparameters"}
    known = {called.get(name, name) for name in FLAGS if name not in left_out}
    assert known | {"weights", "rows", "held-out rows", "torch", "program"} == set(made(model)) | {"beta"}
    assert {*FREE, *CONTENT, *LATER} <= {*FLAGS, "model", "out", "config"}


def test_hyperparameters_that_came_later_are_in_it_where_they_are_given(model):
    plain = made(model, settings=Objective("kto_pair").settings)
    assert "kto_pair.detach" in plain and "kto_pair.anchor_size" not in plain
    given = Objective("kto_pair", hyperparameters={"kto_pair.anchor_size": "2"}).settings
    assert made(model, settings=given)["kto_pair.anchor_size"] == "2"
    assert {name.partition(".")[2] for name in LATER_ARGUMENTS} <= set(Objective("kto_pair").terms[0].arguments)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"lr": 1e-6}, "lr"),
        ({"batch_size": 3}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"disable": ("packing",)}, "without"),  # as release 0.1 called it
        ({"settings": {"beta": 0.2}}, "beta"),
        ({"dtype": torch.bfloat16}, "dtype"),
        ({"is_split": True}, "master"),
        ({"rows": ROWS[::-1]}, "rows"),
        ({"rows": ROWS[:1]}, "rows"),
        ({"heldout": ROWS}, "held-out rows"),
        ({"max_response_tokens": 511}, "max_response_tokens"),
        ({"chat_template_kwargs": "enable_thinking=false"}, "chat_template_kwargs"),
        ({"schedule": "cosine"}, "schedule"),
        ({"min_lr_ratio": 0.1}, "min_lr_ratio"),
        ({"schedule": "wsd", "decay_ratio": 0.2}, "decay_ratio"),
        ({"optimizer": "adamw", "weight_decay": 0.1}, "weight_decay"),
        ({"optimizer": "adamw", "adam_beta2": 0.95}, "adam_beta2"),
    ],
)
def test_what_decides_the_numbers_is_in_it(model, flags, name):
    both = {"schedule": "wsd"} if name == "decay_ratio" else {"optimizer": "adamw"} if "optimizer" in flags else {}
    assert differs(model, **flags) == {name, *both}


@pytest.mark.parametrize(
    "flags",
    [
        {"out": "p"},
        {"model": "n", "data": "e"},  # what is in them counts, not their names
        {"micro_tokens": 7},
        {"state_every": 3},
        {"keep_checkpoints": 2},
        {"hang_timeout": 5.0},
        {"resume": True},
        {"save_dtype": "float16"},
        {"beyond_context": True},
        {"max_prompt_tokens": 512, "max_response_tokens": 512},
    ],
)
def test_what_changes_no_number_is_not(model, flags):
    assert differs(model, **flags) == set()


def test_limits_are_those_that_hold_as_runs_have_written_them_before_there_was_one_of_all_tokens(model):
    before = made(model)
    assert (before["max_prompt_tokens"], before["max_response_tokens"]) == ("512", "512") and "max_tokens" not in before
    together = made(model, max_tokens=1024, max_prompt_tokens=300)
    names = ("max_tokens", "max_prompt_tokens", "max_response_tokens")
    assert [together[name] for name in names] == ["1024", "300", "None"]


@pytest.mark.parametrize(
    "row",
    [
        ROWS[0]._replace(label=True),
        ROWS[0]._replace(ratings=Ratings(own=0.5)),
        ROWS[0]._replace(ratings=Ratings(fields=(("lead", 0.5),))),
        ROWS[0]._replace(prompt=ROWS[0].prompt[:-1]),
        ROWS[0]._replace(responses=ROWS[0].responses[::-1]),
    ],
)
def test_labels_numbers_and_token_ids_of_rows_count_and_their_lines_do_not(model, row):
    assert differs(model, rows=[row, ROWS[1]]) == {"rows"}
    assert differs(model, rows=[ROWS[0]._replace(location="elsewhere:7"), ROWS[1]]) == set()


def test_weights_and_program_count(model, tmp_path):
    save(tiny.random_llama(seed=1), tmp_path / "other")
    before, now = made(model), made(tmp_path / "other")
    assert {name for name in before if before[name] != now[name]} == {"weights"}
    assert before["program"] == engine.__version__ and before["torch"] == torch.__version__.split("+")[0]


def test_a_run_that_is_the_same_goes_on_and_one_that_is_not_is_told_every_difference(tmp_path):
    path = tmp_path / "identity.json"
    path.write_text(json.dumps({"lr": "1", "seed": "0", "gone": "x"}))
    compare(path, tmp_path, {"lr": "1", "seed": "0", "gone": "x"})
    with pytest.raises(InputError) as fault:
        compare(path, tmp_path, {"lr": "2", "seed": "0", "new": "y"})
    assert str(fault.value) == (
        f"{tmp_path}: --resume would resume another run (lr: 1 -> 2; new: None -> y; gone: x -> None); "
        "give the settings that it was started with, or another --out"
    )


def test_how_long_a_row_may_be_is_another_default_now_and_no_other_run(model, tmp_path):
    path, now = tmp_path / "identity.json", made(model, max_row_mb=7)
    assert "max_row_mb" not in now
    path.write_text(json.dumps(now | {"max_row_mb": "64"}))  # as releases before wrote it down
    compare(path, tmp_path, now)
    path.write_text(json.dumps(now | {"max_rows_mb": "64"}))
    with pytest.raises(InputError, match="max_rows_mb: 64 -> None"):
        compare(path, tmp_path, now)


def test_a_run_of_another_day_is_another_and_one_that_wrote_none_down_goes_on(tmp_path):
    path = tmp_path / "identity.json"
    path.write_text(json.dumps({DAY: "2024-07-26"}))
    with pytest.raises(InputError, match="template date: 2024-07-26 -> 2024-07-27"):
        compare(path, tmp_path, {DAY: "2024-07-27"})
    path.write_text("{}")
    compare(path, tmp_path, {DAY: "2024-07-27"})


def test_a_run_whose_warm_up_began_above_0_is_not_gone_on_with(model, tmp_path):
    """Release 0.1 wrote warmup_steps down, and that the rate was lr / (steps + 1) in the first nowhere."""
    path, now = tmp_path / "identity.json", made(model, warmup_steps=3)
    assert now["warm-up"] == "from 0" and made(model, warmup_ratio=0.1)["warm-up"] == "from 0"
    path.write_text(json.dumps(now))
    compare(path, tmp_path, now)
    path.write_text(json.dumps({name: value for name, value in now.items() if name != "warm-up"}))
    with pytest.raises(InputError) as fault:
        compare(path, tmp_path, now)
    assert str(fault.value).startswith(f"{tmp_path}: was begun by a release whose warm-up started at lr / (steps + 1)")
    path.write_text(json.dumps(made(model)))  # of one without, as a run without one has it now
    compare(path, tmp_path, made(model))


def test_settings_that_came_later_are_left_out_at_the_values_that_were_all_there_was(model):
    assert not {"schedule", "min_lr_ratio", "warmup_ratio", "decay_ratio", "warm-up"} & set(made(model))
    assert not {"adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay"} & set(made(model, optimizer="adamw"))


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_damaged_identity_is_refused(tmp_path, text):
    (tmp_path / "identity.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"identity\.json: damaged; start again with another --out"):
        compare(tmp_path / "identity.json", tmp_path, {})


def test_runs_of_versions_that_compute_the_same_go_on(tmp_path):
    path = tmp_path / "identity.json"
    for program in SAME_NUMBERS:
        path.write_text(json.dumps({"program": program}))
        compare(path, tmp_path, {"program": "9.9"})
    path.write_text(json.dumps({"program": "0.0.1"}))
    with pytest.raises(InputError, match=r"program: 0\.0\.1 -> 9\.9"):
        compare(path, tmp_path, {"program": "9.9"})
