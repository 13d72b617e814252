"""Which variant of APO? The rule of section 5.3.2 of arXiv 2408.06266, made executable.

APO-zero raises the winners: right where they are better than what the model writes by itself. APO-down lowers them:
right where they are worse. So the model's own answers are compared with the winning ones, by the scores in the rows,
and the share of pairs in which the model is better is given with its interval.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from data.contrast import jaccard
from data.rows import Example, RowSettings, open_model, read_examples
from eval import judge_compare, scores
from eval.judge_compare import JudgeSettings
from system import InputError, cli, files
from system.flags import PathText, check_not_negative

EXAMPLE = "python -m eval advise --model path/to/llama --data pairs.jsonl"
Z = 1.959964  # of a 95 % interval
FEWEST = 100
LITTLE_CONTRAST = 0.3  # token Jaccard; the paper's Table 1: CLAIR 43 %, Stronger Preferred 24 %
OFF_POLICY = (
    "this tells text that the model would write from text that it would not, not good answers from bad ones: a hint, "
    "and no advice"
)


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(JudgeSettings, RowSettings):
    """Say which variant of APO fits a model and its pairs, by whether the winners are better than the model's own
    answers.

    It compares "chosen_score" with "own_score" in the rows (both from the same scorer), or asks a judge
    (--judge-endpoint).
    """

    model: PathText
    """Checkpoint folder or hub id of the model before training. Its log-probs of the pairs are reported too."""
    data: PathText
    """Pairs in any form that engine.train reads. They need chosen_score and own_score (rejected_score with --own-score
    rejected) unless --judge-endpoint is given."""
    own_score: Literal["row", "rejected"] = "row"
    """Column with the score of the target model's own answer. row: "own_score". rejected: "rejected_score", for pairs
    whose rejected response is that answer, such as CLAIR's."""
    n: int = 400
    """Number of pairs to draw; values below 100 are refused. If --data has fewer pairs than this, all are used."""
    seed: int = 0
    """Seed for drawing the pairs, and for sampling own answers for a judge."""
    skip_bad_rows: bool = False
    """Skip rows that cannot be used. By default such rows are an error."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype to compute the log-probs of the pairs in. Unset: bfloat16 on CUDA, float32 on the CPU."""
    out: PathText | None = None
    """JSON file for the result. Unset: it is only printed."""
    scores: PathText | None = None
    """A run's eval/scores.jsonl to add the advice to, so that the run's report shows it."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        for part in (RowSettings, JudgeSettings):
            part.__post_init__(self)
        if self.n < FEWEST:
            raise InputError(f"--n: {self.n} has to be at least {FEWEST}, since fewer pairs say too little")
        check_not_negative(self, "seed")


class Interval(NamedTuple):
    """A share and its 95 % interval."""

    share: float
    low: float
    high: float


def wilson(k: float, n: int) -> Interval:
    """k of n with Wilson's interval (1927); k may be half a number where ties count half."""
    q = k / n
    centre = (q + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(q * (1 - q) / n + Z**2 / (4 * n**2))
    return Interval(q, max(0.0, centre - half), min(1.0, centre + half))


def choose(better: Interval) -> tuple[str, str]:
    """(objective, why) for the share of pairs in which the model's own answer beats the winner."""
    if better.high < 0.5:
        return "apo_zero", "the winners are better than what the model writes: raise them"
    if better.low > 0.5:
        return "apo_down", "the winners are worse than what the model writes: lower them, and the losers further"
    return (
        "apo_select",
        "winners and own answers are about as good: choose per pair by the scores; or look at more pairs; without "
        "scores, apo_zero for the best checkpoint and apo_down for the mean over checkpoints differed little in the "
        "paper's on-policy rows (4.65 / 3.65 and 0.02 / 1.60)",
    )


def advise(examples: Sequence[Example], *, n: int, seed: int) -> tuple[dict[str, Any], list[Example]]:
    """What the scores of pairs say, and the pairs that were drawn to say it. Each has the ratings that it takes."""
    pairs = _drawn(examples, n, seed)
    leads = [_own(e) - (e.ratings.scores or (math.nan,))[0] for e in pairs]
    wins, ties = sum(lead > 0 for lead in leads), sum(lead == 0 for lead in leads)
    better = wilson(wins + ties / 2, len(pairs))
    objective, why = choose(better)
    contrast = float(np.mean([jaccard(*(ids.tolist() for ids in e.targets())) for e in pairs]))
    notes = []
    if len(pairs) < FEWEST:
        notes.append(f"{len(pairs)} pairs are few: the interval is wide")
    if 0.2 < better.share < 0.8 and objective != "apo_select":
        notes.append("a part of the pairs says otherwise, and rows have scores: apo_select chooses per pair")
    if better.share < 0.1 and contrast < LITTLE_CONTRAST:
        notes.append(
            f"winners and losers share {contrast:.0%} of their tokens: on such a set (Stronger Preferred, 24 %) every "
            "contrastive objective lost to sft in the paper; compare with --loss sft"
        )
    found = {
        "pairs": len(pairs), "own_better": wins, "ties": ties, "share": better.share, "low": better.low,
        "high": better.high, "objective": objective, "why": why, "jaccard": contrast, "notes": notes,
    }  # fmt: skip
    return found, pairs


def _drawn(examples: Sequence[Example], n: int, seed: int) -> list[Example]:
    drawn = np.random.default_rng(seed).choice(len(examples), min(n, len(examples)), replace=False)
    return [examples[i] for i in sorted(drawn.tolist())]


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(AdviseConfig, argv, command="python -m eval advise", example=EXAMPLE)
    if config.out:
        files.check_new_file(Path(config.out))
    from engine.score import score_under, shape_of  # it brings torch: flags are answered without

    folder, chat = open_model(config.model, config)
    shape = shape_of(folder)
    rows = read_examples(
        [config.data],
        chat,
        config.limits_in(shape.context, shape.longest),
        config.reading,
        n_ids=shape.vocab_size,
        skip_bad_rows=config.skip_bad_rows,
    )
    examples = [_with_own(e, config.own_score) for e in rows.examples]
    if config.judge_endpoint:
        pairs = [e for e in examples if len(e.responses) == 2]
        examples = judge_compare.compare(
            _drawn(pairs, config.n, config.seed),
            config.model,
            config.data,
            config.reading,
            config,
            seed=config.seed,
            settings=config,
        )
    usable = [e for e in examples if len(e.responses) == 2 and e.ratings.scores and e.ratings.own is not None]
    if not usable:
        raise InputError(
            f'{config.data}: no pair has both "chosen_score" and "own_score"; add them (python -m revise score), give '
            "--own-score rejected if the rejected response is the model's own answer and scored, or use "
            "--judge-endpoint"
        )
    found, pairs = advise(usable, n=config.n, seed=config.seed)
    found |= {"rows": len(examples), "without_scores": len(examples) - len(usable)}
    logps = list(score_under(folder, pairs, dtype=config.dtype))
    means = [[float(lp) / n for lp, n in zip(values, e.lengths, strict=True)]
             for values, e in zip(logps, pairs, strict=True)]  # fmt: skip
    found["logps_per_token"] = dict(zip(("chosen", "rejected"), np.mean(means, axis=0).tolist(), strict=True))
    if os.environ.get("RANK", "0") != "0":
        return
    print(report(config.data, found))
    if config.scores:
        line = {"checkpoint": scores.BASE, "benchmark": "advice", "version": Path(config.data).name}
        line |= {"metric": "own_better", "value": found["share"], "n": found["pairs"], "objective": found["objective"]}
        scores.write(Path(config.scores), [line | {"stderr": None, "judge": config.judge or "scores in the rows"}])
    if config.out:
        files.write_json(Path(config.out), found)


def report(name: str, found: dict[str, Any]) -> str:
    """What was found, in sentences."""
    lacking = f"; {found['without_scores']} more have no scores" if found["without_scores"] else ""
    per_token = found["logps_per_token"]
    lines = [
        f"{name}: {found['pairs']} of {found['rows']} pairs looked at{lacking}",
        f"the model's own answer is better than the winner in {found['share']:.1%} of them "
        f"(95 % interval {found['low']:.1%} to {found['high']:.1%}; {found['ties']} ties count half)",
        f"advice: --loss {found['objective']}: {found['why']}",
        *found["notes"],
        f"under the model a winner's token has the log-prob {per_token['chosen']:.2f}, a loser's "
        f"{per_token['rejected']:.2f}: {OFF_POLICY}",
    ]
    return "\n".join(lines)


def _with_own(e: Example, where: Literal["row", "rejected"]) -> Example:
    if where == "row" or e.ratings.scores is None:
        return e
    return e._replace(ratings=e.ratings._replace(own=e.ratings.scores[-1]))


def _own(e: Example) -> float:
    return math.nan if e.ratings.own is None else e.ratings.own
