"""An objective of one's own, outside the packages: one decorated function, and nothing else changes.

    python -m engine.train --loss examples/my_loss.py:lead --lead.by 2 ...
    ./launch.sh paper --quick --also examples/my_loss.py:lead        beside the paper's, in its tables

Its test is tests/examples/test_my_loss.py: the closed-form gradient, in float64.
"""

from torch.nn.functional import logsigmoid

from losses import Responses, Result, loss


@loss("lead", data="pairs", reference=True)
def lead(chosen: Responses, rejected: Responses, *, beta: float = 0.1, by: float = 1.0) -> Result:
    """DPO whose winner has to lead by a fixed reward: -log s(r_w - r_l - by), r = beta x log-ratio."""
    r_w, r_l = beta * chosen.logratios, beta * rejected.logratios
    return Result(-logsigmoid(r_w - r_l - by), r_w.detach(), r_l.detach())
