"""A real instruction model is aligned on a laptop: SmolLM2-135M-Instruct learns to keep rules that a program can check.

    ./launch.sh demo --real            APO-zero on CLAIR pairs: twenty minutes on two cores
    ./launch.sh demo --real --all      DPO, APO-down, KTO and SFT on the same pairs too, and APO-zero on judged pairs

The model's own answers are revised by a program behind a real HTTP server, with the client, the store and the recipe
that a hosted model would be asked with. What is done is kept: the same command goes on from there. It ends in the
report of a real run, and in results.md beside it.
"""

import contextlib
import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.rows import Example
from engine import train
from engine.config import TrainConfig
from eval import contrast_run, report, scores
from examples.real import checkpoint, measure, page, reviser, score, task
from examples.real.checkpoint import N_PROMPTS
from examples.real.score import N_TEST
from revise import recipe_runner
from revise import show as pages
from revise.recipes import ClairConfig, JudgeConfig, Positions, clair_recipe, judge_recipe
from system import RunError, cli, files
from system.flags import PathText

TRAINING: dict[str, Any] = {
    "batch_size": 16, "epochs": 2, "lr": 1e-5, "beta": 0.1, "eval_pairs": 32, "save_dtype": "auto",
}  # fmt: skip
"""What decides the results, hence the default of save_dtype, too: a folder of another dtype is another model."""
OBJECTIVES = ("apo_zero", "dpo", "apo_down", "kto_pair", "sft")
SECONDS = {
    "pairs": 170, "judged pairs": 170, "run": 430, "base": 170, "model": 190, "ordinary": 50, "timed": 400
}  # fmt: skip
"""What each part has taken on two cores: for the time that is left, which is measured against them."""


@dataclass(frozen=True, kw_only=True)
class RealConfig:
    """Download a small instruction model, align it on revisions of its own answers, and measure what it has learnt."""

    out: PathText = "runs/real"
    """Folder for everything that is made. The model and finished parts in it are used again."""
    all: bool = False
    """Train with every objective, and also on pairs that a judge made. By default only apo_zero trains, on
    revisions."""


class Clock:
    """Says which part begins, how long all has taken, and what is left."""

    def __init__(self, parts: Sequence[tuple[str, str]], kept: Path) -> None:
        """parts: what is done, in order, and its kind in SECONDS. kept: file for the seconds of each."""
        self._left, self._start, self._expected, self._spent, self._kept = (
            list(parts),
            time.perf_counter(),
            0.0,
            0.0,
            kept,
        )

    @contextlib.contextmanager
    def part(self, name: str, sentence: str) -> Iterator[None]:
        """One part, timed."""
        left = sum(SECONDS[kind] for _, kind in self._left)
        rate = self._spent / self._expected if self._expected else 1.0
        took = time.perf_counter() - self._start
        print(f"[{took / 60:4.1f} min, about {rate * left / 60:.0f} left] {sentence}", file=sys.stderr, flush=True)
        before = time.perf_counter()
        yield
        seconds = time.perf_counter() - before
        kind = dict(self._left)[name]
        self._left = [p for p in self._left if p[0] != name]
        known = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        if name in known and seconds < known[name]:
            return  # it was there already, and tells nothing of this machine
        self._spent, self._expected = self._spent + seconds, self._expected + SECONDS[kind]
        files.write_text(self._kept, json.dumps(known | {name: seconds}, indent=1) + "\n")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(
        RealConfig,
        argv or ["--out", RealConfig.out],
        command="./launch.sh demo --real",
        example="./launch.sh demo --real",
    )
    base = checkpoint.fetch(Path(config.out))
    root = Path(config.out) / f"run-{fingerprint()}"
    root.mkdir(parents=True, exist_ok=True)
    runs = {name: (name, "clair") for name in (OBJECTIVES if config.all else OBJECTIVES[:1])}
    if config.all:
        runs["apo_zero_judged"] = ("apo_zero", "judged")
    data = dict.fromkeys(pairs for _, pairs in runs.values())
    parts = [("clair", "pairs"), ("base", "base"), ("ordinary", "ordinary")]
    parts += [("judged", "judged pairs")] * ("judged" in data)
    parts += [(f"{kind} {name}", kind) for name in runs for kind in ("run", "model")]
    clock = Clock(parts, root / "seconds.json")
    test = task.tasks(task.HELDOUT_TOPICS, N_TEST, seed=1)

    with clock.part("clair", "the model answers; a reviser, asked over HTTP, repairs what breaks a rule"):
        make_pairs(base, root, "clair")
    with clock.part("base", f"the model before training answers {len(test)} tasks on other topics"):
        found = {"base": measured(base, "base", test, root)}
    with clock.part("ordinary", "it answers ordinary questions, to see later whether it still would"):
        ordinary = measure.ordinary(base, root / "answers/ordinary.jsonl")
        likelihoods = {"base": likelihood(base, "base", ordinary, root)}
    for name, (loss, pairs) in runs.items():
        if pairs == "judged" and not (root / "judged.jsonl").exists():
            with clock.part("judged", "the model answers twice; a judge, asked over HTTP, says which is better"):
                make_pairs(base, root, "judged")
        with clock.part(f"run {name}", f"{loss} trains on {root / pairs}.jsonl"):
            aligned = train_on(base, loss, root / f"{pairs}.jsonl", root / name)
        with clock.part(f"model {name}", f"the model aligned by {name} answers the same tasks"):
            found[name] = measured(aligned, name, test, root)
            likelihoods[name] = likelihood(aligned, name, ordinary, root)
        write_scores(root / name, aligned.name, found["base"], found[name])
        contrast_run.measure(root / name)
    folders = [root / name for name in runs]
    print(
        report.write(folders, root / "report", title="SmolLM2-135M-Instruct, aligned on revisions of its own answers")
    )
    made = page.write(root, found, likelihoods, test, runs, peak_bytes=peak_bytes(root / "peak.json"))
    print(made.read_text())
    if found["apo_zero"]["sampled"].kept.interval[0] <= found["base"]["sampled"].kept.interval[1]:
        raise RunError("APO-zero did not improve on the base: their intervals at temperature 0.7 overlap")


def fingerprint() -> str:
    """Of what decides the results: where it changes, a new folder is begun."""
    here = Path(__file__).parent
    texts = [(here / name).read_text() for name in ("task.py", "reviser.py")]
    settings = json.dumps([TRAINING, N_PROMPTS, N_TEST, measure.TOP_P, measure.MAX_ANSWER_TOKENS, checkpoint.SHA256])
    return hashlib.sha256("\0".join([*texts, settings]).encode()).hexdigest()[:8]


def peak_bytes(kept: Path) -> int:
    """The most memory that this process, or one before it on the same folder, has held; written down in `kept`."""
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = max(now, json.loads(kept.read_text()) if kept.exists() else 0)
    files.write_text(kept, f"{peak}\n")
    return peak


def make_pairs(base: Path, root: Path, name: str) -> None:
    """Pairs by the reviser ("clair") or by the judge ("judged"), over HTTP, by the recipe that a real run uses."""
    prompts, out = root / "prompts.jsonl", root / f"{name}.jsonl"
    if out.exists():
        return
    texts = [t.prompt for t in task.tasks(task.TOPICS, N_PROMPTS, seed=0)]
    files.write_text(prompts, "".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    with reviser.serve_both() as address:
        shared: dict[str, Any] = {
            "prompts": str(prompts),
            "out": str(out),
            "store": str(root / "answers.sqlite"),
            "endpoint": (address,),
            "target_model": str(base),
            "target_temperature": measure.TEMPERATURES["sampled"],
            "target_top_p": measure.TOP_P,
            "target_max_tokens": measure.MAX_ANSWER_TOKENS,
        }
        if name == "clair":
            recipe_runner.make(clair_recipe(ClairConfig(model="reviser", min_length_ratio=0.2, **shared)))
        else:
            positions = Positions()
            recipe_runner.make(
                judge_recipe(JudgeConfig(model="judge", **shared), positions), summary=positions.sentence
            )
    pages.main([str(out), "--html", str(root / f"{name}.html")])


def train_on(base: Path, loss: str, pairs: Path, out: Path) -> Path:
    """The aligned model's folder."""
    run = train.run(TrainConfig(
        model=str(base), data=(str(pairs),), loss=loss, out=str(out), resume=True, keep_checkpoints=1, keep_state=1,
        reference_cache=str(out.parent / "reference"), **TRAINING,
    ))  # fmt: skip
    return run.checkpoints[-1]


def measured(folder: Path, name: str, test: Sequence[task.Task], root: Path) -> dict[str, measure.Score]:
    """A model's scores, sampled and greedy; its answers stay beside the pairs."""
    prompts = [t.prompt for t in test]
    return {
        how: measure.score(test, measure.answer(folder, prompts, heat, root / f"answers/{name}-{how}.jsonl"))
        for how, heat in measure.TEMPERATURES.items()
    }


def likelihood(folder: Path, name: str, ordinary: Sequence[Example], root: Path) -> list[float]:
    """Nats per token of ordinary answers under a model; kept beside its answers."""
    path = root / f"answers/{name}-likelihood.json"
    if not path.exists():
        files.write_text(path, json.dumps(measure.log_likelihood(folder, ordinary).tolist()))
    return json.loads(path.read_text())


def write_scores(run: Path, epoch: str, base: dict[str, measure.Score], aligned: dict[str, measure.Score]) -> None:
    """What was found, as any evaluator writes it."""
    scores.write(run / "eval" / scores.NAME, [*score.lines_of(scores.BASE, base), *score.lines_of(epoch, aligned)])


if __name__ == "__main__":
    cli.run(main)
