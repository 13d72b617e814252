"""What the real model's run has found, as Markdown: results.md in its folder."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from eval.tables import Table, to_markdown
from examples.real.measure import MAX_ANSWER_TOKENS, Score, Share
from examples.real.task import KINDS, Task
from system import files

N_EXAMPLES = 6  # answers that are shown, drawn by a fixed seed

Scores = Mapping[str, Mapping[str, Score]]
"""By model and by how answers were drawn."""


def write(
    root: Path,
    found: Scores,
    likelihoods: Mapping[str, Sequence[float]],
    test: Sequence[Task],
    runs: Mapping[str, tuple[str, str]],
    *,
    peak_bytes: int,
) -> Path:
    """Writes the page; its path. runs: objective and pairs of each aligned model. peak_bytes: of the process."""
    kinds = [by_kind(found, how) for how in ("sampled", "greedy")]
    parts = [results(found, likelihoods, runs), *kinds, examples(found, test), took(root, peak_bytes)]
    draw(found, root / "results.svg")
    files.write_text(root / "results.md", "\n".join(parts))
    return root / "results.md"


def draw(found: Scores, path: Path) -> None:
    """Rules kept at T 0.7 by each model, and by kind before and after APO-zero."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same file each time
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.4), width_ratios=(1, 1.5))
    names = {name: "before" if name == "base" else name for name in found}
    _bars(left, list(names.values()), [s["sampled"].kept for s in found.values()], "#1a73e8", 0.0, 0.7)
    left.tick_params(axis="x", rotation=35)
    left.set(
        ylabel="rules kept, %", ylim=(0, 100), title=f"{found['base']['sampled'].kept.n} tasks on new topics, T 0.7"
    )
    for name, colour, shift in (("base", "#9aa0a6", -0.2), ("apo_zero", "#1a73e8", 0.2)):
        _bars(right, list(KINDS), list(found[name]["sampled"].kinds.values()), colour, shift, 0.4, names[name])
    right.set_xticks(range(len(KINDS)), list(KINDS), rotation=35, ha="right")
    right.set(ylim=(0, 100), title="by kind of rule")
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _bars(
    axes, names: Sequence[str], shares: Sequence[Share], colour: str, shift: float, width: float, label=""
) -> None:
    heights = np.array([100 * share.value for share in shares])
    bounds = 100 * np.array([share.interval for share in shares]).T
    errors = np.clip([heights - bounds[0], bounds[1] - heights], 0, None)
    at = np.arange(len(names)) + shift
    axes.bar(at, heights, width, yerr=errors, capsize=2, color=colour, label=label or None)
    axes.set_xticks(range(len(names)), names)


def results(found: Scores, likelihoods: Mapping[str, Sequence[float]], runs: Mapping[str, tuple[str, str]]) -> str:
    """A line for each model."""
    rows = []
    for name, scores in found.items():
        s, g = scores["sampled"], scores["greedy"]
        label = "before" if name == "base" else f"{runs[name][0]} on {PAIRS[runs[name][1]]}"
        change = np.array(likelihoods[name]) - np.array(likelihoods["base"])
        error = change.std(ddof=1) / len(change) ** 0.5
        drift = "" if name == "base" else f"{change.mean():+.3f} ± {1.96 * error:.3f}"
        broken, sound = _both(s.broken, g.broken), f"{s.sound} / {g.sound}"
        length = f"{s.characters:.0f} / {g.characters:.0f}"
        rows.append((label, str(s.kept), str(g.kept), sound, length, broken, drift))
    n, base = found["base"]["sampled"].kept.n, np.mean(likelihoods["base"])
    header = (
        "", "rules kept, T 0.7", "rules kept, greedy", "kept and not repeating", "characters", "empty or repeating",
        "ordinary answers",
    )  # fmt: skip
    note = (
        f"Shares with 95 % intervals (Wilson), of {n} tasks on topics that no pair has, answers cut at "
        f"{MAX_ANSWER_TOKENS} tokens; two numbers are at T 0.7 / greedy. An answer repeats itself where the same four "
        "words stand in it three times. The last column is the change of the log-likelihood of ordinary answers, those "
        f"of the model before training to {len(likelihoods['base'])} questions without a rule, in nats per token "
        f"(before: {base:.3f}), with its 95 % interval."
    )
    return to_markdown(Table("results", "What each objective has taught", header, rows, 1, [note]))


PAIRS = {"clair": "CLAIR pairs", "judged": "judged pairs"}


def by_kind(found: Scores, how: str) -> str:
    """Rules kept, of each kind, in answers drawn in one way."""
    rows = [
        (kind, f"{found['base'][how].kinds[kind].n}", *(_short(s[how].kinds[kind]) for s in found.values()))
        for kind in KINDS
    ]
    names = ("before" if name == "base" else name for name in found)
    title = f"Rules kept by kind, {'at T 0.7' if how == 'sampled' else 'greedy'}, %"
    return to_markdown(Table(how, title, ("rule", "tasks", *names), rows))


def _both(sampled: Share, greedy: Share) -> str:
    return f"{100 * sampled.value:.1f} / {100 * greedy.value:.1f} %"


def _short(share: Share) -> str:
    low, high = share.interval
    return f"{100 * share.value:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def examples(found: Scores, test: Sequence[Task]) -> str:
    """Some answers before and after, drawn by a fixed seed."""
    drawn = np.random.default_rng(0).choice(len(test), N_EXAMPLES, replace=False)
    blocks = []
    for i in drawn.tolist():
        lines = [f"> {test[i].prompt}"]
        for name in ("base", "apo_zero"):
            answer = found[name]["sampled"].answers[i]
            mark = "kept" if test[i].is_kept(answer) else "not kept"
            text = answer.strip().replace("\n", " ⏎ ").replace("`", "'")
            lines.append(f"{'before' if name == 'base' else 'after'}, {mark}: `{text}`")
        blocks.append("  \n".join(lines[:1]) + "\n\n" + "  \n".join(lines[1:]))
    return f"{N_EXAMPLES} answers at T 0.7, drawn by a fixed seed (⏎ is a new line):\n\n" + "\n\n".join(blocks) + "\n"


def took(root: Path, peak_bytes: int) -> str:
    """Times of the parts, memory, and where."""
    seconds: dict[str, float] = json.loads((root / "seconds.json").read_text())
    rows = [(name, f"{value / 60:.1f}") for name, value in seconds.items()]
    alone = [name for name in seconds if name.split()[-1] in ("clair", "base", "ordinary", "apo_zero")]
    rows.append(("APO-zero alone", f"{sum(seconds[name] for name in alone) / 60:.1f}"))
    rows.append(("all of it", f"{sum(seconds.values()) / 60:.1f}"))
    where = f"{os.cpu_count()} cores of {_processor()}, torch {torch.__version__}, Python {platform.python_version()}"
    note = f"On {where}; most memory held: {peak_bytes / 1e9:.1f} GB."
    return to_markdown(Table("times", "What it took", ("part", "minutes"), rows, 1, [note]))


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
