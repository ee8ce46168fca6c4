# SPDX-License-Identifier: Apache-2.0
"""The doors of the room: HTML page, Markdown table, model-card section. All pass the gate on what may be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.claims import MISMATCHES
from expunge.report.metrics import key_metrics
from expunge.report.page import page
from expunge.report.tables import markdown_table
from expunge.report.verdict import claim_sentences, far_sentences, measured_sentences, not_tested, tried_sentence
from expunge.report.view import ModelView, ReportView
from expunge.report.words import check, check_page, listed, moment
from expunge.runs import write_text


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
    write_text(path, document)
    return path


def render_markdown_table(models: Mapping[str, ModelView], metrics: Sequence[str]) -> str:
    """Return a Markdown table of `metrics` by model, with intervals and a reason below for every missing value."""
    return check(markdown_table(models, metrics))


def model_card_section(view: ReportView) -> str:
    """Return the "Data removal" section of a model card in Markdown: date, method, evidence, known limits."""
    lines = [*_card_facts(view), "", "### Evidence", "", *measured_sentences(view), ""]
    if view.measured:
        lines += [markdown_table(view.models, key_metrics(view)), ""]
    lines += ["### Known limits", "", *(f"- {sentence}" for _, sentence in claim_sentences(view))]
    lines += [f"- Far from the reference: {text}." for text in far_sentences(view)]
    missing = not_tested(view)
    lines += [f"- Attacks not tested: {listed(missing)}."] if missing else []
    lines += [f"- {tried_sentence(view)}", *(f"- {text}" for text in MISMATCHES), ""]
    check("\n".join(line for line in lines if not line.startswith(_SOURCE)))
    return "\n".join(lines)


_SOURCE = "- **Source:** "


def _card_facts(view: ReportView) -> list[str]:
    """List date, methods with their sources, and what was asked."""
    lines = ["## Data removal", ""]
    if view.run.get("started"):
        lines.append(f"- **Date:** {moment(str(view.run['started']))}")
    for name, model in view.changed.items():
        card = model.method or {}
        claim = model.claim or view.claim
        lines.append(f"- **Method:** {card.get('title', name)}" + (f"; kind of claim: {claim}" if claim else ""))
        if card.get("paper"):
            lines.append(f"{_SOURCE}{card['paper']} ({card.get('year', 'year not recorded')})")
    return lines + [f"- **{label}:** {text}" for label, text in view.what_was_asked]


__all__ = ["model_card_section", "render", "render_markdown_table", "write_report"]
