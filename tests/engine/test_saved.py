"""What an epoch's folder holds: the model that the run's numbers are of, or less, and then it is said how much."""

import json
import subprocess
import sys

import pytest
import torch

from engine import convert, generate, score, train, weights
from engine.config import TrainConfig
from engine.optim import split_master as split
from engine.weights import rounding as weights_rounding
from engine.weights.rounding import Cast
from system import InputError
from tests import forks, tiny
from tests.metrics import lines
from tests.proofs import counted, n_ranks_of
from tests.rows import id_rows

SETTINGS = {"loss": "dpo", "lr": 3e-5, "batch_size": 4, "epochs": 2, "micro_tokens": 1024}


@pytest.fixture
def case(tmp_path):
    """A bf16 checkpoint, rows to train on and rows that are held out; `go` trains on them, and gives its lines."""

    class Case:
        model = tmp_path / "model"
        rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(16))
        heldout = tiny.write_rows(tmp_path / "heldout.jsonl", id_rows(70, seed=1))
        out = tmp_path

        def config(self, name, **changes):
            given = {"model": str(self.model), "data": (str(self.rows),), "eval_data": str(self.heldout), **SETTINGS}
            return TrainConfig(**(given | {"out": str(tmp_path / name)} | changes))

        def go(self, name="run", **changes):
            result = train.run(self.config(name, **changes))
            return result.checkpoints[-1], lines(result.out)

    weights.save(tiny.random_llama(vocab_size=101), Case.model, dtype=torch.bfloat16)
    return Case()


def scored(folder, rows, *flags):
    """Log-probs of pairs' responses by the command, [n, 2]."""
    out = folder.parent / f"{folder.name}-logps.jsonl"
    out.unlink(missing_ok=True)
    score.main(["--model", str(folder), "--data", str(rows), "--out", str(out), "--micro-tokens", "1024", *flags])
    return read(out)


def read(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return torch.tensor([[row["logps/chosen"], row["logps/rejected"]] for row in found], dtype=torch.float64)


def margin(found, before, beta=0.1):
    """Mean reward of the chosen responses above that of the rejected ones; written out, no helper of the code."""
    rewards = beta * (found - before)
    return (rewards[:, 0].mean() - rewards[:, 1].mean()).item()


def stored(folder):
    """A folder's tensors as they are in its files."""
    found = {}
    with weights.Checkpoint(folder) as checkpoint:
        for name, entry in checkpoint._tensors.items():
            found[name] = checkpoint.rows(name, 0, entry.shape[0])
    return found


def test_the_margin_of_a_run_is_the_margin_of_its_folder(case):
    """A bf16 checkpoint, float32 compute: a folder in the source's bf16 would lose most of it."""
    folder, found = case.go()
    before = scored(case.model, case.heldout)
    ran = found[-1]["eval_rewards/margins"]
    assert ran > 1e-3
    assert margin(scored(folder, case.heldout), before) == pytest.approx(ran, abs=1e-6)
    narrower, _ = case.go("narrow", save_dtype="bfloat16")
    assert margin(scored(narrower, case.heldout), before) < 0.5 * ran  # and so the case can tell the two apart
    assert {t.dtype for t in stored(folder).values()} == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def differences(folder, whole, rows, sides):
    """Mean absolute difference of two folders' log-probs of some responses, by engine.score."""
    found, expected = scored(folder, rows), scored(whole, rows)
    return (found - expected)[:, sides].abs().mean().item()


RUNS = {
    "float32 on 1 rank": (1, "float32", ()),
    "bfloat16 on 1 rank": (1, "bfloat16", ()),
    "float32 on 2 ranks": (2, "float32", ()),
    "bfloat16 on 2 ranks": (2, "bfloat16", ()),
    "split masters": (1, "bfloat16", ("--master-weights", "split")),
}


FAST = ("float32 on 1 rank",)


@pytest.mark.parametrize(
    ("n_ranks", "dtype", "flags"),
    [pytest.param(*of, id=name, marks=[pytest.mark.slow] * (name not in FAST)) for name, of in RUNS.items()],
)
def test_a_folder_gives_the_log_probs_of_the_runs_last_line(case, n_ranks, dtype, flags):
    """As many ranks, the same --micro-tokens: equal in bf16, within 1e-6 in float32. Real processes."""
    out, logps = case.out / "run", case.out / "logps.jsonl"
    common = ["--micro-tokens", "1024", *(() if flags else ("--dtype", dtype))]
    asked = [*map(str, ("--model", case.model, "--data", case.rows, "--eval-data", case.heldout, "--out", out)), *flags]
    asked += ["--loss", "dpo", "--lr", "1e-3", "--batch-size", "4", "--epochs", "1", *common]
    ended = on_ranks(n_ranks, "engine.train", asked)
    assert ended.returncode == 0, ended.stderr
    asked = [*map(str, ("--model", out / "epoch-01", "--data", case.heldout, "--out", logps)), *common]
    if flags:
        asked += ["--dtype", dtype]
    ended = on_ranks(n_ranks, "engine.score", asked)
    assert ended.returncode == 0, ended.stderr
    last, found = lines(out)[-1], read(logps)
    for k, side in enumerate(("chosen", "rejected")):
        expected, given = last[f"eval_logps/{side}"], found[:, k].mean().item()
        if dtype == "bfloat16":
            assert given == expected
        else:
            assert given == pytest.approx(expected, rel=1e-6)
    expected_dtype = getattr(torch, dtype)
    assert {t.dtype for t in stored(out / "epoch-01").values()} == {expected_dtype}


def on_ranks(n, module, flags):
    """A command as a process of its own, or as several under torchrun."""
    if n == 1:
        return forks.run([sys.executable, "-m", module, *flags], env=tiny.environment(), cwd=tiny.ROOT, timeout=300)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
    command = [sys.executable, *launcher, "-m", module, *flags]
    return subprocess.run(
        command, capture_output=True, text=True, env=tiny.environment(), timeout=300, check=False, cwd=tiny.ROOT
    )


@pytest.mark.parametrize("save_dtype, itemsize", [("bfloat16", 2), ("float16", 2), ("source", 2), ("float32", 4)])
def test_a_folder_is_written_in_the_dtype_asked_for(case, save_dtype, itemsize):
    folder, _ = case.go(save_dtype=save_dtype, epochs=1)
    expected = torch.bfloat16 if save_dtype == "source" else getattr(torch, save_dtype)
    assert {t.dtype for t in stored(folder).values()} == {expected}
    said = json.loads((folder / "config.json").read_text())
    assert said["dtype"] == str(expected).removeprefix("torch.")
    n = sum(t.numel() for t in stored(folder).values())
    assert 0 < (folder / "model.safetensors").stat().st_size - itemsize * n < 10_000


def test_both_keys_of_a_dtype_are_brought_up_to_date(case):
    """Files of the time between transformers 4 and 5 have both."""
    raw = json.loads((case.model / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    assert raw["dtype"] == "bfloat16"
    (case.model / "config.json").write_text(json.dumps(raw))
    folder, _ = case.go(epochs=1)
    said = json.loads((folder / "config.json").read_text())
    assert said["dtype"] == said["torch_dtype"] == "float32"


def test_a_narrower_folder_says_what_it_lost(case, capfd):
    """What the line says is what engine.score finds in the folder, for the first 64 of 70 held-out pairs."""
    folder, found = case.go(save_dtype="bfloat16")
    last = found[-1]
    before, after = scored(case.model, case.heldout)[:64], scored(folder, case.heldout)[:64]
    whole, _ = case.go("whole")
    ran = scored(whole, case.heldout)[:64]
    assert last["saved/margins"] == pytest.approx(margin(after, before), abs=1e-9)
    assert last["saved/computed_margins"] == pytest.approx(margin(ran, before), abs=1e-6)
    assert last["saved/logps_difference"] == pytest.approx((after - ran).abs().mean().item(), rel=1e-3)
    assert last["saved/computed_margins"] != last["eval_rewards/margins"]  # that is of all 70
    said = [line for line in capfd.readouterr().err.splitlines() if "of the margin" in line]
    share = f"{last['saved/margins'] / last['saved/computed_margins']:.0%}"
    assert len(said) == 1 and str(folder) in said[-1] and f"keeps {share} of the margin" in said[-1]
    assert "--save-dtype float32" in said[-1]


def test_nothing_is_said_where_nothing_is_lost(case, capfd):
    _, found = case.go(epochs=1)
    assert not any(name.startswith("saved/") for name in found[-1])
    _, moved = case.go("far", save_dtype="bfloat16", lr=1e-2)  # updates that bf16 holds
    assert moved[-1]["saved/margins"] > 0.9 * moved[-1]["saved/computed_margins"] > 1e-3
    _, still = case.go("still", save_dtype="bfloat16", lr=1e-9)  # a margin that says nothing
    assert still[-1]["saved/computed_margins"] < 1e-3
    assert "of the margin" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16", "save_dtype": "float16", "save_rounding": "nearest"},
        {"master_weights": "split"},
        {"master_weights": "split", "max_grad_norm": 0.0},  # no gradients are held: copies are kept elsewhere
    ],
    ids=str,
)
def test_measuring_leaves_every_master_as_it_was(case, changes):
    """Two runs that differ in what they write alone have the same numbers to the last bit."""
    narrow = {"save_dtype": "bfloat16", "save_rounding": "stochastic"} | changes
    (one, written), (two, whole) = case.go("one", **narrow), case.go("two", **(changes | {"save_dtype": "float32"}))
    assert any(
        not torch.equal(a.float(), b.float()) for a, b in zip(stored(one).values(), stored(two).values(), strict=True)
    )
    for a, b in zip(written, whole, strict=True):
        for name in b.keys() - {n for n in b if n.startswith("perf/")}:
            assert a[name] == b[name], name
    assert any(name.startswith("saved/") for name in written[-1])


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(case):
    """Lines to the last bit but for the clock, whatever is written: every shard is afterwards what it was."""
    flags = ["--loss", "dpo", "--lr", "3e-5", "--batch-size", "4", "--epochs", "2"]
    asked = [*map(str, ("--model", case.model, "--data", case.rows, "--eval-data", case.heldout)), *flags]
    runs = {}
    for name, more in (("narrow", ["--save-dtype", "bfloat16"]), ("whole", ["--save-dtype", "float32"])):
        ended = on_ranks(2, "engine.train", [*asked, *more, "--out", str(case.out / name)])
        assert ended.returncode == 0, ended.stderr
        assert n_ranks_of(case.out / name) == 2
        runs[name] = lines(case.out / name)
    for a, b in zip(runs["narrow"], runs["whole"], strict=True):
        assert all(a[name] == b[name] for name in b if not name.startswith("perf/"))
    _, alone = case.go(save_dtype="bfloat16")
    for name in ("saved/margins", "saved/computed_margins", "saved/logps_difference"):
        assert runs["narrow"][-1][name] == pytest.approx(alone[-1][name], rel=0.02)


def test_where_nothing_is_held_out_the_last_steps_rows_are_measured(case):
    folder, found = case.go(save_dtype="bfloat16", eval_data=None, epochs=1, shuffle=False)
    whole, _ = case.go("whole", eval_data=None, epochs=1, shuffle=False)
    rows = [json.loads(line) for line in case.rows.read_text().splitlines()][12:]  # of the fourth step
    last = tiny.write_rows(case.out / "last.jsonl", rows)
    before, after, ran = (scored(f, last) for f in (case.model, folder, whole))
    assert found[-1]["saved/margins"] == pytest.approx(margin(after, before), abs=1e-9)
    assert found[-1]["saved/computed_margins"] == pytest.approx(margin(ran, before), abs=1e-6)


@pytest.mark.parametrize("loss", ["kto", "sft"])
def test_all_responses_of_held_out_pairs_count(case, loss):
    """Whatever the objective takes of the rows that it is trained on."""
    folder, found = case.go(loss=loss, save_dtype="bfloat16", epochs=1)
    whole, _ = case.go("whole", loss=loss, epochs=1)
    rows = tiny.write_rows(case.out / "64.jsonl", [json.loads(x) for x in case.heldout.read_text().splitlines()[:64]])
    expected = differences(folder, whole, rows, slice(None))
    assert found[-1]["saved/logps_difference"] == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(differences(folder, whole, rows, slice(0, 1)), rel=1e-3)


def test_another_rows_response_does_not_count(case):
    """KTO's last step, of one row alone, has no mismatched response; the others' have one."""
    rows = id_rows(17, form="unpaired")
    tiny.write_rows(case.rows, rows)
    settings = {"loss": "kto", "eval_data": None, "epochs": 1, "shuffle": False}
    for n in (17, 16):
        tiny.write_rows(case.rows, rows[:n])
        folder, found = case.go(f"narrow-{n}", save_dtype="bfloat16", **settings)
        whole, _ = case.go(f"whole-{n}", **settings)
        last = [
            {"prompt_ids": r["prompt_ids"], "completion_ids": r["completion_ids"]} for r in rows[n - (n % 4 or 4) : n]
        ]
        asked = tiny.write_rows(case.out / "last.jsonl", last)
        logps = []
        for model in (folder, whole):
            out = case.out / f"{model.parent.name}.jsonl"
            score.main(["--model", str(model), "--data", str(asked), "--out", str(out), "--micro-tokens", "1024"])
            logps.append([json.loads(line)["logps/completion"] for line in out.read_text().splitlines()])
        one, other = torch.tensor(logps, dtype=torch.float64)
        expected = (one - other).abs().mean().item()
        assert expected > 0 and found[-1]["saved/logps_difference"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ["kto", "sft", "simpo", "apo_zero:1,sft:0.1", "nca_ranked"])
@pytest.mark.parametrize("eval_pairs", [0, 6])
def test_every_form_of_rows_is_measured(case, loss, eval_pairs):
    if loss == "nca_ranked":
        rows = [
            {"prompt_ids": [5, i], "completions_ids": [[7, i], [8, 9], [i]], "scores": [3, 2, 1]} for i in range(16)
        ]
        tiny.write_rows(case.rows, rows)
    _, found = case.go(loss=loss, save_dtype="bfloat16", eval_data=None, eval_pairs=eval_pairs, epochs=1)
    assert found[-1]["saved/logps_difference"] > 0
    assert ("saved/margins" in found[-1]) == (loss != "sft" or eval_pairs > 0)


@pytest.mark.slow
def test_two_ranks_write_the_same_stochastic_folder_as_one(case):
    """Random numbers are of places in whole tensors; engine.convert draws the same, given the step as its seed."""
    flags = ["--lr", "1e-9", "--batch-size", "4", "--epochs", "1", "--loss", "dpo"]  # weights that stay the same bits
    flags += ["--state-every", "1"]
    base = case.out / "float32"
    weights.save(tiny.random_llama(vocab_size=101, seed=3), base)
    folders = []
    for n in (1, 2):
        out = case.out / f"on-{n}"
        asked = [*map(str, ("--model", base, "--data", case.rows, "--out", out)), *flags]
        ended = on_ranks(n, "engine.train", [*asked, "--save-dtype", "bfloat16", "--save-rounding", "stochastic"])
        assert ended.returncode == 0, ended.stderr
        assert n_ranks_of(out) == n
        folders.append(out / "epoch-01")
    whole = case.out / "whole"
    ended = on_ranks(1, "engine.train", [*map(str, ("--model", base, "--data", case.rows, "--out", whole)), *flags])
    assert ended.returncode == 0, ended.stderr
    asked = ["--model", str(whole / "epoch-01"), "--dtype", "bfloat16", "--rounding", "stochastic"]
    for seed in (4, 5):
        convert.main([*asked, "--out", str(case.out / f"seed-{seed}"), "--seed", str(seed)])
    one, two, four, five = map(stored, (*folders, case.out / "seed-4", case.out / "seed-5"))
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], four[name]) for name in one)
    assert any(not torch.equal(one[name], five[name]) for name in one)


def test_a_weight_beyond_the_range_of_float16_is_named_before_the_first_step(case):
    model = tiny.random_llama(vocab_size=101)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 2] = -70_144.0
    weights.save(model, case.out / "large")
    with pytest.raises(
        InputError,
        match=r"large: model\.layers\.1\.mlp\.up_proj\.weight holds -70,144, beyond 65,504, the largest float16",
    ):
        case.go(model=str(case.out / "large"), save_dtype="float16")
    assert not (case.out / "run/metrics.jsonl").exists() or not lines(case.out / "run")
    with pytest.raises(InputError, match=r"float16: model\.layers\.1\.mlp\.up_proj\.weight holds -70,144"):
        weights.save(model, case.out / "float16", dtype=torch.float16)
    assert not list(case.out.glob("float16*"))


@pytest.mark.slow
def test_a_fault_in_one_ranks_rows_is_told_to_all(case):
    """The tensor's last row is rank 1's alone, and rank 0 speaks."""
    model = tiny.random_llama(vocab_size=101)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[-1, 2] = -70_144.0
    weights.save(model, case.out / "large")
    asked = [*map(str, ("--model", case.out / "large", "--data", case.rows, "--out", case.out / "run"))]
    ended = on_ranks(2, "engine.train", [*asked, "--save-dtype", "float16", "--batch-size", "4"])
    assert ended.returncode != 0
    assert (
        ended.stderr.count("error: ") == 1
        and "up_proj.weight holds -70,144, beyond 65,504, the largest float16" in ended.stderr
    )


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_weight_that_grows_beyond_the_range_ends_the_run_and_nothing_is_lost(case, epochs):
    """At the end of the last epoch, and of one before it: a float32 folder stands in, and the run can go on."""
    model = tiny.random_llama(vocab_size=101)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3] = 65_500.0
        model.blocks[1].mlp.up.weight[4] = -65_500.0
    weights.save(model, case.out / "large")
    settings = {"model": str(case.out / "large"), "lr": 1.0, "max_grad_norm": 0.0, "epochs": epochs, "eval_data": None}
    with pytest.raises(InputError, match=r"saved in float32 instead, since model\.layers\.1\.mlp\.up_proj.* --resume"):
        case.go(save_dtype="float16", **settings)
    assert {t.dtype for t in stored(case.out / "run/epoch-01").values()} == {torch.float32}
    assert len(lines(case.out / "run")) == 4
    folder, found = case.go(save_dtype="float32", resume=True, **settings)
    whole, expected = case.go("whole", save_dtype="float32", **settings)
    assert [x["loss"] for x in found] == [x["loss"] for x in expected]
    assert all(torch.equal(a, b) for a, b in zip(stored(folder).values(), stored(whole).values(), strict=True))
    assert len(list((case.out / "run").glob("epoch-*"))) == epochs


@pytest.mark.parametrize("save_dtype", ["float32", "float16", "auto"])
def test_rounding_that_rounds_nothing_is_refused(case, save_dtype):
    """auto is float32 here; known when the layout is, and still before any weights are read."""
    with pytest.raises(InputError, match=r"--save-rounding.*bfloat16"):
        case.go(save_rounding="stochastic", save_dtype=save_dtype)


def test_a_run_that_goes_on_may_write_in_another_dtype(case):
    case.go(save_dtype="bfloat16", stop_after=4, resume=True)
    folder, found = case.go(resume=True)
    _, whole = case.go("whole")
    assert {t.dtype for t in stored(folder).values()} == {torch.float32}
    assert {t.dtype for t in stored(folder.parent / "epoch-01").values()} == {torch.bfloat16}
    assert [x["loss"] for x in found] == [x["loss"] for x in whole]


def test_who_computes_in_fewer_bits_than_a_folder_holds_is_told_once(case, capfd):
    tokenizer = case.out / "float32"
    tiny.write_model(tokenizer, ["some text to learn merges from"] * 9)
    prompts = tiny.write_rows(case.out / "prompts.jsonl", [{"prompt": "some"}, {"prompt": "text"}])
    asked = ["--model", str(tokenizer), "--prompts", str(prompts), "--max-new-tokens", "2", "--n", "2"]
    generate.main([*asked, "--out", str(case.out / "a.jsonl"), "--dtype", "bfloat16"])
    said = capfd.readouterr().err
    assert said.count("rounded to bfloat16") == 1 and "engine.convert" in said and str(tokenizer) in said
    generate.main([*asked, "--out", str(case.out / "b.jsonl"), "--dtype", "float32"])
    scored(case.model, case.heldout, "--dtype", "bfloat16")  # it holds no more than that
    assert "rounded" not in capfd.readouterr().err
    weights.save(tiny.random_llama(vocab_size=101), case.out / "wide")
    scored(case.out / "wide", case.heldout, "--dtype", "bfloat16")
    assert capfd.readouterr().err.count("rounded to bfloat16") == 1


# --- rounding ------------------------------------------------------------------------------------------------------


def test_stochastic_rounding_has_no_bias_for_either_sign():
    """The mean over many seeds is the float32 value, within five standard errors; exact values stay as they are."""
    steps = torch.tensor([1.0, -1.0, 0.037, -0.037, 1e-30, -3e20])
    values = (steps[:, None] * (1 + torch.arange(16) / 16 / 128)).flatten()  # from one bf16 to the next
    n = 2000
    found = torch.stack([Cast(dtype=torch.bfloat16, rounding="stochastic", seed=s)("w", values) for s in range(n)])
    found = found.double() / values.double()
    step = 1 / 128
    assert (found.mean(dim=0) - 1).abs().max() < 5 * step / 2 / n**0.5
    assert (found - 1).abs().max() < step  # one of the two neighbours
    exact = values.bfloat16().float()
    assert torch.equal(Cast(dtype=torch.bfloat16, rounding="stochastic", seed=1)("w", exact), exact.bfloat16())


def test_random_numbers_depend_on_place_name_and_seed_alone(monkeypatch):
    values = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    cast = Cast(dtype=torch.bfloat16, rounding="stochastic", seed=5)
    whole = cast("a", values)
    alike = cast("a", torch.full((100, 100), 1 + 0.3 / 128))  # between 1 and its neighbour, at three tenths of the way
    assert (alike > 1).double().mean().item() == pytest.approx(0.3, abs=0.025)
    assert torch.equal(torch.cat([cast("a", values[:13]), cast("a", values[13:], 13)]), whole)
    with monkeypatch.context() as patched:
        patched.setattr(weights_rounding, "CHUNK", 50)
        rounded = counted(patched, weights_rounding, "round_stochastically")
        assert torch.equal(cast("a", values), whole) and len(rounded) == 6  # 280 numbers
    assert not torch.equal(cast("b", values), whole)
    assert not torch.equal(Cast(dtype=torch.bfloat16, rounding="stochastic", seed=6)("a", values), whole)


def test_split_masters_are_stored_as_the_halves_that_compute():
    """Ties between two bf16 go away from zero there, and to the even one in a cast."""
    ties = torch.tensor([1 + 1 / 256, -1 - 1 / 256, 1 + 3 / 256, 0.3])
    high = split.split(ties)[0]
    assert torch.equal(Cast(dtype=torch.bfloat16, is_split=True)("w", ties), high)
    assert not torch.equal(Cast(dtype=torch.bfloat16)("w", ties), high)


def test_a_cast_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="bfloat16"):
        Cast(dtype=torch.float16, rounding="stochastic")


# --- engine.convert ------------------------------------------------------------------------------------------------


def run_convert(*flags):
    asked = [sys.executable, "-m", "engine.convert", *flags]
    return forks.run(asked, env=tiny.environment(), cwd=tiny.ROOT, timeout=300)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float16", "float32"))]
)
def test_a_converted_folder_is_the_cast_of_every_tensor(tmp_path, dtype):
    folder = tiny.write_model(tmp_path / "m", ["some text to learn merges from"] * 9)
    (folder / "README.md").write_text("a card")
    ended = run_convert("--model", folder, "--out", tmp_path / "out", "--dtype", dtype)
    assert ended.returncode == 0 and ended.stdout == f"{tmp_path / 'out'}\n"
    assert "README.md" in ended.stderr  # it is named, for it stays behind
    before, after = stored(folder), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].to(getattr(torch, dtype)), after[name]) for name in before)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_what_survives_of_the_change_from_a_base_is_its_projection(case):
    folder, _ = case.go()
    for rounding in ("nearest", "stochastic"):
        out = case.out / rounding
        convert.main(["--model", str(folder), "--out", str(out), "--dtype", "bfloat16", "--rounding", rounding])
    base, trained = (torch.cat([t.double().flatten() for t in stored(f).values()]) for f in (case.model, folder))
    for rounding in ("nearest", "stochastic"):
        written = torch.cat([t.double().flatten() for t in stored(case.out / rounding).values()])
        found = convert.survival(case.model, folder, case.out / rounding)
        d, kept = trained - base, written - base
        assert found.share == pytest.approx((kept @ d / (d @ d)).item(), rel=1e-9)
        assert found.noise == pytest.approx(((kept - d).norm() / d.norm()).item(), rel=1e-9)
        assert found.moved == pytest.approx((kept != 0).double().mean().item(), rel=1e-12)
        assert found.moved_before == pytest.approx((d != 0).double().mean().item(), rel=1e-12)
    assert convert.survival(case.model, folder, case.out / "nearest").share < 0.9
    assert convert.survival(case.model, folder, case.out / "stochastic").share == pytest.approx(1, abs=0.05)
    assert convert.survival(case.model, case.model, case.out / "nearest") is None


@pytest.mark.slow
def test_the_command_says_what_survives(case):
    folder, _ = case.go(epochs=1)
    asked = ["--model", folder, "--dtype", "bfloat16", "--base", case.model]
    ended = run_convert(*asked, "--out", case.out / "out")
    assert ended.returncode == 0 and "% of the change from the base survives" in ended.stdout
    ended = run_convert("--model", case.model, "--dtype", "bfloat16", "--base", case.model, "--out", case.out / "same")
    assert ended.returncode == 0 and "does not differ from the base" in ended.stdout


@pytest.mark.slow
def test_what_convert_cannot_do_is_one_sentence_and_leaves_nothing(case):
    other = tiny.write_model(case.out / "other", vocab_size=99)
    large = tiny.random_llama(vocab_size=101)
    with torch.no_grad():
        large.norm.weight[0] = 1e9
    weights.save(large, case.out / "large")
    model, out = ("--model", case.model), ("--out", case.out / "out")
    wrong = {
        "has another shape": (*model, *out, "--dtype", "bfloat16", "--base", other),
        "exists already": (*model, "--out", other, "--dtype", "bfloat16"),
        "--rounding stochastic": (*model, *out, "--dtype", "float16", "--rounding", "stochastic"),
        "model.norm.weight holds 1,000,000,000": ("--model", case.out / "large", *out, "--dtype", "float16"),
        "no such file or folder": ("--model", case.out / "nowhere", *out, "--dtype", "float16"),
        "--seed": (*model, *out, "--dtype", "bfloat16", "--rounding", "stochastic", "--seed", "-1"),
    }
    for said, flags in wrong.items():
        ended = run_convert(*flags)
        assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr, (said, ended.stderr)
        assert ended.stderr.count("\n") == 1
        assert not list(case.out.glob("out*"))
