"""What a folder has beside what trains goes through a run byte for byte; fused matrices go by rows."""

import json
import shutil
import threading
import zlib

import pytest
import torch

from engine import convert, publish, train, weights
from engine.config import TrainConfig
from engine.step import Hooks
from engine.weights import Cast, hash_of, round_stochastically
from system import InputError
from tests import tiny
from tests.engine import folders
from tests.engine.kills import outcome
from tests.rows import id_rows

LAYOUTS = {"hub": folders.HUB, "inside": folders.INSIDE}
RAW = {"phi3": folders.PHI3, "apertus": folders.APERTUS, "gemma3": folders.GEMMA3, "mistral3": folders.MISTRAL3}


def same(found, expected):
    """Whether two tensors are the same bits of the same dtype and shape."""
    as_bytes = (found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(*as_bytes)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not same(found[name], expected[name])] == []


def is_carried(name):
    return "vision_tower." in name or "multi_modal_projector." in name or name.endswith(("act_fn.beta", "act_fn.eps"))


class OneOfTwo:
    """A rank of two, as `weights.save` sees it: halves of every parameter's rows, and a disk that both see."""

    holds_first_copy = True

    def __init__(self, rank, meeting, sees):
        self.rank, self.is_rank0, self._meeting, self._sees = rank, rank == 0, meeting, sees

    def local(self, parameter):
        n = -(-len(parameter) // 2)
        first = min(len(parameter), self.rank * n)
        return parameter[first : first + n], first

    def full_tensor(self, parameter):
        return parameter

    def all_see(self, folder):
        self._meeting.wait(60)
        return self._sees

    def wait(self):
        self._meeting.wait(60)


def save_by_two(folder, out, cast, *, sees=True):
    """The second one has read nothing of what it does not write."""
    meeting, models = threading.Barrier(2), [weights.load(folder), weights.load(folder)]
    models[1].carried = weights.read_carried(models[1], with_bytes=False)
    parts = [OneOfTwo(rank, meeting, sees) for rank in range(2)]
    threads = [
        threading.Thread(target=lambda r=r: weights.save(models[r], out, cast=cast, parts=parts[r])) for r in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_fused_matrices_are_read_by_rows(tmp_path):
    folder = folders.write(tmp_path / "phi3", folders.PHI3)
    expected, model = folders.stored(folder), weights.load(folder)
    for k, block in enumerate(model.blocks):
        qkv, up = (expected[f"model.layers.{k}.{name}_proj.weight"] for name in ("self_attn.qkv", "mlp.gate_up"))
        assert torch.equal(block.attention.q.weight, qkv[:24]) and torch.equal(block.attention.k.weight, qkv[24:32])
        assert torch.equal(block.attention.v.weight, qkv[32:])
        assert torch.equal(block.mlp.gate.weight, up[:13]) and torch.equal(block.mlp.up.weight, up[13:])


@pytest.mark.parametrize("family", RAW)
def test_a_folder_is_written_as_it_was_read(family, tmp_path):
    folder = folders.write(tmp_path / family, RAW[family])
    weights.save(weights.load(folder), tmp_path / "one")
    assert_same(folders.stored(tmp_path / "one"), folders.stored(folder))
    for name, sees in (("two", True), ("apart", False)):
        save_by_two(folder, tmp_path / name, Cast(dtype=torch.float32), sees=sees)
        assert (tmp_path / name / "model.safetensors").read_bytes() == (tmp_path / "one/model.safetensors").read_bytes()


def test_a_fused_matrix_is_rounded_stochastically_by_its_own_rows(tmp_path):
    folder = folders.write(tmp_path / "phi3", folders.PHI3)
    cast = Cast(dtype=torch.bfloat16, rounding="stochastic", seed=7)
    weights.save(weights.load(folder), tmp_path / "one", cast=cast)
    convert.convert(folder, tmp_path / "converted", cast)
    save_by_two(folder, tmp_path / "two", cast)
    found = folders.stored(tmp_path / "one")
    for name, whole in folders.stored(folder).items():
        key = hash_of(zlib.crc32(name.encode()), 7)
        expected = round_stochastically(whole.reshape(-1), torch.arange(whole.numel()), key).view(whole.shape)
        assert same(found[name], expected), name
    for other in ("two", "converted"):
        assert_same(folders.stored(tmp_path / other), found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("family", "layout"), [("gemma3", "hub"), ("gemma3", "inside"), ("apertus", "hub")])
def test_what_does_not_train_keeps_its_bits_whatever_the_rest_is_stored_in(family, layout, dtype, tmp_path):
    folder = folders.write(tmp_path / "model", RAW[family], layout=LAYOUTS[layout])
    (folder / "preprocessor_config.json").write_text('{"image_size": 8}')
    expected, dtype = folders.stored(folder), getattr(torch, dtype)
    weights.save(weights.load(folder), tmp_path / "saved", dtype=dtype)
    convert.convert(folder, tmp_path / "converted", Cast(dtype=dtype))
    for out in (tmp_path / "saved", tmp_path / "converted"):
        found = folders.stored(out)
        assert sum(map(is_carried, found)) == (4 if family == "apertus" else 5)
        assert_same(found, {n: x if is_carried(n) else x.to(dtype) for n, x in expected.items()})
        assert (out / "preprocessor_config.json").read_text() == '{"image_size": 8}'
        publish.check(out)
    assert convert.survival(folder, folder, tmp_path / "converted") is None


def test_two_layouts_are_compared_name_by_name(tmp_path):
    base = folders.write(tmp_path / "base", folders.GEMMA3)
    trained = weights.load(folders.write(tmp_path / "trained", folders.GEMMA3, layout=folders.INSIDE))
    with torch.no_grad():
        trained.norm.weight.add_(0.5)
    weights.save(trained, tmp_path / "after")
    found = convert.survival(base, tmp_path / "after", tmp_path / "after")
    assert found is not None and found.share == 1 and found.noise == 0
    assert found.moved == pytest.approx(24 / trained.config.n_parameters)


def test_config_json_is_written_back_but_for_the_dtype_of_what_trains(tmp_path):
    folder = folders.write(tmp_path / "model", folders.GEMMA3)
    weights.save(weights.load(folder), tmp_path / "out", dtype=torch.bfloat16)
    expected = json.loads((folder / "config.json").read_text())
    expected["torch_dtype"] = expected["text_config"]["torch_dtype"] = "bfloat16"
    found = json.loads((tmp_path / "out/config.json").read_text())
    assert found == expected and found["vision_config"]["torch_dtype"] == "bfloat16"


def test_a_wrapper_has_a_head_of_its_own_where_its_folder_has(tmp_path):
    """The outer tie_word_embeddings counts, true where absent, but for heads that differ: as in transformers."""
    made = folders.tensors_of(folders.MISTRAL3)["embed_tokens.weight"]
    for name, head, says, is_tied in (
        ("none", None, {}, True), ("equal", made, {}, True), ("own", made + 1, {}, False),
        ("own, said to be tied", made + 1, {"tie_word_embeddings": True}, False),
        ("equal, said to be two", made, {"tie_word_embeddings": False}, False),
    ):  # fmt: skip
        folder = folders.write(tmp_path / name, folders.MISTRAL3 | says, head=None if head is None else head.clone())
        model = weights.load(folder)
        assert (name, model.config.tied) == (name, is_tied)
        weights.save(model, tmp_path / f"{name} again")
        expected = folders.stored(folder)
        if is_tied:
            expected.pop("language_model.lm_head.weight", None)
        assert_same(folders.stored(tmp_path / f"{name} again"), expected)
    folder = folders.write(tmp_path / "lacks", folders.MISTRAL3 | {"tie_word_embeddings": False})
    with pytest.raises(InputError, match=r"is false, and no language_model\.lm_head\.weight is there"):
        weights.load(folder)


def test_a_folder_that_cannot_see_is_taken_with_a_sentence(tmp_path, capsys):
    folder = folders.write(tmp_path / "blind", folders.GEMMA3, sees=False)
    weights.save(weights.load(folder), tmp_path / "out")
    assert_same(folders.stored(tmp_path / "out"), folders.stored(folder))
    said = capsys.readouterr().err
    assert said.count(f"{folder}: lacks vision_tower and multi_modal_projector, which config.json says") == 1


def test_an_activation_without_its_constants_is_refused(tmp_path):
    folder = folders.write(tmp_path / "apertus", folders.APERTUS)
    kept = {name: x for name, x in folders.stored(folder).items() if not is_carried(name)}
    folders.save_file(kept, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks model\.layers\.0\.mlp\.act_fn\.beta and 3 more"):
        weights.load(folder)


def test_the_dtypes_of_what_trains_are_told_apart_from_what_is_carried(tmp_path):
    folder = folders.write(tmp_path / "model", folders.GEMMA3, dtype=torch.bfloat16)
    stored = weights.stored_dtypes(folder)
    assert (stored.main, stored.others, stored.extra_bytes) == (torch.bfloat16, {}, 0)
    assert stored.carried_bytes == 15 * (2 + 4 + 8 + 1 + 2)


@pytest.fixture
def go(tmp_path):
    """A function that runs a training of 2 epochs of 2 steps in a folder by name."""
    data = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(8))

    def run(name, hooks=None, **changes):
        settings = {"model": str(tmp_path / "model"), "data": str(data), "lr": 1e-3, "batch_size": 4, "epochs": 2}
        return train.run(TrainConfig(**settings | {"out": str(tmp_path / name)} | changes), hooks or Hooks())

    run.tmp = tmp_path
    return run


SLOW = pytest.mark.slow
CASES = [
    ("gemma3", "hub", "source"), pytest.param("gemma3", "inside", "bfloat16", marks=SLOW),
    pytest.param("mistral3", "inside", "float32", marks=SLOW), pytest.param("apertus", "hub", "source", marks=SLOW),
    pytest.param("phi3", "hub", "source", marks=SLOW),
]  # fmt: skip


@pytest.mark.parametrize(("family", "layout", "saves"), CASES)
def test_a_folder_that_changes_or_goes_away_changes_nothing(family, layout, saves, go, capsys):
    folder = folders.write(go.tmp / "model", RAW[family], layout=LAYOUTS[layout])
    before, planned = folders.stored(folder), []

    def change(training, step):
        planned.append(training.plan.checkpoint_bytes)
        changed = {name: torch.zeros_like(x) if is_carried(name) else x for name, x in before.items()}
        folders.save_file(changed, folder / "model.safetensors")

    go("whole", save_dtype=saves)
    go("changed", Hooks(after_step=change), save_dtype=saves)
    folders.save_file(before, folder / "model.safetensors")
    go("stopped", save_dtype=saves, stop_after=3)
    shutil.rmtree(folder)
    go("stopped", save_dtype=saves, resume=True)
    assert f"{folder}: no such folder; what {go.tmp / 'stopped'} has kept of it is used" in capsys.readouterr().err
    assert outcome(go.tmp / "changed") == outcome(go.tmp / "whole") == outcome(go.tmp / "stopped")
    found = folders.stored(go.tmp / "whole/epoch-02")
    assert found.keys() == before.keys() and planned[0] == folders.n_bytes(go.tmp / "whole/epoch-02")
    for name, tensor in found.items():
        if is_carried(name):
            assert same(tensor, before[name])
        else:
            assert tensor.dtype == (torch.bfloat16 if saves == "bfloat16" else torch.float32)
            assert not torch.equal(tensor.float(), before[name])  # it has trained
