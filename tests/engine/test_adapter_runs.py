"""Runs of an adapter that stop and go on, in stages, with a reference that moves, with a table that others share."""

import pytest
import torch
from safetensors.torch import load_file

from engine import train
from tests.engine.adapter_folders import config_of, run_of, write_folders
from tests.metrics import lines, values_of

pytestmark = pytest.mark.slow  # the fast set has tests/engine/test_adapters.py and test_adapter_references.py


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("runs"))


def numbers(found):
    return [values_of(line) for line in found]


STARTS = {"fresh": {"epochs": 2}, "given": {"epochs": 2, "lora_rank": None, "adapter": "adapter"}}


def start_of(made, name):
    return {key: str(made / value) if key == "adapter" else value for key, value in STARTS[name].items()}


@pytest.mark.parametrize("reference", ["fused", "precompute"])
@pytest.mark.parametrize("start", STARTS)
def test_the_log_ratio_is_0_where_the_reference_is_the_start(made, tmp_path, start, reference):
    first = run_of(made, tmp_path / "run", reference=reference, max_steps=1, **start_of(made, start))[0]
    for side in ("chosen", "rejected"):
        assert abs(first[f"logratios/{side}"]) <= (0 if reference == "fused" else 1e-5)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(made, tmp_path, start, after):
    """Within the first epoch, while the reference is computed, and behind it."""
    more = start_of(made, start)
    calm = run_of(made, tmp_path / "calm", **more)
    assert not train.run(config_of(made, tmp_path / "hard", stop_after=after, **more)).is_finished
    hard = run_of(made, tmp_path / "hard", resume=True, **more)
    assert numbers(hard) == numbers(calm) and len(calm) == 4
    for name in ("epoch-01", "epoch-02"):
        both = (load_file(tmp_path / run / name / "adapter_model.safetensors") for run in ("calm", "hard"))
        for ours, theirs in zip(*(sorted(tensors.items()) for tensors in both), strict=True):
            assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])


def test_a_reference_that_moves_takes_the_policys_adapter_and_goes_on_with_it(made, tmp_path):
    moves = {"epochs": 2, "reference_update": "hard", "reference_update_steps": 2}
    calm = run_of(made, tmp_path / "calm", **moves)
    apart = [abs(line["logratios/chosen"]) for line in calm]
    assert apart[0] == 0 and apart[1] > 1e-3 and apart[2] == 0 and apart[3] > 1e-3  # it has moved behind step 2
    assert not train.run(config_of(made, tmp_path / "hard", stop_after=3, **moves)).is_finished
    assert numbers(run_of(made, tmp_path / "hard", resume=True, **moves)) == numbers(calm)


def test_a_stage_begins_with_the_adapter_of_the_one_before_and_is_measured_against_it(made, tmp_path):
    train.run(config_of(made, tmp_path / "run", stages=2))
    first, second = (lines(tmp_path / f"run/stage-0{i}") for i in (1, 2))
    assert len(first) == len(second) == 1 and second[0]["logratios/chosen"] == 0
    written = [load_file(tmp_path / f"run/stage-0{i}/epoch-01/adapter_model.safetensors") for i in (1, 2)]
    assert all(tensor.shape == written[1][name].shape for name, tensor in written[0].items())
    moved = [float((written[1][name] - tensor).abs().max()) for name, tensor in written[0].items()]
    assert 0 < max(moved) < 0.5


def test_a_table_of_the_base_is_shared_by_all_runs_on_it_and_by_no_other(made, tmp_path, capsys):
    """By one of all weights and a fresh adapter's; not by a base that is quantised, nor by a given start."""
    cache = {"reference_cache": str(tmp_path / "cache")}
    run_of(made, tmp_path / "whole", lora_rank=None, lr=1e-5, **cache)
    capsys.readouterr()
    said = {}
    for name, more in {"fresh": {}, "int8": {"base_dtype": "int8"}, "given": start_of(made, "given")}.items():
        run_of(made, tmp_path / name, **more, **cache)
        said[name] = capsys.readouterr().err
    assert "computed in this run" not in said["fresh"]
    assert all("computed in this run" in said[name] for name in ("int8", "given"))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3
