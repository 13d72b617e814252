"""How gradients become steps: clipping, and RMSProp, AdamW or Muon on float32 masters."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.config import OptimizerConfig
from engine.distributed import Ranks
from engine.optim.formulas import ADAMW, RMSPROP
from engine.optim.fused_adamw import FusedAdamW
from engine.optim.fused_rmsprop import FusedRMSprop
from engine.optim.groups import Options, divide
from engine.optim.muon import Muon
from engine.optim.split_master import SplitMasterWeights, SplitOptimizer
from engine.weights import ShardAccess, SingleProcess


def build(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    masters: SplitMasterWeights | None = None,
    *,
    square_avg: torch.dtype = torch.float32,
    options: Options | None = None,
    access: ShardAccess | None = None,
) -> Optimizer:
    """The optimizer of named parameters. masters: their other halves, where they are split; square_avg is for these.

    options: of parameters that differ from the run's (groups.py). access: who holds which rows, where they are sharded
    (Muon asks). On a GPU RMSProp and AdamW are one kernel a parameter, else torch's over all tensors of a group at
    once. RMSProp has no bias correction: its first update is lr / sqrt(1 - alpha) = 10 lr, decaying over some 100
    steps. Raises InputError for options that cannot be.
    """
    groups = divide(parameters, options, config)
    if masters is not None:
        return _split(masters, groups, config, square_avg)
    if config.name == "muon":
        return _muon(groups, config, access or SingleProcess())
    if config.name == "adamw":
        return _adamw(groups, config)
    if groups[0]["params"][0].is_cuda:
        return FusedRMSprop(groups, lr=config.rate)
    return torch.optim.RMSprop(groups, lr=config.rate, alpha=0.99, eps=1e-8, foreach=True)


def _split(
    masters: SplitMasterWeights, groups: list[dict[str, Any]], config: OptimizerConfig, moments: torch.dtype
) -> SplitOptimizer:
    if config.name == "adamw":
        made = SplitOptimizer(masters, ADAMW, groups, moments=moments, **_adamw_options(config))
    else:
        made = SplitOptimizer(masters, RMSPROP, groups, moments=moments, lr=config.rate, alpha=0.99, eps=1e-8)
    if not config.max_grad_norm:
        made.step_in_backward()
    return made


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    if groups[0]["params"][0].is_cuda:
        return FusedAdamW(groups, **_adamw_options(config))
    return torch.optim.AdamW(groups, foreach=True, **_adamw_options(config))


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig, access: ShardAccess) -> Muon:
    run = {"lr": config.rate, "weight_decay": config.weight_decay}
    matrices = [run | one for one in groups if one["is_matrix"]]
    return Muon(matrices, _adamw([one for one in groups if not one["is_matrix"]], config), access)


def _adamw_options(config: OptimizerConfig) -> dict[str, Any]:
    betas = (config.adam_beta1, config.adam_beta2)
    return {"lr": config.rate, "betas": betas, "eps": config.adam_epsilon, "weight_decay": config.weight_decay}


def learning_rates(optimizer: Optimizer) -> list[float]:
    """That of each group of parameters with options of their own (groups.py), in the order of their numbers."""
    return list({one["number"]: float(one["lr"]) for one in optimizer.param_groups}.values())


def clip(optimizer: Optimizer, ranks: Ranks, max_norm: float) -> float:
    """Scales the gradient to a global norm of at most max_norm (0: as it is); gives the norm before. Collective.

    Where one kernel updates a parameter, it scales, too. A norm that is not finite scales nothing.
    """
    parameters: list[nn.Parameter] = [p for one in optimizer.param_groups for p in one["params"]]
    norm = optimizer.grad_norm() if isinstance(optimizer, SplitOptimizer) else ranks.grad_norm(parameters)
    total = norm.item()
    if max_norm > 0 and total < float("inf"):
        if isinstance(optimizer, (SplitOptimizer, FusedRMSprop, FusedAdamW)):
            optimizer.factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).view(1)  # as torch.nn.utils does it
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return total


def state_tensors(optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, by the parameter's name; zeros where no step was taken yet."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state |= {
                kind: torch.zeros(()) if kind == "step" else torch.zeros_like(parameter)
                for kind in _kinds(optimizer, parameter)
            }
        found |= {f"{name}.{kind}": value for kind, value in state.items()}
    return found


def _kinds(optimizer: Optimizer, parameter: Tensor) -> tuple[str, ...]:
    """The tensors of a parameter's state by torch's names; split masters have theirs from the beginning."""
    if isinstance(optimizer, Muon):
        return optimizer.kinds(parameter)
    is_rmsprop = isinstance(optimizer, torch.optim.RMSprop)
    return ("step", *(RMSPROP if is_rmsprop else ADAMW).moments)
