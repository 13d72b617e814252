"""Slips in an objective of one's own: each is one sentence before weights are read, with the remedy."""

import numpy as np
import pytest
import torch

import losses
from data.rows.examples import Example
from data.rows.records import Ratings
from engine import train
from engine.step import Objective, check_objective
from losses import Responses, Result, TokenResponses, loss
from system import InputError
from tests import tiny
from tests.rows import id_rows

pytestmark = pytest.mark.usefixtures("registered")


def examples(n=8, **more):
    """Pairs of 1 to 5 tokens a response."""
    ids = np.arange(1, 100, dtype=np.int32)
    return [Example(f"rows.jsonl:{i + 1}", ids[:3], (ids[: 1 + i % 5], ids[: 2 + i % 3]), **more) for i in range(n)]


def margin(chosen, rejected):
    return chosen.logps - rejected.logps


def check(function, *, n=8, **declared):
    """Registers a function of pairs as `tried`, and tries it."""
    loss("tried", **({"data": "pairs"} | declared))(function)
    check_objective(Objective("tried"), examples(n))


# name: what the function returns, and what is said of it
SLIPS = {
    "a tuple": (lambda c, r: (margin(c, r), c.logps, r.logps), "tried gave a tuple; return losses.Result("),
    "nothing": (lambda c, r: None, "tried gave nothing; return losses.Result("),
    "a tensor": (lambda c, r: margin(c, r), "tried gave a Tensor; return losses.Result("),
    "a mean": (lambda c, r: Result(margin(c, r).mean(), c.logps, r.logps), "losses of shape [] for 8 examples"),
    "a matrix": (lambda c, r: Result(margin(c, r)[:, None], c.logps, r.logps), "losses of shape [8, 1] for 8 examples"),
    "losses that are a list": (lambda c, r: Result([0.0] * len(c.logps), c.logps, r.logps), "losses that are a list"),
    "no gradient": (
        lambda c, r: Result(margin(c, r).detach(), c.logps, r.logps),
        "its losses have no gradient; compute them from logps without detach() or no_grad()",
    ),
    "infinite slope": (
        lambda c, r: Result(torch.sqrt((c.logps - c.logps.detach()).abs()), c.logps, r.logps),
        "its gradient is not finite on random log-probs",
    ),
    "not a number": (lambda c, r: Result((c.logps * 0).log() - torch.inf + torch.inf, c.logps, r.logps), "not finite"),
    "a mean over the pass": (
        lambda c, r: Result(margin(c, r) - margin(c, r).mean(), c.logps, r.logps),
        "when other rows share its pass; compute it from that row alone",
    ),
    "a detached mean over the pass": (
        lambda c, r: Result(margin(c, r) * margin(c, r).detach().mean(), c.logps, r.logps),
        "register the objective with whole_step=True",
    ),
    "the mean, once for each": (
        lambda c, r: Result(margin(c, r).mean().expand(len(c.logps)), c.logps, r.logps),
        "when other rows share its pass; compute it from that row alone",
    ),
    "the order of the rows": (
        lambda c, r: Result(margin(c, r) * torch.arange(len(c.logps)), c.logps, r.logps),
        "when other rows share its pass; compute it from that row alone",
    ),
    "rewards of a pair in one": (
        lambda c, r: Result(margin(c, r), c.logps.mean(), r.logps),
        "its chosen_rewards are no tensor of one number for each response",
    ),
    "a metric with a gradient": (
        lambda c, r: Result(margin(c, r), c.logps, r.logps, {"gap": margin(c, r).mean()}),
        "its metric 'gap' has a gradient; detach() it",
    ),
    "a metric of each row": (
        lambda c, r: Result(margin(c, r), c.logps, r.logps, {"gap": margin(c, r).detach()}),
        "its metric 'gap' is no scalar; give its mean",
    ),
    "metrics that are a tensor": (
        lambda c, r: Result(margin(c, r), c.logps, r.logps, margin(c, r).detach()),
        "its metrics are a Tensor; give a dict of scalars",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_a_sentence(slip):
    given, said = SLIPS[slip]

    def mine(chosen: Responses, rejected: Responses) -> Result:
        return given(chosen, rejected)

    with pytest.raises(InputError) as fault:
        check(mine)
    assert str(fault.value).startswith("--loss: ") and said in str(fault.value)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 20])
def test_what_is_in_order_passes_on_any_number_of_rows(n):
    def mine(chosen: Responses, rejected: Responses) -> Result:
        return Result(
            margin(chosen, rejected), chosen.logps, rejected.logps, {"gap": margin(chosen, rejected).detach().mean()}
        )

    check(mine, n=n)


def test_an_exception_in_the_function_names_its_line():
    def mine(chosen: Responses, rejected: Responses) -> Result:
        return Result(chosen.logps / {}, chosen.logps, rejected.logps)

    with pytest.raises(
        InputError, match=r"tried raised TypeError: unsupported operand .*test_trial\.py:\d+\); mend the"
    ):
        check(mine)


def test_what_takes_the_whole_step_may_take_a_statistic_of_it():
    def mine(chosen: Responses, rejected: Responses) -> Result:
        m = margin(chosen, rejected)
        return Result(m - m.mean(), chosen.logps, rejected.logps)

    check(mine, whole_step=True)


def test_a_statistic_of_the_tokens_of_a_pass_is_found_too():
    def mine(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        weights = chosen.logps.detach() / chosen.logps.detach().sum()
        return Result(chosen.per_sequence(chosen.logps * weights), chosen.lengths.double(), rejected.lengths.double())

    with pytest.raises(InputError, match="when other rows share its pass"):
        check(mine, level="token")


def test_weights_of_tokens_that_a_row_lacks_are_asked_for():
    def mine(chosen: TokenResponses, rejected: TokenResponses) -> Result:
        w = chosen.per_sequence(chosen.logps * chosen.token_weights)
        return Result(w, w, rejected.per_sequence(rejected.logps))

    loss("tried", data="pairs", level="token", needs=("token_weights",))(mine)
    rows = examples(3)
    given = [e._replace(token_weights=tuple(np.ones(len(r)) for r in e.responses)) for e in rows]
    check_objective(Objective("tried"), given)
    with pytest.raises(InputError, match=r"rows\.jsonl:2: tried needs a weight of each token"):
        check_objective(Objective("tried"), [given[0], rows[1], given[2]])


@pytest.mark.parametrize("name", losses.names())
def test_every_objective_of_the_package_passes(name):
    made = losses.get(name)
    marks = {"revised": tuple(np.arange(n) % 2 == 0 for n in (5, 4))}
    marks |= {"token_weights": tuple(np.ones(n) for n in (5, 4))}
    ids = np.arange(1, 100, dtype=np.int32)
    n = {"pairs": 2, "unpaired": 1, "single": 1, "ranked": 3}[made.data]
    ratings = Ratings(
        tuple(float(5 - k) for k in range(n)), own=0.5, probs=(0.9, 0.1), value=0.3, fields=(("quantile", 0.4),)
    )
    given = {name: values[:n] for name, values in marks.items()} if n < 3 else {}
    rows = [
        Example(f"f:{i}", ids[:3], tuple(ids[i : i + 5 - k] for k in range(n)), ratings=ratings, **given)
        for i in range(9)
    ]
    if made.data == "unpaired":
        rows = [e._replace(label=i % 3 > 0) for i, e in enumerate(rows)]
    check_objective(Objective(name), rows)


def test_a_slip_ends_the_command_before_weights_are_read(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from losses import Result, loss\n\n@loss('mine', data='pairs')\ndef mine(chosen, rejected):\n"
        "    return Result(chosen.logps.mean().expand(len(chosen.logps)), chosen.logps, rejected.logps)\n"
    )
    model = tiny.write_model(tmp_path / "model", vocab_size=101)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", id_rows(9))
    argv = ["--model", str(model), "--data", str(rows), "--out", str(tmp_path / "run")]
    with pytest.raises(InputError, match="register the objective with whole_step=True"):
        train.main([*argv, "--loss", f"{tmp_path}/mine.py:mine"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"say which objective of the file; it defines .*/mine\.py:mine$"):
        train.main([*argv, "--loss", f"{tmp_path}/mine.py"])
