# SPDX-License-Identifier: Apache-2.0
"""The plane: how much of the forget set comes out (x) against what the model is still good for (y)."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.report.judge import CLOSE, bounds
from expunge.report.metrics import describe
from expunge.report.svg import (
    SHAPES,
    Scale,
    axis_bottom,
    axis_left,
    canvas,
    domain,
    group,
    line,
    marker,
    rect,
    text,
    text_width,
    ticks,
)
from expunge.report.view import REFERENCE, TARGET, ModelView, ReportView
from expunge.report.words import number

UTILITY = "model_utility"
_SIZE = 12.5


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


@dataclass(frozen=True, slots=True)
class Dot:
    """One model on the plane: its name and place in pixels, and the boxes that its drawing covers."""

    name: str
    x: float
    y: float
    covers: tuple[Box, ...]


def looks(view: ReportView) -> dict[str, tuple[str, str]]:
    """Return shape and style class of every model: target and reference have their own, the others take turns."""
    out, turn = {}, 0
    for name, model in view.models.items():
        if model.role == TARGET:
            out[name] = ("diamond", "mt")
        elif model.role == REFERENCE:
            out[name] = ("ring", "mr")
        else:
            out[name] = (SHAPES[turn % len(SHAPES)], f"m{turn % 8}")
            turn += 1
    return out


def place_labels(dots: list[Dot], frame: Box) -> dict[str, tuple[float, float, str]]:
    """Choose a place for every label: near its dot, off the other dots, whiskers and labels, inside the frame.

    Returns:
        (x, baseline y, anchor) by name. The search is greedy, the most crowded dot first, and always the same.
    """
    crowd = {dot.name: sum(abs(dot.x - o.x) + abs(dot.y - o.y) < 70 for o in dots) for dot in dots}
    taken: list[Box] = []
    places: dict[str, tuple[float, float, str]] = {}
    for dot in sorted(dots, key=lambda d: (-crowd[d.name], d.y, d.name)):
        options = _options(dot)
        others = [part for other in dots if other is not dot for part in other.covers]
        costs = [
            _cost(box, reach, dots, taken, frame) + (_crossed(dot, box, others) if reach > 20 else 0.0)
            for _, box, reach in options
        ]
        place, box, _ = options[costs.index(min(costs))]
        places[dot.name] = place
        taken.append(box)
    return places


def _options(dot: Dot) -> list[tuple[tuple[float, float, str], Box, float]]:
    """List the possible places of a label with the box it would cover and its distance."""
    width, out = text_width(dot.name, _SIZE), []
    for reach in (12.0, 20.0, 32.0, 46.0, 62.0, 80.0):
        for dx, dy in ((1, 0), (0.75, -0.75), (0.75, 0.75), (-1, 0), (-0.75, -0.75), (-0.75, 0.75), (0, -1), (0, 1)):
            x, y = dot.x + dx * reach, dot.y + dy * reach + 4
            anchor, left = ("start", x) if dx > 0 else ("end", x - width) if dx < 0 else ("middle", x - width / 2)
            out.append(((x, y, anchor), Box(left - 2, y - 11, left + width + 2, y + 4), reach))
    return out


def _cost(box: Box, reach: float, dots: list[Dot], taken: list[Box], frame: Box) -> float:
    inside = box.shared(frame)
    area = (box.right - box.left) * (box.bottom - box.top)
    over_dots = sum(box.shared(part) for dot in dots for part in dot.covers)
    return 20 * (area - inside) + 8 * sum(box.shared(other) for other in taken) + 3 * over_dots + 2.0 * reach


def _crossed(dot: Dot, box: Box, others: list[Box]) -> float:
    """Return what a leader from a dot to its label costs where it runs over another dot or its whiskers."""
    end_x, end_y = min(max(dot.x, box.left), box.right), min(max(dot.y, box.top), box.bottom)
    spots = [(dot.x + (end_x - dot.x) * t / 8, dot.y + (end_y - dot.y) * t / 8) for t in range(1, 8)]
    return 60.0 * sum(p.left <= x <= p.right and p.top <= y <= p.bottom for x, y in spots for p in others)


def plane(view: ReportView, x_name: str, width: float = 880, height: float = 520) -> str:
    """Return the plane of all models that have both numbers ("" for fewer than two)."""
    shown = {n: m for n, m in view.models.items() if m.value(x_name) is not None and m.value(UTILITY) is not None}
    if len(shown) < 2:
        return ""
    xs, ys = (_edges(shown, name) for name in (x_name, UTILITY))
    left, right, top, bottom = 46.0, width - 14, 34.0, height - 46
    x_low, x_high = domain(xs)
    y_low, y_high = domain(ys)
    x, y = Scale(x_low, x_high, left + 16, right - 12), Scale(y_low, y_high, bottom - 14, top + 14)
    x_label = f"{describe(x_name).title} →"
    parts = [
        axis_left(Scale(y_low, y_high, bottom - 14, top), left, ticks(y_low, y_high), "↑ Model utility", right),
        axis_bottom(x, bottom, ticks(x_low, x_high), x_label, top),
        _neighbourhood(view, x_name, x, y, Box(left, top, right, bottom)),
    ]
    dots = [_dot(name, model, x_name, x, y) for name, model in shown.items()]
    parts += [_whiskers(model, x_name, x, y, looks(view)[name][1]) for name, model in shown.items()]
    parts += [_mark(view, dot, shown[dot.name], x_name) for dot in dots]
    places = place_labels(dots, Box(left + 2, top - 8, right, bottom - 2))
    parts += [_label(dot, places[dot.name]) for dot in dots]
    return canvas(width, height, parts, _spoken(view, shown, x_name), "plane")


def _edges(models: dict[str, ModelView], name: str) -> list[float]:
    out = [0.0] if describe(name).scale == 1 else []
    for model in models.values():
        out += [model.metrics[name]["value"], *bounds(model.metrics[name])]
    return out


def _neighbourhood(view: ReportView, x_name: str, x: Scale, y: Scale, frame: Box) -> str:
    """Shade what counts as close to the reference, on both axes, cut at the frame."""
    model = view.first(REFERENCE)
    if model is None or model.value(x_name) is None or model.value(UTILITY) is None:
        return ""
    cx, cy = model.metrics[x_name]["value"], model.metrics[UTILITY]["value"]
    half_x, half_y = CLOSE * (describe(x_name).scale or 1.0), CLOSE
    left, right = max(x(cx - half_x), frame.left + 1), min(x(cx + half_x), frame.right)
    top, bottom = max(y(cy + half_y), frame.top), min(y(cy - half_y), frame.bottom)
    return rect(left, top, right - left, bottom - top, "near", 6)


def _dot(name: str, model: ModelView, x_name: str, x: Scale, y: Scale) -> Dot:
    px, py = x(model.metrics[x_name]["value"]), y(model.metrics[UTILITY]["value"])
    (x0, x1), (y0, y1) = bounds(model.metrics[x_name]), bounds(model.metrics[UTILITY])
    covers = (Box(px - 8, py - 8, px + 8, py + 8), Box(x(x0), py - 2, x(x1), py + 2),
              Box(px - 2, y(y1), px + 2, y(y0)))  # fmt: skip
    return Dot(name, px, py, covers)


def _whiskers(model: ModelView, x_name: str, x: Scale, y: Scale, style: str) -> str:
    px, py = x(model.metrics[x_name]["value"]), y(model.metrics[UTILITY]["value"])
    (x0, x1), (y0, y1) = bounds(model.metrics[x_name]), bounds(model.metrics[UTILITY])
    return line(x(x0), py, x(x1), py, f"whisker {style}") + line(px, y(y0), px, y(y1), f"whisker {style}")


def _mark(view: ReportView, dot: Dot, model: ModelView, x_name: str) -> str:
    shape, style = looks(view)[dot.name]
    tip = f"{dot.name}: {describe(x_name).title} {number(model.metrics[x_name]['value'])}, "
    tip += f"model utility {number(model.metrics[UTILITY]['value'])}"
    return group([marker(shape, dot.x, dot.y, 6, f"mark {style}")], title=tip)


def _label(dot: Dot, place: tuple[float, float, str]) -> str:
    """Write a label, with a thin leader where it stands far from its dot."""
    x, y, anchor = place
    far = abs(x - dot.x) + abs(y - 4 - dot.y) > 24
    end = x - 2 if anchor == "start" else x + 2 if anchor == "end" else x
    leader = line(dot.x, dot.y, end, y - 4 if anchor != "middle" else y - (12 if y > dot.y else -4), "leader")
    return (leader if far else "") + text(x, y, dot.name, "name", anchor)


def _spoken(view: ReportView, shown: dict[str, ModelView], x_name: str) -> str:
    places = [
        f"{name} at {number(m.metrics[x_name]['value'])}, {number(m.metrics[UTILITY]['value'])}"
        for name, m in shown.items()
    ]
    return f"{describe(x_name).title} against model utility: {'; '.join(places)}."
