# SPDX-License-Identifier: Apache-2.0
"""The page of a study: how forgetting and utility move from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from expunge.claims import SENTENCES, ClaimKind
from expunge.report import sections
from expunge.report.markup import bullets, pairs, para, scroll, tag
from expunge.report.metrics import describe
from expunge.report.page import footer, frame
from expunge.report.plots import spread
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
    path,
    text,
    text_width,
    ticks,
)
from expunge.report.view import CurvePoint, ReportView
from expunge.report.words import check_page, listed, number
from expunge.runs import write_text

BEFORE, REFERENCE = "before", "reference"
_FIXED = {BEFORE: ("square", "mt"), REFERENCE: ("ring", "mr")}
_MOST_TICKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One drawing: a metric along the steps, a line for each model or request (`budget` is the place on the axis)."""

    title: str
    about: str
    metric: str
    lines: Mapping[str, Sequence[CurvePoint]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """Everything the page of a study shows.

    Attributes:
        title: of the page.
        lead: sentences under the title.
        claim: kind of claim of the method.
        axis: what the steps are counted in.
        curves: the drawings, in order.
        heads, rows: the table of steps, as plain texts.
        asked: rows of (label, text).
        notes: what a reader must know of the data.
        not_tested: attacks that were not run on every step.
        not_shown: what the study does not show, beside what no report can.
        environment: versions and device.
        reproduce: shell commands.
        unfinished: why the study is not complete, "" if it is.
    """

    title: str
    lead: Sequence[str]
    claim: ClaimKind
    axis: str
    curves: Sequence[Curve]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    asked: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    not_tested: Sequence[str] = ()
    not_shown: Sequence[str] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    reproduce: Sequence[str] = ()
    unfinished: str = ""


def draw(curve: Curve, axis: str, width: float = 760, height: float = 320) -> str:
    """Return a curve as SVG, 95 % intervals as whiskers, every line named at its end ("" without a point)."""
    lines = {name: points for name, points in curve.lines.items() if points}
    if not lines:
        return ""
    every = [point for points in lines.values() for point in points]
    low, high = domain([edge for point in every for edge in _edges(point)])
    places = sorted({point.budget for point in every} | {0.0})
    right = width - 14 - max(text_width(name, 12.5) for name in lines)
    x, y = Scale(0.0, max(places[-1], 1.0), 56, right), Scale(low, high, height - 48, 34)
    marks = places if len(places) <= _MOST_TICKS else ticks(0.0, places[-1])
    parts = [
        axis_left(y, 46, ticks(low, high), describe(curve.metric).title, right),
        axis_bottom(x, height - 48, marks, f"{axis} →"),
    ]
    ends = spread([y(points[-1].value) for points in lines.values()], 15)
    for (name, points), (shape, style), end in zip(lines.items(), _styles(lines), ends, strict=True):
        parts += _line(name, points, x, y, shape, style)
        parts.append(text(right + 12, end + 4, name, f"name {style}"))
    said = "; ".join(f"{name} from {number(p[0].value)} to {number(p[-1].value)}" for name, p in lines.items())
    return canvas(width, height, parts, f"{describe(curve.metric).title} by {axis}: {said}", "study")


def render_study(view: StudyView) -> str:
    """Return the page of a study as one offline HTML document.

    Raises:
        ExpungeError: if the page would say a sentence that must not be written.
    """
    frame_of = ReportView(
        title=view.title, models={}, what_was_asked=view.asked, environment=view.environment,
        reproduce=view.reproduce, not_shown=view.not_shown,
    )  # fmt: skip
    content = [
        ("curves", "From step to step", "".join(_figure(curve, view.axis) for curve in view.curves)),
        ("steps", "Every step", _table(view)),
        ("asked", "What was asked", pairs(view.asked) if view.asked else ""),
        ("notes", "About the data", bullets(view.notes) if view.notes else ""),
        ("limits", "What this page cannot show", sections.cannot_show(frame_of)),
        ("environment", "Environment", sections.surroundings(frame_of)),
        ("reproduce", "How to reproduce", sections.commands(view.reproduce)),
    ]
    return check_page(frame(view.title, _header(view), content, footer(["study schema 1"]), kind="unlearning study"))


def write_study_page(view: StudyView, path: Path) -> Path:
    """Write the page of a study and return its path; nothing is written if `render_study` raises."""
    write_text(path, render_study(view))
    return path


def _header(view: StudyView) -> str:
    chip = tag("span", view.claim.value, f"chip claim-{view.claim.value}")
    claim = tag("p", chip + " " + escape(SENTENCES[view.claim]), "claimline")
    banner = para(f"The study is not complete: {view.unfinished}", "alarm") if view.unfinished else ""
    lead = "".join(para(sentence, "lead") for sentence in view.lead)
    rest = escape(listed(view.not_tested)) + "."
    untested = tag("p", tag("strong", "Not tested: ") + rest, "nottested") if view.not_tested else ""
    return tag("header", banner + tag("h1", escape(view.title)) + lead + claim + untested)


def _figure(curve: Curve, axis: str) -> str:
    """Return a drawing in two widths with its caption; a curve without a number says so."""
    wide = draw(curve, axis)
    if not wide:
        return tag("h3", escape(curve.title)) + para(curve.about)
    drawings = tag("div", wide, "wide-only") + tag("div", draw(curve, axis, 360, 280), "narrow-only")
    return tag("figure", tag("figcaption", escape(curve.title)) + drawings) + para(curve.about, "aside")


def _table(view: StudyView) -> str:
    heads = "".join(tag("th", escape(head), "", {"scope": "col"}) for head in view.heads)
    rows = "".join(tag("tr", "".join(tag("td", escape(cell)) for cell in row)) for row in view.rows)
    table = tag("table", tag("thead", tag("tr", heads)) + tag("tbody", rows), "plain-table")
    return scroll(table, "All steps, scrolls sideways")


def _styles(lines: Mapping[str, Sequence[CurvePoint]]) -> Iterator[tuple[str, str]]:
    """Yield marker and style class of every line; what was there before and the reference have their own."""
    turn = 0
    for name in lines:
        if name in _FIXED:
            yield _FIXED[name]
        else:
            yield SHAPES[turn % len(SHAPES)], f"m{turn % 8}"
            turn += 1


def _line(name: str, points: Sequence[CurvePoint], x: Scale, y: Scale, shape: str, style: str) -> list[str]:
    at = [(x(point.budget), y(point.value)) for point in points]
    out = [
        line(px, y(point.ci_low), px, y(point.ci_high), f"whisker {style}")
        for (px, _), point in zip(at, points, strict=True)
        if point.ci_low is not None and point.ci_high is not None
    ]
    out.append(path(at, f"curve {style}"))
    for (px, py), point in zip(at, points, strict=True):
        out.append(group([marker(shape, px, py, 4.5, f"mark {style}")], title=f"{name}: {number(point.value)}"))
    return out


def _edges(point: CurvePoint) -> list[float]:
    return [edge for edge in (point.value, point.ci_low, point.ci_high) if edge is not None]
