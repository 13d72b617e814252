"""The section of docs/results.md on the real model's study, and its figure, from docs/records/real alone."""

from pathlib import Path

from eval.tables import to_markdown
from examples import figures
from examples.real import study, study_run, study_tables
from examples.real.study_sets import ARMS
from examples.real.study_tables import Found

TEXT = """## Does minimal contrast matter at equal quality?

```
python -m examples.real.study --minutes 110     # 17 hours in all, the core five; the same command goes on
```

The questions, and what counts as an answer, were written down before the runs: [design](design.md).
SmolLM2-135M-Instruct, nine kinds of rules that a program can check, {epochs} epochs in batches of {batch}, RMSProp,
linear decay after {warmup} steps of warm-up, beta {beta}. CLAIR's winner is the repair of the loser; the control's
winner is the repair of another sample. Learning rates are chosen on development topics, which are in no pair and in no
test. What is said here is said of this one model and these nine rules.

{state}

{said}

{control}

{differences}

{quality}

{results}

{sides}

{rates}

![Rules kept against the price on ordinary answers, over rates](real-pareto.svg)
"""


def read(folder: Path) -> Found:
    """What is on record."""
    records = study.read(folder)
    return Found(records.runs, records.gained, records.bases, records.sets)


def section(found: Found) -> str:
    """The section's text."""
    made = {
        name: to_markdown(getattr(study_tables, name)(found))
        for name in ("control", "differences", "quality", "results", "sides", "rates")
    }
    flags = study_run.TRAINING
    training = {"epochs": flags["epochs"], "batch": flags["batch_size"], "beta": flags["beta"],
                "warmup": flags["warmup_steps"]}  # fmt: skip
    return TEXT.format(**training, **made, state=state(found), said=study_tables.in_words(found))


def state(found: Found) -> str:
    """How much of the study is there."""
    n_tasks = study_run.GROUPS["test"].n["sampled"]
    done = f"{len(found.runs)} runs are on record; the test has {n_tasks} tasks on topics of their own."
    return f"**Not complete yet**: at least {found.n_left} more runs are left. {done}" if found.n_left else done


def draw(found: Found, path: Path) -> None:
    """Rules kept against the price, a curve for each objective over its rates, a panel for each arm."""
    pyplot = figures.pyplot(path)
    figure, panels = pyplot.subplots(1, len(ARMS), figsize=(11, 4.2), sharey=True)
    for name, axes in zip(ARMS, panels, strict=True):
        for line, points in study_tables.fronts(found, [name]).items():
            loss = line.partition(" ")[0]
            colour = figures.COLOURS[loss]
            axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=colour, label=loss, markersize=4)
            for price, gained, rate in points:
                axes.annotate(f"{rate:g}", (price, gained), fontsize=6, xytext=(3, 3), textcoords="offset points")
        axes.axhline(0, color="#9aa0a6", linewidth=0.6)
        axes.set(title=name, xlabel="change of log-likelihood of the base's own samples, nats a token")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="kept and not repeating, points over before")
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(fontsize=8, frameon=False)
    figures.save(figure, path)
