"""The report: Tables 1, 2, 4 and 5 and Figure 4 of arXiv 2408.06266 for any runs, as one page and as files.

    python -m eval report runs/first runs/second --out runs/report

It reads what evaluators and training have written into each run's folder, eval/scores.jsonl and metrics.jsonl (and, to
show them, config.yaml and eval/samples.jsonl), and computes nothing else: any program that writes such lines is in it.
The page needs nothing beside it, runs no script, and all that comes from files is text in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval import gap, page, repeat, tables
from eval.report_tables import all_tables
from eval.runs import read_runs
from eval.tables import Table
from system import InputError, cli, files
from system.flags import PathText

EXAMPLE = "python -m eval report runs/first --out runs/report"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a report page of the measurements of one or several runs, and each table as Markdown, CSV and LaTeX."""

    runs: tyro.conf.Positional[tuple[PathText, ...]]
    """Folders of runs that have eval/scores.jsonl or metrics.jsonl."""
    out: PathText
    """Folder for report.html and tables/. An older report in it is replaced."""
    title: str = "Alignment report"
    """Title of the page."""
    gap_to: str = gap.STRONGER
    """Name under which a stronger model was scored (python -m eval mixeval NAME --out RUN/eval ...). For each run, the
    report then shows the share of the gap between the base model and the stronger model that the run's best
    checkpoint closes. Base and stronger model must have been scored with the same settings."""
    config: PathText | None = None
    """YAML file with settings under the names of the flags. Flags on the command line win over it."""

    def __post_init__(self) -> None:
        for run in self.runs:
            if not Path(run).is_dir():
                raise InputError(f"{run}: no such folder; give the folders of runs")


def main(argv: Sequence[str]) -> None:
    """The command."""
    config = cli.parse(ReportConfig, argv, command="python -m eval report", example=EXAMPLE)
    if not config.runs:
        raise InputError(f"python -m eval report needs the folders of runs, such as: {EXAMPLE}")
    print(write([Path(run) for run in config.runs], Path(config.out), title=config.title, gap_to=config.gap_to))


def write(
    folders: Sequence[Path],
    out: Path,
    *,
    title: str = ReportConfig.title,
    gap_to: str = gap.STRONGER,
    first: Sequence[Table] = (),
    charts: Sequence[str] = (),
) -> Path:
    """Writes the report of runs into a folder. The page's path. Raises InputError where there is nothing to report.

    gap_to: the name of a stronger model among their scores.
    first, charts: tables and figures (eval.plots.chart) of the caller's own, for the page's beginning.
    """
    apart = gap.set_apart(read_runs(folders), gap_to)
    runs = apart.runs
    if not any(run.lines or run.metrics for run in runs):
        raise InputError(f"{folders[0]}: neither eval/scores.jsonl nor metrics.jsonl; train or evaluate first")
    (gains, *others) = all_tables(runs)
    made = [*first, *(t for t in (gains, gap.table(apart, gap_to), *others) if t.rows)]
    (out / "tables").mkdir(parents=True, exist_ok=True)
    _remove_tables(out / "tables")
    for table in made:
        forms = {"md": tables.to_markdown, "csv": tables.to_csv, "tex": tables.to_latex}
        for ending, form in forms.items():
            files.write_text(out / "tables" / f"{table.name}.{ending}", form(table))
    named = [] if title == ReportConfig.title else ["--title", title]
    named += [] if gap_to == gap.STRONGER else ["--gap-to", gap_to]
    command = repeat.line("python -m eval report", *map(str, folders), "--out", str(out), *named)
    files.write_text(
        out / "report.html", page.whole(runs, made, title, command=command, n_first=len(first), charts=charts)
    )
    return out / "report.html"


def _remove_tables(folder: Path) -> None:
    """Removes the tables of an older report: each stands there in three forms."""
    forms = ("md", "csv", "tex")
    for path in folder.glob("*.md"):
        if all(path.with_suffix(f".{ending}").is_file() for ending in forms):
            for ending in forms:
                path.with_suffix(f".{ending}").unlink()
