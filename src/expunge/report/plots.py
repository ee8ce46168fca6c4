# SPDX-License-Identifier: Apache-2.0
"""Small drawings: strips for the cards, interval plots, training curves and relearning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from expunge.report.judge import Anchor, anchor, bounds
from expunge.report.metrics import describe
from expunge.report.plane import looks
from expunge.report.svg import (
    Scale,
    axis_bottom,
    axis_left,
    canvas,
    circle,
    domain,
    group,
    line,
    marker,
    path,
    rect,
    text,
    text_width,
    tick_label,
    ticks,
)
from expunge.report.view import REFERENCE, TARGET, CurvePoint, ModelView, RelearnView, ReportView
from expunge.report.words import interval, number

_MOST_POINTS = 240
_RANK = {TARGET: 0, REFERENCE: 2}


def strip(view: ReportView, name: str, width: float = 240) -> str:
    """Return a number line with every model's value on one metric, the reference ringed."""
    values = {key: m.metrics[name]["value"] for key, m in view.models.items() if m.value(name) is not None}
    low, high = domain([*values.values(), *((0.0, 1.0) if all(0 <= v <= 1 for v in values.values()) else ())])
    scale = Scale(low, high, 10, width - 10)
    parts = [line(10, 14, width - 10, 14, "axis")]
    parts += [text(scale(edge), 34, tick_label(float(f"{edge:.3g}")), "tick", side)
              for edge, side in ((low, "start"), (high, "end"))]  # fmt: skip
    styles = looks(view)
    for key in sorted(values, key=lambda k: _RANK.get(view.models[k].role, 1)):
        shape, style = styles[key]
        dot = marker(shape, scale(values[key]), 14, 4.6, f"mark {style}")
        parts.append(group([dot], title=f"{key} {number(values[key])}"))
    spoken = ", ".join(f"{key} {number(value)}" for key, value in values.items())
    return canvas(width, 38, parts, f"{describe(name).title}: {spoken}", "strip")


def forest(view: ReportView, name: str, width: float = 400) -> str:
    """Return the values of one metric with their 95 % intervals, a row per model ("" without a value)."""
    rows = {key: m for key, m in view.models.items() if m.value(name) is not None}
    if not rows:
        return ""
    to = anchor(view, name)
    edges = [edge for m in rows.values() for edge in (*bounds(m.metrics[name]), m.metrics[name]["value"])]
    low, high = domain([*edges, *([to.value] if to else [])])
    left = min(14 + max(text_width(key, 12) for key in rows), 120)
    scale = Scale(low, high, left + 8, width - 62)
    bottom = 10.0 + 24 * len(rows)
    parts = [_band(to, scale, bottom), axis_bottom(scale, bottom, ticks(low, high, 4))]
    styles = looks(view)
    parts += [_row(key, m, name, 20 + 24 * i, scale, styles[key], width) for i, (key, m) in enumerate(rows.items())]
    said = "; ".join(f"{key} {number(m.metrics[name]['value'])}" for key, m in rows.items())
    return canvas(width, bottom + 22, parts, f"{describe(name).title} with 95 % intervals: {said}", "forest")


def _band(to: Anchor | None, scale: Scale, bottom: float) -> str:
    """Shade the interval of what the metric is compared with and draw its value as a dashed line."""
    if to is None:
        return ""
    band = rect(scale(to.low), 4, scale(to.high) - scale(to.low), bottom - 4, "near") if to.high > to.low else ""
    return band + line(scale(to.value), 4, scale(to.value), bottom, "refline")


def _row(key: str, model: ModelView, name: str, y: float, scale: Scale, look: tuple[str, str], width: float) -> str:
    estimate, (shape, style) = model.metrics[name], look
    low, high = bounds(estimate)
    label = key if len(key) <= 15 else key[:14] + "…"
    return group(
        [
            text(0, y + 4, label, "name"),
            line(scale(low), y, scale(high), y, f"whisker {style}") if high > low else "",
            marker(shape, scale(estimate["value"]), y, 5, f"mark {style}"),
            text(width, y + 4, number(estimate["value"]), "value", "end"),
        ],
        title=f"{key}: {number(estimate['value'])} ({interval(estimate) or 'no interval'})",
    )


Series = tuple[str, str, list[tuple[float, float]]]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep at most every k-th point and the last: a drawing needs no more than its pixels."""
    step = math.ceil(len(points) / _MOST_POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _series(rows: Sequence[Mapping[str, Any]], key: str, probe: bool) -> list[tuple[float, float]]:
    """Collect (step, value) where both are finite numbers."""
    out = []
    for row in rows:
        value = (row.get("probe") or {}).get(key) if probe else row.get(key)
        step = row.get("step")
        if isinstance(step, (int, float)) and isinstance(value, (int, float)) and math.isfinite(value):
            out.append((float(step), float(value)))
    return _thin(out)


def _panel(title: str, series: list[Series], reference: float | None, width: float = 340, height: float = 170) -> str:
    """Return one panel of lines by step, each line named at its end."""
    if not series:
        return ""
    every = [point for _, _, points in series for point in points]
    low, high = domain([y for _, y in every] + ([] if reference is None else [reference]))
    last = max(x for x, _ in every)
    right = width - 8 - max(text_width(name, 12) for name, _, _ in series)
    x, y = Scale(0, max(last, 1), 44, right), Scale(low, high, height - 30, 34)
    parts = [
        axis_left(y, 44, ticks(low, high, 4), title, right),
        axis_bottom(x, height - 30, ticks(0, max(last, 1), 4)),
    ]
    if reference is not None:
        parts.append(line(44, y(reference), right, y(reference), "refline"))
    ends = spread([y(points[-1][1]) for _, _, points in series], 13)
    for (name, style, points), end in zip(series, ends, strict=True):
        at = [(x(step), y(value)) for step, value in points]
        parts += [path(at, f"curve {style}"), circle(*at[-1], 2.6, f"mark {style}"),
                  text(right + 6, end + 4, name, f"name {style}")]  # fmt: skip
    return canvas(width, height, parts, f"{title} by training step: {_said(series)}", "panel")


def _said(series: list[Series]) -> str:
    return "; ".join(f"{name} from {number(p[0][1])} to {number(p[-1][1])}" for name, _, p in series)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Push labels apart until neighbours are at least `gap` apart, keeping their order and their middle."""
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    out = list(places)
    for before, after in pairwise(order):
        out[after] = max(out[after], out[before] + gap)
    shift = (sum(out) - sum(places)) / len(places) if places else 0.0
    return [place - shift for place in out]


def trajectory(view: ReportView, model: ModelView) -> list[str]:
    """Return the panels of one training run: parts of the loss, and what the probes saw."""
    rows = model.trajectory
    loss: list[Series] = [(key, key, p) for key in ("forget", "retain") if (p := _series(rows, key, False))]
    loss = loss or [("loss", "forget", p) for p in [_series(rows, "loss", False)] if p]
    probes = list(dict.fromkeys(key for row in rows for key in (row.get("probe") or {})))
    panels = [_panel("Loss", loss, None)]
    by_kind: dict[str, list[str]] = {}
    for key in probes:
        by_kind.setdefault(key.rpartition(".")[2], []).append(key)
    reference = view.first(REFERENCE)
    for kind, keys in by_kind.items():
        lines: list[Series] = []
        for key in keys:
            dataset = key.rpartition(".")[0] or kind
            if points := _series(rows, key, True):
                lines.append((dataset, "forget" if dataset == "forget" else "retain", points))
        mark = reference.value(f"forget.{kind}") if reference and f"forget.{kind}" in keys else None
        title = describe(keys[0]).phrase
        panels.append(_panel(title, lines, mark))
    return [panel for panel in panels if panel]


def relearning(view: ReportView, relearn: RelearnView, width: float = 880, height: float = 380) -> str:
    """Return the relearning curves; the budget axis is stretched near zero (log2 of one plus the budget)."""
    curves = {name: points for name, points in relearn.curves.items() if points}
    if not curves:
        return ""
    budgets = sorted({point.budget for points in curves.values() for point in points})
    low, high = domain([edge for points in curves.values() for p in points for edge in _curve_edges(p)])
    right = width - 10 - max(text_width(name, 12) for name in curves)
    x = Scale(math.log2(1 + budgets[0]), max(math.log2(1 + budgets[-1]), math.log2(1 + budgets[0]) + 1), 56, right)
    y = Scale(low, high, height - 48, 34)
    parts = [axis_left(y, 46, ticks(low, high), f"↑ {describe(relearn.metric).title}", right),
             _budget_axis(budgets, x, height - 48, relearn.budget_unit)]  # fmt: skip
    ends = spread([y(points[-1].value) for points in curves.values()], 14)
    styles = looks(view)
    for (name, points), end in zip(curves.items(), ends, strict=True):
        shape, style = styles.get(name, ("circle", "m7"))
        at = [(x(math.log2(1 + p.budget)), y(p.value)) for p in points]
        parts += [line(px, y(p.ci_low), px, y(p.ci_high), f"whisker {style}")
                  for (px, _), p in zip(at, points, strict=True)
                  if p.ci_low is not None and p.ci_high is not None]  # fmt: skip
        parts += [path(at, f"curve {style}"), *(marker(shape, px, py, 4.5, f"mark {style}") for px, py in at)]
        parts.append(text(right + 10, end + 4, name, "name"))
    said = "; ".join(f"{name} from {number(p[0].value)} to {number(p[-1].value)}" for name, p in curves.items())
    return canvas(width, height, parts, f"Relearning, {describe(relearn.metric).title}: {said}", "relearn")


def _curve_edges(point: CurvePoint) -> list[float]:
    return [edge for edge in (point.value, point.ci_low, point.ci_high) if edge is not None]


def _budget_axis(budgets: Sequence[float], x: Scale, y: float, unit: str) -> str:
    """Draw the measured budgets as ticks, leaving out labels that would touch."""
    parts, free = [line(x.start, y, x.end, y, "axis")], -math.inf
    for budget in budgets:
        place, label = x(math.log2(1 + budget)), tick_label(budget)
        half = text_width(label, 11) / 2
        parts.append(line(place, y, place, y + 4, "axis"))
        if place - half > free:
            parts.append(text(place, y + 16, label, "tick", "middle"))
            free = place + half + 4
    parts.append(text((x.start + x.end) / 2, y + 37, f"{unit} →", "label", "middle"))
    return "".join(parts)
