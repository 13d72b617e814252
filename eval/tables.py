"""A table once, and its four forms: HTML, Markdown, CSV, LaTeX. In none of them is a cell's text anything but text."""

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

DASH = "–"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes a cell for a formula by
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of text under a header. The first `n_names` columns are names, the others numbers."""

    name: str
    """For the files: "table-2"."""
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    n_names: int = 1
    notes: list[str] = field(default_factory=list)
    """Sentences below it: what is compared, and why a cell is empty."""


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number for a cell, a dash where there is none."""
    if value is None or value != value or abs(value) == float("inf"):
        return DASH
    return f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"


def plain(text: str) -> str:
    """Text on one line in which control characters, and those that turn the direction of writing, are shown."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def to_html(table: Table) -> str:
    """A <section>: title, a table that scrolls on its own where the page is narrow, notes."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["name" if i < table.n_names else "number" for i in range(len(cells))]
        made = (f'<{tag} class="{k}">{html.escape(plain(c))}</{tag}>' for k, c in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    notes = "".join(f"<p class=note>{html.escape(plain(note))}</p>" for note in table.notes)
    title = html.escape(plain(table.title))
    return (
        f"<section id={table.name}><h2>{title}</h2>\n<div class=scroll tabindex=0 role=region "
        f'aria-label="{title}"><table><thead>{row(table.header, "th")}</thead><tbody>\n{body}\n'
        f"</tbody></table></div>{notes}</section>"
    )


def to_markdown(table: Table) -> str:
    """GitHub's form."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_unmarked, cells)) + " |"

    rule = "| " + " | ".join("---" if i < table.n_names else "---:" for i in range(len(table.header))) + " |"
    lines = [f"**{_unmarked(table.title)}**", "", row(table.header), rule, *map(row, table.rows)]
    return "\n".join([*lines, "", "\n\n".join(map(_unmarked, table.notes))]) + "\n"


def _unmarked(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", plain(text))


def to_csv(table: Table) -> str:
    """RFC 4180. What a spreadsheet would run as a formula gets a quote before it; numbers stay numbers."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([_inert(c) for c in table.header])
    for cells in table.rows:
        writer.writerow([_inert(c) if i < table.n_names else _as_number(c) for i, c in enumerate(cells)])
    return written.getvalue()


def _inert(cell: str) -> str:
    cell = plain(cell)
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _as_number(cell: str) -> str:
    bare = cell.replace(",", "")
    return bare.removeprefix("+") if re.fullmatch(r"[+-]?\d+(\.\d+)?", bare) else "" if cell == DASH else _inert(cell)


def to_latex(table: Table) -> str:
    """A booktabs table."""

    def row(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in plain(cell)) for cell in cells) + r" \\"

    columns = "l" * table.n_names + "r" * (len(table.header) - table.n_names)
    title = "".join(LATEX.get(c, c) for c in plain(table.title))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{title}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [row(table.header), r"\midrule", *map(row, table.rows), r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*lines, *(f"% {plain(note)}" for note in table.notes)]) + "\n"
