"""Where the reference's log-probs come from: the table, its file, what fits and what is refused, how it follows."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file

from data.forest import pack
from engine.config import DataConfig, ScheduleConfig, TrainConfig
from engine.distributed import Ranks
from engine.model import FusedForward
from engine.step import (
    Cache,
    MicroBatching,
    Objective,
    ReferenceLogps,
    ReferenceValues,
    Steps,
    check_shared,
    fill_reference,
    fingerprint,
    follow_reference,
    modes,
    release_reference,
)
from engine.weights import save
from losses import Result, TokenResponses, loss
from system import InputError
from tests import tiny


def config(tmp_path, **flags):
    return TrainConfig(**{"model": "m", "data": "d", "out": str(tmp_path / "run")} | flags)


def step(*ids, number=1):
    return SimpleNamespace(ids=list(ids), number=number)


def table(tmp_path, *, mode="fused", objective="dpo", shape=(4, 2), made_of="these weights", **flags):
    asked = config(tmp_path, **flags)
    Path(asked.out).mkdir(exist_ok=True)
    return ReferenceLogps(
        mode,
        tiny.random_examples([(3, *(2 + (i + k) % 3 for k in range(shape[1]))) for i in range(shape[0])]),
        shape[1],
        Objective(objective),
        Cache.of(Path(asked.out), asked.reference.cache, lambda: made_of),
        moves=asked.reference.update != "none",
        keeps=asked.measuring.keeps_reference,
    )


def modes_of(asked, objective):
    return modes(asked.reference, Objective(objective), keeps=asked.measuring.keeps_reference)


ROWS = torch.arange(8, dtype=torch.float64).view(4, 2) - 0.1


# --- the table -----------------------------------------------------------------------------------------------------


def test_a_step_is_known_when_all_of_its_rows_are(tmp_path):
    found = table(tmp_path)
    assert found.known(step(0, 2)) is None and not found.is_complete
    found.remember(step(2, 0), ReferenceValues(ROWS[[2, 0]]))
    assert torch.equal(found.known(step(0, 2)).logps, ROWS[[0, 2]]) and found.known(step(0, 1)) is None
    found.remember(step(1, 3), ReferenceValues(ROWS[[1, 3]]))
    assert torch.equal(found.values["ref_logps"], ROWS) and found.is_complete and found.is_final
    found.forget()
    assert found.known(step(0, 2)) is None and not found.is_complete


def test_kto_keeps_what_is_of_its_rows_and_the_model_for_the_mismatched_sequences(tmp_path):
    found = table(tmp_path, objective="kto", shape=(4, 1))
    found.remember(step(0, 1, 2, 3), ReferenceValues(ROWS[:, :1]))
    assert found.is_complete and not found.is_final and torch.equal(found.known(step(2)).logps, ROWS[[2], :1])
    assert found.read(Ranks()) == "computed in this run; mismatched sequences in every step"


@pytest.mark.parametrize("named", [{"mode": "none"}, {"disable": ("reference-cache",)}])
def test_what_cannot_be_kept_is_forgotten_at_once(tmp_path, named):
    found = table(tmp_path, **named)
    found.remember(step(0, 1, 2, 3), ReferenceValues(ROWS[:, : found.values["ref_logps"].shape[1]]))
    assert not found.is_kept and found.known(step(0)) is None and not found.is_complete
    assert found.read(Ranks()) == "not kept" and found.is_used == (named.get("mode") != "none")


def test_a_reference_that_follows_is_kept_until_it_moves_and_never_final(tmp_path):
    found = table(tmp_path, reference_update="hard")
    found.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
    assert found.is_complete and not found.is_final and found.read(Ranks()) == "kept until it moves"


def test_a_table_of_tokens_has_a_number_for_each_and_gives_their_sums(registered, tmp_path):
    @loss("seeing", data="pairs", level="token", reference=True, needs=("ref_entropy",))
    def seeing(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        return Result(chosen.per_sequence(chosen.logratios), chosen.lengths, rejected.lengths)

    found = table(tmp_path, objective="seeing")  # responses of 2 3, 3 4, 4 2 and 2 3 tokens
    assert {name: len(values) for name, values in found.values.items()} == {"ref_logps": 23, "ref_entropy": 23}
    values = torch.arange(18, dtype=torch.float64) / 4
    given = ReferenceValues(torch.zeros(3, 2), {"ref_logps": values, "ref_entropy": -values})
    found.remember(step(3, 1, 2), given)
    assert found.known(step(0)) is None and not found.is_complete
    known = found.known(step(2, 3))
    assert torch.equal(known.tokens["ref_logps"], torch.cat([values[12:], values[:5]]))
    assert torch.equal(known.tokens["ref_entropy"], -known.tokens["ref_logps"])
    sums = [[values[12:16].sum().item(), values[16:].sum().item()], [values[:2].sum().item(), values[2:5].sum().item()]]
    assert known.logps.tolist() == sums


# --- its file ------------------------------------------------------------------------------------------------------


def test_what_a_run_wrote_it_and_others_read(tmp_path):
    first = table(tmp_path, reference_cache=str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    first.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
    first.write()
    shared = tmp_path / "shared" / f"{'these weights'[:32]}.safetensors"
    assert shared.exists() and (tmp_path / "run/reference.safetensors").exists()
    with safe_open(shared, "pt") as file:
        assert torch.equal(file.get_tensor("ref_logps"), ROWS)
        digest = hashlib.sha256(ROWS.numpy().tobytes()).hexdigest()
        assert file.metadata() == {"fingerprint": "these weights", "sha256": digest}
    other = table(tmp_path, reference_cache=str(tmp_path / "shared"), out=str(tmp_path / "other"))
    assert other.read(Ranks()) == f"taken from {shared}" and torch.equal(other.values["ref_logps"], ROWS)
    again = table(tmp_path)
    assert again.read(Ranks()) == f"taken from {tmp_path / 'run/reference.safetensors'}" and again.is_final


def test_the_same_table_has_the_same_bytes(tmp_path):
    """The library alone writes two metadata in either order."""
    made = set()
    for i in range(24):
        one = table(tmp_path, out=str(tmp_path / f"run-{i}"))
        one.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
        one.write()
        made.add((tmp_path / f"run-{i}/reference.safetensors").read_bytes())
    facts = {"fingerprint": "these weights", "sha256": "0" * 64}
    assert len({save_bytes({"ref_logps": ROWS}, facts) for _ in range(64)}) == 2
    assert len(made) == 1


def written(tmp_path, values=ROWS, fingerprint="these weights", digest=None, name="ref_logps"):
    (tmp_path / "run").mkdir(exist_ok=True)
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest() if digest is None else digest
    facts = {"fingerprint": fingerprint, "sha256": digest}
    save_file({name: values}, tmp_path / "run/reference.safetensors", facts)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"fingerprint": "others"}, "was computed from other weights, rows, limits or dtype: computed again"),
        ({"values": ROWS[:3].clone()}, "was computed from other weights, rows, limits or dtype: computed again"),
        ({"values": ROWS.float()}, "was computed from other weights, rows, limits or dtype: computed again"),
        ({"digest": "0" * 64}, "is damaged: computed again"),
        ({"values": ROWS.clone().index_fill(0, torch.tensor([2]), torch.nan)}, "is damaged: computed again"),
        ({"name": "another"}, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_not_used_and_said_why(tmp_path, named, said):
    written(tmp_path, **named)
    found = table(tmp_path)
    assert said in found.read(Ranks()) and found.values["ref_logps"].isnan().all()


def test_a_file_that_fits_is_used_though_another_does_not(tmp_path):
    written(tmp_path)
    shared = tmp_path / "other.safetensors"
    shared.write_bytes(b"nothing")
    found = table(tmp_path, reference_cache=str(shared))
    assert found.read(Ranks()).startswith("taken from") and torch.equal(found.values["ref_logps"], ROWS)


def test_a_table_is_taken_by_all_ranks_or_by_none(tmp_path):
    written(tmp_path)
    found = table(tmp_path)
    of_two = SimpleNamespace(size=2, all_reduce_sum=lambda mine: mine)  # the other has found none
    found.read(of_two)
    assert found.values["ref_logps"].isnan().all()


def test_a_run_whose_table_cannot_be_shared_says_so_and_keeps_its_own(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = table(tmp_path, reference_cache=str(tmp_path / "file/beneath/x.safetensors"))
    found.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
    found.write()
    assert "cannot be written" in capsys.readouterr().err and (tmp_path / "run/reference.safetensors").exists()


def test_a_shared_table_that_fits_is_left_as_it_is(tmp_path):
    written(tmp_path)
    shared = tmp_path / "run/reference.safetensors"
    before = shared.stat().st_mtime_ns, shared.stat().st_ino
    found = table(tmp_path, reference_cache=str(shared), out=str(tmp_path / "other"))
    found.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
    found.write()
    assert (shared.stat().st_mtime_ns, shared.stat().st_ino) == before
    written(tmp_path, fingerprint="others")
    found.write()
    assert Cache.of(tmp_path / "run", None, lambda: "these weights").read({"ref_logps": ROWS})[0] is not None


def test_a_folder_where_a_file_should_be_is_refused(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "b").write_text("")
    for path in ("a.safetensors", "b"):
        with pytest.raises(InputError, match=r"name a folder that runs share, or a run's reference\.safetensors"):
            check_shared(str(tmp_path / path))
    check_shared(None)
    check_shared(str(tmp_path))
    check_shared(str(tmp_path / "not yet"))


def test_the_fingerprint_is_of_weights_configuration_rows_and_dtype(tmp_path):
    rows = tiny.random_examples([(3, 2, 4), (5, 1, 2)])
    folder = tmp_path / "model"
    save(tiny.random_llama(), folder)
    made = [fingerprint(folder, rows, dtype) for dtype in (torch.float32, torch.bfloat16)]
    made += [fingerprint(folder, rows[::-1], torch.float32)]
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    made += [fingerprint(folder, rows, torch.float32)]
    for seed in (1, 0):
        save(tiny.random_llama(seed=seed), folder, replaces=True)
        made += [fingerprint(folder, rows, torch.float32)]
    assert len(set(made)) == 5 and made[0] == made[5]


# --- what can be asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "flags", "found"),
    [
        ("dpo", {}, ["fused", "precompute"]),
        ("sft", {}, ["none"]),
        ("kto", {}, ["fused"]),
        ("dpo", {"disable": ("reference-cache",)}, ["fused"]),
        ("dpo", {"reference": "precompute"}, ["precompute"]),
        ("sft", {"reference": "fused"}, ["fused"]),
        ("dpo", {"reference_update": "soft"}, ["fused"]),
    ],
)
def test_what_a_run_can_mean_by_reference(tmp_path, objective, flags, found):
    assert modes_of(config(tmp_path, **flags), objective) == found


@pytest.mark.parametrize(
    ("objective", "flags", "said"),
    [
        ("dpo", {"reference": "none"}, "--reference none: dpo needs a reference; use auto"),
        ("kto", {"reference": "precompute"}, "kto's mismatched sequences change with every step; use fused"),
        ("dpo", {"reference": "precompute", "disable": ("reference-cache",)}, "cannot be combined with --disable"),
        (
            "dpo",
            {"reference": "precompute", "reference_update": "hard"},
            "every step, and --reference precompute has none",
        ),
        ("sft", {"reference_update": "hard"}, "every step, and sft uses none"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(tmp_path, objective, flags, said):
    with pytest.raises(InputError) as fault:
        modes_of(config(tmp_path, **flags), objective)
    assert said in str(fault.value)


# --- between steps -------------------------------------------------------------------------------------------------


def following(tmp_path, **flags):
    """A policy, and a reference that follows it."""
    found = table(tmp_path, **flags)
    found.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
    model = FusedForward(tiny.random_llama(num_hidden_layers=1), tiny.random_llama(num_hidden_layers=1, seed=1))
    return SimpleNamespace(model=model, ranks=Ranks(dtype=torch.float32), reference=found), config(tmp_path, **flags)


@pytest.mark.parametrize(("update", "alpha"), [("soft", 0.25), ("hard", 1.0)])
def test_a_reference_goes_its_share_of_the_way_when_it_is_due(tmp_path, update, alpha):
    """ref <- alpha policy + (1 - alpha) ref: TR-DPO, arXiv 2404.09656."""
    flags = {"reference_update": update, "reference_update_steps": 3} | (
        {"reference_update_alpha": alpha} if alpha < 1 else {}
    )
    training, asked = following(tmp_path, **flags)
    before = [p.detach().double().clone() for p in training.model.reference.parameters()]
    for number, done in ((1, 0.0), (2, 0.0)):
        assert follow_reference(training, step(number=number), asked.reference) == {"reference/updates": done}
        assert training.reference.is_complete
        assert all(
            torch.equal(p.double(), q) for p, q in zip(training.model.reference.parameters(), before, strict=True)
        )
    assert follow_reference(training, step(number=3), asked.reference) == {"reference/updates": 1.0}
    pairs = zip(training.model.policy.parameters(), before, training.model.reference.parameters(), strict=True)
    for policy, ref, found in pairs:
        torch.testing.assert_close(found.double(), alpha * policy.double() + (1 - alpha) * ref, rtol=0, atol=1e-6)
    assert training.reference.values["ref_logps"].isnan().all()  # what was known is of another one
    assert follow_reference(training, step(number=7), asked.reference) == {"reference/updates": 2.0}


def test_a_reference_that_does_not_follow_says_nothing(tmp_path):
    training, asked = following(tmp_path)
    assert follow_reference(training, step(number=512), asked.reference) == {}


def test_a_complete_table_is_written_once_and_its_model_let_go(tmp_path):
    training, _ = following(tmp_path)
    released = training.model.reference
    training.reference.forget()
    release_reference(training)
    assert training.model.reference is released and not (tmp_path / "run/reference.safetensors").exists()
    training.reference.remember(step(0, 1, 2, 3), ReferenceValues(ROWS))
    release_reference(training)
    assert training.model.reference is None and training.reference.is_written
    assert all(p.untyped_storage().size() == 0 for p in released.parameters())
    (tmp_path / "run/reference.safetensors").unlink()
    release_reference(training)
    assert not (tmp_path / "run/reference.safetensors").exists()


def test_filling_ahead_scores_every_row_that_will_be_used_with_the_policys_weights(tmp_path):
    rows = tiny.random_examples([(3, 2, 4), (5, 1, 6), (2, 3, 3), (4, 4, 1)])
    steps = Steps(rows, DataConfig(sources=("f",)), ScheduleConfig(batch_size=2, epochs=3), Objective("dpo"))
    model = FusedForward(tiny.random_llama(), None)
    training = SimpleNamespace(
        model=model,
        ranks=Ranks(dtype=torch.float32),
        reference=table(tmp_path, mode="precompute"),
        objective=Objective("dpo"),
        micro_batching=MicroBatching(micro_tokens=8),
    )
    asked = []
    fill_reference(
        training, steps, lambda: asked.append(int(training.reference.values["ref_logps"].isnan().any(dim=1).sum()))
    )
    expected = torch.stack([model(pack([e]), with_reference=False)[0] for e in rows]).detach()
    torch.testing.assert_close(training.reference.values["ref_logps"], expected, rtol=0, atol=1e-5)
    assert asked == [4, 2] and training.reference.is_written and (tmp_path / "run/reference.safetensors").exists()
