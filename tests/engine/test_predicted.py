"""Responses of which some tokens are not predicted: what is, is what it is where all are; the rest counts nowhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from data.batching import mismatched
from data.forest import PackingOptions, n_tokens, pack
from data.revisions import with_revised
from data.rows import read_examples
from engine import inputs as inputs_file
from engine.config import DataConfig, ScheduleConfig, TrainConfig
from engine.distributed import Ranks
from engine.model import FusedForward, attention
from engine.planning import TokenStatistics
from engine.run.identity import _digest as rows_digest
from engine.step import (
    Batch,
    Cache,
    LossInputs,
    MicroBatching,
    Objective,
    ReferenceLogps,
    Steps,
    check_objective,
    compute_batch,
    fill_reference,
    fingerprint,
)
from engine.train import run
from engine.weights import save
from losses import Result, TokenResponses, loss
from system import InputError
from tests import tiny
from tests.engine.padded import padded_token_logps
from tests.metrics import lines, values_of
from tests.proofs import Watch
from tests.rows import id_rows

OPTIONS = [
    PackingOptions(),
    PackingOptions(shares_prompts=False),
    PackingOptions(pads=True),
    PackingOptions(predicts_all=True),
    PackingOptions(shares_prompts=False, pads=True, predicts_all=True),
]
FLAGS = [  # of chosen and rejected: a middle, both ends of it, the beginning, all, the last alone
    ("1110011", "110101"),
    ("0011", "111111111"),
    ("01", "00001"),
    ("1", "1"),
    ("1110000001", "0110111"),
]
"""One row has all tokens of its rejected response predicted, one of both."""
VALUES = ("logps", "ref_logps", "entropy", "ref_entropy", "kl_ref_policy", "kl_policy_ref", "log_sum_squares")


def pairs(flags=FLAGS, *, seed=3):
    """Random pairs whose tokens are predicted where a flag is 1."""
    lengths = [(1 + 2 * (i % 3), *map(len, row)) for i, row in enumerate(flags)]
    masks = [tuple(np.array([c == "1" for c in text]) for text in row) for row in flags]
    return [e._replace(predicted=m) for e, m in zip(tiny.random_examples(lengths, seed=seed), masks, strict=True)]


def models():
    return [tiny.random_llama(seed=seed, num_hidden_layers=2).double() for seed in (0, 1)]


def kept(examples, values):
    """Of values of each response's tokens, in order, those of predicted ones: a list of [n]."""
    flags = [f for e in examples for f in e.predicted or [np.ones(len(r), dtype=bool) for r in e.responses]]
    return [x[torch.from_numpy(f)] for x, f in zip(values, flags, strict=True)]


def as_whole(examples):
    return [e._replace(predicted=None) for e in examples]


# --- the forward pass ----------------------------------------------------------------------------------------------


def test_a_forest_holds_every_token_and_a_row_for_each_that_is_predicted():
    (example,) = pairs([("1011", "01")])  # a prompt of one token
    forest = pack([example])
    (p,), (w, l) = example.prompt.tolist(), (r.tolist() for r in example.responses)  # noqa: E741
    assert forest.tokens.tolist() == [p, *w[:3], l[0]] and forest.positions.tolist() == [0, 1, 2, 3, 1]
    assert forest.rows.tolist() == [0, 2, 3, 4] and forest.targets.tolist() == [w[0], w[2], w[3], l[1]]
    assert forest.sequences.tolist() == [0, 0, 0, 1] and forest.lengths.tolist() == [3, 1]
    whole = pack(as_whole([example]))
    for name in ("tokens", "positions", "example", "branch", "keys", "cu_q", "cu_k"):
        assert torch.equal(getattr(forest, name), getattr(whole, name))
    assert forest.bounds == whole.bounds and n_tokens(example) == forest.n_tokens == 5


def test_flags_that_are_all_true_give_the_forest_of_none():
    (example,) = pairs([("1111", "11")])
    ours, theirs = pack([example]), pack(as_whole([example]))
    assert all(torch.equal(a, b) for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True)
               if isinstance(a, torch.Tensor))  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("path", [attention.dense, attention.by_document], ids=["dense", "by document"])
def test_a_predicted_token_has_the_log_prob_that_it_has_where_all_are(options, path, monkeypatch):
    """Against each conversation alone, in float64; the slopes too, of a sum in which each token has its own weight."""
    monkeypatch.setattr(attention, "for_forest", lambda forest, dtype: path(forest))
    model, reference = models()
    examples = pairs()
    expected = kept(examples, padded_token_logps(model, examples))
    found = FusedForward(model, reference)(pack(examples, options), with_reference=True, token_values=VALUES)
    n = sum(map(len, expected))
    torch.testing.assert_close(found.tokens["logps"][:n], torch.cat(expected), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.logps, torch.stack([x.sum() for x in expected]), rtol=0, atol=1e-10)
    others = kept(examples, padded_token_logps(reference, examples))
    torch.testing.assert_close(found.ref_logps, torch.stack([x.sum() for x in others]), rtol=0, atol=1e-10)
    weights = torch.linspace(-1, 2, n, dtype=torch.float64)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((found.tokens["logps"][:n] * weights).sum(), parameters)
    theirs = torch.autograd.grad((torch.cat(expected) * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_whole_distributions_are_taken_at_predicted_tokens_alone():
    examples, fused = pairs(), FusedForward(*models())
    ours, whole = (
        fused(pack(es), with_reference=True, token_values=VALUES).tokens for es in (examples, as_whole(examples))
    )
    sizes = [len(r) for e in examples for r in e.responses]
    for name in VALUES:
        expected = torch.cat(kept(examples, whole[name].split(sizes)))
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-12, msg=name)


# --- a step's batch ------------------------------------------------------------------------------------------------


def of_rank(number, of):
    return SimpleNamespace(
        rank=number, size=of, device=torch.device("cpu"), all_reduce_sum=lambda x: x, reshard=lambda _: None
    )


@pytest.mark.parametrize("micro_tokens", [1, 20, 10**6])
@pytest.mark.parametrize("n_ranks", [1, 2])
def test_no_split_changes_what_is_found(micro_tokens, n_ranks):
    examples, fused = pairs(), FusedForward(*models())
    split, asked = MicroBatching(micro_tokens=micro_tokens), dict(with_reference=True, token_values=VALUES)
    parts = [compute_batch(fused, Batch(examples), of_rank(r, n_ranks), split, **asked) for r in range(n_ranks)]
    whole = compute_batch(
        fused, Batch(as_whole(examples)), Ranks(dtype=torch.float32), MicroBatching(micro_tokens=10**6), **asked
    )
    sizes = [len(r) for e in examples for r in e.responses]
    for name in VALUES:
        expected = torch.cat(kept(examples, whole.tokens[name].split(sizes)))
        torch.testing.assert_close(sum(p.tokens[name] for p in parts), expected, rtol=0, atol=1e-12, msg=name)
    sums = torch.stack([x.sum() for x in kept(examples, whole.tokens["logps"].split(sizes))]).view(-1, 2)
    torch.testing.assert_close(sum(p.logps for p in parts), sums, rtol=0, atol=1e-11)
    assert parts[0].lengths.tolist() == [[5, 4], [2, 9], [1, 1], [1, 1], [4, 5]]
    assert parts[0].mean_lengths == (13 / 5, 20 / 5)


def test_a_batch_counts_all_tokens_as_read_and_predicted_ones_as_its_own():
    batch = Batch(pairs([("1011", "01"), ("01", "1101")]))
    assert batch.n_predicted == 3 + 1 + 1 + 3 and batch.n_tokens == 1 + 3 + 4 + 2 + 2 + 4
    assert batch.token_rows([1, 0]).tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_what_rows_say_of_tokens_is_taken_of_predicted_ones():
    (example,) = pairs([("1011", "01")])
    said = {
        "revised": (np.array([True, False, False, True]), np.array([False, False])),
        "token_weights": (np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0])),
    }
    tokens = {"logps": torch.zeros(4, dtype=torch.float64)}
    made = LossInputs.of([example._replace(**said)], torch.zeros(1, 2), None, tokens=tokens).tokens
    assert made["revised"].tolist() == [True, False, True, False] and made["token_weights"].tolist() == [1, 3, 4, 6]


# --- objectives, against formulas written out ----------------------------------------------------------------------


def inputs_of(examples, values=()):
    """What an objective takes of examples under two models."""
    fused, split = FusedForward(*models()), MicroBatching(micro_tokens=30)
    return compute_batch(
        fused, Batch(examples), Ranks(dtype=torch.float32), split, with_reference=True, token_values=values
    )


def flags(e):
    """Which tokens of its responses are predicted."""
    return tuple(np.ones(len(r), dtype=bool) for r in e.responses) if e.predicted is None else e.predicted


def step_of(objective, examples):
    """What an objective gives on examples under two models; of each example's responses the log-probs [n] of predicted
    tokens, and their log-ratios.
    """
    model, reference = models()
    inputs = inputs_of(examples, objective.token_values)
    with torch.no_grad():
        lp, ref_lp = (kept(examples, padded_token_logps(m, examples)) for m in (model, reference))
    x = [ours - theirs for ours, theirs in zip(lp, ref_lp, strict=True)]
    k = len(examples[0].responses)
    return objective(inputs), *([tuple(found[i : i + k]) for i in range(0, len(found), k)] for found in (lp, x))


def check(result, expected):
    torch.testing.assert_close(result.losses, torch.stack(expected), rtol=0, atol=1e-9)


def test_dpo():
    result, _, x = step_of(Objective("dpo"), pairs())
    check(result, [-logsigmoid(0.1 * (x_w.sum() - x_l.sum())) for x_w, x_l in x])


def test_simpo_takes_means_over_predicted_tokens():
    objective = Objective("simpo", hyperparameters={"simpo.beta": "2.0", "simpo.gamma": "1.0"})
    result, lp, _ = step_of(objective, pairs())
    check(result, [-logsigmoid(2.0 * (lp_w.mean() - lp_l.mean()) - 1.0) for lp_w, lp_l in lp])


def test_sft_divides_by_the_predicted_tokens_of_the_step():
    chosen = [e.only(slice(0, 1), None) for e in pairs()]
    result, lp, _ = step_of(Objective("sft"), chosen)
    check(result, [-lp_w.sum() / (13 / 5) for (lp_w,) in lp])


def test_ld_dpo_counts_the_common_length_in_predicted_tokens():
    result, _, x = step_of(Objective("ld_dpo"), pairs())
    losses = []
    for pair in x:
        n = min(map(len, pair))
        r_w, r_l = (0.1 * (side[:n].sum() + 0.5 * side[n:].sum()) for side in pair)
        losses.append(-logsigmoid(r_w - r_l))
    check(result, losses)


def test_objectives_of_revisions_take_revised_predicted_tokens():
    examples = pairs()
    for e in examples:  # what is read beside them differs; what is predicted is the same, but for its last token
        (chosen, _), n = e.targets(), min(e.lengths) - 1
        e.responses[1][np.flatnonzero(e.predicted[1])[:n]] = chosen[:n]
    examples = with_revised(examples, None)
    assert not any((flags & ~m).any() for e in examples for flags, m in zip(e.revised, e.predicted, strict=True))
    counts = [[int(flags.sum()) for flags in e.revised] for e in examples]
    assert counts == [[5 - 3, 4 - 3], [2 - 1, 9 - 1], [1, 1], [1, 1], [4 - 3, 5 - 3]]
    result, _, x = step_of(Objective("dpo_revised"), examples)
    losses = []
    for e, pair in zip(examples, x, strict=True):
        masks = [torch.from_numpy(f[m]) for f, m in zip(e.revised, e.predicted, strict=True)]
        r_w, r_l = (0.1 * side[mask].sum() for side, mask in zip(pair, masks, strict=True))
        losses.append(-logsigmoid(r_w - r_l))
    check(result, losses)


def test_token_weights_weigh_predicted_tokens(registered):
    @loss("weighing", data="pairs", level="token", reference=True, needs=("token_weights",))
    def weighing(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        r_w, r_l = (c.per_sequence(c.token_weights * c.logratios) for c in (chosen, rejected))
        return Result(-logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())

    random = np.random.default_rng(0)
    examples = [e._replace(token_weights=tuple(random.normal(size=len(r)) for r in e.responses)) for e in pairs()]
    result, _, x = step_of(Objective("weighing"), examples)
    losses = []
    for e, pair in zip(examples, x, strict=True):
        weights = [torch.from_numpy(v[m]) for v, m in zip(e.token_weights, e.predicted, strict=True)]
        r_w, r_l = ((one * side).sum() for one, side in zip(weights, pair, strict=True))
        losses.append(-logsigmoid(r_w - r_l))
    check(result, losses)


def test_ktos_mismatched_sequences_take_along_which_of_their_tokens_are_predicted():
    """Of rows with flags and of rows without, beside one another."""
    rows = [e.only(slice(0, 1), i % 2 == 0) for i, e in enumerate(pairs())]
    rows[1] = rows[1]._replace(predicted=None)
    objective, schedule = Objective("kto"), ScheduleConfig(batch_size=5, epochs=1)
    step = Steps(rows, DataConfig(sources=("f",), shuffle=False), schedule, objective).step(1)
    partners = mismatched([e.prompt.tobytes() for e in rows])
    assert None not in partners
    for e, row, j in zip(step.mismatched.examples, rows, partners, strict=True):
        assert e.lengths == rows[j].lengths and e.prompt.tolist() == row.prompt.tolist()
        assert [t.tolist() for t in e.targets()] == [rows[j].targets()[0].tolist()]
    both = [e._replace(label=None, responses=(*e.responses, *o.responses), predicted=(*flags(e), *flags(o)))
            for e, o in zip(step.examples, step.mismatched.examples, strict=True)]  # fmt: skip
    _, _, x = step_of(Objective("dpo"), both)  # what a pass over both gives
    z = torch.stack([x_other.sum() for _, x_other in x]).mean().clamp(min=0)
    signs = [1 if e.label else -1 for e in rows]
    others = inputs_of(step.mismatched.examples)
    result = objective(inputs_of(step.examples).with_mismatched(others))
    check(result, [torch.sigmoid(-0.1 * sign * (own.sum() - z)) for sign, (own, _) in zip(signs, x, strict=True)])
    assert result.metrics["kl"].item() == pytest.approx(z.item(), abs=1e-9)


@pytest.mark.parametrize("name", ["dpo", "simpo", "ld_dpo", "wpo", "tdpo2"])
def test_an_objective_is_tried_on_such_rows(name):
    check_objective(Objective(name), pairs())


# --- the reference's table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpo", "ld_dpo"])
def test_a_reference_that_is_computed_ahead_is_that_of_each_step(name, tmp_path):
    """Of sums, and of tokens; what is written is taken by a run of the same rows."""
    rows, objective, model = pairs(), Objective(name), FusedForward(models()[0])

    def table():
        return ReferenceLogps("precompute", rows, 2, objective, Cache.of(tmp_path, None, lambda: "these"))

    training = SimpleNamespace(
        model=model,
        ranks=Ranks(dtype=torch.float32),
        reference=table(),
        objective=objective,
        micro_batching=MicroBatching(micro_tokens=20),
    )
    steps = Steps(rows, DataConfig(sources=("f",)), ScheduleConfig(batch_size=2, epochs=2), objective)
    fill_reference(training, steps, lambda: None)
    again = table()
    assert again.read(Ranks(dtype=torch.float32)).startswith("taken from")
    step = steps.step(5)  # of epoch 2
    with torch.no_grad():
        tokens = kept(step.examples, padded_token_logps(model.policy, step.examples))
    for known in (training.reference.known(step), again.known(step)):
        sums = torch.stack([x.sum() for x in tokens]).view(-1, 2)
        torch.testing.assert_close(known.logps, sums, rtol=0, atol=1e-10)
        if name == "ld_dpo":
            torch.testing.assert_close(known.tokens["ref_logps"], torch.cat(tokens), rtol=0, atol=1e-10)
    n = (5,) if name == "dpo" else (sum(sum(e.lengths) for e in rows),)
    assert again.values["ref_logps"].shape[:1] == n


def other_mask(rows):
    """The same ids, one token less predicted."""
    flags = rows[0].predicted[0].copy()
    flags[0] = False
    return [rows[0]._replace(predicted=(flags, rows[0].predicted[1])), *rows[1:]]


def test_a_table_is_of_its_mask(tmp_path):
    save(tiny.random_llama(), tmp_path / "model")
    made = {
        fingerprint(tmp_path / "model", rows, torch.float32)
        for rows in (pairs(), other_mask(pairs()), as_whole(pairs()))
    }
    assert len(made) == 3


def test_a_run_goes_on_with_its_mask_alone():
    made = {rows_digest(rows) for rows in (pairs(), other_mask(pairs()), as_whole(pairs()))}
    assert len(made) == 3 and rows_digest(pairs()) in made


# --- what it costs -------------------------------------------------------------------------------------------------


def test_costs_are_of_all_tokens_and_of_predicted_rows():
    rows = pairs()
    found = TokenStatistics.of(rows, PackingOptions(), batch_size=2)
    whole = TokenStatistics.of(as_whole(rows), PackingOptions(), batch_size=2)
    assert found.rows == pack(rows).rows.numel() / 5 == 33 / 5 and whole.rows > found.rows
    assert (found.tokens, found.seen, found.longest, found.step) == (
        whole.tokens, whole.seen, whole.longest, whole.step)  # fmt: skip
    labelled = [e.only(slice(0, 1), True) for e in rows]
    assert TokenStatistics.of(labelled, PackingOptions(), batch_size=2, is_mismatched=True).rows == 13 / 5


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs on rows of ids of whose responses every third token from the first named one on is not predicted."""
    tiny.write_model(tmp_path / "model", vocab_size=101)
    tiny.write_rows(tmp_path / "rows.jsonl", id_rows(8))

    def start(out, first, **more):
        def read(*given, **named):
            rows = read_examples(*given, **named)
            rows.examples = [e._replace(predicted=tuple(masked(r, first) for r in e.responses)) for e in rows.examples]
            return rows

        monkeypatch.setattr(inputs_file, "read_examples", read)
        asked = {"model": str(tmp_path / "model"), "data": str(tmp_path / "rows.jsonl"), "out": str(tmp_path / out)}
        asked |= {"loss": "ld_dpo", "batch_size": 4, "epochs": 2, "micro_tokens": 40, "lr": 1e-3, "dtype": "float32"}
        watch = Watch()
        run(TrainConfig(**asked | more), watch.hooks)
        kept = [values_of(line) for line in lines(tmp_path / out)]
        return kept, watch

    return start


def masked(ids, first):
    flags = np.arange(len(ids)) % 3 != first
    flags[-1] = True
    return flags


def test_a_table_serves_runs_of_the_same_mask_alone(job, tmp_path):
    """Computed beside the policy, ahead, and by another run: the same numbers to the last bit."""
    cache = str(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    fused, first = job("fused", 1, reference="fused", reference_cache=cache)
    assert len(fused) == 4 and {one.step for one in first.of_reference} == {1, 2}
    ahead, _ = job("ahead", 1, reference="precompute")
    again, second = job("again", 1, reference="fused", reference_cache=cache)
    assert fused == ahead == again and not second.of_reference
    other, third = job("other", 0, reference="fused", reference_cache=cache)
    assert {one.step for one in third.of_reference} == {1, 2} and other != fused


def test_a_run_that_is_gone_on_with_has_the_mask_that_it_had(job):
    whole, _ = job("whole", 1)
    job("parts", 1, stop_after=3, state_every=1)
    with pytest.raises(InputError, match=r"--resume would resume another run \(rows: .* -> .*\); give the"):
        job("parts", 0, resume=True, state_every=1)
    resumed, _ = job("parts", 1, resume=True, state_every=1)
    assert resumed == whole and len(whole) == 4
