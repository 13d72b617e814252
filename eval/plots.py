"""Line charts as SVG for a page: colours come from the page's style, light or dark, and nothing in them runs."""

import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from eval.tables import plain

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 14, 38
N_COLOURS = 6
MOST_POINTS = 400  # of a line; more are averaged in bins


class Series(NamedTuple):
    """A line."""

    name: str
    points: Sequence[tuple[float, float]]
    errors: Sequence[float | None] = ()
    """Half of each point's bar, where there are bars."""
    colour: int = 0
    is_dashed: bool = False
    marks: Sequence[str] = ()
    """What has to be said of each point; "" for most. Such a point is hollow, and its first word stands beside it."""


def ticks(low: float, high: float, n: int = 5, *, least: float = 0.0) -> list[float]:
    """Round numbers from below low to above high. least: of the step between them."""
    span = (high - low) or abs(high) or 1.0
    raw = max(span / n, least)
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS points, each the mean of neighbours."""
    size = -(-len(points) // MOST_POINTS)
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    level: tuple[str, float] | None = None,
    note: str = "",
    hollow: str = "",
    is_share: bool = False,
) -> str:
    """A <figure>: the lines over axes with round numbers, and a legend.

    level: a named horizontal line. note: stands below the title. hollow: what the words beside hollow points count.
    is_share: of percentages, whose axis begins at 0 and never goes beyond 100. Points that are not finite are left out;
    where none is left the figure says so.
    """
    lines = [(s, [(a, b) for a, b in s.points if math.isfinite(a) and math.isfinite(b)]) for s in series]
    lines = [(s, points) for s, points in lines if points]
    told = f"<span class=note>{_text(note)}</span>" if note else ""
    caption = f"<figcaption>{_text(title)}{told}</figcaption>"
    if not lines:
        return f"<figure>{caption}<p class=note>There is nothing to draw yet.</p></figure>"
    xs = [a for _, points in lines for a, _ in points]
    bars = [e for s, _ in lines for e in s.errors if e is not None and math.isfinite(e)]
    ys = [b for _, points in lines for _, b in points] + ([level[1]] if level else [])
    margin = max(bars, default=0.0)
    is_counted = all(float(a).is_integer() for a in xs)  # epochs and steps: there is no half of one
    x_ticks = ticks(min(xs), max(xs), least=float(is_counted))
    y_ticks = ticks(0.0, min(100.0, max(ys) + margin)) if is_share else ticks(min(ys) - margin, max(ys) + margin)
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = y_ticks[0], y_ticks[-1] if y_ticks[-1] > y_ticks[0] else y_ticks[0] + 1

    def at(a: float, b: float) -> tuple[float, float]:
        b = min(max(b, y_low), y_high)  # of a bar that leaves the axis
        across = LEFT + (a - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (b - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    drawn = _grid(x_ticks, y_ticks, (x_low, x_high), at)
    if level:
        _, v = at(x_low, level[1])
        drawn.append(f'<line class=level x1={LEFT} x2={WIDTH - RIGHT} y1="{v:.1f}" y2="{v:.1f}"/>')
    for s, points in lines:
        kind = f"c{s.colour % N_COLOURS}{' dashed' if s.is_dashed else ''}"
        path = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(*p) for p in thin(points)))
        drawn.append(f'<polyline class="line {kind}" points="{path}"/>')
        if len(points) <= 40:
            drawn += [_dot(*at(a, b), kind, f"{s.name}: {_short(round(b, 2))}", said) for a, b, said in _marked(s)]
        for a, b, e in _with_errors(s):
            (u, low), (_, high) = at(a, b - e), at(a, b + e)
            drawn.append(f'<line class="bar {kind}" x1="{u:.1f}" x2="{u:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f"<text class=axis x={middle} y={HEIGHT - 6} text-anchor=middle>{_text(x)}</text>")
    drawn.append(
        f'<text class=axis transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor=middle>'
        f"{_text(y)}</text>"
    )
    return (
        f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="{_text(title)}">'
        f"{''.join(drawn)}</svg>{_legend([s for s, _ in lines], hollow, level)}</figure>"
    )


def _grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    across: tuple[float, float],
    at: Callable[[float, float], tuple[float, float]],
) -> list[str]:
    """Lines and numbers of the axes. across: where x begins and ends. at: a point's place in the picture."""
    drawn = []
    for tick in y_ticks:
        _, v = at(across[0], tick)
        drawn.append(f'<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1="{v:.1f}" y2="{v:.1f}"/>')
        drawn.append(f'<text class=tick x={LEFT - 6} y="{v + 4:.1f}" text-anchor=end>{_short(tick)}</text>')
    for tick in (t for t in x_ticks if across[0] <= t <= across[1]):
        u, _ = at(tick, y_ticks[0])
        drawn.append(f'<text class=tick x="{u:.1f}" y={HEIGHT - BOTTOM + 16} text-anchor=middle>{_short(tick)}</text>')
    return drawn


def _with_errors(s: Series) -> Iterator[tuple[float, float, float]]:
    """The points that have a standard error, with it."""
    if len(s.errors) == len(s.points):
        for (a, b), e in zip(s.points, s.errors, strict=True):
            if e is not None and math.isfinite(a + b + e):
                yield a, b, e


def _legend(series: Sequence[Series], hollow: str, level: tuple[str, float] | None) -> str:
    """What each line, hollow point and level is. hollow, level: see chart."""
    names = [
        f'<li><svg class=key viewBox="0 0 22 8" aria-hidden=true><line class="line c{s.colour % N_COLOURS}'
        f'{" dashed" if s.is_dashed else ""}" x1=1 x2=21 y1=4 y2=4 /></svg>{_text(s.name)}</li>'
        for s in series
    ]
    if hollow and any(any(s.marks) for s in series):
        names.append(
            '<li><svg class=key viewBox="0 0 22 8" aria-hidden=true><circle class="dot hollow" cx=11 cy=4 r=3 /></svg>'
            f"{_text(hollow)}</li>"
        )
    if level:
        names.append(
            '<li><svg class=key viewBox="0 0 22 8" aria-hidden=true><line class=level x1=1 x2=21 y1=4 y2=4 /></svg>'
            f"{_text(level[0])}</li>"
        )
    return f"<ul class=legend>{''.join(names)}</ul>"


def _marked(s: Series) -> Iterator[tuple[float, float, str]]:
    """The points that are drawn, with what is said beside them."""
    for (a, b), said in zip(s.points, s.marks or [""] * len(s.points), strict=True):
        if math.isfinite(a) and math.isfinite(b):
            yield a, b, said


def _dot(u: float, v: float, kind: str, value: str, said: str) -> str:
    """A point with its value as a tooltip; hollow, with words above it, where something has to be said of it."""
    tip, hollow = _text(f"{value}, {said}" if said else value), " hollow" if said else ""
    radius = 4 if said else 2.5
    dot = f'<circle class="dot {kind}{hollow}" cx="{u:.1f}" cy="{v:.1f}" r={radius}><title>{tip}</title></circle>'
    if not said:
        return dot
    end = "end" if u > WIDTH * 2 / 3 else "start" if u < WIDTH / 3 else "middle"
    word = _text(said.partition(" ")[0])
    return f'{dot}<text class="tick told" x="{u:.1f}" y="{max(v - 9, TOP):.1f}" text-anchor={end}>{word}</text>'


def _text(text: str) -> str:
    return html.escape(plain(text))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
