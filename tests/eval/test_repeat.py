"""The commands to repeat a report: whole, and of flags that there are."""

import dataclasses
import html
import re

import pytest

from eval import advise, alpacaeval_run, contrast_run, mixeval_run, repeat, report, trajectories
from tests.eval.run_folders import line, run_folder, run_of


def test_the_commands_to_repeat_it_are_whole(tmp_path):
    """Training with the run's own file, every measurement with what it was asked for, the report itself."""
    asked = {"preset": "paper", "judge": "big judge", "rounds": 3, "fallback": "zero", "judged_once": False}
    lines = [
        line("base", 0.4, "table4_compat/overall", "mixeval-hard") | asked | {"version": v} for v in ("one", "two")
    ]
    lines += [
        line("base", 2.0, "win_rate", "alpacaeval-2", gamed_sha256="x"),
        line("epoch-01", 3.0, "win_rate", "alpacaeval-2", gamed_sha256="x"),
    ]
    lines += [line("base", 9.0, "characters", "samples", n=8, temperature=0.5, max_new_tokens=64, seed=7, judge=None)]
    lines += [line("data", 9.0, "pairs", "contrast"), line("base", 0.4)]
    run, out = run_folder(tmp_path / "my run", lines=lines), tmp_path / "out"
    page = html.unescape(report.write([run], out, title="A title").read_text())
    store = f"'{run}/eval/judge.sqlite'"
    for command in (
        f"python -m engine.train --config '{run}/config.yaml' --out '{run}-again'",
        f"python -m eval mixeval '{run}' --version one two --mixeval MIXEVAL --rounds 3 --fallback zero --no-dedupe "
        f"--preset paper --judge 'big judge' --judge-endpoint URL --store {store}",
        f"python -m eval alpacaeval '{run}' --checkpoint epoch-01 --alpaca-eval ALPACA_EVAL --gamed DF_GAMED.CSV "
        f"--judge j --judge-endpoint URL --store {store}",
        f"python -m eval trajectories '{run}' --answers 8 --temperature 0.5 --max-new-tokens 64 --seed 7",
        f"python -m eval contrast '{run}'",
        f"# quiz: by the program that wrote {run}/eval/scores.jsonl",
        f"python -m eval report '{run}' --out {out} --title 'A title'",
    ):
        assert f"{command}\n" in page.replace("</pre>", "\n"), command


@pytest.mark.parametrize("command", ["mixeval", "alpacaeval", "trajectories", "contrast", "advise"])
def test_every_flag_of_a_command_to_repeat_is_one(command):
    configs = {
        "mixeval": mixeval_run.MixEvalConfig, "alpacaeval": alpacaeval_run.AlpacaEvalConfig,
        "contrast": contrast_run.ContrastConfig, "trajectories": trajectories.TrajectoriesConfig,
        "advise": advise.AdviseConfig,
    }  # fmt: skip
    facts = {"preset": "paper", "judge_extra": "{}", "rounds": 3, "fallback": "zero", "judged_once": False}
    facts |= {"judge_temperature": 0.5, "gamed_sha256": "x", "temperature": 1.0, "max_new_tokens": 5, "seed": 0}
    benchmarks = ("mixeval-hard", "alpacaeval-2", "samples", "contrast", "advice")
    run = run_of([], [line("epoch-01", 0.4, "m", b) | facts for b in benchmarks], data=["v"])
    (said,) = [c for c in repeat.of_run(run) if c.startswith(f"python -m eval {command} ")]
    flags = {flag.removeprefix("no-").replace("-", "_") for flag in re.findall(r"--([\w-]+)", said)}
    assert flags <= {f.name for f in dataclasses.fields(configs[command])} and (flags or command == "contrast")
