"""A table once, and its four forms: HTML, Markdown, CSV, LaTeX. In none of them is a cell's text anything but text."""

import csv
import html
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

DASH = "–"
MOST_ON_A_PHONE = 3  # columns of a table that stays one there
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
    groups: tuple[str, ...] = ()
    """Of each column what it belongs to, said once over neighbours; "" for none. Empty where no column has any."""

    @property
    def flat(self) -> tuple[str, ...]:
        """The header on one line, for forms that have no other: "quiz v base"."""
        groups = self.groups or ("",) * len(self.header)
        return tuple(f"{group} {name}".strip() for group, name in zip(groups, self.header, strict=True))

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Groups and how many columns each stands over."""
        return [(group, len(list(columns))) for group, columns in itertools.groupby(self.groups)]


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A number for a cell, a dash where there is none."""
    if value is None or value != value or abs(value) == float("inf"):
        return DASH
    return f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"


def plain(text: str) -> str:
    """Text on one line in which control characters, and those that turn the direction of writing, are shown."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def to_html(table: Table) -> str:
    """A <section>: title, table, notes. Where the page is narrow each row of many columns is a list of its own, in
    which every number has its name beside it; the page's style does that.
    """
    kinds = ["name" if i < table.n_names else "number" for i in range(len(table.header))]
    starts = [i == 0 or table.groups[i] != table.groups[i - 1] for i in range(len(table.groups))]

    def cell(i: int, text: str) -> str:
        group = f' data-group="{_text(table.groups[i])}"' if any(starts[i : i + 1]) and table.groups[i] else ""
        return f'<td class="{kinds[i]}" data-head="{_text(table.header[i])}"{group}>{_small(text)}</td>'

    head = "".join(f'<th class="{k}" scope=col>{_text(c)}</th>' for k, c in zip(kinds, table.header, strict=True))
    over = "".join(
        f"<th class=group colspan={n} scope=colgroup>{_text(group)}</th>" if group else f"<td colspan={n}></td>"
        for group, n in table.spans
    )
    head = (f"<tr class=over>{over}</tr>" if over else "") + f"<tr>{head}</tr>"
    body = "\n".join(f"<tr>{''.join(cell(i, c) for i, c in enumerate(cells))}</tr>" for cells in table.rows)
    notes = "".join(f"<p class=note>{_text(note)}</p>" for note in table.notes)
    title, wide = _text(table.title), " class=wide" if len(table.header) > MOST_ON_A_PHONE else ""
    return (
        f"<section id={table.name}><h2>{title}</h2>\n<div class=scroll tabindex=0 role=region "
        f'aria-label="{title}"><table{wide}><thead>{head}</thead><tbody>\n{body}\n'
        f"</tbody></table></div>{notes}</section>"
    )


def _text(text: str) -> str:
    return html.escape(plain(text))


def _small(cell: str) -> str:
    """A cell's text; what stands behind a number in brackets is small and below it."""
    number, bracket, rest = plain(cell).partition(" (")
    is_told = bracket and rest.endswith(")") and re.fullmatch(rf"[+-]?[\d,]+(\.\d+)?|{DASH}", number)
    return f"{html.escape(number)} <small>({html.escape(rest)}</small>" if is_told else _text(cell)


def to_markdown(table: Table) -> str:
    """GitHub's form."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_unmarked, cells)) + " |"

    rule = "| " + " | ".join("---" if i < table.n_names else "---:" for i in range(len(table.header))) + " |"
    lines = [f"**{_unmarked(table.title)}**", "", row(table.flat), rule, *map(row, table.rows)]
    return "\n".join([*lines, "", "\n\n".join(map(_unmarked, table.notes))]) + "\n"


def _unmarked(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", plain(text))


def to_csv(table: Table) -> str:
    """RFC 4180. What a spreadsheet would run as a formula gets a quote before it; numbers stay numbers."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([_inert(c) for c in table.flat])
    for cells in table.rows:
        writer.writerow([_inert(c) if i < table.n_names else _as_number(c) for i, c in enumerate(cells)])
    return written.getvalue()


def _inert(cell: str) -> str:
    cell = plain(cell)
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _as_number(cell: str) -> str:
    if re.fullmatch(r"\+\d[\d.,]* \(.*\)", cell):
        return plain(cell.removeprefix("+"))
    bare = cell.replace(",", "")
    return bare.removeprefix("+") if re.fullmatch(r"[+-]?\d+(\.\d+)?", bare) else "" if cell == DASH else _inert(cell)


def to_latex(table: Table) -> str:
    """A booktabs table."""

    def row(cells: Sequence[str]) -> str:
        return " & ".join(map(_latex, cells)) + r" \\"

    columns = "l" * table.n_names + "r" * (len(table.header) - table.n_names)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
    ]
    lines += [_over(table)] if table.groups else []
    lines += [row(table.header), r"\midrule", *map(row, table.rows), r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*lines, *(f"% {plain(note)}" for note in table.notes)]) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in plain(text))


def _over(table: Table) -> str:
    """The heads over columns, with a rule below each."""
    heads = [rf"\multicolumn{{{n}}}{{c}}{{{_latex(group)}}}" if group else "&" * (n - 1) for group, n in table.spans]
    ends = list(itertools.accumulate(n for _, n in table.spans))
    rules = [
        rf"\cmidrule(lr){{{end - n + 1}-{end}}}" for (group, n), end in zip(table.spans, ends, strict=True) if group
    ]
    return f"{' & '.join(heads)} \\\\ {''.join(rules)}"
