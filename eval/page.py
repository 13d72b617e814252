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

from data.differences import Pieces, difference
from eval import plots, repeat, scores, tables
from eval.report_tables import judged_by
from eval.runs import Headline, Run, deltas, headlines, heldout, heldout_logratios, of, scored
from eval.scores import BASE, Line
from eval.tables import Table

PAGE = Path(__file__).with_name("report.html")
N_SAMPLES = 6


def whole(
    runs: Sequence[Run],
    made: Sequence[Table],
    title: str,
    *,
    command: str,
    n_first: int = 0,
    charts: Sequence[str] = (),
) -> str:
    """The whole page. command: that makes it. n_first: so many of the tables stand at its beginning, the caller's
    charts behind them.
    """
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
    parts += [*by_name.values(), samples(runs), how(runs, command)]
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
                made.append(
                    f'<li class="c{i % plots.N_COLOURS}"><p class=label>{_text(run.name)}</p>'
                    f"<p class=big>{_score(found[BASE], h)} <span>→</span> {_score(found[best], h)}</p>"
                    f"<p class=label>{_text(h.benchmark)} {_text(h.version)}, {_text(best)}, "
                    f"{gained[best]:+.1f} points{_judge(found[best])}</p></li>"
                )
            elif any(map(scores.mark, found.values())):  # no gain can be said, and the card says why
                last = found.get(next(reversed([n for n in run.checkpoints if n in found]), BASE)) or found[BASE]
                made.append(
                    f'<li class="c{i % plots.N_COLOURS}"><p class=label>{_text(run.name)}</p>'
                    f"<p class=big>{_score(last, h)}</p>"
                    f"<p class=label>{_text(h.benchmark)} {_text(h.version)}, {_text(last['checkpoint'])}, no gain: "
                    f"not judged as the base was{_judge(last)}</p></li>"
                )
    return f"<ul class=cards>{''.join(made)}</ul>" if made else ""


def _score(line: Line, h: Headline) -> str:
    """A score in points, and beside it how much of it was not judged."""
    said = scores.mark(line)
    return f"{h.scale * line['value']:.1f}" + (f" <small>({_text(said)})</small>" if said else "")


def _judge(line: Line) -> str:
    return f", judge {_text(str(line['judge']))}" if line.get("judge") else ""


def samples(runs: Sequence[Run]) -> str:
    """Answers of the base and of each run's last checkpoint to the same prompts, differences from the base's marked."""
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
    """A prompt and everybody's answer to it. In the base's what is gone is marked where one other stands beside it."""
    before = said.get(BASE)
    others = [who for who in said if who != BASE]
    shown = {who: [(False, text)] for who, text in said.items()}
    for who in others if before is not None else ():
        gone, shown[who] = difference(before or "", said[who])
        if len(others) == 1:
            shown[BASE] = gone
    columns = [
        f"<div><p class=label>{_text(who)}</p><div class=text dir=auto>{_pieces(pieces, who) or '<i>nothing</i>'}</div>"
        "</div>"
        for who, pieces in shown.items()
    ]
    shown = f"<div class=prompt dir=auto>{_long(prompt)}</div><div class=answers>{''.join(columns)}</div>"
    return f"<article>{shown}</article>"


def _pieces(pieces: Pieces, who: str) -> str:
    """A text, its words that stand there alone marked: gone from the base's, new in another's."""
    kind = "less" if who == BASE else "more"
    return "".join(f'<mark class="{kind}">{_long(text)}</mark>' if is_new else _long(text) for is_new, text in pieces)


def how(runs: Sequence[Run], command: str) -> str:
    """Everything needed to do it again: the commands, each run's settings, and what its scores say of themselves."""
    commands = [*dict.fromkeys(said for run in runs for said in repeat.of_run(run)), command]
    made = [f"<pre>{_long(chr(10).join(commands))}</pre>", f"<p class=note>{html.escape(repeat.IN_CAPITALS)}</p>"]
    for run in runs:
        facts = {(x["benchmark"], x["version"]): scores.dump(x) for x in run.lines}
        text = "\n".join(f"{name}: {_setting(value)}" for name, value in run.settings.items())
        text += "".join(f"\n\n{benchmark} {version}: {fact}" for (benchmark, version), fact in facts.items())
        made.append(f"<details><summary>{_text(run.name)}</summary><pre>{_long(text)}</pre></details>")
    return f"<section id=repeat><h2>To repeat it</h2>{''.join(made)}</section>"


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
            marks = [scores.mark(found[n]) for n in names]
            series.append(plots.Series(run.name, points, bars, colour=i, marks=marks))
        beside = f" ({scores.mark(base)})" if base and scores.mark(base) else ""
        level = (f"base{beside}", h.scale * base["value"]) if base else None
        if any(s.points for s in series):
            values = [y for s in series for _, y in s.points] + ([level[1]] if level else [])
            is_share = all(0 <= y <= 100 for y in values)
            unit = "%" if is_share else "points"
            made.append(
                plots.chart(
                    f"{h.benchmark} {h.version}{title}", series, x="checkpoint", y=f"{unit} ± standard error",
                    level=level, note=judged_by(group, h), is_share=is_share, hollow="how many queries were not judged",
                )
            )  # fmt: skip
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
