# SPDX-License-Identifier: Apache-2.0
"""What planted canaries show: one table of all models, and the sentences that go with it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from expunge.report.markup import bullets, scroll, tag
from expunge.report.words import interval, number

#: Columns of the table: title, and where the number is.
RATES = (("TPR at 1 % FPR", "tpr_at_1_fpr"), ("AUC", "auc"))
EPSILONS = (
    ("ε ≥ (one run)", "one_run"), ("ε ≥ (Clopper-Pearson)", "clopper_pearson"),
    ("ε estimate (f-DP, one run)", "fdp_one_run"), ("ε estimate (Gaussian)", "gdp"),
)  # fmt: skip


def heads() -> list[str]:
    """Return the titles of the columns."""
    return ["Model", *(title for title, _ in (*RATES, *EPSILONS))]


def row(name: str, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the cells of one model: what stands large, and the interval or role beside it."""
    cells = [(name, "" if model["role"] == name else str(model["role"]))]
    for _, key in RATES:
        found = model[key]
        cells.append(("–", "") if found["value"] is None else (number(found["value"]), interval(found)))
    return cells + [(number(model["epsilon"][key]["value"]), "") for _, key in EPSILONS]


def facts(document: Mapping[str, Any]) -> str:
    """Return one line on what was planted."""
    planted = document["manifest"]
    size = f"{planted['secret_tokens']} token{'s' if planted['secret_tokens'] > 1 else ''}"
    return (
        f"{planted['n']} canaries of the design {planted['design']}, secrets of {size}; fair coins inserted "
        f"{planted['inserted']}, each {planted['repeats']} time{'s' if planted['repeats'] > 1 else ''}, and held out "
        f"{planted['held_out']}. Scored on the secret alone. Seal {str(planted['seal'])[:12]}."
    )


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return the sentences, what has no number, and what is assumed."""
    reasons = {str(model["tpr_at_1_fpr"].get("reason", "")) for model in document["models"].values()} - {""}
    missing = [f"No TPR at 1 % FPR: {reason}." for reason in sorted(reasons)]
    return [*document["sentences"], *missing, "Assumed: " + "; ".join(document["assumptions"]) + "."]


def canaries_section(document: Mapping[str, Any]) -> str:
    """Return the section, "" where no canaries were planted."""
    if not document:
        return ""
    head = "".join(tag("th", escape(title), "", {"scope": "col"}) for title in heads())
    body = ""
    for name, model in document["models"].items():
        cells = [escape(text) + (tag("small", escape(f" {more}")) if more else "") for text, more in row(name, model)]
        body += tag("tr", "".join(tag("td", cell) for cell in cells))
    table = tag("table", tag("thead", tag("tr", head)) + tag("tbody", body), "plain-table")
    return tag("p", escape(facts(document))) + scroll(table, "Canaries") + bullets(notes(document))
