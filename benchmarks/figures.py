# SPDX-License-Identifier: Apache-2.0
"""The growth curves as one SVG file, a panel per axis, both scales logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, GAP = 250, 170, 66
COLOURS = {
    "scoring time": "#1f5fa8", "scoring memory": "#7fb0e0", "NPO step time": "#b3541e", "NPO run time": "#b3541e",
    "NPO memory": "#e8a87c",
}  # fmt: skip
STYLE = "text{font:11px sans-serif;fill:#333}.frame{fill:none;stroke:#999}.line{fill:none;stroke-width:2}"


def write_figures(scale: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write `performance-scale.svg`; nothing if there are no curves."""
    if not scale:
        return
    panels = "".join(
        f'<g transform="translate({50 + (n % 3) * (WIDTH + GAP)},{30 + (n // 3) * (HEIGHT + GAP)})">{_panel(*one)}</g>'
        for n, one in enumerate(scale.items())
    )
    legend = dict.fromkeys(key for found in scale.values() for key in found["relative"])
    column, row = len(scale) % 3, len(scale) // 3
    keys = "".join(_key(name, number) for number, name in enumerate(legend))
    place = f"translate({50 + column * (WIDTH + GAP)},{30 + row * (HEIGHT + GAP)})"
    size = 3 * (WIDTH + GAP) + 20, (row + 1) * (HEIGHT + GAP) + 10
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="Growth of time and memory, relative to the smallest point"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{panels}<g transform="{place}">{keys}</g></svg>\n'
    )
    (folder / "performance-scale.svg").write_text(text, "utf-8")


def _key(name: str, number: int) -> str:
    y = 20 + 20 * number
    return f'<path class="line" stroke="{COLOURS[name]}" d="M0 {y}h24"/><text x="32" y="{y + 4}">{escape(name)}</text>'


def _panel(axis: str, found: Mapping[str, Any]) -> str:
    xs, curves = found["x"], found["relative"]
    top = max(max(xs) / min(xs), *(max(ys) for ys in curves.values()))
    across, up = math.log(max(xs) / min(xs)), math.log(top * 1.1)
    low = min(0.0, *(math.log(min(ys)) for ys in curves.values()))

    def place(x: float, y: float) -> tuple[float, float]:
        return math.log(x / min(xs)) / across * WIDTH, HEIGHT - (math.log(y) - low) / (up - low) * HEIGHT

    heading = _tick(WIDTH / 2, -10, f"{escape(axis)} ({escape(found['unit'])})", "middle")
    parts = [f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>', heading]
    parts += [_tick(place(x, math.exp(low))[0], HEIGHT + 15, _short(x), "middle") for x in xs]
    parts += [_tick(-6, place(1, y)[1] + 4, f"{y}×", "end") for y in (1, 2, 4, 8, 16, 32, 64, 128) if y <= top]
    end = min(max(xs) / min(xs), top * 1.1)
    parts.append(_line([place(min(xs), 1), place(min(xs) * end, end)], "#ccc", "4 4"))
    parts += [_line([place(x, y) for x, y in zip(xs, ys, strict=True)], COLOURS[name]) for name, ys in curves.items()]
    return "".join(parts)


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _line(points: Sequence[tuple[float, float]], colour: str, dashes: str = "none") -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="line" stroke="{colour}" stroke-dasharray="{dashes}" d="M{path}"/>'


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
