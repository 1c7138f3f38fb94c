"""Drawings as inline SVG: lines with marks that tell their values, and bars of intervals.

Every text goes through `_fill`, which escapes it. A mark has a title for the mouse and a label for the keyboard and
screen readers; a series has a colour and a shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from ...escapes import printable, shorten_middle

COLOURS = (
    "#3a7cc4",
    "#c2671a",
    "#2f9160",
    "#9a62c4",
    "#d0455a",
    "#6f7f8a",
    "#8f7d1a",
    "#1f8fa0",
    "#a0704a",
    "#cc5f9a",
)
"""Each has a contrast of at least 3:1 with the light and with the dark ground of the pages."""
GROUNDS = ("#ffffff", "#12171d")
"""The grounds of the pages, as in style.css.j2."""
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-5.2L5.2 0L0 5.2L-5.2 0z",
    "M0-4.8L4.8 3.8H-4.8z",
    "M0 4.8L-4.8-3.8H4.8z",
    "M-1.6-4.8h3.2v3.2h3.2v3.2h-3.2v3.2h-3.2v-3.2h-3.2v-3.2h3.2z",
    "M-5 0L-2.5-4.4H2.5L5 0L2.5 4.4H-2.5z",
)
WIDTH, HEIGHT = 640, 330
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 32, 52
_ZERO = 0.07
"""The share of a logarithmic axis that lies between 0 and its first positive value."""
_MARKS, _LINE_POINTS = 24, 300
"""The largest numbers of marks and of points on a line; more would be too near to each other to be told apart."""

_BAR_LEFT, _BAR_WIDTH, _BAR_HEIGHT, _BAR_PITCH, _BAR_LETTERS = 262, 296, 18, 29, 24


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``; a logarithmic one begins with 0, and ``low`` is its first positive value."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """The share of the axis at which a value lies."""
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        if value < self.low:
            return 0.0
        if self.high == self.low:
            return 1.0
        return _ZERO + (1 - _ZERO) * math.log(value / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class Line:
    """A line of a figure.

    Attributes:
        number: of the series that it belongs to: its colour and shape, and the button that hides it.
        points: pairs of x and y, in the order of x.
        texts: what the marks say, one for each point that has a mark: place in ``points`` -> text.
        dashed: draw it dashed, with hollow marks.
    """

    number: int
    points: Sequence[tuple[float, float]]
    texts: dict[int, str] = field(default_factory=dict)
    dashed: bool = False


def draw_lines(
    description: str, lines: Sequence[Line], x: Axis, y: Axis, rules: Sequence[tuple[float, str]] = ()
) -> Markup:
    """A figure of lines; ``rules`` are vertical ones at a value of x, each with its text."""
    parts = [_draw_axes(x, y)]
    for value, text in rules:
        across = _across(x, value)
        parts.append(
            _fill(
                '<path class="rule" d="M{x} {top}V{end}"/>'
                '<text class="rule" x="{x}" y="{above}" text-anchor="{anchor}">{text}</text>',
                x=f"{across:.1f}",
                top=TOP,
                end=HEIGHT - BOTTOM,
                above=TOP - 14,
                anchor="end" if across > WIDTH * 0.75 else "start" if across < WIDTH * 0.25 else "middle",
                text=text,
            )
        )
    parts += [_draw_line(line, x, y) for line in lines]
    return _fill(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="group" aria-label="{description}">{parts}</svg>',
        width=WIDTH,
        height=HEIGHT,
        description=description,
        parts=Markup("").join(parts),
    )


def _draw_axes(x: Axis, y: Axis) -> Markup:
    parts = []
    for value, text in y.ticks:
        down = _down(y, value)
        parts.append(
            _fill(
                '<path class="grid" d="M{left} {y}H{right}"/><text x="{at}" y="{base}" text-anchor="end">{text}</text>',
                left=LEFT,
                right=WIDTH - RIGHT,
                y=f"{down:.1f}",
                at=LEFT - 7,
                base=f"{down + 4:.1f}",
                text=text,
            )
        )
    for value, text in x.ticks:
        parts.append(
            _fill(
                '<text x="{x}" y="{y}" text-anchor="middle">{text}</text>',
                x=f"{_across(x, value):.1f}",
                y=HEIGHT - BOTTOM + 20,
                text=text,
            )
        )
    parts.append(
        _fill(
            '<path class="axis" d="M{left} {end}H{right}"/>'
            '<text x="{middle}" y="{below}" text-anchor="middle">{x}</text>'
            '<text x="2" y="{above}">{y}</text>',
            left=LEFT,
            right=WIDTH - RIGHT,
            end=HEIGHT - BOTTOM,
            middle=(LEFT + WIDTH - RIGHT) / 2,
            below=HEIGHT - 8,
            above=TOP - 14,
            x=x.label,
            y=y.label,
        )
    )
    return _fill('<g class="axes" aria-hidden="true">{parts}</g>', parts=Markup("").join(parts))


def _draw_line(line: Line, x: Axis, y: Axis) -> Markup:
    places = [(_across(x, one), _down(y, other)) for one, other in line.points]
    steps = choose_evenly(len(places), _LINE_POINTS)
    path = "L".join(f"{places[step][0]:.1f} {places[step][1]:.1f}" for step in steps)
    marks = [_draw_mark(line, *places[place], text) for place, text in line.texts.items()]
    return _fill(
        '<g class="series {kind}" data-series="{number}" data-kind="{kind}" color="{colour}">'
        '<path class="line" d="M{path}"/>{marks}</g>',
        kind="dashed" if line.dashed else "solid",
        number=line.number,
        colour=COLOURS[line.number % len(COLOURS)],
        path=path,
        marks=Markup("").join(marks),
    )


def _draw_mark(line: Line, across: float, down: float, text: str) -> Markup:
    return _fill(
        '<g tabindex="0" role="img" aria-label="{text}" transform="translate({x} {y})"><title>{text}</title>'
        '<path class="mark" d="{shape}"/></g>',
        text=text,
        x=f"{across:.1f}",
        y=f"{down:.1f}",
        shape=SHAPES[line.number % len(SHAPES)],
    )


def draw_key(number: int) -> Markup:
    """The sample of a series in a legend."""
    return _draw_sample("solid", COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)])


def draw_kind_key(kind: str) -> Markup:
    """The sample in a legend of all lines that are "solid", or "dashed"."""
    return _draw_sample(kind, "currentColor", SHAPES[0])


def _draw_sample(kind: str, colour: str, shape: str) -> Markup:
    return _fill(
        '<svg class="key" viewBox="-13 -7 26 14" aria-hidden="true"><g class="{kind}" color="{colour}">'
        '<path class="line" d="M-13 0H13"/><path class="mark" d="{shape}"/></g></svg>',
        kind=kind,
        colour=colour,
        shape=shape,
    )


def draw_interval(value: float, low: float, high: float) -> Markup:
    """A bar from 0 to an accuracy, with its interval across the end, on a scale from 0 to 1."""
    return _fill(
        '<svg class="bar" viewBox="-1 0 102 14" preserveAspectRatio="none" aria-hidden="true"><path class="scale" '
        'd="M0 7H100"/><path class="value" d="M0 7H{value}"/><path class="ends" d="M{low} 7H{high}M{low} 2.5V11.5'
        'M{high} 2.5V11.5"/></svg>',
        value=f"{100 * value:.2f}",
        low=f"{100 * low:.2f}",
        high=f"{100 * high:.2f}",
    )


def draw_bars(description: str, bars: Sequence[tuple[str, float, str]]) -> Markup:
    """Horizontal bars of shares, each with its name, its value and a class of the style, as "worst"."""
    parts = []
    for row, (name, value, kind) in enumerate(bars):
        top = 4 + row * _BAR_PITCH
        parts.append(
            _fill(
                '<g tabindex="0" role="img" aria-label="{name}: {value}" class="{kind}"><title>{name}: {value}</title>'
                '<rect class="track" x="{left}" y="{top}" width="{whole}" height="{height}"/>'
                '<rect class="mark" x="{left}" y="{top}" width="{width}" height="{height}"/>'
                '<text x="{names}" y="{base}" text-anchor="end">{short}</text>'
                '<text x="{after}" y="{base}">{value}</text></g>',
                name=name,
                short=shorten_middle(name, _BAR_LETTERS),
                value=f"{value:.1%}",
                kind=kind,
                left=_BAR_LEFT,
                top=top,
                height=_BAR_HEIGHT,
                whole=_BAR_WIDTH,
                width=f"{_BAR_WIDTH * value:.1f}",
                names=_BAR_LEFT - 8,
                base=top + _BAR_HEIGHT - 4,
                after=_BAR_LEFT + _BAR_WIDTH + 8,
            )
        )
    return _fill(
        '<svg class="chart bars" viewBox="0 0 {width} {height}" role="group" aria-label="{description}">{parts}</svg>',
        width=WIDTH,
        height=4 + len(bars) * _BAR_PITCH,
        description=description,
        parts=Markup("").join(parts),
    )


def choose_evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spaced, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def choose_marks(count: int) -> list[int]:
    """The places on a line that get a mark."""
    return choose_evenly(count, _MARKS)


def choose_ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Round numbers of 1, 2 or 5 times a power of ten, from at or below ``low`` to at or above ``high``."""
    span = max(high - low, abs(high) * 1e-9, 1e-300)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [(number * step, f"{number * step:.6g}") for number in range(first, max(last, first + 1) + 1)]


def shorten(text: str) -> str:
    """A name short enough for a mark's text or a legend."""
    return shorten_middle(text, 60)


def _across(axis: Axis, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * axis.place(value)


def _down(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.place(value)


def _fill(template: str, **values: object) -> Markup:
    """Put values into SVG; texts are made printable and escaped, parts that are SVG already are not."""
    shown = {
        name: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        for name, value in values.items()
    }
    return Markup(template).format(**shown)
