"""Objectives that see tokens, in whole runs: what they compute, and that no split, rank, table or stop changes it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.forest import PackingOptions, pack
from engine.config import TrainConfig
from engine.model import FusedForward
from engine.step import Batch, LossInputs, Objective
from engine.train import run
from system import InputError
from tests import tiny
from tests.metrics import lines, values_of
from tests.proofs import Watch
from tests.rows import id_rows

pytestmark = pytest.mark.usefixtures("registered")

SOURCE = '''
import torch
from torch.nn.functional import logsigmoid
from losses import Result, TokenResponses, loss

@loss("by_tokens", data="pairs", level="token", reference=True)
def by_tokens(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1) -> Result:
    """DPO from log-probs of tokens."""
    r_w = beta * (chosen.per_sequence(chosen.logps) - chosen.per_sequence(chosen.ref_logps))
    r_l = beta * (rejected.per_sequence(rejected.logps) - rejected.per_sequence(rejected.ref_logps))
    return Result(-logsigmoid(-(r_l - r_w)), r_w.detach(), r_l.detach())

@loss("by_tokens_of_the_step", data="pairs", level="token", reference=True, whole_step=True)
def by_tokens_of_the_step(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1) -> Result:
    """The same, given the whole step."""
    return by_tokens(chosen, rejected, beta=beta)

@loss("all_there_is", data="pairs", level="token", reference=True, needs=(
    "entropy", "ref_entropy", "kl_ref_policy", "kl_policy_ref", "log_sum_squares"))
def all_there_is(
    chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, progress: float = 0.0
) -> Result:
    """Everything that can be asked of a distribution, with a gradient into each."""
    def term(c):
        later = 1.0 + c.position.to(c.logps.dtype) / 7 + progress
        values = c.logratios + c.entropy / 3 - c.ref_entropy / 5 - c.kl_ref_policy + c.kl_policy_ref / 2
        return beta * c.per_sequence(later * (values + c.log_sum_squares / 11))
    r_w, r_l = term(chosen), term(rejected)
    return Result(-logsigmoid(r_w - r_l), r_w.detach(), r_l.detach(), {"progress": torch.tensor(progress)})

@loss("all_of_the_step", data="pairs", level="token", reference=True, whole_step=True, needs=(
    "entropy", "ref_entropy", "kl_ref_policy", "kl_policy_ref", "log_sum_squares"))
def all_of_the_step(
    chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, progress: float = 0.0
) -> Result:
    """The same, given the whole step."""
    return all_there_is(chosen, rejected, beta=beta, progress=progress)

@loss("with_entropies", data="pairs", level="token", reference=True, needs=("entropy", "ref_entropy"))
def with_entropies(chosen: TokenResponses, rejected: TokenResponses) -> Result:
    """What a table can hold."""
    r_w = chosen.per_sequence(chosen.logratios * chosen.ref_entropy + chosen.entropy - chosen.ref_entropy)
    r_l = rejected.per_sequence(rejected.logratios * rejected.ref_entropy)
    return Result(-logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Flags of runs: a model, rows, and objectives of token level in a file."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "mine.py").write_text(SOURCE)
    tiny.write_model(folder / "model", vocab_size=101)
    tiny.write_rows(folder / "rows.jsonl", id_rows(22))
    return folder


def settings(made, out, loss, **more):
    """20 steps over epochs of 5."""
    asked = {"model": str(made / "model"), "data": str(made / "rows.jsonl"), "out": str(out), "eval_pairs": 4}
    asked |= {"loss": loss if loss in ("dpo", "apo_zero") or ":1" in loss else f"{made}/mine.py:{loss}"}
    return asked | {"batch_size": 4, "epochs": 4, "micro_tokens": 60, "lr": 1e-4, "dtype": "float32"} | more


def numbers(out):
    """The lines of metrics but the clock's, and the last epoch's weights."""
    kept = [values_of(line) for line in lines(out)]
    return kept, load_file(sorted(Path(out).glob("epoch-*"))[-1] / "model.safetensors")


def assert_equal(here, there):
    """To the last bit."""
    (ours, weights), (theirs, others) = numbers(here), numbers(there)
    assert len(ours) == 20
    assert ours == theirs
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def trained(made, out, loss, **more):
    watch = Watch()
    run(TrainConfig(**settings(made, out, loss, **more)), watch.hooks)
    return watch


# --- DPO from tokens is DPO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "n"),
    [
        ({"reference": "fused"}, 5),
        pytest.param({"reference": "precompute"}, 0, marks=pytest.mark.slow),
        pytest.param({"reference_update": "soft", "reference_update_steps": 3}, 20, marks=pytest.mark.slow),
    ],
)
def test_dpo_from_tokens_gives_the_bits_of_dpo(made, tmp_path, flags, n):
    """n: steps in which the reference computes; where it moves, it does so in an epoch's steps after each move."""
    watches = [trained(made, tmp_path / loss, loss, **flags) for loss in ("dpo", "by_tokens")]
    assert_equal(tmp_path / "dpo", tmp_path / "by_tokens")
    assert watches[0].passes == watches[1].passes  # no pass more, none with the reference once it is known
    assert {one.step for one in watches[1].of_reference if one.has_gradient} == set(range(1, n + 1))


@pytest.mark.slow
def test_a_table_of_tokens_is_taken_by_another_run_and_not_by_one_that_takes_sums(made, tmp_path, capsys):
    cache = str(tmp_path / "shared")
    Path(cache).mkdir()
    first = trained(made, tmp_path / "first", "by_tokens", reference_cache=cache)
    second = trained(made, tmp_path / "second", "by_tokens", reference_cache=cache)
    assert first.of_reference and not second.of_reference
    assert_equal(tmp_path / "first", tmp_path / "second")
    (table,) = Path(cache).iterdir()
    assert table.name.endswith("-tokens.safetensors")
    n = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in id_rows(22))
    assert 0 < len(load_file(table)["ref_logps"]) < n  # less four held-out rows
    capsys.readouterr()
    third = trained(made, tmp_path / "third", "dpo", reference_cache=str(table))
    said = capsys.readouterr().err
    assert "has log-probs of tokens, and this objective takes sums over responses: computed again" in said
    assert third.of_reference
    assert_equal(tmp_path / "third", tmp_path / "first")


@pytest.mark.slow
def test_a_table_without_entropies_does_not_serve_an_objective_that_takes_them(made, tmp_path, capsys):
    trained(made, tmp_path / "first", "by_tokens")
    table = tmp_path / "first/reference.safetensors"
    capsys.readouterr()
    watch = trained(made, tmp_path / "second", "with_entropies", reference_cache=str(table))
    assert (
        "has log-probs of tokens, and this objective takes log-probs of tokens and entropies" in capsys.readouterr().err
    )
    assert {one.step for one in watch.of_reference} == set(range(1, 6))  # and none after it is known
    again = trained(
        made, tmp_path / "third", "with_entropies", reference_cache=str(tmp_path / "second/reference.safetensors")
    )
    assert not again.of_reference
    assert_equal(tmp_path / "second", tmp_path / "third")
    ahead = trained(made, tmp_path / "fourth", "with_entropies", reference="precompute")
    assert not ahead.of_reference
    assert_equal(tmp_path / "second", tmp_path / "fourth")


@pytest.mark.parametrize("loss", ["by_tokens", "with_entropies"])
def test_a_run_that_is_stopped_goes_on_with_its_table(made, tmp_path, loss):
    whole = trained(made, tmp_path / "whole", loss)
    trained(made, tmp_path / "parts", loss, stop_after=3, state_every=1)
    goes_on = trained(made, tmp_path / "parts", loss, resume=True, state_every=1)
    assert {one.step for one in goes_on.of_reference} == {4, 5} < {one.step for one in whole.of_reference}
    assert_equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_two_ranks_give_what_one_gives(made, tmp_path):
    """To the last bit between objectives; between numbers of ranks as close as float32's sums are."""
    jobs = {loss: settings(made, tmp_path / "LOSS", loss) for loss in ("dpo", "by_tokens", "by_tokens_of_the_step")}
    jobs |= {loss: settings(made, tmp_path / "LOSS", loss) for loss in ("all_there_is", "all_of_the_step")}
    jobs["without reshard"] = settings(made, tmp_path / "LOSS", "all_there_is", reshard="yes")
    jobs["mixture"] = settings(made, tmp_path / "LOSS", f"apo_zero:1,{made}/mine.py:with_entropies:0.1")
    script = tmp_path / "every.py"
    script.write_text(
        "import json, sys\nfrom engine.train import TrainConfig, run\n"
        "for name, job in json.load(open(sys.argv[1])).items():\n"
        "    run(TrainConfig(**job | {'out': f'{sys.argv[2]}/{name}'}))\n"
    )
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(script), str(tmp_path / "jobs.json"), str(tmp_path / "on2")]
    done = subprocess.run(command, capture_output=True, text=True, env=tiny.environment(), timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal(tmp_path / "on2/dpo", tmp_path / "on2/by_tokens")
    assert_equal(tmp_path / "on2/all_there_is", tmp_path / "on2/without reshard")
    for name, job in jobs.items():
        run(TrainConfig(**job | {"out": str(tmp_path / "on1" / name)}))
        (here, weights), (there, others) = (numbers(tmp_path / on / name) for on in ("on1", "on2"))
        for one, two in zip(here, there, strict=True):
            assert one.keys() == two.keys()
            for key, value in one.items():
                assert two[key] == pytest.approx(value, rel=1e-3, abs=1e-3), (name, key)
        for key, weight in weights.items():
            torch.testing.assert_close(others[key], weight, rtol=0, atol=5e-4)


# --- what is computed ----------------------------------------------------------------------------------------------


def whole_logits(model, example):
    """Log-probs [n, V] at each response token of an example, one conversation at a time, by plain products."""
    for response in example.responses:
        alone = example._replace(responses=(response,))
        forest = pack([alone], PackingOptions(predicts_all=False))
        hidden = []
        handle = model.head.register_forward_pre_hook(lambda _, given, hidden=hidden: hidden.append(given[0]))
        FusedForward(model)(forest, with_reference=False)
        handle.remove()
        yield torch.log_softmax(hidden[0] @ model.head.matrix(model.tied).T, dim=1)


@pytest.mark.parametrize(
    "options", [PackingOptions(), PackingOptions(shares_prompts=False), PackingOptions(predicts_all=True)]
)
@pytest.mark.parametrize("chunk_rows", [1, None])
def test_every_value_of_a_token_is_that_of_whole_float64_logits(options, chunk_rows):
    examples = tiny.random_examples([(3, 2, 5), (1, 4, 1), (6, 3, 3)])
    models = [tiny.random_llama(seed=seed).double() for seed in (0, 1)]
    for model in models:
        model.head.chunk_bytes = None if chunk_rows is None else 8 * model.config.vocab_size * chunk_rows
    asked = ("logps", "ref_logps", "entropy", "ref_entropy", "kl_ref_policy", "kl_policy_ref", "log_sum_squares")
    batch, fused = Batch(examples), FusedForward(*models)
    micro = SimpleMicro(list(range(3)), pack(examples, options))
    found = batch.loss_inputs(micro, *fused(micro.forest, with_reference=True, token_values=asked))
    lp, lq = (torch.cat([rows for e in examples for rows in whole_logits(model, e)]) for model in models)
    p, q = lp.exp(), lq.exp()
    targets = torch.tensor([i for e in examples for r in e.responses for i in r.tolist()])[:, None]
    expected = {
        "logps": lp.gather(1, targets)[:, 0], "ref_logps": lq.gather(1, targets)[:, 0],
        "entropy": -(p * lp).sum(1), "ref_entropy": -(q * lq).sum(1),
        "kl_ref_policy": (q * (lq - lp)).sum(1), "kl_policy_ref": (p * (lp - lq)).sum(1),
        "log_sum_squares": p.square().sum(1).log(),
    }  # fmt: skip
    assert found.tokens.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found.tokens[name], values, rtol=0, atol=1e-9, msg=name)
    weights = torch.randn(len(targets), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parameters = dict(models[0].named_parameters())
    for name in ("entropy", "kl_ref_policy", "kl_policy_ref", "log_sum_squares", "logps"):
        got = torch.autograd.grad((found.tokens[name] * weights).sum(), parameters.values(), retain_graph=True)
        wanted = torch.autograd.grad((expected[name] * weights).sum(), parameters.values(), retain_graph=True)
        for where, ours, theirs in zip(parameters, got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, msg=f"{name}: {where}")


class SimpleMicro:
    """A micro-batch as it is handed about."""

    def __init__(self, indices, forest):
        self.indices, self.forest = indices, forest


def test_a_column_has_its_rows_tokens_one_after_the_other():
    examples = tiny.random_examples([(2, 2, 3), (1, 1, 2)])
    n = sum(len(r) for e in examples for r in e.responses)
    values = torch.arange(n, dtype=torch.float64)
    inputs = LossInputs.of(examples, torch.zeros(2, 2), None, tokens={"logps": values, "entropy": -values})
    chosen, rejected = (inputs.token_column(k, ("entropy",)) for k in (0, 1))
    assert chosen.logps.tolist() == [0, 1, 5] and rejected.logps.tolist() == [2, 3, 4, 6, 7]
    assert chosen.sequence.tolist() == [0, 0, 1] and rejected.sequence.tolist() == [0, 0, 0, 1, 1]
    assert chosen.position.tolist() == [0, 1, 0] and rejected.position.tolist() == [0, 1, 2, 0, 1]
    assert chosen.lengths.tolist() == [2, 1] and torch.equal(rejected.entropy, -rejected.logps)
    assert inputs.token_column(0, ()).entropy is None and chosen.ref_logps is None
    apart = inputs.as_form("unpaired").token_column(0, ())
    assert apart.logps.tolist() == values.tolist() and apart.lengths.tolist() == [2, 3, 1, 2]
    single = inputs.as_form("single", "rejected").token_column(0, ())
    assert torch.equal(single.logps, rejected.logps) and torch.equal(single.sequence, rejected.sequence)


def test_tokens_of_pairs_serve_objectives_of_single_responses_beside_those_of_pairs():
    """Each part of a mixture is what the objective gives on the same tokens in its own form."""
    examples = tiny.random_examples([(3, 2, 5), (1, 4, 1), (6, 3, 3)])
    generator = torch.Generator().manual_seed(0)
    tokens = {name: -torch.rand(18, dtype=torch.float64, generator=generator) for name in ("logps", "ref_logps")}
    tokens["kl_ref_policy"] = torch.rand(18, dtype=torch.float64, generator=generator)
    of = torch.tensor([len(r) for e in examples for r in e.responses])
    sums = [
        torch.stack([x.sum() for x in tokens[name].split(of.tolist())]).view(3, 2) for name in ("logps", "ref_logps")
    ]
    inputs = LossInputs.of(examples, *sums, tokens=tokens)
    whole = Objective("pmpo:1,ld_dpo:0.5,sft:0.25,dpo:0.1")(inputs)
    pmpo = Objective("pmpo")(inputs.as_form("unpaired")).losses.view(3, 2).mean(dim=1)
    others = [Objective("ld_dpo")(inputs), Objective("sft")(inputs.as_form("single")), Objective("dpo")(inputs)]
    parts = [0.5 * others[0].losses, 0.25 * others[1].losses, 0.1 * others[2].losses]
    torch.testing.assert_close(whole.losses, pmpo + sum(parts), rtol=0, atol=1e-12)


def test_how_much_of_the_run_is_done_reaches_an_objective(made, tmp_path):
    trained(made, tmp_path / "run", "all_there_is")
    found = [line["progress"] for line in lines(tmp_path / "run")]
    assert found == pytest.approx([i / 20 for i in range(20)], abs=1e-6)


def test_held_out_rows_have_a_loss(made, tmp_path):
    for loss in ("by_tokens", "all_there_is", "dpo"):
        trained(made, tmp_path / loss, loss)
    found = {
        loss: [x["eval_loss"] for x in lines(tmp_path / loss) if "eval_loss" in x] for loss in ("by_tokens", "dpo")
    }
    assert len(found["dpo"]) == 4 and found["dpo"] == found["by_tokens"]
    assert len([x for x in lines(tmp_path / "all_there_is") if "eval_loss" in x]) == 4


def test_no_table_can_hold_a_divergence(made, tmp_path):
    with pytest.raises(
        InputError, match="takes a divergence of whole distributions, which no table can hold; use fused"
    ):
        trained(made, tmp_path / "run", "all_there_is", reference="precompute")
    watch = trained(made, tmp_path / "run", "all_there_is")
    assert {one.step for one in watch.of_reference if one.has_gradient} == set(range(1, 21))


def test_an_objective_of_a_sequence_asks_a_pass_for_no_tokens():
    assert Objective("dpo").token_values == () and Objective("dpo").n_distributions == 0
