"""The commands that make a report anew: training, what was measured, and the report itself.

They are read out of config.yaml and of the facts that scores carry. What neither says, a judge's address or the place
of a benchmark's data, stands in capitals.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import scores
from eval.runs import NO_BENCHMARKS, Run
from eval.scores import BASE, Line

ROWS = "scores in the rows"  # what `eval advise` calls its judge where it asks none
IN_CAPITALS = "What stands in capitals is written down nowhere: a judge's address, the folders of a benchmark's data."


def of_run(run: Run) -> list[str]:
    """The commands that train a run and measure it, in order, and a comment on what another program has measured."""
    config, made = run.folder / "config.yaml", []
    if run.settings:
        made.append(line("python -m engine.train", "--config", str(config), "--out", f"{run.folder}-again"))
    names = dict.fromkeys(x["benchmark"] for x in run.lines)
    for benchmark in names:
        found = scores.pick(run.lines, benchmark=benchmark)
        if benchmark in JUDGED:
            made += _judged(benchmark, run.folder, found)
        elif benchmark not in NO_BENCHMARKS:
            made.append(f"# {' '.join(benchmark.split())}: by the program that wrote {run.folder}/eval/{scores.NAME}")
    if names.keys() & {"heldout", "samples"}:
        made.append(
            line("python -m eval trajectories", str(run.folder), *_sampled(scores.pick(run.lines, benchmark="samples")))
        )
    if "contrast" in names:
        made.append(line("python -m eval contrast", str(run.folder)))
    if "advice" in names:
        made.append(_advised(run, scores.pick(run.lines, benchmark="advice")))
    return made


def line(command: str, *arguments: str) -> str:
    """A command as one types it."""
    return " ".join([command, *map(shlex.quote, arguments)])


def _flags(facts: Mapping[str, Any], named: Mapping[str, str]) -> list[str]:
    """Flags for those facts that are there; named: fact to flag."""
    given = [(flag, facts[fact]) for fact, flag in named.items() if facts.get(fact) is not None]
    return [text for flag, value in given for text in (flag, str(value))]


def _judged(benchmark: str, folder: Path, found: Sequence[Line]) -> list[str]:
    """A command for each judge and way of asking."""
    name, own = JUDGED[benchmark]
    ways: dict[tuple[str, ...], list[Line]] = {}
    for x in found:
        flags = [*own(x), *_flags(x, {"preset": "--preset", "judge": "--judge", "judge_extra": "--judge-extra"})]
        ways.setdefault(tuple(flags), []).append(x)
    made = []
    for flags, lines in ways.items():
        which = _which(benchmark, lines)
        where = ["--judge-endpoint", "URL", "--store", str(folder / "eval/judge.sqlite")]
        made.append(line(f"python -m eval {name}", str(folder), *which, *flags, *where))
    return made


def _which(benchmark: str, lines: Sequence[Line]) -> list[str]:
    """Versions of MixEval; checkpoints of AlpacaEval, which does not take them all."""
    if benchmark == "mixeval-hard":
        return ["--version", *dict.fromkeys(str(x["version"]) for x in lines)]
    names = list(dict.fromkeys(x["checkpoint"] for x in lines if x["checkpoint"] != BASE))
    return ["--checkpoint", *names] if names else []


def _of_mixeval(facts: Mapping[str, Any]) -> list[str]:
    named = {"rounds": "--rounds", "fallback": "--fallback", "judge_temperature": "--judge-temperature"}
    once = ["--no-dedupe"] if facts.get("judged_once") is False else []
    return ["--mixeval", "MIXEVAL", *_flags(facts, named), *once]


def _of_alpacaeval(facts: Mapping[str, Any]) -> list[str]:
    gamed = ["--gamed", "DF_GAMED.CSV"] if facts.get("gamed_sha256") else []
    return ["--alpaca-eval", "ALPACA_EVAL", *gamed]


JUDGED: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "mixeval-hard": ("mixeval", _of_mixeval),
    "alpacaeval-2": ("alpacaeval", _of_alpacaeval),
}
"""Benchmark: its command, and what this has of flags of its own."""


def _sampled(found: Sequence[Line]) -> list[str]:
    named = {"n": "--answers", "temperature": "--temperature", "max_new_tokens": "--max-new-tokens", "seed": "--seed"}
    return _flags(found[-1], named) if found else ["--answers", "0"]


def _advised(run: Run, found: Sequence[Line]) -> str:
    said = found[-1]
    named = run.settings.get("data") or []
    data = next(
        (d for d in ([named] if isinstance(named, str) else named) if Path(d).name == said["version"]), said["version"]
    )
    judge = said.get("judge")
    asked = ["--judge", str(judge), "--judge-endpoint", "URL", "--store", str(run.folder / "eval/judge.sqlite")]
    flags = ["--model", str(run.settings.get("model", "MODEL")), "--data", data, *_flags(said, {"n": "--n"})]
    flags += asked if judge and judge != ROWS else []
    return line("python -m eval advise", *flags, "--scores", str(run.folder / "eval" / scores.NAME))
