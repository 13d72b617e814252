"""Optimizers with groups against the formulas, clipping over all groups, the learning rate, and states."""

import math

import pytest
import torch
from torch import nn

from engine.config import OptimizerConfig, ScheduleConfig
from engine.distributed import Ranks
from engine.optim import SplitMasterWeights, SplitOptimizer, build, clip, learning_rates, schedule, state_tensors
from system import InputError

ALPHA, EPS = 0.99, 1e-8
LR = 1e-3


class Tiny(nn.Module):
    """Three parameters: two of the run's options, one of its own."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("body", (4, 3)), ("norm", (5,)), ("head", (2, 3))):
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))


def gradients(model, n, seed=1):
    """n times a gradient of each parameter, in bf16's values, so that every dtype holds them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(p.shape, generator=generator).bfloat16().float() for name, p in model.named_parameters()}
        for _ in range(n)
    ]


def give(model, gradient):
    for name, p in model.named_parameters():
        p.grad = gradient[name].to(p.dtype).clone()


def rmsprop(w, grads, rates):
    """v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + eps), in float64."""
    w, v = w.double(), torch.zeros_like(w, dtype=torch.float64)
    for g, lr in zip(grads, rates, strict=True):
        v = ALPHA * v + (1 - ALPHA) * g.double() ** 2
        w = w - lr * g.double() / (v.sqrt() + EPS)
    return w


def adamw(w, grads, rates, decay, b1=0.9, b2=0.999, eps=EPS):
    """Loshchilov and Hutter, arXiv 1711.05101: w <- (1 - lr decay) w - lr m_hat / (sqrt(v_hat) + eps), in float64."""
    w = w.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * g.double(), b2 * v + (1 - b2) * g.double() ** 2
        w = (1 - lr * decay) * w
        w = w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    return w


def of_head(name):
    return {"lr": 5 * LR} if name == "head" else {}


def of_norm(name):
    return {"lr": 5 * LR, "weight_decay": 0.0} if name == "norm" else {"weight_decay": 0.25}


def assert_close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)  # float32 numbers of size 1, ten updates


# --- every optimizer honours a group -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [None, of_head])
def test_rmsprop_is_its_formula_with_each_groups_rate(options):
    model = Tiny()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build(model.named_parameters(), OptimizerConfig(lr=LR), options=options)
    grads = gradients(model, 10)
    for gradient in grads:
        give(model, gradient)
        optimizer.step()
    for name, p in model.named_parameters():
        rate = LR if options is None else of_head(name).get("lr", LR)
        assert_close(p, rmsprop(start[name], [g[name] for g in grads], [rate] * 10))


@pytest.mark.parametrize("in_backward", [False, True])
def test_split_masters_are_stepped_with_each_groups_rate(in_backward):
    model = Tiny(torch.bfloat16)
    masters = SplitMasterWeights(model)
    start = {name: p.detach().float() for name, p in model.named_parameters()}
    config = OptimizerConfig(lr=LR, max_grad_norm=0.0 if in_backward else 1.0)
    optimizer = build(model.named_parameters(), config, masters, options=of_head)
    assert isinstance(optimizer, SplitOptimizer) and len(optimizer.param_groups) == 2
    grads = gradients(model, 10)
    for gradient in grads:
        if in_backward:
            sum((p * gradient[name].to(p.dtype)).sum() for name, p in model.named_parameters()).backward()
            assert all(p.grad is None for p in model.parameters())  # taken already
        else:
            give(model, gradient)
        optimizer.step()
    for name, p in model.named_parameters():
        rate = of_head(name).get("lr", LR)
        assert_close(masters.full_tensor(p), rmsprop(start[name], [g[name] for g in grads], [rate] * 10))


@pytest.mark.parametrize("options", [None, of_norm])
def test_adamw_is_its_formula_with_each_groups_rate_and_decay(options):
    model = Tiny()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build(model.named_parameters(), OptimizerConfig(name="adamw", lr=LR), options=options)
    grads = gradients(model, 10)
    for gradient in grads:
        give(model, gradient)
        optimizer.step()
    for name, p in model.named_parameters():
        own = {} if options is None else options(name)
        expected = adamw(start[name], [g[name] for g in grads], [own.get("lr", LR)] * 10, own.get("weight_decay", 0.0))
        assert_close(p, expected)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize("options", [None, of_head])
def test_adamw_takes_the_runs_own_numbers_and_no_norm_decays(options, is_split):
    model = Tiny(torch.bfloat16 if is_split else torch.float32)
    masters = SplitMasterWeights(model) if is_split else None
    start = {name: p.detach().clone().float() for name, p in model.named_parameters()}
    config = OptimizerConfig(name="adamw", lr=LR, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3, weight_decay=0.3)
    optimizer = build(model.named_parameters(), config, masters, options=options)
    grads = gradients(model, 10)
    for gradient in grads:
        give(model, gradient)
        optimizer.step()
    for name, p in model.named_parameters():
        rate, decay = (of_head(name) if options else {}).get("lr", LR), 0.0 if name == "norm" else 0.3
        expected = adamw(start[name], [g[name] for g in grads], [rate] * 10, decay, 0.8, 0.95, 1e-3)
        assert_close(p if masters is None else masters.full_tensor(p), expected)


def test_parameter_options_that_name_a_decay_win_over_the_runs_and_over_the_norms():
    def options(name):
        return {"weight_decay": 0.5} if name == "norm" else {"weight_decay": 0.0} if name == "head" else {}

    config = OptimizerConfig(name="adamw", weight_decay=0.1)
    made = build(Tiny().named_parameters(), config, options=options).param_groups
    assert [one["weight_decay"] for one in made] == [0.1, 0.5, 0.0]  # body, norm, head


@pytest.mark.parametrize(("name", "decay"), [("adamw", 0.1), ("muon", 0.1), ("muon", 0.0)])
def test_the_parts_of_a_group_have_one_rate_and_are_told_once(name, decay):
    model = Tiny()
    optimizer = build(model.named_parameters(), OptimizerConfig(name=name, lr=LR, weight_decay=decay), options=of_head)
    assert len(optimizer.param_groups) == 3 and learning_rates(optimizer) == [LR, 5 * LR]
    alone = build(model.named_parameters(), OptimizerConfig(name=name, lr=LR, weight_decay=decay))
    assert len(alone.param_groups) > 1 and learning_rates(alone) == [LR]


@pytest.mark.parametrize("options", [None, of_norm])
def test_muon_is_torchs_on_matrices_and_adamw_on_all_else(options):
    """body: a matrix; head, whose rows are words, and norm are AdamW's."""
    model, plain = Tiny(), Tiny()
    config = OptimizerConfig(name="muon", lr=LR, weight_decay=0.25, adam_beta1=0.8, adam_beta2=0.95)
    optimizer = build(model.named_parameters(), config, options=options)
    own = {} if options is None else of_norm("norm")
    kept = {"weight_decay": 0.25, "lr": LR}
    muon = torch.optim.Muon([plain.body], adjust_lr_fn="match_rms_adamw", momentum=0.95, nesterov=True, **kept)
    others = torch.optim.AdamW(
        [{"params": [plain.norm], "weight_decay": 0.0} | own, {"params": [plain.head]}], betas=(0.8, 0.95), **kept
    )
    for gradient in gradients(model, 10):
        for one, steps in ((model, [optimizer]), (plain, [muon, others])):
            give(one, gradient)
            for each in steps:
                each.step()
    for (name, p), q, start in zip(model.named_parameters(), plain.parameters(), Tiny().parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, start), name


def test_muons_rate_goes_with_the_schedule_and_a_matrix_of_rate_0_stands_still():
    model = Tiny()
    optimizer = build(model.named_parameters(), OptimizerConfig(name="muon", lr=LR, weight_decay=0.25))
    rates = schedule(optimizer, 10, ScheduleConfig(warmup_steps=2))
    moved = []
    for gradient in gradients(model, 2):
        before = [p.detach().clone() for p in model.parameters()]
        give(model, gradient)
        optimizer.step()
        rates.step()
        moved.append([not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)])
    assert moved == [[False] * 3, [True] * 3]


def test_a_group_whose_rate_is_0_stands_still():
    model = Tiny()
    head = model.head.detach().clone()
    optimizer = build(
        model.named_parameters(), OptimizerConfig(lr=LR), options=lambda n: {"lr": 0.0} if n == "head" else {}
    )
    give(model, gradients(model, 1)[0])
    before = model.body.detach().clone()
    optimizer.step()
    assert torch.equal(model.head, head) and not torch.equal(model.body, before)


@pytest.mark.parametrize("is_split", [False, True])
def test_what_rmsprop_has_not_is_refused(is_split):
    model = Tiny(torch.bfloat16)
    masters = SplitMasterWeights(model) if is_split else None
    with pytest.raises(InputError, match=r"weight_decay = 0\.25, and rmsprop has none"):
        build(model.named_parameters(), OptimizerConfig(), masters, options=of_norm)


# --- the learning rate ---------------------------------------------------------------------------------------------


def test_every_groups_rate_goes_up_and_down_with_the_runs():
    model = Tiny()
    optimizer = build(model.named_parameters(), OptimizerConfig(lr=LR), options=of_head)
    rates = schedule(optimizer, 6, ScheduleConfig(warmup_steps=2))
    found = []
    for _ in range(6):
        found.append([one["lr"] for one in optimizer.param_groups])
        give(model, gradients(model, 1)[0])
        optimizer.step()
        rates.step()
    factors = [0.0, 1 / 2, 1.0, 0.75, 0.5, 0.25]
    assert [rate for row in found for rate in row] == pytest.approx([x * f for f in factors for x in (LR, 5 * LR)])


# --- clipping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "split", "split adamw"])
@pytest.mark.parametrize("max_norm", [0.5, 1e6, 0.0])
def test_the_norm_is_that_of_all_groups_and_scales_each(name, max_norm):
    """An update of RMSProp's first step does not know its gradient's size: the second moment does."""
    is_split, is_adamw = name.startswith("split"), name.endswith("adamw")
    model = Tiny(torch.bfloat16 if is_split else torch.float32)
    masters = SplitMasterWeights(model) if is_split else None
    config = OptimizerConfig(name="adamw" if is_adamw else "rmsprop", lr=LR)
    optimizer = build(model.named_parameters(), config, masters, options=of_head)
    (gradient,) = gradients(model, 1)
    give(model, gradient)
    norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in gradient.values()))
    assert clip(optimizer, Ranks(splits_masters=is_split), max_norm) == pytest.approx(norm, rel=1e-6)
    optimizer.step()
    factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    assert factor < 1 or max_norm != 0.5
    kind, share = ("exp_avg_sq", 1e-3) if is_adamw else ("square_avg", 1 - ALPHA)
    for p, g in zip(model.parameters(), gradient.values(), strict=True):
        expected = share * (factor * g.double()) ** 2
        torch.testing.assert_close(optimizer.state[p][kind].double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("is_split", [False, True])
def test_a_norm_that_is_not_finite_scales_nothing(is_split):
    model = Tiny(torch.bfloat16 if is_split else torch.float32)
    optimizer = build(model.named_parameters(), OptimizerConfig(), SplitMasterWeights(model) if is_split else None)
    give(model, gradients(model, 1)[0])
    model.head.grad[0, 0] = torch.inf
    body = model.body.grad.clone()
    assert clip(optimizer, Ranks(splits_masters=is_split), 1.0) == math.inf
    assert torch.equal(model.body.grad, body) and getattr(optimizer, "factor", None) is None


# --- states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("rmsprop", {"step", "square_avg"}),
        ("adamw", {"step", "exp_avg", "exp_avg_sq"}),
        ("muon", {"step", "exp_avg", "exp_avg_sq"}),
        ("split", {"step", "square_avg", "low"}),
        ("split adamw", {"step", "exp_avg", "exp_avg_sq", "low"}),
    ],
)
def test_a_state_names_every_tensor_of_every_group_and_is_written_through(name, kinds):
    """Before the first step as after it: what a run goes on from is read into these very tensors."""

    is_split, of = name.startswith("split"), {"split": "rmsprop", "split adamw": "adamw"}.get(name, name)

    def made():
        model = Tiny(torch.bfloat16 if is_split else torch.float32)
        masters = SplitMasterWeights(model) if is_split else None
        config = OptimizerConfig(name=of, lr=LR)
        return model, build(model.named_parameters(), config, masters, options=of_head)

    (model, optimizer), (again, resumed) = made(), made()
    grads = gradients(model, 4)
    for gradient in grads[:2]:
        give(model, gradient)
        optimizer.step()
    kept = state_tensors(optimizer, model.named_parameters())
    into = state_tensors(resumed, again.named_parameters())
    expected = {p: {"momentum_buffer"} if (name, p) == ("muon", "body") else kinds for p in ("body", "norm", "head")}
    assert set(kept) == set(into) == {f"{p}.{kind}" for p in expected for kind in expected[p]}
    assert all(not x.any() for x in into.values())
    with torch.no_grad():
        for key, value in kept.items():
            assert into[key].shape == value.shape and into[key].dtype == value.dtype
            into[key].copy_(value)
        for p, q in zip(again.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    for gradient in grads[2:]:
        for one, steps in ((model, optimizer), (again, resumed)):
            give(one, gradient)
            steps.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    ends = [state_tensors(o, m.named_parameters()) for o, m in ((optimizer, model), (resumed, again))]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]) and ends[0]["head.step"] == 4
