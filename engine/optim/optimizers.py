"""How gradients become steps: clipping, and RMSProp, AdamW or Muon on float32 masters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.config import OptimizerConfig
from engine.distributed import Ranks
from engine.optim.fused_rmsprop import FusedRMSprop
from engine.optim.groups import Options, group
from engine.optim.split_master import SplitMasterWeights, SplitRMSprop


def build(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    masters: SplitMasterWeights | None = None,
    *,
    square_avg: torch.dtype = torch.float32,
    options: Options | None = None,
) -> Optimizer:
    """The optimizer of named parameters. masters: their other halves, where they are split; square_avg is for these.

    options: of parameters that differ from the run's (groups.py). On a GPU RMSProp is one kernel a parameter, else
    torch's over all tensors of a group at once. It has no bias correction: its first update is lr / sqrt(1 - alpha) =
    10 lr, decaying over some 100 steps. Raises InputError for options that cannot be.
    """
    groups = group(parameters, options, optimizer=config.name)
    if masters is not None:
        split = SplitRMSprop(masters, groups, lr=config.lr, square_avg=square_avg)
        if not config.max_grad_norm:
            split.step_in_backward()
        return split
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0, foreach=True)
    if groups[0]["params"][0].is_cuda:
        return FusedRMSprop(groups, lr=config.lr)
    return torch.optim.RMSprop(groups, lr=config.lr, alpha=0.99, eps=1e-8, foreach=True)


def clip(optimizer: Optimizer, ranks: Ranks, max_norm: float) -> float:
    """Scales the gradient to a global norm of at most max_norm (0: as it is); gives the norm before. Collective.

    Where one kernel updates a parameter, it scales, too. A norm that is not finite scales nothing.
    """
    parameters: list[nn.Parameter] = [p for one in optimizer.param_groups for p in one["params"]]
    norm = optimizer.grad_norm() if isinstance(optimizer, SplitRMSprop) else ranks.grad_norm(parameters)
    total = norm.item()
    if max_norm > 0 and total < float("inf"):
        if isinstance(optimizer, (SplitRMSprop, FusedRMSprop)):
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
            state |= {kind: torch.zeros_like(parameter) for kind in _KINDS[type(optimizer)]}
            state["step"] = torch.zeros(())
        found |= {f"{name}.{kind}": value for kind, value in state.items()}
    return found


_KINDS = {
    torch.optim.RMSprop: ("square_avg",), FusedRMSprop: ("square_avg",), torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
}  # fmt: skip
