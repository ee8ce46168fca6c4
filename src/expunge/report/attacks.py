# SPDX-License-Identifier: Apache-2.0
"""What attacks found, each number beside its control: read from an audit document, and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from expunge.report.markup import bullets, details, scroll, tag
from expunge.report.metrics import describe
from expunge.report.plots import relearning
from expunge.report.regime import MEASURES, remark
from expunge.report.view import (
    REFERENCE,
    AttackRow,
    CurvePoint,
    EstimateDict,
    PowerView,
    RegimeView,
    RelearnView,
    ReportView,
)
from expunge.report.words import interval, listed, number

#: The name that trace detection gives its control.
TWO_IGNORANT = "two models that never learned"
_HEADS = ("Model", "How", "Metric", "Value", "Control", "Value minus control")


def kinds_run(audit: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the kinds of attack that the audit names as run or holds a result of; an empty result does not count."""
    entries = (audit.get("attacks") or {}).items()
    found = [entry["kind"] if _typed(entry) else name for name, entry in entries if entry]
    return tuple(dict.fromkeys([*(audit.get("attacks_run") or ()), *found]))


def curves_of(audit: Mapping[str, Any]) -> list[RelearnView]:
    """Return the relearning curves, the main one first."""
    entry = (audit.get("attacks") or {}).get("relearning")
    return [_curve(found) for found in (entry, *entry.get("others", ()))] if entry else []


def _curve(entry: Mapping[str, Any]) -> RelearnView:
    curves = {name: tuple(CurvePoint(**point) for point in points) for name, points in entry["models"].items()}
    title = str(entry.get("title", ""))
    return RelearnView(metric=entry["metric"], budget_unit=entry["budget_unit"], curves=curves, title=title)


def rows_of(audit: Mapping[str, Any]) -> list[AttackRow]:
    """Return every finding of every attack with the control that counts."""
    out = []
    for name, entry in (audit.get("attacks") or {}).items():
        for found in entry.get("findings", ()) if _typed(entry) else ():
            control = next(iter(found["controls"]))
            title = str(entry.get("card", {}).get("title", name))
            out.append(AttackRow(
                attack=title, kind=str(entry["kind"]), model=found["model"], setting=found["setting"],
                metric=found["metric"], value=found["value"], control_name=control,
                control=found["controls"][control], difference=found["differences"].get(control),
            ))  # fmt: skip
    return out


def regimes_of(audit: Mapping[str, Any]) -> list[RegimeView]:
    """Return the verdicts on reversibility that have a label."""
    notes = _relearning_notes(audit).get("regimes", {})
    return [
        RegimeView(model=model, way=way, label=found["label"], recovery=found["recovery"],
                   control=found["control"], thresholds=found["thresholds"],
                   excess_recovery=found.get("excess_recovery", {}), measure=found.get("measure", "probability"))
        for model, ways in notes.items() for way, found in ways.items() if found.get("label")
    ]  # fmt: skip


def powers_of(audit: Mapping[str, Any]) -> list[PowerView]:
    """Return whether each way of relearning moved anything."""
    notes = _relearning_notes(audit)
    regimes = notes.get("regimes", {})
    return [
        PowerView(
            way=way, before=found["before"], after=found["after"], limit=found["limit"], there=found["there"],
            without=tuple(model for model, ways in regimes.items() if ways.get(way, {}).get("power") is False),
        )
        for way, found in notes.get("power", {}).items()
    ]  # fmt: skip


def trace_metrics(audit: Mapping[str, Any]) -> dict[str, dict[str, EstimateDict]]:
    """Return the accuracies of trace detection as metrics by model; those of the reference are its control's.

    The control is the accuracy between two models that never learned, where a second one was given.
    """
    entry = (audit.get("attacks") or {}).get("traces") or {}
    out: dict[str, dict[str, EstimateDict]] = {}
    for found in entry.get("findings", ()) if _typed(entry) else ():
        name = f"membership.traces.{found['setting']}"
        out.setdefault(found["model"], {})[name] = found["value"]
        control = found["controls"].get(TWO_IGNORANT)
        if control is not None:
            out.setdefault(REFERENCE, {})[name] = control
    return out


def _relearning_notes(audit: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = (audit.get("attacks") or {}).get("relearning") or {}
    notes: Mapping[str, Any] = entry.get("notes", {}) if _typed(entry) else {}
    return notes


def _typed(entry: Any) -> bool:
    """Whether an entry of `attacks` says what kind of attack it is of (older documents hold curves alone)."""
    return isinstance(entry, Mapping) and "kind" in entry


def powers(view: ReportView) -> str:
    """Return whether relearning was an attack at all: a warning where nothing moved, else one sentence."""
    weak = [found for found in view.powers if found.without]
    strong = [found for found in view.powers if found.there]
    out = tag("p", escape(_powerless(weak)), "alarm") if weak else ""
    if strong:
        sentence = f"The attack had power: trained alike, the reference went on what it was shown {_moved(strong)}."
        out += tag("p", escape(sentence), "aside")
    return out


def _powerless(found: Sequence[PowerView]) -> str:
    names = listed(list(dict.fromkeys(name for one in found for name in one.without)))
    ways = "1 way" if len(found) == 1 else f"{len(found)} ways"
    return (
        f"No power in {ways} of relearning: trained alike, the reference went on what it was shown {_moved(found)}, "
        f"rises below {found[0].limit:g}. That nothing came back there in {names} says nothing: raise the rate or the "
        "budget, or show what is not known already."
    )


def _moved(found: Sequence[PowerView]) -> str:
    return listed([f"from {number(one.before)} to {number(one.after)} ({one.way})" for one in found])


def verdicts(view: ReportView) -> str:
    """Return one sentence per model and way of relearning, with what it rests on."""
    if not view.regimes:
        return ""
    first = view.regimes[0].thresholds
    rule = (
        f"E is {MEASURES[view.regimes[0].measure]}. Reversible: at most {first['residue']:g} of the loss on the forget "
        f"set was left after relearning. Catastrophic: more than {first['collateral']:g} of E was lost on the retain "
        "set. A part is settled only where its whole interval lies on one side. The thresholds are ours. Irreversible "
        "means that this budget did not bring it back, and no more."
    )
    return tag("h3", "Regimes") + bullets([_verdict(found) for found in view.regimes]) + tag("p", escape(rule), "aside")


def _verdict(found: RegimeView) -> str:
    said = []
    if found.recovery.get("value") is not None:
        said.append(f"the share {_with_interval(found.recovery)} of what was lost came back")
    if found.control.get("value") is not None:
        said.append(f"E ends {_with_interval(found.control)} above the reference trained alike")
    if found.excess_recovery.get("value") is not None:
        said.append(f"the excess recovery is {_with_interval(found.excess_recovery)}")
    numbers = f"{listed(said)}. " if said else ""
    note = remark(found.label, found.recovery, found.control)
    return f"{found.model}, relearned on {found.way}: {numbers}Regime: {found.label}." + (f" {note}" if note else "")


def _with_interval(estimate: EstimateDict) -> str:
    bounds = interval(estimate)
    return number(estimate["value"]) + (f" [{bounds.strip('[]')}]" if bounds else "")


def more_curves(view: ReportView) -> str:
    """Return the other relearning curves, folded."""
    items = ""
    for curve in view.more_relearning:
        head = tag("figcaption", escape(f"{curve.title}: {describe(curve.metric).title}"))
        items += tag("figure", head + relearning(view, curve, 640, 320))
    return details(escape("Other ways of relearning"), items) if items else ""


def tables(view: ReportView) -> str:
    """Return a table of findings per attack, folded."""
    groups: dict[str, list[AttackRow]] = {}
    for row in view.attacks:
        groups.setdefault(row.attack, []).append(row)
    return "".join(_table(name, rows) for name, rows in groups.items())


def _table(name: str, rows: Sequence[AttackRow]) -> str:
    heads = "".join(tag("th", head, "", {"scope": "col"}) for head in _HEADS)
    body = "".join(tag("tr", "".join(_cells(row))) for row in rows)
    table = tag("table", tag("thead", tag("tr", heads)) + tag("tbody", body), "plain-table")
    count = "1 number, beside its control" if len(rows) == 1 else f"{len(rows)} numbers, each beside its control"
    return details(escape(f"{name}: {count}"), scroll(table, name))


def _cells(row: AttackRow) -> list[str]:
    first = [tag("td", escape(text)) for text in (row.model, row.setting, row.metric)]
    control = _number(row.control) + tag("small", escape(row.control_name))
    return [*first, tag("td", _number(row.value)), tag("td", control), tag("td", _number(row.difference))]


def _number(estimate: EstimateDict | None) -> str:
    if estimate is None or estimate.get("value") is None:
        reason = "not measured" if estimate is None else str(estimate.get("reason") or "no reason recorded")
        return tag("abbr", "–", "", {"title": reason})
    bounds = interval(estimate)
    small = tag("small", escape(f" {bounds}" if bounds else " no interval"))
    return escape(number(estimate["value"])) + small
