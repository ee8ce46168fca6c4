# SPDX-License-Identifier: Apache-2.0
"""Drawing primitives: scales, ticks and SVG elements as strings. Coordinates are in user units, y grows downwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

#: Marker shapes in the order that models take them, so that colour is never the only difference.
SHAPES = ("circle", "square", "triangle", "wedge", "pentagon", "cross", "hexagon", "star")


def coordinate(value: float) -> str:
    """Format one coordinate.

    Raises:
        ValueError: if it is not finite; a drawing must not hide that a number is missing.
    """
    if not math.isfinite(value):
        raise ValueError(f"a coordinate must be finite, got {value}")
    return f"{round(value, 1) + 0.0:g}"


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight map from the data range low..high to the pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def domain(values: Iterable[float]) -> tuple[float, float]:
    """Return a range that holds all values, starts at zero where that costs little, and is never empty."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if 0 <= low <= 0.5 * high:
        low = 0.0
    if 0.8 <= high <= 1.0 and low >= 0:
        high = 1.0
    if high - low < 1e-12:
        pad = abs(high) * 0.1 or 0.5
        return low - pad, high + pad
    return low, high


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round values (steps of 1, 2 or 5) inside low..high, about `count` of them."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Format a tick: short, with a real minus sign and k or M for thousands and millions."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def text_width(text: str, size: float = 12.0) -> float:
    """Return a careful estimate of the width of `text` at a font size, without knowing the font."""
    return 0.6 * size * len(text)


def line(x1: float, y1: float, x2: float, y2: float, style: str = "") -> str:
    """Return a straight line."""
    places = zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)
    return f'<line class="{style}" ' + " ".join(f'{key}="{coordinate(value)}"' for key, value in places) + "/>"


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    """Return a line of text; `anchor` is start, middle or end."""
    return (
        f'<text class="{style}" x="{coordinate(x)}" y="{coordinate(y)}" text-anchor="{anchor}">{escape(content)}</text>'
    )


def rect(x: float, y: float, width: float, height: float, style: str = "", radius: float = 0.0) -> str:
    """Return a rectangle; a negative size becomes zero."""
    box = zip(("x", "y", "width", "height", "rx"), (x, y, max(width, 0.0), max(height, 0.0), radius), strict=True)
    return f'<rect class="{style}" ' + " ".join(f'{key}="{coordinate(value)}"' for key, value in box) + "/>"


def circle(x: float, y: float, radius: float, style: str = "") -> str:
    """Return a circle."""
    return f'<circle class="{style}" cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(radius)}"/>'


def path(points: Sequence[tuple[float, float]], style: str = "", closed: bool = False) -> str:
    """Return a path through `points` ("" for fewer than two)."""
    if len(points) < 2:
        return ""
    steps = "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
    return f'<path class="{style}" d="M{steps}{"Z" if closed else ""}"/>'


def _polygon(sides: int, x: float, y: float, radius: float, turn: float, style: str) -> str:
    angles = [2 * math.pi * index / sides - math.pi / 2 + turn for index in range(sides)]
    return path([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], style, closed=True)


def marker(shape: str, x: float, y: float, size: float, style: str) -> str:
    """Return a marker of about the same area for every shape; `ring` and `diamond` are kept for special roles."""
    if shape == "circle":
        return circle(x, y, size, style)
    if shape == "square":
        return rect(x - 0.88 * size, y - 0.88 * size, 1.76 * size, 1.76 * size, style)
    if shape == "ring":
        return circle(x, y, 1.35 * size, f"{style} ring") + circle(x, y, 0.45 * size, style)
    if shape == "cross":
        arm, half = 1.25 * size, 0.42 * size
        return rect(x - arm, y - half, 2 * arm, 2 * half, style) + rect(x - half, y - arm, 2 * half, 2 * arm, style)
    if shape == "star":
        radii = [1.45 * size if index % 2 == 0 else 0.6 * size for index in range(10)]
        spokes = [(r, math.pi * index / 5 - math.pi / 2) for index, r in enumerate(radii)]
        return path([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in spokes], style, closed=True)
    sides, turn, grow = {
        "triangle": (3, 0.0, 1.35),
        "wedge": (3, math.pi, 1.35),
        "pentagon": (5, 0.0, 1.15),
        "hexagon": (6, 0.0, 1.1),
        "diamond": (4, 0.0, 1.35),
    }[shape]
    return _polygon(sides, x, y, grow * size, turn, style)


def group(children: Iterable[str], style: str = "", title: str = "") -> str:
    """Return a group; `title` becomes a tooltip that screen readers speak."""
    tip = f"<title>{escape(title)}</title>" if title else ""
    return f'<g class="{style}">{tip}{"".join(children)}</g>'


def canvas(width: float, height: float, children: Iterable[str], label: str, style: str = "") -> str:
    """Return the SVG element; `label` says in words what the drawing shows."""
    box = f"0 0 {coordinate(width)} {coordinate(height)}"
    return (
        f'<svg class="{style}" viewBox="{box}" width="{coordinate(width)}" role="img" '
        f'aria-label="{escape(label)}">{"".join(children)}</svg>'
    )


def axis_bottom(scale: Scale, y: float, marks: Sequence[float], label: str = "", grid_to: float | None = None) -> str:
    """Return a horizontal axis at height `y`; `grid_to` draws light lines up to that height."""
    parts = []
    for mark in marks:
        x = scale(mark)
        if grid_to is not None:
            parts.append(line(x, y, x, grid_to, "grid"))
        parts += [line(x, y, x, y + 4, "axis"), text(x, y + 16, tick_label(mark), "tick", "middle")]
    parts.append(line(scale.start, y, scale.end, y, "axis"))
    if label:
        parts.append(text((scale.start + scale.end) / 2, y + 35, label, "label", "middle"))
    return "".join(parts)


def axis_left(scale: Scale, x: float, marks: Sequence[float], label: str = "", grid_to: float | None = None) -> str:
    """Return a vertical axis at `x`, its label lying flat above it; `grid_to` draws light lines to that x."""
    parts = []
    for mark in marks:
        y = scale(mark)
        if grid_to is not None:
            parts.append(line(x, y, grid_to, y, "grid"))
        parts.append(text(x - 7, y + 4, tick_label(mark), "tick", "end"))
    if label:
        parts.append(text(0, scale.end - 14, label, "label"))
    return "".join(parts)
