# SPDX-License-Identifier: Apache-2.0
"""Drawings by layer: lines, histograms of powers of ten, and texts in a plane with the shift of their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from expunge.report.plots import spread
from expunge.report.svg import (
    Scale,
    axis_bottom,
    axis_left,
    canvas,
    domain,
    group,
    line,
    marker,
    path,
    text,
    text_width,
    ticks,
)
from expunge.report.words import number

#: Marker and style class of each model.
LOOKS = {"before": ("diamond", "mt"), "after": ("circle", "m1"), "relearned": ("triangle", "m0")}
#: (layer, value) of each model.
Lines = Mapping[str, Sequence[tuple[float, float]]]
_HALF_TURN = math.radians(155)


def by_layer(
    lines: Lines, *, layers: int, level: float | None = None, include: Sequence[float] = (),
    width: float = 300, height: float = 182,
) -> str:  # fmt: skip
    """Return lines over the blocks of a model, each named at its end ("" without a point).

    Args:
        lines: the points of each model; a layer without a number is left out.
        layers: number of blocks.
        level: value that means no change, drawn dashed.
        include: values that the vertical axis must hold.
        width: of the drawing.
        height: of the drawing.
    """
    shown = {name: points for name, points in lines.items() if points}
    if not shown:
        return ""
    marks = [*include, *([] if level is None else [level])]
    low, high = domain([*(value for points in shown.values() for _, value in points), *marks])
    right = width - 12 - max(text_width(name, 12) for name in shown)
    x, y = Scale(0, max(layers - 1, 1), 46, right), Scale(low, high, height - 44, 14)
    parts = [
        axis_left(y, 40, ticks(low, high, 4), "", right),
        axis_bottom(x, height - 44, _blocks(layers), "block →"),
    ]
    if level is not None:
        parts.append(line(x.start, y(level), right, y(level), "refline"))
    ends = spread([y(points[-1][1]) for points in shown.values()], 14)
    for (name, points), end in zip(shown.items(), ends, strict=True):
        shape, style = LOOKS[name]
        at = [(x(layer), y(value)) for layer, value in points]
        parts.append(path(at, f"curve {style}"))
        parts += [
            group([marker(shape, px, py, 3.4, f"mark {style}")], title=f"{name}, block {layer:g}: {number(value)}")
            for (px, py), (layer, value) in zip(at, points, strict=True)
        ]
        parts.append(text(right + 9, end + 4, name, f"name {style}"))
    said = "; ".join(f"{name} from {number(p[0][1])} to {number(p[-1][1])}" for name, p in shown.items())
    return canvas(width, height, parts, f"By block: {said}", "layers")


def histograms(shares: Mapping[str, Sequence[tuple[float, float]]], *, width: float = 300, height: float = 150) -> str:
    """Return histograms of several models over powers of ten, as steps ("" without one).

    Args:
        shares: for every model the lower edge of each bin, as log10, and the share of weights in it; bins of equal
            width in rising order.
        width: of the drawing.
        height: of the drawing.
    """
    shown = {name: bins for name, bins in shares.items() if bins}
    if not shown:
        return ""
    size = _bin_width(shown)
    every = [edge for bins in shown.values() for edge, _ in bins]
    low, high = math.floor(min(every)), math.ceil(max(every) + size)
    top = max(share for bins in shown.values() for _, share in bins)
    right = width - 12
    x, y = Scale(low, high, 40, right), Scale(0.0, top, height - 44, 14)
    parts = [axis_left(y, 36, ticks(0.0, top, 3), "", right),
             axis_bottom(x, height - 44, ticks(low, high, 5), "log₁₀ of the entry →")]  # fmt: skip
    for name, bins in shown.items():
        parts.append(group([path(_steps(bins, size, x, y), f"curve {LOOKS[name][1]}")], title=name))
    said = "; ".join(f"{name} highest at {max(bins, key=lambda b: b[1])[0]:g}" for name, bins in shown.items())
    return canvas(width, height, parts, f"Share of weights by log10 of the entry: {said}", "histogram")


def plane(
    points: Mapping[str, Sequence[Sequence[float]]], means: Mapping[str, Sequence[float]], *,
    width: float = 300, height: float = 230,
) -> str:  # fmt: skip
    """Return texts of several models in one plane, with an arrow from the mean before to each of the others.

    Args:
        points: coordinates of texts by model, the model before first.
        means: coordinates of the mean of all texts by model.
        width: of the drawing.
        height: of the drawing.
    """
    if not points:
        return ""
    every = [*(p for found in points.values() for p in found), *means.values()]
    (x_low, x_high), (y_low, y_high) = (_around([p[axis] for p in every]) for axis in (0, 1))
    x, y = Scale(x_low, x_high, 46, width - 12), Scale(y_low, y_high, height - 44, 32)
    parts = [axis_left(y, 40, ticks(y_low, y_high, 4), "↑ second component", width - 12),
             axis_bottom(x, height - 44, ticks(x_low, x_high, 5), "first component →")]  # fmt: skip
    for name, found in points.items():
        shape, style = LOOKS[name]
        parts.append(group([marker(shape, x(px), y(py), 2.6, f"dot {style}") for px, py in found], title=name))
    start = next(iter(means.values()))
    for name, mean in means.items():
        shape, style = LOOKS[name]
        at, origin = (x(mean[0]), y(mean[1])), (x(start[0]), y(start[1]))
        if name != next(iter(means)):
            parts.append(_arrow(origin, at, style))
        parts.append(group([marker(shape, *at, 5.2, f"mark {style}")], title=f"mean, {name}"))
    said = "; ".join(f"{name} at {number(m[0])}, {number(m[1])}" for name, m in means.items())
    return canvas(width, height, parts, f"Texts in the plane of the first two components, means: {said}", "scatterplot")


def key(names: Sequence[str]) -> str:
    """Return the marker and name of each model as one small drawing."""
    parts, left = [], 8.0
    for name in names:
        shape, style = LOOKS[name]
        parts += [marker(shape, left, 9, 4.6, f"mark {style}"), text(left + 10, 13, name, "name")]
        left += 30 + text_width(name, 12.5)
    return canvas(left, 18, parts, f"Markers: {', '.join(names)}", "key")


def _blocks(layers: int) -> list[float]:
    return [float(block) for block in range(layers)] if layers <= 8 else ticks(0, layers - 1, 5)


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Return a range with some room around the values."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 0.5
    return low - room, high + room


def _bin_width(shares: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    gaps = [b[0] - a[0] for bins in shares.values() for a, b in pairwise(bins)]
    return min(gaps, default=0.5)


def _steps(bins: Sequence[tuple[float, float]], size: float, x: Scale, y: Scale) -> list[tuple[float, float]]:
    at = [(x(bins[0][0]), y(0.0))]
    for edge, share in bins:
        at += [(x(edge), y(share)), (x(edge + size), y(share))]
    return [*at, (x(bins[-1][0] + size), y(0.0))]


def _arrow(start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    """Return an arrow ("" where it would be shorter than its head)."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    if length < 9:
        return ""
    angle = math.atan2(dy, dx)
    tip = (end[0] - 5 * dx / length, end[1] - 5 * dy / length)
    wings = [(tip[0] + 7 * math.cos(angle + turn), tip[1] + 7 * math.sin(angle + turn))
             for turn in (_HALF_TURN, -_HALF_TURN)]  # fmt: skip
    return path([start, tip], f"curve {style}") + path([wings[0], tip, wings[1]], f"curve {style}")
