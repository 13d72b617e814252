"""The report as one HTML page that needs nothing beside it, runs no script, and in which all that is read is text."""

import base64
import hashlib
import html
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import plots, scores, tables
from eval.runs import Run, deltas, headlines, heldout, heldout_logratios, of, scored
from eval.scores import BASE
from eval.tables import Table

PAGE = Path(__file__).with_name("report.html")
N_SAMPLES = 6


def whole(
    runs: Sequence[Run], made: Sequence[Table], title: str, *, n_first: int = 0, charts: Sequence[str] = ()
) -> str:
    """The whole page. n_first: so many of the tables stand at its beginning, the caller's charts behind them."""
    template = PAGE.read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", template, re.DOTALL)
    policy = f"default-src 'none'; style-src 'sha256-{_hash(style)}'; base-uri 'none'; form-action 'none'"
    by_name = {table.name: tables.to_html(table) for table in made[n_first:]}
    second = [by_name.pop("table-2", "")]
    parts = [
        *map(tables.to_html, made[:n_first]),
        f"<div class=figures>{''.join(charts)}</div>" if charts else "",
        cards(runs),
        *second,
        _figures("scores", "By checkpoint", score_charts(runs)),
    ]
    parts += [_figures("trajectories", "Trajectories", [*trajectory_charts(runs), *sample_charts(runs)])]
    parts += [*by_name.values(), samples(runs), repeat(runs)]
    filled = {"CSP": policy, "TITLE": html.escape(tables.plain(title)), "BODY": "\n".join(filter(None, parts))}
    return re.sub("<(CSP|TITLE|BODY)>", lambda match: filled[match[1]], template)


def _hash(content: str) -> str:
    return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _figures(name: str, title: str, figures: Sequence[str]) -> str:
    inner = "\n".join(figures)
    return f"<section id={name}><h2>{title}</h2><div class=figures>\n{inner}\n</div></section>" if figures else ""


def cards(runs: Sequence[Run]) -> str:
    """A card for each run: from the base's score to its best."""
    made = []
    for h in headlines(runs)[:1]:
        for i, run in enumerate(runs):
            found, gained = scored(run, h), deltas(run, h)[0]
            if gained:
                best = max(gained, key=lambda name: gained[name])
                values = [f"{h.scale * found[n]['value']:.1f}" for n in (BASE, best)]
                made.append(
                    f'<li class="c{i % plots.N_COLOURS}"><p class=label>{_text(run.name)}</p>'
                    f"<p class=big>{values[0]} <span>→</span> {values[1]}</p>"
                    f"<p class=label>{_text(h.benchmark)} {_text(h.version)}, {_text(best)}, "
                    f"{gained[best]:+.1f} points</p></li>"
                )
    return f"<ul class=cards>{''.join(made)}</ul>" if made else ""


def samples(runs: Sequence[Run]) -> str:
    """Answers of the base and of each run's last checkpoint to the same prompts."""
    answers: dict[str, dict[str, str]] = {}
    for run in runs:
        said = [s for s in run.samples if {"checkpoint", "prompt", "response"} <= s.keys()]
        last = max((s["checkpoint"] for s in said if s["checkpoint"] != BASE), key=run.place, default=None)
        for s in said:
            if s["checkpoint"] in (BASE, last):
                who = BASE if s["checkpoint"] == BASE else f"{run.name}, {last}"
                answers.setdefault(str(s["prompt"]), {}).setdefault(who, str(s["response"]))
    made = [_article(prompt, said) for prompt, said in list(answers.items())[:N_SAMPLES]]
    return f"<section id=samples><h2>Answers before and after</h2>{''.join(made)}</section>" if made else ""


def _article(prompt: str, said: Mapping[str, str]) -> str:
    """A prompt and everybody's answer to it."""
    columns = [
        f"<div><p class=label>{_text(who)}</p><div class=text dir=auto>{_long(text) or '<i>nothing</i>'}</div></div>"
        for who, text in said.items()
    ]
    shown = f"<div class=prompt dir=auto>{_long(prompt)}</div><div class=answers>{''.join(columns)}</div>"
    return f"<article>{shown}</article>"


def repeat(runs: Sequence[Run]) -> str:
    """Everything needed to do it again: each run's settings, and what its scores say of themselves."""
    made = []
    for run in runs:
        facts = {(x["benchmark"], x["version"]): scores.dump(x) for x in run.lines}
        text = "\n".join(f"{name}: {_setting(value)}" for name, value in run.settings.items())
        text += "".join(f"\n\n{benchmark} {version}: {fact}" for (benchmark, version), fact in facts.items())
        made.append(f"<details><summary>{_text(run.name)}</summary><pre>{_long(text)}</pre></details>")
    how = "python -m engine.train --config config.yaml --out ...; python -m eval ...; python -m eval report RUN ..."
    return f"<section id=repeat><h2>To repeat it</h2><p class=note>{html.escape(how)}</p>{''.join(made)}</section>"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    return html.escape(tables.plain(text))


def _long(text: str) -> str:
    """Text of several lines, control characters shown."""
    return "\n".join(html.escape(tables.plain(line)) for line in text.split("\n"))


# --- figures -------------------------------------------------------------------------------------------------------


def panels(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """What is drawn in one figure, and the end of its title: all runs, or a data set's where there are many."""
    if len(runs) <= plots.N_COLOURS:
        return [("", list(runs))]
    names = dict.fromkeys(run.data for run in runs)
    return [(f": {data}", [run for run in runs if run.data == data]) for data in names]


def score_charts(runs: Sequence[Run]) -> list[str]:
    """Each benchmark by checkpoint, a line for each run, the base's score as a level."""
    made = []
    for h, (title, group) in itertools.product(headlines(runs), panels(runs)):
        series, base = [], None
        for i, run in enumerate(group):
            found = scored(run, h)
            base = base or found.get(BASE)
            names = [n for n in run.checkpoints if n in found]
            errors = [found[n].get("stderr") for n in names]
            points = [(run.place(n), h.scale * found[n]["value"]) for n in names]
            bars = [None if e is None else h.scale * e for e in errors]
            series.append(plots.Series(run.name, points, bars, colour=i))
        level = ("base", h.scale * base["value"]) if base else None
        if any(s.points for s in series):
            name = f"{h.benchmark} {h.version}{title}"
            made.append(plots.chart(name, series, x="checkpoint", y="points ± standard error", level=level))
    return made


def trajectory_charts(runs: Sequence[Run]) -> list[str]:
    """Figure 4: held-out log-likelihoods and log-ratios of chosen and rejected, by checkpoint, a figure each.

    Log-ratios, which are one thing for all objectives: beta times them is the reward of most, and not of all.
    """
    made = []
    kinds = (
        ("log-likelihood", lambda run, side: heldout(run, f"logps/{side}")),
        ("log-ratio to the reference", heldout_logratios),
    )
    for (title, group), (name, points_of) in itertools.product(panels(runs), kinds):
        series = []
        for i, run in enumerate(group):
            for side, is_dashed in (("chosen", False), ("rejected", True)):
                points = points_of(run, side)
                series.append(plots.Series(f"{run.name}, {side}", points, colour=i, is_dashed=is_dashed))
        if any(s.points for s in series):
            made.append(plots.chart(f"Held-out {name} (Figure 4){title}", series, x="epoch", y=f"{name}, nats"))
    for i, run in enumerate(runs):
        series = [
            plots.Series(side, [(x["step"], x[f"rewards/{side}"]) for x in run.metrics if f"rewards/{side}" in x],
                         colour=i, is_dashed=side == "rejected")
            for side in ("chosen", "rejected")
        ]  # fmt: skip
        if any(s.points for s in series):
            made.append(plots.chart(f"Rewards in training: {run.name}", series, x="step", y="reward"))
    return made


def sample_charts(runs: Sequence[Run]) -> list[str]:
    """Length and distance from the reference of sampled answers, by checkpoint."""
    made = []
    for metric, title, y in (("characters", "Length of sampled answers", "characters"),
                             ("kl", "Distance from the reference", "KL, nats an answer")):  # fmt: skip
        series = []
        for i, run in enumerate(runs):
            found = of(run, benchmark="samples", metric=metric)
            names = [n for n in (BASE, *run.checkpoints) if n in found]
            points = [(0.0 if n == BASE else run.place(n), float(found[n]["value"])) for n in names]
            series.append(plots.Series(run.name, points, [found[n].get("stderr") for n in names], colour=i))
        if any(s.points for s in series):
            made.append(plots.chart(title, series, x="epoch", y=y))
    return made
