"""
A plot as SVG: lines over two axes, each linear or logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

import attrs

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
#: Told apart by those who see few colours too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Points = Sequence[tuple[float, float]]


@attrs.frozen
class Axis:
    """
    An axis.

    @ivar label: what it shows, with its unit.
    @ivar logarithmic: whether each step multiplies.
    @ivar least: its first value, that of the points by default.
    """

    label: str
    logarithmic: bool = False
    least: float | None = None

    def ticks(self, values: Sequence[float]) -> list[float]:
        """Round values from before the least of C{values} to behind the greatest."""
        least, most = min(values) if self.least is None else self.least, max(values)
        if self.logarithmic:
            first = math.floor(math.log10(least))
            all_ = [
                digit * 10.0**power
                for power in range(first, math.ceil(math.log10(most)) + 1)
                for digit in (1, 2, 5)
            ]
            before = max(tick for tick in all_ if tick <= least * (1 + 1e-9))
            behind = min((tick for tick in all_ if tick >= most * (1 - 1e-9)), default=all_[-1])
            return [tick for tick in all_ if before <= tick <= behind]
        step = 10.0 ** math.floor(math.log10((most - least) or 1))
        step *= next(part for part in (0.1, 0.2, 0.5, 1) if (most - least) / (part * step) <= 10)
        first, last = math.floor(least / step), math.ceil(most / step - 1e-9)
        return [n * step for n in range(first, last + 1)]

    def place(self, ticks: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
        """Where a value is between two coordinates."""
        scale = math.log10 if self.logarithmic else float
        least, most = scale(ticks[0]), scale(ticks[-1])
        return lambda value: start + (scale(value) - least) / (most - least) * (stop - start)


def plot(title: str, x: Axis, y: Axis, lines: Sequence[tuple[str, Points]]) -> str:
    """
    Draw lines, each with a name for the legend.
    """
    points = [point for _, line in lines for point in line]
    across, along = (axis.ticks([p[n] for p in points]) for n, axis in ((0, x), (1, y)))
    placeX, placeY = x.place(across, LEFT, WIDTH - RIGHT), y.place(along, HEIGHT - BOTTOM, TOP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            _text(WIDTH / 2, 22, title, "middle", 'font-size="15"'),
            *_grid(x, across, y, along),
            *_lines(placeX, placeY, lines),
            "</svg>",
            "",
        ]
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _grid(x: Axis, across: Sequence[float], y: Axis, along: Sequence[float]) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    placeX, placeY = x.place(across, LEFT, right), y.place(along, bottom, TOP)
    for tick in across:
        at = placeX(tick)
        yield f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="#ddd"/>'
        yield _text(at, bottom + 16, f"{tick:g}", "middle")
    for tick in along:
        at = placeY(tick)
        yield f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#ddd"/>'
        yield _text(LEFT - 6, at + 4, f"{tick:g}", "end")
    yield _text((LEFT + right) / 2, HEIGHT - 12, x.label, "middle")
    middle = (TOP + bottom) / 2
    yield _text(18, middle, y.label, "middle", f'transform="rotate(-90 18 {middle:.1f})"')


def _lines(
    placeX: Callable[[float], float],
    placeY: Callable[[float], float],
    lines: Sequence[tuple[str, Points]],
) -> Iterator[str]:
    for nth, (name, line) in enumerate(lines):
        colour = COLOURS[nth % len(COLOURS)]
        path = " ".join(f"{placeX(x):.1f},{placeY(y):.1f}" for x, y in line)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        at = TOP + 16 + 16 * nth
        yield f'<path d="M{LEFT + 10} {at - 4}h18" stroke="{colour}" stroke-width="3"/>'
        yield _text(LEFT + 34, at, name, "start")
