# SPDX-License-Identifier: Apache-2.0
"""The table at the end: metrics as rows, models as columns, with intervals and the marks that the report uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from expunge.audit.policy import Verdict
    from expunge.report.view import EstimateDict, ModelView, ReportView

#: Rows shown by default, in this order; `*` stands for further utility sets.
KEY_METRICS = (
    "forget.probability", "forget.rouge_l", "forget.truth_ratio", "forget.extraction_strength",
    "forget.exact_memorization", "forget.refusal_rate", "retain.probability", "retain.rouge_l", "*.rouge_l",
    "forget_quality", "model_utility", "privleak", "membership.min_k.auc",
    "membership.min_k_plus_plus.auc",
)  # fmt: skip
#: What only MUSE has.
_MUSE = ("verbmem", "knowmem_f", "knowmem_r")
#: What a set of questions is summed up by; parts of one, such as single subjects, are not.
_ANSWERED = (".accuracy", ".exact_match", ".mc1", ".mc2")
WHOLE = "whole audit"
_FIRST = ("forget", "retain")
_LAST = (WHOLE, "membership", "holdout")
_ARROWS = {"higher": "↑", "lower": "↓", "reference": "◎"}
_STYLES = {"good": "green", "warn": "yellow", "bad": "red", "none": ""}
_LEGEND = "↑ higher, ↓ lower, ◎ closer to the reference is better;  ≈ ✓ close or no worse, △ ▽ off, ▲ ▼ far"
#: Reasons of missing numbers that are listed one by one.
_MAX_REASONS = 4


def print_results(console: Console, view: ReportView, *, all_metrics: bool = False) -> None:
    """Print the table of every model, as several tables where one is too wide, and what has no number."""
    shown, absent = _rows(view, all_metrics)
    names = list(view.models)
    while names:
        count = _fitting(console, view, shown, names)
        part, names = names[:count], names[count:]
        console.print(_table(view, shown, part, stacked=not _fits(console, view, shown, part, stacked=False)))
        console.print()
    console.print(Text(_LEGEND, style="dim"))
    _print_absent(console, absent)
    for reason, found in _without_interval(view, shown).items():
        console.print(Text(f"no interval for {len(found)} of the rows: {reason}", style="dim"))
    for caveat, found in _caveats(view, shown).items():
        console.print(Text(f"{', '.join(found)}: {caveat}", style="yellow"))
    hidden = len(_ordered(view)) - len(shown) - sum(len(found) for found in absent.values())
    if hidden > 0:
        console.print(Text(f"{hidden} more metrics: --all-metrics, or the report", style="dim"))


def _rows(view: ReportView, all_metrics: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Return the metrics to show, and those of them without any number by reason."""
    known = _ordered(view)
    chosen = known if all_metrics else [name for name in known if _is_key(name, known)]
    shown, absent = [], dict[str, list[str]]()
    for name in chosen:
        if any(model.value(name) is not None for model in view.models.values()):
            shown.append(name)
        else:
            absent.setdefault(_reason(view, name), []).append(name)
    return shown, absent


def _is_key(name: str, known: Sequence[str]) -> bool:
    if name in (*KEY_METRICS, *_MUSE) or (name.endswith(_ANSWERED) and name.count(".") == 1):
        return True
    others = [other for other in known if other.endswith(".rouge_l") and _set_of(other) not in (*_FIRST, *_LAST)]
    return name in [other for other in others if other.count(".") == 1][:2]


def _ordered(view: ReportView) -> list[str]:
    """Return every metric of any model, set by set, key metrics first within a set."""
    names = dict.fromkeys(name for model in view.models.values() for name in model.metrics)
    sets = dict.fromkeys(_set_of(name) for name in names)
    middle = [found for found in sets if found not in (*_FIRST, *_LAST)]
    order = [*_FIRST, *middle, *_LAST]
    rank = {name: i for i, name in enumerate(KEY_METRICS)}
    return sorted(names, key=lambda name: (order.index(_set_of(name)), rank.get(name, len(rank))))


def _set_of(name: str) -> str:
    first, dot, _ = name.partition(".")
    return first if dot else WHOLE


def _reason(view: ReportView, name: str) -> str:
    found = [model.metrics[name] for model in view.models.values() if name in model.metrics]
    return str(found[-1].get("reason") or "no reason recorded")


def _fitting(console: Console, view: ReportView, shown: Sequence[str], names: Sequence[str]) -> int:
    """Return how many of the models fit beside each other, at least one."""
    for count in range(len(names), 1, -1):
        if _fits(console, view, shown, names[:count], stacked=True):
            return count
    return 1


def _fits(console: Console, view: ReportView, shown: Sequence[str], names: Sequence[str], *, stacked: bool) -> bool:
    table = _table(view, shown, names, stacked=stacked)
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width


def _table(view: ReportView, shown: Sequence[str], names: Sequence[str], *, stacked: bool) -> Table:
    gap = 0 if stacked else 1  # beside the space that stands for the line between columns
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    table.add_column("metric", no_wrap=True)
    for name in names:
        role = view.models[name].role
        head = Text(name, style="bold")
        table.add_column(head if role == name else head.append(f"\n{role}", style="not bold dim"), no_wrap=True)
    group = ""
    for metric in shown:
        if _set_of(metric) != group:
            group = _set_of(metric)
            table.add_row(Text(group, style="bold cyan"))
        label = Text(" " + metric.removeprefix(f"{group}.") + " ").append(_arrow(view, metric), style="dim")
        table.add_row(label, *(_cell(view, metric, view.models[name], stacked) for name in names))
    return table


def _arrow(view: ReportView, metric: str) -> str:
    from expunge.report.metrics import direction

    return _ARROWS.get(direction(view, metric), "")


def _cell(view: ReportView, metric: str, model: ModelView, stacked: bool) -> Text:
    """Return value, mark and interval of one metric of one model."""
    from expunge.report.judge import NONE, anchor, judge
    from expunge.report.view import REFERENCE, TARGET
    from expunge.report.words import number

    estimate = model.metrics.get(metric)
    if estimate is None or estimate.get("value") is None:
        return Text("–", style="dim")
    verdict = NONE if model.role in (TARGET, REFERENCE) else judge(metric, estimate, anchor(view, metric))
    mark = f" {verdict.mark}" if verdict.mark else ""
    text = Text(number(estimate["value"]) + mark, style=_STYLES[verdict.level])
    bounds = _bounds(estimate)
    return text.append(f"{chr(10) if stacked else ' '}{bounds}", style="dim") if bounds else text


def _bounds(estimate: EstimateDict) -> str:
    """Return the interval in few characters, "" where there is none: `.93–.95`, `0–.41`, `−100…−98.2`."""
    from expunge.report.words import number

    low, high = estimate.get("ci_low"), estimate.get("ci_high")
    if low is None or high is None:
        return ""
    texts = [number(value, max(abs(low), abs(high))) for value in (low, high)]
    short = [re.sub(r"\.0+$", "", text) for text in texts]
    return ("–" if low >= 0 else "…").join(re.sub(r"^(−?)0\.", r"\1.", text) for text in short)


def _without_interval(view: ReportView, shown: Sequence[str]) -> dict[str, list[str]]:
    """Return the metrics that have a number but no interval in some model, by reason."""
    found: dict[str, list[str]] = {}
    for metric in shown:
        entries = [model.metrics.get(metric, {}) for model in view.models.values()]
        reasons = [str(entry["reason"]) for entry in entries if entry.get("value") is not None and entry.get("reason")]
        if reasons:
            found.setdefault(reasons[0], []).append(metric)
    return found


def _caveats(view: ReportView, shown: Sequence[str]) -> dict[str, list[str]]:
    """Return the metrics whose numbers must be read with a caveat, by caveat."""
    found: dict[str, list[str]] = {}
    for metric in shown:
        for caveat in dict.fromkeys(model.metrics.get(metric, {}).get("caveat") for model in view.models.values()):
            if caveat:
                found.setdefault(str(caveat), []).append(metric)
    return found


def _print_absent(console: Console, absent: dict[str, list[str]]) -> None:
    """List what has no number with its reason."""
    for reason, names in list(absent.items())[:_MAX_REASONS]:
        console.print(Text(f"– {', '.join(names)}: {reason}", style="dim"))
    if len(absent) > _MAX_REASONS:
        console.print(Text(f"– {len(absent) - _MAX_REASONS} more reasons in audit.json", style="dim"))


def print_verdicts(console: Console, name: str, verdicts: Sequence[Verdict]) -> None:
    """Print which limits of a policy are met."""
    if not verdicts:
        return
    met = all(verdict.met for verdict in verdicts)
    state = ("met", "bold green") if met else ("not met", "bold red")
    console.print(Text.assemble(("Policy ", "bold"), f"{name}: ", state))
    for verdict in verdicts:
        mark = ("✓", "green") if verdict.met else ("✗", "red")
        measured = "no number" if verdict.measured is None else f"{verdict.measured:.4g}"
        said = f"  measured {measured}" + (f" ({verdict.reason})" if verdict.reason else "")
        console.print(Text.assemble("  ", mark, f" {verdict.rule}", (said, "dim")))


def print_sentences(console: Console, view: ReportView) -> None:
    """Print what may be said, and what was not tested."""
    from expunge.report.verdict import claim_sentences, measured_sentences, not_tested

    for sentence in measured_sentences(view):
        console.print(Text(sentence))
    for kind, sentence in claim_sentences(view):
        console.print(Text.assemble((f"{kind.value}: " if kind else "", "bold"), sentence))
    missing = not_tested(view)
    if missing:
        console.print(Text.assemble(("not tested: ", "bold"), ", ".join(missing)))


def print_paths(console: Console, paths: dict[str, Path]) -> None:
    """Print where things are, those that exist."""
    console.print()
    for label, path in paths.items():
        if path.exists():
            console.print(Text.assemble((f"{label:<8}", "bold"), str(path)), soft_wrap=True)


def print_facts(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Print labels and texts, the texts wrapped beside their labels; empty ones are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    previous = ""
    for label, text in rows:
        if text:
            grid.add_row(Text("" if label == previous else label), Text(text))
            previous = label
    console.print(grid)
