# SPDX-License-Identifier: Apache-2.0
"""The verdict of a diagnosis in sentences, and the table of the numbers and thresholds it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from expunge.report.markup import para, scroll, tag
from expunge.report.words import interval, number

Verdict = Mapping[str, Any]

#: What E can be, in words.
MEASURES = {
    "exact_memorization": "the share of answer tokens that are the model's first choice",
    "probability": "the probability of the answer per token",
    "extraction_strength": "the share of the answer that the model completes by itself",
}


def remark(label: str, recovery: Mapping[str, Any], control: Mapping[str, Any]) -> str:
    """Return what must stand beside `irreversible` where more came back than is learned anew, else ""."""
    low = control.get("ci_low")
    if not label.startswith("irreversible") or not recovery.get("value") or low is None or low <= 0:
        return ""
    return "Irreversible by the threshold alone: more came back than a model learns that never knew."


def lead(verdict: Verdict) -> list[str]:
    """Return the verdict in sentences, each with the numbers behind it."""
    means, out = verdict["means"], [f"Regime: {verdict['label']}."]
    forget, retain = means["forget"], means["retain"]
    out.append(
        f"On the forget set E went from {number(forget['before'])} to {number(forget['after'])}, on the retain set "
        f"from {number(retain['before'])} to {number(retain['after'])}."
    )
    recovery = verdict["recovery"]
    if recovery["value"] is not None:
        out.append(
            f"Relearning took the forget set to {number(forget['relearned'])}: the share {_with_interval(recovery)} of "
            "what was lost came back."
        )
    control = verdict["control"]
    if control["value"] is not None:
        out.append(
            f"A model that never saw the forget set reached {number(forget['control'])} after the same training: "
            f"the difference is {_with_interval(control)}."
        )
    excess = verdict["excess_recovery"]
    if excess["value"] is not None:
        out.append(f"Beyond what that training teaches a model that never knew, {_with_interval(excess)} came back.")
    said = remark(str(verdict["label"]), recovery, control)
    return [*out, said] if said else out


def numbers(verdict: Verdict) -> str:
    """Return the table of numbers, their thresholds and what followed, with how E is taken."""
    limits = verdict["thresholds"]
    rows = (
        ("Lost on the forget set, as a share of E before", "forget_drop", f"lost above {limits['forgotten']:g}",
         _settled(verdict, "forgotten", "forget_drop", "lost", "kept")),
        ("Lost on the retain set, as a share of E before", "retain_drop",
         f"catastrophic above {limits['collateral']:g}",
         _settled(verdict, "catastrophic", "retain_drop", "catastrophic", "non-catastrophic")),
        ("Left of the forget loss after relearning", "residue", f"reversible up to {limits['residue']:g}",
         _settled(verdict, "reversible", "residue", "reversible", "irreversible")),
        ("Recovery ρ: what came back of the forget loss", "recovery", f"reversible from {1 - limits['residue']:g} on",
         ""),
        ("Relearned minus control, on the forget set", "control", "", ""),
        ("Excess recovery: that difference as a share of E before minus control", "excess_recovery", "", ""),
    )  # fmt: skip
    heads = "".join(
        tag("th", head, "", {"scope": "col"}) for head in ("Number", "Value", "95 % interval", "Threshold", "So")
    )
    body = "".join(_row(label, verdict[name], limit, outcome) for label, name, limit, outcome in rows)
    table = tag("table", tag("thead", tag("tr", heads)) + tag("tbody", body), "plain-table")
    text = (
        f"E is {MEASURES[verdict['measure']]}, averaged over a set. Intervals redraw subjects. A part of the verdict "
        "is settled only where the whole interval lies on one side of its threshold. The study that named the regimes "
        "gives no thresholds: these are ours."
    )
    return para(text) + scroll(table, "Numbers behind the verdict, scrolls sideways")


def _row(label: str, estimate: Mapping[str, Any], limit: str, outcome: str) -> str:
    value = "–" if estimate["value"] is None else number(estimate["value"])
    bounds = interval(estimate) or str(estimate.get("reason", ""))
    return tag("tr", "".join(tag("td", escape(cell)) for cell in (label, value, bounds, limit, outcome)))


def _settled(verdict: Verdict, part: str, number_of: str, yes: str, no: str) -> str:
    if verdict[part] is not None:
        return yes if verdict[part] else no
    if verdict[number_of]["value"] is None or (part == "reversible" and verdict["forgotten"] is False):
        return "not asked"
    return "undecided"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    bounds = interval(estimate)
    return f"{number(estimate['value'])} [{bounds}]" if bounds else number(estimate["value"])
