"""One run of the real model's study: trained, its answers judged, its prices measured; what came out is in one file.

    python -m examples.real.study_run JOB.json       what examples.real.study starts

The file says what is run, and gets what came out under "found". The run's folder is removed at the end; a run that was
stopped goes on from it, with the answers that it has already.
"""

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.rows import Example, load_rows
from engine import train
from engine.config import TrainConfig
from engine.score import score_under
from examples.miniature.study_run import pack
from examples.real import demo, measure, study_sets, task
from examples.real.task import Task
from examples.studies import Job, made_by
from system import NotFinite, cli, files


class Group(NamedTuple):
    """Topics, and how many tasks on them are answered in each way."""

    topics: Sequence[str]
    n: Mapping[str, int]


GROUPS = {
    "development": Group(task.DEVELOPMENT_TOPICS, {"sampled": 270}),
    "test": Group(task.HELDOUT_TOPICS, {"sampled": 540, "greedy": 270}),
}
TRAINING: dict[str, Any] = {**demo.TRAINING, "warmup_steps": 3, "dtype": "float32"}
"""A warm-up, as RMSProp's first step without one is ten times the rate, and there are some thirty. Everything is
float32, on a GPU too: a folder of another dtype is another model.
"""
TEXTS = Path(__file__).with_name("ordinary.jsonl")
"""Openings of books and speeches in the public domain, which no model wrote."""


def tasks_of(group: str, how: str = "sampled") -> list[Task]:
    """The tasks that a group's models answer in a way; those that are answered greedily are the first of all."""
    topics, n = GROUPS[group]
    return task.tasks(topics, max(n.values()), seed=1)[: n[how]]


def ordinary(base: Path, samples: Path, folder: Path, group: str, texts: Path) -> dict[str, list[Example]]:
    """What the price is measured on: "samples", the model's own at temperature 1 without nucleus, to questions without
    a rule; and "texts". Both with the token that ends them, but for a sample that was cut.

    samples: folder that those of the model are kept in. folder: for the same as rows.
    """
    out, rows = samples / f"{group}-ordinary.jsonl", folder / f"{group}-ordinary.jsonl"
    for one in (out, rows):
        one.parent.mkdir(parents=True, exist_ok=True)
    measure.answer(base, measure.questions(GROUPS[group].topics), 1.0, out, top_p=1.0, dtype="float32")
    drawn = [row for row in load_rows(out) if row["response"].strip()]
    files.write_rows(rows, ({"prompt": x["prompt"], "completion": x["response"]} for x in drawn))
    found = study_sets.examples_of(base, rows)
    whole = [
        e if x["finish"] == "stop" else e._replace(responses=(e.responses[0][:-1],))
        for e, x in zip(found, drawn, strict=True)
    ]
    return {"samples": whole, "texts": study_sets.examples_of(base, texts)}


def likelihoods(folder: Path, examples: Mapping[str, Sequence[Example]]) -> dict[str, list[float]]:
    """Nats of each under a model, summed over its tokens."""
    return {
        name: [round(logps.item(), 3) for logps in score_under(folder, found, dtype="float32", micro_tokens=1024)]
        for name, found in examples.items()
    }


def judged(folder: Path, group: str, answers: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """(of each way to draw answers: packed verdicts on single ones, whether it keeps its rule, is broken, and was cut,
    and the characters of each; the answers). answers: folder for these.
    """
    answers.mkdir(parents=True, exist_ok=True)
    found, texts = {}, {}
    for how in GROUPS[group].n:
        tasks, out = tasks_of(group, how), answers / f"{how}.jsonl"
        said = measure.answer(folder, [t.prompt for t in tasks], measure.TEMPERATURES[how], out, dtype="float32")
        found[how] = {
            "kept": pack([t.is_kept(a) for t, a in zip(tasks, said, strict=True)]),
            "broken": pack([task.is_broken(a) for a in said]),
            "cut": pack([row["finish"] == "length" for row in load_rows(out)]),
            "characters": [len(a) for a in said],
        }
        texts[how] = said
    return found, texts


def run(told: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Trains and measures; or {"failed": its sentence} of a run whose loss is no number any more; and how it was made.
    Its answers are kept where told["kept"] says.
    """
    job, base, group = Job(**told["job"]), Path(told["base"]), told["group"]
    flags: dict[str, Any] = TRAINING | {"lr": job.lr} | told.get("training", {})
    n_pairs = len(load_rows(Path(told["data"])))
    made = {"by": made_by("examples.real.study", flags | {"pairs": n_pairs})}
    begun = time.perf_counter()
    try:
        result = train.run(TrainConfig(
            model=str(base), data=(told["data"],), loss=job.loss, seed=job.seed, out=str(out), resume=True,
            keep_checkpoints=1, keep_state=1, track=("none",),
            reference_cache=str(Path(told["data"]).parent / "reference"), **flags,
        ))  # fmt: skip
    except NotFinite as fault:
        return {"failed": str(fault), **made}
    trained = time.perf_counter() - begun
    (*_, folder) = map(Path, result.checkpoints)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    examples = ordinary(base, Path(told["samples"]), out, group, Path(told["texts"]))
    found, texts = judged(folder, group, out / "answers")
    keep(texts, Path(told["kept"]))
    return {
        "answers": found, "ordinary": likelihoods(folder, examples),
        "heldout": [of_epoch(line) for line in lines if measured(line)],
        "seconds": {"training": round(trained, 1), "all": round(time.perf_counter() - begun, 1)}, **made,
    }  # fmt: skip


def measured(line: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl has held-out numbers."""
    return any(name.startswith("eval_") for name in line)


def of_epoch(line: Mapping[str, Any]) -> dict[str, float]:
    """Its step, and the held-out numbers."""
    found = {name: round(float(value), 4) for name, value in line.items() if name.startswith("eval_")}
    return {"step": line["step"], **found}


def keep(texts: Mapping[str, Sequence[str]], path: Path) -> None:
    """Writes answers for whoever wants to judge them anew; the same bytes of the same answers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(texts).encode(), mtime=0))


def main(argv: Sequence[str]) -> None:
    """The process."""
    path = Path(argv[0])
    told = json.loads(path.read_text())
    out = path.with_suffix("")
    found = run(told, out)
    files.write_json(path, told | {"found": found})
    files.remove_folder(out)


if __name__ == "__main__":
    cli.run(main)
