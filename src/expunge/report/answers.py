# SPDX-License-Identifier: Apache-2.0
"""What a model says in place of the answer: refusals, inventions and leaks, which add up to all answers."""

from __future__ import annotations

from html import escape

from expunge.report.markup import para, scroll, tag
from expunge.report.svg import canvas, rect
from expunge.report.tables import swatch
from expunge.report.view import ModelView, ReportView
from expunge.report.words import interval, number

#: Metric, column and style of each part, in the order they are drawn.
_PARTS = (
    ("forget.refusal_rate", "Refuses", "refuses"),
    ("forget.hallucination_rate", "Invents", "invents"),
    ("forget.leak_rate", "Leaks", "lost"),
)
_WIDTH, _HEIGHT = 180.0, 14.0


def answers(view: ReportView) -> str:
    """Return the three rates on the forget set per model, with a bar that they fill ("" without generations)."""
    told = {name: model for name, model in view.models.items() if _complete(model)}
    if not told:
        return ""
    keys = [canvas(12, 10, [rect(0, 0, 12, 10, style)], label, "swatch") + label for _, label, style in _PARTS]
    heads = "".join(tag("th", head, "nowrap", {"scope": "col"}) for head in ("Model", *keys, ""))
    body = "".join(tag("tr", _cells(view, name, model)) for name, model in told.items())
    table = tag("table", tag("thead", tag("tr", heads)) + tag("tbody", body), "plain-table answers")
    text = (
        "Greedy answers on the forget set, each in one class. A refusal declines or is empty; a leak holds a quarter "
        "of the true answer's words in order; the rest is invented. A model that never saw the data invents: one that "
        "refuses gives away that there is something to refuse. Words that an answer shares with its question count as "
        "leaked, so the reference leaks too: read the others beside it."
    )
    return para(text) + scroll(table, "Refusals, inventions and leaks, scrolls sideways")


def _complete(model: ModelView) -> bool:
    return all(model.value(metric) is not None for metric, _, _ in _PARTS)


def _cells(view: ReportView, name: str, model: ModelView) -> str:
    out = tag("th", tag("span", swatch(view, name) + escape(name), "nowrap"), "", {"scope": "row"})
    for metric, _, _ in _PARTS:
        estimate = model.metrics[metric]
        out += tag("td", number(estimate["value"]) + tag("small", escape(f" {interval(estimate)}")))
    return out + tag("td", _bar(model))


def _bar(model: ModelView) -> str:
    """Return the three shares as one bar."""
    parts, start, said = [], 0.0, []
    for metric, label, style in _PARTS:
        share = float(model.metrics[metric]["value"])
        parts.append(rect(start, 0, share * _WIDTH, _HEIGHT, style))
        start += share * _WIDTH
        said.append(f"{label.lower()} {number(share)}")
    return canvas(_WIDTH, _HEIGHT, parts, ", ".join(said), "shares")
