# SPDX-License-Identifier: Apache-2.0
"""Report: one offline HTML file, Markdown tables and the model-card section; computes no number."""

from __future__ import annotations

from expunge.report.folder import view_from_audit, view_from_run
from expunge.report.render import model_card_section, render, render_markdown_table, write_report
from expunge.report.view import CurvePoint, ExampleView, ModelView, PolicyRule, RelearnView, ReportView

__all__ = [
    "CurvePoint",
    "ExampleView",
    "ModelView",
    "PolicyRule",
    "RelearnView",
    "ReportView",
    "model_card_section",
    "render",
    "render_markdown_table",
    "view_from_audit",
    "view_from_run",
    "write_report",
]
