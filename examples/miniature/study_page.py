"""Writes docs/paper.md and its figures from docs/records/miniature alone.

python -m examples.miniature.study_page
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from eval.tables import DASH, Table, to_markdown
from examples import figures
from examples.miniature import paper, study, study_plan, study_tables
from examples.miniature.study_found import Found, of_control, said
from examples.miniature.study_run import COMPARED
from examples.miniature.study_sets import TABLE, TUNING_SEED
from examples.studies import Job
from system import cli, files

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAD = """# The paper in miniature

Which of the paper's claims hold in a small made-up world. `python -m examples.miniature.study_page` writes this page
from docs/records/miniature; every comparison is computed from the records, with its interval. The questions, and what
counts as an answer, were written down before the runs: [design](design.md).

```
python -m examples.miniature.study --minutes 110     # takes seven to ten hours in all; the same command continues
./launch.sh paper                                    # the same world in half an hour: one seed, and your own objectives
```

**The world** is the demo's field guide: questions about four facts on sixteen animals. The model has 0.85 million
parameters. It learnt from answers in which 30 % of the values are wrong, so it knows the facts, but answers like its
corpus when it is sampled. A program decides whether an answer is exact; the score is the share of exact answers to
{n_questions} questions that no model was trained on. The style of an answer costs nothing in the first world, so the
experiment can show nothing about language, length or size; and no interval covers another world.

**Training**: {epochs} epochs, batches of {batch}, RMSProp with linear decay after {warmup} steps of warm-up, beta
{beta} (the paper's is 0.1). Every seed has its own base model, draw of prompts, pairs and order.

{state}

"""
SECTIONS = {
    "control": (
        "Does minimal contrast matter at equal quality?",
        "Both arms have the same prompts and the same losers. CLAIR's winner is the repair of the loser; the control's "
        "winner is the repair of another sample, which is also right in every fact.",
    ),
    "claims": (
        "What the paper claims",
        "Each objective has the one learning rate that the search chose over all sets.",
    ),
    "trajectories": (
        "How far rewards move",
        "The paper trains every objective at the same learning rate, and so does this table.",
    ),
    "grid": ("Which objective on which set", ""),
    "rates": ("How the rates were found", ""),
    "curve": (
        "When is APO-down right?",
        "APO-zero is built to raise winners, APO-down to lower them. The curve shows their difference over the share "
        "of pairs in which the model's own answer is better than the winner.",
    ),
    "habit": (
        "Does imitation have a price?",
        "In the second world the stronger model has a habit that breaks a rule which the model keeps: it tells the "
        "facts in the reverse of the order asked. Everything else is the same.",
    ),
    "revised": ("Objectives of revisions", ""),
    "strengths": ("How much should a revision change?", ""),
    "unpaired": ("Unpaired objectives", ""),
    "sets": ("The pairs", ""),
    "side_rates": (
        "The rates of the side questions",
        "Rates for strengths and for revised objectives are chosen as above. For the curve, rates are added until the "
        "best one has a measured rate on both sides.",
    ),
}


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.study_page", description=__doc__)
    parser.add_argument(
        "--records", type=Path, default=DOCS.parent / study.RECORDS, help="folder of the records (default: %(default)s)"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write the page into (default: %(default)s)")
    asked = parser.parse_args(argv)
    records = study.read(asked.records)
    found = Found(records.runs, records.bases, records.sets)
    files.write_text(asked.docs / "paper.md", page(found))
    draw_curve(found, asked.docs / "paper-advice.svg")
    draw_trajectories(found, asked.docs / "paper-curves.svg")


def page(found: Found) -> str:
    """The page."""
    text = HEAD.format(
        epochs=paper.EPOCHS, batch=paper.TRAINING["batch-size"], warmup=paper.TRAINING["warmup-steps"],
        beta=paper.BETA[1], n_questions=COMPARED.n, state=state(found),
    )  # fmt: skip
    for name, (title, introduction) in SECTIONS.items():
        table = getattr(study_tables, name)(found)
        known = with_what_is_known(table) if table else None
        parts = [f"## {title}", introduction, in_words(found, name), to_markdown(known) if known else NOT_YET]
        if known and name in FIGURES:
            parts.append(FIGURES[name])
        text += "\n\n".join(part.strip() for part in parts if part) + "\n\n"
    return text.rstrip() + "\n"


def with_what_is_known(table: Table) -> Table | None:
    """The table without rows in which no number is known yet; None where there is no other."""
    rows = [row for row in table.rows if any(cell not in ("", DASH) for cell in row[table.n_names :])]
    if not rows:
        return None
    n_left = len(table.rows) - len(rows)
    if not n_left:
        return replace(table, rows=rows)
    what = "1 row is omitted because some of its" if n_left == 1 else f"{n_left} rows are omitted because some of their"
    return replace(table, rows=rows, notes=[*table.notes, f"{what} runs are not finished."])


NOT_YET = "Not all of these runs are finished."
FIGURES = {
    "curve": "![APO-zero minus APO-down over the quality of winners](paper-advice.svg)",
    "trajectories": "![Held-out rewards by epoch, all objectives at one rate](paper-curves.svg)",
}


def state(found: Found) -> str:
    """How much of the study is there."""
    before = "; ".join(study_tables.before(found))
    exact = f"Exact before training, %: {before}." if before else ""
    if found.n_left:
        n_runs, n_left = len(found.runs), found.n_left
        return f"**Not complete yet**: {n_runs} runs are on record, and at least {n_left} more are left. {exact}"
    return f"{len(found.runs)} runs are on record, and none is left. {exact}"


def in_words(found: Found, name: str) -> str:
    """What the numbers of a section say, as far as its runs are there."""
    if name == "control":
        made = []
        for loss in ("apo_zero", "dpo"):
            if (differs := of_control(found, loss)) is not None:
                made.append(f"**{loss}**, CLAIR minus the control. {said(differs)}.")
        return " ".join(made)
    if name == "curve":
        return "\n".join(f"- {sentence}" for sentence in study_tables.crossings(found))
    return ""


# --- figures -------------------------------------------------------------------------------------------------------


def draw_curve(found: Found, path: Path) -> None:
    """APO-zero minus APO-down over how often the own answer is better than the winner, a line for each way."""
    pyplot = figures.pyplot(path)
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for (line, points), colour in zip(study_tables.lines(found).items(), figures.COLOURS.values(), strict=False):
        if points:
            found_ = [p.difference for p in points]
            errors = [[e.mean - e.low for e in found_], [e.high - e.mean for e in found_]]
            axes.errorbar(
                [p.x for p in points], [e.mean for e in found_], errors, color=colour, label=line, capsize=2, marker="o"
            )
    axes.axhline(0, color="#9aa0a6", linewidth=0.6)
    axes.set(
        xlabel="share of pairs in which the own answer is better than the winner", ylabel="apo_zero - apo_down, points"
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
    figures.save(figure, path)


def draw_trajectories(found: Found, path: Path) -> None:
    """Held-out rewards by epoch on each set, a column for each of the rates that are the same for all."""
    pyplot = figures.pyplot(path)
    figure, rows = pyplot.subplots(len(TABLE), len(study_plan.SHARED_RATES), figsize=(12, 13), sharex=True)
    for name, panels in zip(TABLE, rows, strict=True):
        panels[0].set(ylabel=name)
        for rate, axes in zip(study_plan.SHARED_RATES, panels, strict=True):
            for loss, colour in figures.COLOURS.items():
                run = found.runs.get(Job(study_plan.called(name), loss, rate, TUNING_SEED))
                if run and "failed" not in run:
                    held = study_tables.trajectory(run)
                    for side, style in (("chosen", "-"), ("rejected", "--")):
                        label = loss if side == "chosen" else None
                        axes.plot(held.epochs, held.rewards[side], style, color=colour, label=label)
            axes.axhline(0, color="#9aa0a6", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    for rate, axes in zip(study_plan.SHARED_RATES, rows[0], strict=True):
        axes.set(title=f"held-out rewards, all at {rate:g} (dashed: rejected)")
    if rows[0][0].get_legend_handles_labels()[0]:
        rows[0][0].legend(fontsize=8, frameon=False)
    for axes in rows[-1]:
        axes.set(xlabel="epoch")
    figures.save(figure, path)


if __name__ == "__main__":
    cli.run(main)
