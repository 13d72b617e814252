"""The contrast of a run's pairs (Table 1 of arXiv 2408.06266), as lines of its scores.jsonl.

python -m eval contrast runs/first
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from data import load_preferences
from data.contrast import contrast, texts_of
from data.rows import open_folder
from eval import checkpoints, scores
from system import InputError, cli
from system.flags import PathText

EXAMPLE = "python -m eval contrast runs/first"


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Measure how much winners and losers differ in a run's training pairs (Jaccard similarity, edit distance), and
    write it to the run's eval/scores.jsonl, from which eval report takes it."""

    run: tyro.conf.Positional[PathText]
    """Folder of a run."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        if not Path(self.run).is_dir():
            raise InputError(f"{self.run}: no such folder; give the folder of a run")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ContrastConfig, argv, command="python -m eval contrast", example=EXAMPLE)
    run = Path(config.run)
    for line in measure(run):
        print(f"{line['version']}  {line['metric']}  {line['value']:.2f}")


def measure(run: Path) -> list[scores.Line]:
    """Table 1's measures of each of the run's data files, read as the run itself has read them, written into its
    scores. Raises InputError where they cannot be read, are no pairs, or are token ids of no known tokenizer.
    """
    settings = checkpoints.settings(run)
    reading, skips = checkpoints.rows_of(settings).reading, settings.get("skip_bad_rows") == "true"
    base, asked = checkpoints.base_of(run), settings.get("data", [])
    tokenizer = open_folder(str(base.folder), base=base.base)[1] if base else None
    lines: list[scores.Line] = []
    for source in [asked] if isinstance(asked, str) else asked:
        records = load_preferences(source, skip_bad_rows=skips, reading=reading)
        found = contrast(texts_of(records, tokenizer), tokenizer)
        words = {"pairs": float(len(found.copied)), "Jaccard of words, %": 100 * float(found.jaccard_words.mean())}
        if found.jaccard_tokens is not None:
            words["Jaccard of tokens, %"] = 100 * float(found.jaccard_tokens.mean())
        words["Levenshtein, characters"] = float(found.levenshtein.mean())
        named = {"checkpoint": "data", "benchmark": "contrast", "version": Path(source).name.removesuffix(".jsonl")}
        lines += [named | {"metric": name, "value": value, "stderr": None, "n": len(found.copied), "judge": None}
                  for name, value in words.items()]  # fmt: skip
    if not lines:
        raise InputError(f"{run}: its config.yaml names no data; measure a file by python -m data.contrast")
    scores.write(run / "eval" / scores.NAME, lines)
    return lines
