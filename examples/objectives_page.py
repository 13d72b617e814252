"""Writes docs/objectives.md from the objectives' own docstrings, and docs/objectives.png from their gradients.

    python -m examples.objectives_page            the page
    python -m examples.objectives_page --plot     the picture too; needs matplotlib

A test compares the page with what this would write.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

import losses
from losses import Loss, Responses, TokenResponses

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODULES = {  # in the order of the page
    "losses.paper": "The paper's own",
    "losses.margin": "Pairs with a reference, by the margin",
    "losses.anchored": "Pairs with a reference, anchored",
    "losses.reference_free": "Pairs without a reference",
    "losses.step_statistics": "With a statistic of the step",
    "losses.single_response": "Responses one by one",
    "losses.ranked": "Several responses to a prompt",
    "losses.token_level": "Objectives that see tokens",
    "losses.revisions": "Objectives of revisions",
}
HEAD = """# Objectives

Every objective with its formula, hyperparameters and source. `python -m examples.objectives_page` writes this page from
the code. To choose one, see [Train on your own pairs](training.md#which-objective); to write one, see [Add an
objective](own-objective.md).

```
--loss apo_zero                      one of the names below
--loss apo_zero:1,sft:0.1            a mixture: the weighted sum of each one's mean over the step
--loss path/to/file.py:name          your own
--beta 0.3                           beta of every objective named that has one
--simpo.gamma 1.4                    any other hyperparameter: --NAME.argument
```

## Notation

| letter | meaning |
|---|---|
| w, l | the winner (chosen) and the loser (rejected) |
| lp, n, a | log-prob of a response, summed over its n tokens; a = lp / n |
| x | the log-ratio: lp minus the reference's lp |
| r, m | the reward r = beta x; the margin m = r_w - r_l |
| s, sp | the logistic function; sp(z) = log(1 + exp(z)) |

Log-probs are in nats. A negative gradient raises a likelihood.

## Fields of rows

Some objectives need numbers beside the texts of a row:

| need | fields |
|---|---|
| scores | `chosen_score` and `rejected_score`, or `scores` beside `completions`, or `score` beside a `completion` |
| own_scores | `own_score`: the score of the model's own answer, by the same scorer |
| values | `value`: the policy's score on the prompt |
| probs | `chosen_prob` and `rejected_prob`: win rates against the policy's own samples |
| other | any number that your own objective names; `quantile` for qrpo |

A row's `weight` multiplies its loss under every objective, except `bco`, which uses it itself. Pairs also serve
unpaired objectives: each pair becomes two labelled responses.

## The function

An objective is a function decorated with `@loss(name, data=..., reference=...)` from `losses`. `losses/registry.py`
defines it exactly.

| `data` | arguments |
|---|---|
| `"pairs"` | `(chosen, rejected)` |
| `"unpaired"` | `(responses, labels)` |
| `"single"` | `(responses)` |
| `"ranked"` | `(responses)`, K per prompt, best first |

Each argument is a `Responses` of tensors [n] in nats: `logps` with gradient, `ref_logps` (with `reference=True`),
`logratios` (their difference), and `lengths` and `scores` if `needs=("lengths", "scores")` asks for them.
`level="token"` gives the tokens of each response in place of sums ([fields](#objectives-that-see-tokens)).

Keyword arguments are hyperparameters with their defaults, and become flags. A name in `fields=("margin",)` is
different: it needs no default and is the row's number of that name, as float64 [n] (`--columns margin=gpt_margin` reads
another column). A row without a finite number there stops the run before training, with file and line.

The function returns a `Result`: unreduced losses [n], and detached rewards of winners and losers for the log.

- `whole_step=True`: the function gets the whole step at once, for a statistic of the step.
- `state=True`: the function carries something from step to step.
- `progress: float = 0.0` as keyword argument: the share of all steps that are done, for a schedule. It excludes the
  other two.
- `needs=("mismatched",)`: KTO's mismatched sequences of the whole step, computed before it without gradient.

In a notebook, a cell with `@loss` can be run again and replaces the function.

## Steps, mixtures and references

**The loss of a step** is the mean over its examples on all ranks. Objectives with a statistic of the step get the whole
step, so micro-batches and ranks change nothing. With several micro-batches a rank computes each twice, about a third
more work.

**Mixtures** may combine objectives of different forms if rows are pairs. `kto`, whose mismatched sequences need
labelled rows, only mixes with unpaired objectives, unless its anchor is fixed (`--kto.kl 0`).

**References.** `--reference-model` measures against any model with the same vocabulary. `--reference-update soft|hard`
lets the reference follow the policy every `--reference-update-steps` (TR-DPO, arXiv 2404.09656). `--stages K` trains on
the rows in K parts, each measured against the end of the one before (sDPO, arXiv 2403.19270). For iterative rounds,
start a run from the last one's epoch.

## Gradients

Each pair of panels shows how strongly a step pushes the winner (left) and the loser (right), for every combination of
their rewards. Blue raises a likelihood, red lowers it, scaled per objective. Anchors, running means and KLs are at 0;
token-level objectives get a response as one token. `aot` of one pair is `dpo`. `python -m examples.objectives_page
--plot` draws the picture.

![gradient weights of every objective](objectives.png)
"""


INTRODUCTIONS = {
    "losses.token_level": '''\
With `@loss(..., level="token")` a function gets `TokenResponses` in place of `Responses`: n responses with N tokens in
total, one after the other without padding. Pairs, unpaired and single data have tokens; ranked data has none. Such an
objective mixes with others like any other: `--loss ld_dpo:1,sft:0.1`.

| field | shape | what it is |
|---|---|---|
| `logps` | [N] | log-prob of each token under the policy, nats, float64, with gradient |
| `ref_logps` | [N] | the same under the reference, without gradient; `logratios` is the one minus the other |
| `sequence` | [N] | int64, the index of the response that a token belongs to |
| `position` | [N] | int64, its place among the predicted tokens of its response, from 0 |
| `lengths` | [n] | int64, tokens of each response, including the end-of-turn token |
| `scores` | [n] | with `needs=("scores",)`, the row's rating |
| `revised` | [N] | on request, like all below; bool, whether the token differs between chosen and rejected |
| `token_weights` | [N] | the row's `chosen_token_weights` and `rejected_token_weights` (rows of ids) |
| `entropy`, `ref_entropy` | [N] | of the policy's next-token distribution, with gradient, and of the reference's |
| `kl_ref_policy`, `kl_policy_ref` | [N] | KL(reference, policy), KL(policy, reference) of next-token distributions |
| `log_sum_squares` | [N] | log of the sum over the vocabulary of the policy's squared probabilities |

`needs=("entropy", "revised")` asks for the fields from `revised` on. `per_sequence(values)` sums [N] over each response
to [n]. `masked(values, mask)` is the value where the mask is true, else 0 without gradient. `losses.common(chosen,
rejected)` returns the masks of the first min(n_w, n_l) tokens of both sides. The reference's table holds log-probs and
entropies; a KL needs both models at once. Losses and rewards are [n], as for other objectives. An example, for
`--loss my_file.py:early_dpo --early_dpo.first 16`:

```python
from torch.nn.functional import logsigmoid
from losses import Result, TokenResponses, loss


@loss("early_dpo", data="pairs", level="token", reference=True)
def early_dpo(chosen: TokenResponses, rejected: TokenResponses, *, beta: float = 0.1, first: int = 32) -> Result:
    """DPO on the first tokens of each response."""
    early_w, early_l = (r.masked(r.logratios, r.position < first) for r in (chosen, rejected))
    r_w, r_l = beta * chosen.per_sequence(early_w), beta * rejected.per_sequence(early_l)
    return Result(-logsigmoid(r_w - r_l), r_w.detach(), r_l.detach())
```
''',
    "losses.revisions": """\
For pairs in which one response is a revision of the other, like CLAIR's. `unrevised`, between 0 and 1, is the weight of
a token that both responses share; at 1 the objectives equal apo_zero, apo_down and dpo to the last bit.
""",
}
RECORD = DOCS / "records/revisions.json"
PLAIN = {"apo_zero_revised": "apo_zero", "apo_down_revised": "apo_down", "dpo_revised": "dpo"}


def page() -> str:
    """The text of docs/objectives.md."""
    parts = [HEAD]
    for module, title in MODULES.items():
        found = [loss for loss in map(losses.get, losses.names()) if loss.function.__module__ == module]
        parts.append(f"## {title}\n")
        parts += [INTRODUCTIONS[module]] if module in INTRODUCTIONS else []
        parts += [worth(RECORD)] if module == "losses.revisions" else []
        parts += [_entry(loss) for loss in sorted(found, key=lambda loss: inspect.getsourcelines(loss.function)[1])]
    return "\n".join(parts)


def worth(record: Path) -> str:
    """What revision-weighted objectives gain beside the plain ones, as examples.miniature.revisions found."""
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    gains = {(x["data"], x["loss"], x["seed"]): x["mean"] for x in found.get("gains", ())}
    seeds = sorted({seed for _, _, seed in gains})
    if not seeds:
        return "**What they are worth** beside the plain objectives is not measured yet.\n"
    names = dict.fromkeys(data for data, _, _ in gains)
    lines = [
        f"**What they are worth** (`python -m examples.miniature.revisions`): {found['epochs']} epochs on the "
        f"miniature's pairs, {len(seeds)} draws of prompts, answers and pairs; each objective at the learning rate "
        "that was best for it at that length, chosen on other prompts. Points over the base model: mean over "
        "checkpoints, then mean and deviation over draws. The difference is taken draw by draw. The points differ from "
        "those of [the paper in miniature](paper.md), whose seeds have fewer pairs and a base model each.",
        "",
        "| pairs | objective | rate | points | plain | rate | points | difference | ahead in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ahead, behind, n_rows = 0, 0, len(names) * len(PLAIN)
    for data in names:
        for revised, plain in PLAIN.items():
            ours, theirs = ([gains[data, loss, seed] for seed in seeds] for loss in (revised, plain))
            apart = [a - b for a, b in zip(ours, theirs, strict=True)]
            cells = [data, revised, f"{found['rates'][revised]:g}", _spread(ours), plain, f"{found['rates'][plain]:g}"]
            cells += [_spread(theirs), _spread(apart), f"{sum(x > 0 for x in apart)} of {len(seeds)}"]
            lines.append(f"| {' | '.join(cells)} |")
            ahead, behind = ahead + all(x > 0 for x in apart), behind + all(x < 0 for x in apart)
    lines += [
        "",
        f"Of {n_rows} comparisons the objective of revisions is ahead in every draw in {ahead}, and behind in every "
        f"draw in {behind}. docs/records/revisions.json has every rate that was tried, with its result.",
    ]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):+.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _entry(loss: Loss) -> str:
    """One objective: its settings and what its docstring says."""
    facts = [loss.data, *(["token level"] if loss.level == "token" else [])]
    facts += ["reference" if loss.reference else "no reference"]
    asked = [*sorted(loss.needs), *(f'"{name}" of each row' for name in loss.fields)]
    facts += [f"needs {', '.join(asked)}"] if asked else []
    facts += ["whole step"] if loss.whole_step else []
    facts += ["carries a state"] if loss.state else []
    others = [alias for alias in losses.aliases() if losses.get(alias) is loss]
    facts += [f"peers call it {', '.join(others)}"] if others else []
    arguments = " ".join(f"`--{loss.name}.{name} {_shown(value)}`" for name, value in loss.defaults.items())
    text = (inspect.getdoc(loss.function) or "").replace("*", r"\*")
    paragraphs = re.sub(r"\n(Use it|Source:|Metrics?:)", r"\n\n\1", text)
    return f"### {loss.name}\n\n{'; '.join(facts)}. {arguments or 'No hyperparameters.'}\n\n{paragraphs}\n"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def slopes(loss: Loss, r_w: Tensor, r_l: Tensor) -> tuple[Tensor, Tensor]:
    """d loss / d lp of winner and loser where the rewards are r_w, r_l; anchors and running means at 0.

    Unpaired objectives get both as labelled responses, single ones their own side, ranked ones the pair. Those without
    a reference are drawn over beta times what the log-probs have gained on -50 nats in 50 tokens. Those that see tokens
    get the response as one, revised, where the next-token distributions do not differ.
    """
    scale = loss.defaults.get("beta", loss.defaults.get("tau", 1.0))
    x = torch.stack([r_w, r_l]) / scale
    ref_logps = torch.full_like(x, -50.0)
    logps = (ref_logps + x).requires_grad_()
    lengths, score = torch.full(x.shape, 50), torch.tensor([[2.0], [1.0]], dtype=x.dtype).expand_as(x)
    both = Responses(logps, ref_logps, lengths, score)
    anchors = {"kl": 0.0, "kl_chosen": 0.0, "kl_rejected": 0.0, "delta": 0.0, "own_scores": torch.ones_like(r_w)}
    anchors |= {"keep": torch.ones_like(r_w) > 0, "values": torch.ones_like(r_w)}
    anchors |= {"quantile": torch.full_like(r_w, 0.5)}
    given = {name: v for name, v in anchors.items() if name in (*loss.defaults, *loss.injected, *loss.fields)}
    if loss.data == "pairs":
        result = loss(*(_column(loss, both, lambda t, i=i: t[i]) for i in (0, 1)), **given)
    elif loss.data == "unpaired":
        labels = torch.tensor([[True], [False]]).expand_as(x).flatten()
        result = loss(_column(loss, both, Tensor.flatten), labels, **given)
    elif loss.data == "ranked":
        result = loss(_column(loss, both, Tensor.t), **given)
    else:
        side = 0 if loss.side == "chosen" else 1
        result = loss(_column(loss, both, lambda t: t[side]), **given)
    result.losses.sum().backward()
    assert logps.grad is not None  # every objective has one
    return logps.grad[0], logps.grad[1]


def _column(loss: Loss, both: Responses, part: Callable[[Tensor], Tensor]) -> Responses | TokenResponses:
    """A part of winners and losers as the objective takes it: responses of one token where it sees tokens."""
    column = Responses(*(part(t) for t in both if t is not None))
    if loss.level == "sequence":
        return column
    rows = torch.arange(len(column.logps))
    return TokenResponses(
        column.logps, column.ref_logps, rows, torch.zeros_like(rows), torch.ones_like(rows), rows >= 0,
        kl_ref_policy=torch.zeros_like(column.logps), log_sum_squares=column.logps.detach(),
    )  # fmt: skip


def _panels() -> Iterator[Loss]:
    return (loss for loss in map(losses.get, losses.names()) if loss.name not in _SORTED)


_SORTED = ("aot", "aot_unpaired")  # of one pair they are dpo


def plot(path: Path) -> None:
    """Draws the gradient weights of every objective as small multiples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = list(_panels())
    ticks = torch.linspace(-4, 4, 81, dtype=torch.float64)
    r_l, r_w = (g.flatten() for g in torch.meshgrid(ticks, ticks, indexing="ij"))
    rows = -(-len(found) // 4)
    figure, axes = plt.subplots(rows, 8, figsize=(12, 1.75 * rows), constrained_layout=True)
    for panel in axes.flat:
        panel.axis("off")
    for i, loss in enumerate(found):
        pair = slopes(loss, r_w, r_l)
        largest = max(g.abs().max().item() for g in pair)
        for j, (g, who) in enumerate(zip(pair, ("winner", "loser"), strict=True)):
            panel = axes[i // 4, 2 * (i % 4) + j]
            panel.axis("on")
            image = (-g / largest).view(81, 81).numpy()
            panel.imshow(image, origin="lower", extent=(-4, 4, -4, 4), cmap="RdBu", vmin=-1, vmax=1)
            panel.set_title(f"{loss.name}: {who}", fontsize=7)
            panel.set_xticks([-4, 0, 4])
            panel.set_yticks([-4, 0, 4])
            panel.tick_params(labelsize=5, length=2)
            panel.set_xlabel("r_w", fontsize=6, labelpad=0)
            panel.set_ylabel("r_l", fontsize=6, labelpad=-4)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def write() -> None:
    """Writes the page."""
    (DOCS / "objectives.md").write_text(page(), encoding="utf-8")


def main() -> None:
    """Writes the page, and with --plot the picture."""
    write()
    if "--plot" in sys.argv[1:]:
        plot(DOCS / "objectives.png")


if __name__ == "__main__":
    main()
