# SPDX-License-Identifier: Apache-2.0
"""Examples of answers: by default a report shows their shape and never their text."""

from __future__ import annotations

from html import escape

from expunge.report.markup import details, hidden, para, quote, tag
from expunge.report.view import ExampleView, ReportView
from expunge.report.words import number

_WORDS_SHOWN = 3


def examples_section(view: ReportView, show_text: bool) -> str:
    """Return every example once with the answers of all models ("" without examples)."""
    merged: dict[tuple[str, str], dict[str, ExampleView]] = {}
    for name, model in view.models.items():
        for example in model.examples:
            merged.setdefault((example.set, example.id), {})[name] = example
    if not merged:
        return ""
    cards = "".join(_card(*key, by_model, show_text) for key, by_model in merged.items())
    return (_SHOWN if show_text else _REDACTED) + tag("div", cards, "examples")


_REDACTED = para(
    "Text is withheld here: a report travels further than the data it speaks of. Each line gives the length, and how "
    "much of the true answer it repeats. The text can be written on request, from the run folder.", "aside",
)  # fmt: skip
_SHOWN = para(
    "This file carries text from the evaluated sets. Handle it like the data itself, and do not publish it.", "alarm"
) + tag("button", "Show all text", "toggle-all needs-js", {"type": "button", "aria-pressed": "false"})


def _card(dataset: str, name: str, by_model: dict[str, ExampleView], show_text: bool) -> str:
    """Return one example: question, true answer, and a line per model."""
    first = next(iter(by_model.values()))
    rows: list[tuple[str, str | None, float | None]] = [
        ("Question", first.prompt, None),
        ("True answer", first.target, None),
    ]
    rows.append(("Before", first.before, first.overlap.get("before")))
    rows.append(("Reference", first.reference, first.overlap.get("reference")))
    for model, example in by_model.items():
        rows.append((f"After, {model}" if len(by_model) > 1 else "After", example.after, example.overlap.get("after")))
    body = "".join(_line(label, text, overlap, show_text) for label, text, overlap in rows if text is not None)
    table = tag("table", tag("tbody", body))
    head = tag("span", escape(dataset), "chip") + " " + tag("code", escape(name))
    if show_text:
        return details(head + tag("span", "show text", "hint"), table, style="example")
    return tag("article", tag("h3", head) + table, "example")


def _line(label: str, text: str, overlap: float | None, show_text: bool) -> str:
    content = quote(text) if show_text else redacted(text)
    measured = "" if overlap is None else tag("span", f"overlap {number(overlap)}", "overlap")
    return tag("tr", tag("th", escape(label), "", {"scope": "row"}) + tag("td", content + measured))


def redacted(text: str) -> str:
    """Return bars of fixed widths for the first words and the length; nothing of the text itself."""
    words = len(text.split())
    bars = "".join(tag("span", "", f"bar b{index}", {"aria-hidden": "true"}) for index in range(min(words, 3)))
    more = tag("span", "…", "", {"aria-hidden": "true"}) if words > _WORDS_SHOWN else ""
    size = f"{words} word{'' if words == 1 else 's'}, {len(text)} characters"
    return bars + more + hidden("redacted, ") + tag("span", size, "size")
