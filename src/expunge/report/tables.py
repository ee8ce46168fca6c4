# SPDX-License-Identifier: Apache-2.0
"""The table of all metrics and models: intervals, directions, colours with words, and a reason for every gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from expunge.report.judge import NONE, anchor, judge
from expunge.report.markup import hidden, scroll, tag
from expunge.report.metrics import GROUPS, describe, direction, metric_names
from expunge.report.plane import looks
from expunge.report.svg import canvas, marker
from expunge.report.view import REFERENCE, TARGET, EstimateDict, ModelView, ReportView
from expunge.report.words import interval, number

ARROWS: dict[str, tuple[str, str]] = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "reference": ("◎", "closer to the reference is better"),
    "": ("", "no direction"),
}
NOT_THERE = "not measured for this model"


def swatch(view: ReportView, name: str) -> str:
    """Return the marker of a model as a small drawing."""
    shape, style = looks(view)[name]
    return canvas(18, 16, [marker(shape, 9, 8, 5, f"mark {style}")], f"marker of {name}", "swatch")


class Footnotes:
    """Numbers the reasons for missing values in order of appearance."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def dash(self, reason: str) -> str:
        """Return a dash with the reason as tooltip and a link to its footnote."""
        return tag("abbr", "–", "", {"title": reason}) + hidden(f"no value: {reason}") + self.link(reason)

    def link(self, reason: str) -> str:
        """Return the raised number that leads to the footnote."""
        index = self.reasons.setdefault(reason, len(self.reasons) + 1)
        return tag("sup", tag("a", str(index), "", {"href": f"#fn-{index}"}))

    def notes(self) -> str:
        """Return the list of footnotes ("" without any)."""
        items = "".join(tag("li", escape(text), "", {"id": f"fn-{index}"}) for text, index in self.reasons.items())
        return (
            tag("ol", items, "footnotes", {"aria-label": "Why a value is missing or is no evidence"}) if items else ""
        )


def _cell(view: ReportView, name: str, model: ModelView, notes: Footnotes) -> str:
    """Return one cell: value, interval, and colour with a mark and words."""
    estimate = model.metrics.get(name)
    if estimate is None or estimate.get("value") is None:
        reason = NOT_THERE if estimate is None else str(estimate.get("reason") or "no reason recorded")
        return tag("td", notes.dash(reason), "null")
    verdict = NONE if model.role in (TARGET, REFERENCE) else judge(name, estimate, anchor(view, name))
    mark = tag("span", verdict.mark, "jmark", {"aria-hidden": "true"}) if verdict.mark else ""
    words = hidden(f", {verdict.words}") if verdict.words else ""
    tip = {"title": verdict.words} if verdict.words else None
    pill = tag("span", number(estimate["value"]) + mark, f"pill j-{verdict.level}", tip)
    bounds = interval(estimate)
    small = tag("small", escape(bounds)) if bounds else _no_interval(estimate, notes)
    caveat = str(estimate.get("caveat") or "")
    doubt = tag("small", "not evidence" + notes.link(caveat)) if caveat else ""
    more = {"data-value": repr(float(estimate["value"]))}
    return tag("td", pill + words + small + doubt, "", more)


def _no_interval(estimate: EstimateDict, notes: Footnotes) -> str:
    """Say why a value has no interval, if it is known."""
    reason = str(estimate.get("reason") or "")
    return tag("small", "no interval" + notes.link(reason)) if reason else ""


def _counts(view: ReportView, name: str) -> str:
    """Return the number of items behind a metric, as a range where the models differ."""
    found = sorted({int(m.metrics[name].get("n") or 0) for m in view.models.values() if m.value(name) is not None})
    return "–".join(str(n) for n in dict.fromkeys((found[0], found[-1]))) if found else ""


def _row(view: ReportView, name: str, notes: Footnotes) -> str:
    words = describe(name)
    arrow, meaning = ARROWS.get(direction(view, name), ARROWS[""])
    variants = sorted({str(m.metrics[name].get("compat", "fixed")) for m in view.models.values() if name in m.metrics})
    kind = "".join(tag("small", f"variant: {escape(v)}", "variant") for v in variants if v != "fixed")
    button = tag("button", "⇅", "sort", {"type": "button", "aria-label": f"Sort models by {words.title}"})
    head = tag("span", arrow, "arrow", {"title": meaning, "aria-hidden": "true"}) + hidden(f"({meaning})")
    about = tag("small", escape(words.means), "means") if words.means else ""
    start, _, end = words.title.rpartition(" ")
    last = tag("span", tag("span", escape(end), "mtitle") + " " + head + button, "nowrap")
    title = tag("span", escape(start), "mtitle") + " " + last + kind + about
    first = tag("th", title, "", {"scope": "row", "title": name})
    cells = "".join(_cell(view, name, model, notes) for model in view.models.values())
    return tag("tr", first + tag("td", _counts(view, name), "n") + cells)


def _role(name: str, model: ModelView) -> str:
    role = "unlearned" if model.role == "method" else model.role
    return tag("small", escape(role) if role != name else "&nbsp;")


def metrics_table(view: ReportView) -> str:
    """Return the table of every metric and model with its legend and footnotes ("" without metrics)."""
    names, notes = metric_names(view), Footnotes()
    if not names:
        return ""
    columns = "".join(
        tag("th", tag("span", swatch(view, key) + escape(key), "nowrap") + _role(key, model), "", {"scope": "col"})
        for key, model in view.models.items()
    )
    header = tag("thead", tag("tr", tag("th", "Metric", "", {"scope": "col"}) + tag("th", "n", "n") + columns))
    body = ""
    for title, about in GROUPS.items():
        rows = "".join(_row(view, name, notes) for name in names if describe(name).group == title)
        if rows:
            words = tag("span", escape(title) + tag("small", escape(about)), "stay")
            head = tag("th", words, "", {"scope": "rowgroup", "colspan": str(len(view.models) + 2)})
            body += tag("tbody", tag("tr", head, "group") + rows)
    table = tag("table", header + body, "metrics")
    return LEGEND + scroll(table, "All metrics, scrolls sideways") + notes.notes()


_KEYS = (
    ("good", "≈ ✓", "close to the reference, or no worse where only one side counts"),
    ("warn", "△ ▽", "off, or the intervals overlap"),
    ("bad", "▲ ▼", "far above or far below: over-unlearning counts like under-unlearning"),
)
LEGEND = tag(
    "p",
    "".join(tag("span", tag("span", mark, f"chip j-{level}") + f" {words}", "key") for level, mark, words in _KEYS)
    + "".join(tag("span", f"{arrow} {words}", "key") for arrow, words in ARROWS.values() if arrow),
    "legend",
)


def _markdown_value(estimate: EstimateDict | None) -> str:
    if estimate is None or estimate.get("value") is None:
        return "–"
    bounds = interval(estimate)
    doubt = " (not evidence)" if estimate.get("caveat") else ""
    return (f"{number(estimate['value'])} [{bounds}]" if bounds else number(estimate["value"])) + doubt


def markdown_table(models: Mapping[str, ModelView], metrics: Sequence[str]) -> str:
    """Return a Markdown table, a row per model and a column per metric, with footnotes for missing values."""
    heads = ["Model"]
    for name in metrics:
        found = next((m.metrics[name] for m in models.values() if name in m.metrics), {})
        heads.append(f"{describe(name).title} {ARROWS.get(str(found.get('direction', '')), ARROWS[''])[0]}".strip())
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    reasons: dict[str, None] = {}
    for key, model in models.items():
        lines.append("| " + " | ".join([key, *(_markdown_value(model.metrics.get(name)) for name in metrics)]) + " |")
        for name in metrics:
            if model.value(name) is None:
                why = model.metrics[name].get("reason", "no reason recorded") if name in model.metrics else NOT_THERE
                reasons[f"{describe(name).title}, {key}: {why}"] = None
    notes = "\n\n" + "\n".join(f"– {reason}" for reason in reasons) if reasons else ""
    return "\n".join(lines) + notes + "\n"
