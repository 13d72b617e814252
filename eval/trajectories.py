"""What training does to held-out pairs and to answers, at every checkpoint: Figure 4 of arXiv 2408.06266, and more.

    python -m eval trajectories runs/first --data heldout.jsonl

Log-likelihoods and log-ratios of chosen and rejected: those that training has measured (--eval-pairs, --eval-data;
inside epochs too with --eval-every), else recomputed by the trainer's own forward pass. Length and distance from the
reference of a few sampled answers: an objective that only ever sees given texts can change what the model writes
without a sign of it in its metrics.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from data.rows import Example, PromptRow, Reading, hold_out, open_model, prompts_of, read_examples
from data.text import NO_SETTINGS, Message
from eval import checkpoints, scores
from eval.checkpoints import Checkpoint
from eval.runs import RUNAWAY
from eval.scores import BASE, Line
from system import InputError, cli, files, run_folder
from system.flags import PathText, check_above_zero, check_not_negative

if TYPE_CHECKING:  # what brings torch is imported where it is used: flags are answered at once
    from torch import Tensor

    from engine.generate import Answer

EXAMPLE = "python -m eval trajectories runs/first --data heldout.jsonl"
HELDOUT = (
    *("logps/chosen", "logps/rejected"),
    *("logratios/chosen", "logratios/rejected", "logratios/margins"),
    *("rewards/chosen", "rewards/rejected", "rewards/margins"),
)
"""What is said of held-out pairs."""


@dataclass(frozen=True, kw_only=True)
class TrajectoriesConfig:
    """Measure held-out pairs and sampled answers at every checkpoint of a run."""

    run: tyro.conf.Positional[PathText]
    """Folder of a run with its checkpoints. The base model has to be where its config.yaml says."""
    data: PathText | None = None
    """Held-out pairs to measure at every checkpoint. Unset: show the values that training logged for its held-out rows;
    it is an error if there are none."""
    n: int = 100
    """Number of pairs to use, drawn by --seed."""
    beta: float | None = None
    """Also report rewards, as beta times the log-ratios; without --data it has no effect. For objectives that define
    rewards differently, read the rewards in metrics.jsonl instead."""
    answers: int = 32
    """Number of prompts to sample answers to at every checkpoint: the first of the drawn held-out pairs. 0: none."""
    max_new_tokens: int = 512
    """Maximum number of tokens of an answer."""
    temperature: float = 1.0
    """Sampling temperature of the answers. Only at 1 does the reported distance from the base model estimate the KL
    divergence."""
    seed: int = 0
    """Seed for drawing the pairs and sampling the answers."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype. Unset: bfloat16 on CUDA, float32 on the CPU."""
    out: PathText | None = None
    """Folder for scores.jsonl and samples.jsonl. Unset: eval/ in the run's folder."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        if not Path(self.run).is_dir():
            raise InputError(f"{self.run}: no such folder; give the folder of a run")
        check_above_zero(self, "n", "max_new_tokens")
        check_not_negative(self, "answers", "seed")
        if self.beta is not None and not 0 < self.beta < math.inf:
            raise InputError(f"--beta: {self.beta} has to be above 0")

    @property
    def folder(self) -> Path:
        """Where scores go."""
        return Path(self.out) if self.out else Path(self.run) / "eval"


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(TrajectoriesConfig, argv, command="python -m eval trajectories", example=EXAMPLE)
    run = Path(config.run)
    base = checkpoints.base_of(run)
    if base is None:
        raise InputError(f"{run}: the model that it began with is not where config.yaml says; put it there")
    models = [base, *checkpoints.of(run)]
    if len(models) == 1:
        raise InputError(f"{run}: has no checkpoints yet; train first")
    pairs = _pairs(config, base)
    reference = checkpoints.reference_of(run)
    if reference is None:
        raise InputError(f"{run}: the --reference-model of config.yaml is not where it says; put it there")
    found = measured(run) if config.data is None else []
    lines = [] if found else _heldout(models, reference, pairs, config)
    scores.write(config.folder / scores.NAME, lines)
    if found:
        cli.notify(f"{run}: held-out pairs were measured in training; metrics.jsonl has them")
    if config.answers and pairs:
        lines += _sampled(models, pairs, config)
    per_epoch = run_folder.steps_per_epoch(run_folder.lines_of(run))
    shown = sorted([*found, *lines], key=lambda line: run_folder.place_of(line["checkpoint"], per_epoch))  # stable
    for said in (*report(shown), *runaway(lines)):
        print(said)


def measured(run: Path) -> list[Line]:
    """What training has measured of held-out pairs: after epochs, inside them, and before the first step, which is the
    base's. Each point has the name that its checkpoint has, or would have.
    """
    lines = list(run_folder.lines_of(run))
    per_epoch = run_folder.steps_per_epoch(lines)
    named = {f"eval_{metric}": metric for metric in HELDOUT}
    if per_epoch is None or not any(f"eval_{HELDOUT[0]}" in line for line in lines):
        return []
    last = max(line["step"] for line in lines)
    return [
        {"checkpoint": run_folder.checkpoint_name(line["step"], per_epoch, last) if line["step"] else BASE}
        | {"benchmark": "heldout", "metric": metric, "value": line[name]}
        for line in lines
        for name, metric in named.items()
        if name in line
    ]


def _pairs(config: TrajectoriesConfig, base: Checkpoint) -> list[Example]:
    """The held-out pairs, drawn by the seed; of the run's own rows where none are named, for their prompts alone."""
    asked = checkpoints.settings(Path(config.run))
    own = asked.get("eval_data") if asked.get("eval_data") not in (None, "null", "") else asked.get("data", [])
    sources = [config.data] if config.data else [own] if isinstance(own, str) else list(own or [])
    is_own = config.data is None
    if config.data is None and not measured(Path(config.run)):
        raise InputError(f"{config.run}: training has not followed held-out pairs; name a file of them by --data")
    if not sources:
        raise InputError(f"{config.run}: config.yaml names no rows; name a file of pairs by --data")
    from engine.score import shape_of

    settings = checkpoints.template_of(Path(config.run), NO_SETTINGS)
    folder, chat = open_model(str(base.folder), settings, base=base.base)
    reading, shape = checkpoints.rows_of(asked), shape_of(folder, base=base.base)
    is_whole = is_own and own != asked.get("eval_data")  # held out of what is trained on: read as training reads it
    seed, n_held = int(asked.get("seed", 0)), float(asked.get("eval_pairs") or 0) if is_whole else 0
    weights = [float(w) for w in asked.get("data_weights") or []] if is_whole else []
    skips = is_own and asked.get("skip_bad_rows") == "true"
    try:
        rows = read_examples(
            sources, chat, reading.limits_in(shape.context if is_own else None, shape.longest), reading.reading,
            n_ids=shape.vocab_size, skip_bad_rows=skips, weights=weights, seed=seed,
        )  # fmt: skip
    except InputError as fault:
        if not is_own:
            raise
        raise InputError(
            f"{config.run}: its rows cannot be read again ({fault}); name a file of pairs by --data"
        ) from None
    examples = hold_out(rows.examples, n_held, seed)[1] if n_held else rows.examples
    pairs = [e for e in examples if len(e.responses) == 2]
    if not pairs:
        raise InputError(f"{rows.name}: holds no pairs; give a file of pairs by --data")
    drawn = np.random.default_rng(config.seed).choice(len(pairs), min(config.n, len(pairs)), replace=False)
    return [pairs[i] for i in sorted(drawn.tolist())]


def _digest(pairs: Sequence[Example]) -> str:
    whole = hashlib.sha256()
    for ids in (ids for e in pairs for ids in (e.prompt, *e.responses, *(e.predicted or ()))):
        whole.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return whole.hexdigest()


def _heldout(
    models: Sequence[Checkpoint], reference: Checkpoint, pairs: Sequence[Example], config: TrajectoriesConfig
) -> list[Line]:
    """Means over the pairs at each checkpoint, with their standard errors."""

    def logps_of(model: Checkpoint) -> np.ndarray:
        return np.array([found.tolist() for found in _logps(model, pairs, config)])  # [n, 2]

    of_reference = None if reference.name == BASE else logps_of(reference)
    facts = {"n": len(pairs), "data_sha256": _digest(pairs), "judge": None}
    lines: list[Line] = []
    for model in models:
        logps = logps_of(model)
        of_reference = logps if of_reference is None else of_reference  # the base is the first
        columns = {"logps/chosen": logps[:, 0], "logps/rejected": logps[:, 1]}
        columns |= _compared("logratios", logps - of_reference)
        if config.beta is not None:
            columns |= _compared("rewards", config.beta * (logps - of_reference))
        lines += [
            {"checkpoint": model.name, "benchmark": "heldout", "version": f"{len(pairs)} pairs", "metric": name}
            | {"value": float(values.mean()), "stderr": _error(values), **facts}
            | ({"beta": config.beta} if name.startswith("rewards/") else {})
            for name, values in columns.items()
        ]
    return lines


def _compared(what: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Of values [n, 2] of chosen and rejected: both, how far one is above the other, and whether it is."""
    margins = values[:, 0] - values[:, 1]
    made = {f"{what}/chosen": values[:, 0], f"{what}/rejected": values[:, 1], f"{what}/margins": margins}
    return made | {f"{what}/accuracies": (margins > 0).astype(float)}


def _error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _sampled(models: Sequence[Checkpoint], pairs: Sequence[Example], config: TrajectoriesConfig) -> list[Line]:
    """Lengths and distances of answers to the first of the prompts, written down checkpoint by checkpoint."""
    from engine.generate import Answerer, Sampling

    asked = pairs[: config.answers]
    texts = _texts(asked, checkpoints.rows_of(checkpoints.settings(Path(config.run))).reading)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed)
    facts = {"n": len(asked), "data_sha256": _digest(asked), "temperature": config.temperature, "judge": None}
    facts |= {"max_new_tokens": config.max_new_tokens, "seed": config.seed}
    path, samples = config.folder / "samples.jsonl", []
    lines: list[Line] = []
    for model in models:
        answerer = Answerer.open(str(model.folder), config.dtype, base=model.base, base_dtype=model.base_dtype)
        answers = answerer.answer([e.prompt.tolist() for e in asked], sampling)
        said = [answerer.text(a) if answerer.chat else " ".join(map(str, a.ids)) for a in answers]
        columns = {"tokens": np.array([float(len(a.ids)) for a in answers])}
        columns["characters"] = np.array([float(len(text)) for text in said])
        columns["unfinished"] = np.array([float(a.finish == "length") for a in answers])
        columns["kl"] = _distance(model, models[0], asked, answers, config)
        lines += [
            {"checkpoint": model.name, "benchmark": "samples", "version": f"{len(asked)} answers", "metric": name}
            | {"value": float(values.mean()), "stderr": _error(values), **facts}
            for name, values in columns.items()
        ]
        samples += [
            {"checkpoint": model.name, "prompt": prompt, "response": text, "kl": kl}
            for prompt, text, kl in zip(texts, said, columns["kl"].tolist(), strict=True)
        ]
        scores.write(config.folder / scores.NAME, lines[-len(columns) :])
        files.write_rows(path, samples)
    return lines


def _texts(pairs: Sequence[Example], reading: Reading) -> list[str]:
    """The prompts as they stand in their file; their location where that is not text."""
    source = pairs[0].location.rpartition(":")[0]
    rows = prompts_of(source, reading) if Path(source).exists() else ()
    found = {row.location: row for row in rows if isinstance(row, PromptRow)}

    def text(location: str) -> str:
        row = found.get(location)
        said = [m.content for m in row.prompt if isinstance(m, Message)] if row else []
        return said[-1] if said else location

    return [text(e.location) for e in pairs]


def _distance(
    model: Checkpoint,
    base: Checkpoint,
    asked: Sequence[Example],
    answers: "Sequence[Answer]",
    config: TrajectoriesConfig,
) -> np.ndarray:
    """log p(answer) - log p_base(answer), nats: its mean over answers of the model is KL(model || base)."""
    ends = [[*a.ids, *([a.stop_id] if a.stop_id is not None else [])] for a in answers]
    whole = [
        Example(e.location, e.prompt, (np.array(ids, dtype=np.int32),)) for e, ids in zip(asked, ends, strict=True)
    ]
    if model.name == base.name:
        return np.zeros(len(whole))
    own, of_base = (np.array([found.item() for found in _logps(c, whole, config)]) for c in (model, base))
    return own - of_base


def _logps(model: Checkpoint, rows: Sequence[Example], config: TrajectoriesConfig) -> Iterator["Tensor"]:
    """Log-probs of rows' responses under a checkpoint, [K] nats each."""
    from engine.score import score_under

    return score_under(model.folder, rows, dtype=config.dtype, base=model.base, base_dtype=model.base_dtype)


# --- what is said --------------------------------------------------------------------------------------------------


def report(lines: Sequence[Line]) -> list[str]:
    """A line for each checkpoint."""
    table: dict[str, dict[str, Any]] = {}
    for line in lines:
        table.setdefault(line["checkpoint"], {})[line["metric"]] = line["value"]
    shown = {"logps/chosen": "logps {:.1f}", "logps/rejected": "/ {:.1f}", "logratios/chosen": "log-ratios {:+.2f}",
             "logratios/rejected": "/ {:+.2f}", "rewards/chosen": "rewards {:+.3f}", "rewards/rejected": "/ {:+.3f}",
             "characters": "{:.0f} characters", "kl": "KL {:.2f}"}  # fmt: skip
    return [
        "  ".join([f"{name:<11}", *(form.format(values[m]) for m, form in shown.items() if m in values)])
        for name, values in table.items()
    ]


def runaway(lines: Sequence[Line]) -> list[str]:
    """A warning for each checkpoint whose answers have become much longer than the base's."""
    found = {line["checkpoint"]: line["value"] for line in scores.pick(lines, benchmark="samples", metric="characters")}
    base = found.get(BASE, 0.0)
    return [
        f"warning: {name} writes {value:.0f} characters where the base writes {base:.0f}; read samples.jsonl"
        for name, value in found.items()
        if base and value > RUNAWAY * base
    ]
