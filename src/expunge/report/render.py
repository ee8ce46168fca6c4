# SPDX-License-Identifier: Apache-2.0
"""The doors of the room: HTML page, Markdown table, model-card section. All pass the gate on what may be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.claims import MISMATCHES, SENTENCES
from expunge.report.metrics import key_metrics
from expunge.report.page import page
from expunge.report.tables import markdown_table
from expunge.report.verdict import claim_sentences, far_sentences, measured_sentences, not_tested, tried_sentence
from expunge.report.view import ModelView, ReportView
from expunge.report.words import check, check_page, listed


def render(view: ReportView, *, show_examples: bool = False) -> str:
    """Return the report as one HTML document that works offline.

    Args:
        view: what to show.
        show_examples: carry the text of the examples, folded; by default only their lengths are written.

    Raises:
        ExpungeError: if the page would say a sentence that must not be written.
    """
    return check_page(page(view, show_examples))


def write_report(view: ReportView, path: Path, *, show_examples: bool = False) -> Path:
    """Write the report to `path` (UTF-8) and return the path; nothing is written if `render` raises."""
    document = render(view, show_examples=show_examples)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document, encoding="utf-8")
    return path


def render_markdown_table(models: Mapping[str, ModelView], metrics: Sequence[str]) -> str:
    """Return a Markdown table of `metrics` by model, with intervals and a reason below for every missing value."""
    return check(markdown_table(models, metrics))


def model_card_section(view: ReportView) -> str:
    """Return the "Data removal" section of a model card in Markdown: date, method, evidence, known limits."""
    out = ["## Data removal", ""]
    quotes = []
    if view.run.get("started"):
        out.append(f"- **Date:** {view.run['started']}")
    for name, model in view.changed.items():
        title = model.method.get("title", name) if model.method else name
        out.append(f"- **Method:** {title}" + (f", kind of claim: {model.claim}" if model.claim else ""))
        if model.method and model.method.get("paper"):
            out.append(f"- **Source:** PAPER-{len(quotes)}-PAPER")
            quotes.append(f"{model.method['paper']} ({model.method.get('year', 'no year')})")
    out += [f"- **{label}:** {text}" for label, text in view.what_was_asked]
    out += ["", "### Evidence", "", *measured_sentences(view), ""]
    if view.measured:
        out += [markdown_table(view.models, key_metrics(view)), ""]
    out += ["### Known limits", ""]
    out += [f"- {sentence}" for _, sentence in claim_sentences(view)]
    out += [f"- Far from the reference: {text}." for text in far_sentences(view)]
    missing = not_tested(view)
    out += [f"- Attacks not tested: {listed(missing)}."] if missing else []
    out += [f"- {tried_sentence(view)}", *(f"- {text}" for text in MISMATCHES), ""]
    text = check("\n".join(out))
    for index, words in enumerate(quotes):
        text = text.replace(f"PAPER-{index}-PAPER", words)
    return text


__all__ = ["SENTENCES", "model_card_section", "render", "render_markdown_table", "write_report"]
