# SPDX-License-Identifier: Apache-2.0
"""The verdict in sentences: what may be said of the method, how the leading numbers moved, what was not tested."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.claims import ATTACKS, SENTENCES, ClaimKind
from expunge.report.judge import anchor, judge
from expunge.report.metrics import describe, key_metrics, metric_names
from expunge.report.view import REFERENCE, TARGET, AttackRow, EstimateDict, ModelView, ReportView
from expunge.report.words import interval, listed, number


def claim_sentences(view: ReportView) -> list[tuple[ClaimKind | None, str]]:
    """Return what may be said, one sentence per kind of claim among the methods, weakest first."""
    if not view.finished or not view.measured:
        why = "The run did not finish" if not view.finished else "Nothing was measured"
        return [(None, f"{why}, so nothing is claimed.")]
    kinds: dict[ClaimKind, list[str]] = {}
    for name, model in view.changed.items():
        kind = model.claim or view.claim
        if kind is not None:
            kinds.setdefault(kind, []).append(name)
    if not kinds and view.claim is not None:
        kinds[view.claim] = []
    if not kinds:
        return [(None, "No kind of claim is recorded; nothing is stated beyond the numbers below.")]
    several = len(kinds) > 1
    weakest = [kind for kind in reversed(ClaimKind) if kind in kinds]
    return [(kind, (f"{listed(kinds[kind])}: " if several else "") + SENTENCES[kind]) for kind in weakest]


def _brackets(view: ReportView, name: str) -> str:
    reference = view.first(REFERENCE)
    value = reference.value(name) if reference else None
    return "no reference measured" if value is None else f"reference {number(value)}"


def _one(view: ReportView, model: ModelView, name: str) -> str:
    """Say how one metric moved."""
    target = view.first(TARGET)
    before, after = target.value(name) if target else None, model.value(name)
    if after is None:
        return f"{describe(name).title} has no number: {model.metrics[name].get('reason', 'no reason recorded')}."
    start = "is" if before is None else f"went from {number(before)} to"
    return f"{describe(name).title} {start} {number(after)} ({_brackets(view, name)})."


def nearest(view: ReportView, name: str) -> str:
    """Return the changed model whose value lies closest to what the metric is compared with ("" without one)."""
    to = anchor(view, name)
    values = {key: model.value(name) for key, model in view.changed.items()}
    known = {key: value for key, value in values.items() if value is not None}
    return min(known, key=lambda key: abs(known[key] - to.value)) if to and known else ""


def _many(view: ReportView, name: str) -> str:
    """Say how one metric moved over several models: before, reference, and the nearest to it."""
    target, close = view.first(TARGET), nearest(view, name)
    before = target.value(name) if target else None
    start = "" if before is None else f"{number(before)} before, "
    value = view.changed[close].value(name) if close else None
    ending = "" if value is None else f"; nearest to that is {close} with {number(value)}"
    return f"{describe(name).title}: {start}{_brackets(view, name)}{ending}."


def lead_metrics(view: ReportView) -> list[str]:
    """Return at most one forgetting and one utility metric: what the verdict line speaks of."""
    chosen: dict[str, str] = {}
    for name in key_metrics(view):
        chosen.setdefault(describe(name).group, name)
    preferred = "forget.probability" if "forget.probability" in key_metrics(view) else chosen.get("Forgetting")
    return [name for name in (preferred, chosen.get("Utility")) if name]


def measured_sentences(view: ReportView) -> list[str]:
    """Return the measured part of the verdict: how the leading metrics moved."""
    subjects = {name: model for name, model in view.changed.items() if model.metrics}
    if not subjects:
        return ["Nothing was measured after the change."]
    if len(subjects) == 1:
        model = next(iter(subjects.values()))
        return [_one(view, model, name) for name in lead_metrics(view)]
    close = list(dict.fromkeys(name for name in (nearest(view, metric) for metric in lead_metrics(view)) if name))
    split = [f"No model is nearest on both: {listed(close)}."] if len(close) > 1 else []
    compared = f"Compared here: {listed(list(subjects))}."
    return [compared, *(_many(view, name) for name in lead_metrics(view)), *split]


def far_sentences(view: ReportView) -> list[str]:
    """Say what is far from the reference: the metrics of a single model, the groups of each of several."""
    out = []
    for model_name, model in view.changed.items():
        found = {
            name: verdict.words
            for name in metric_names(view)
            if (verdict := judge(name, model.metrics.get(name), anchor(view, name))).level == "bad"
        }
        if len(view.changed) == 1:
            out += _by_meaning(found)
        elif found:
            said = _by_group(found)
            out.append(f"{model_name}: " + "; ".join(f"{title} ({words})" for title, words in said.items()))
    return out


def _by_meaning(found: dict[str, str]) -> list[str]:
    """Gather metrics that are far in the same way: one line per meaning."""
    lines: dict[str, list[str]] = {}
    for name, words in found.items():
        side, _, meaning = words.partition(": ")
        lines.setdefault(f"{meaning.capitalize()}, {side}" if meaning else side.capitalize(), []).append(name)
    return [f"{head}: {listed([describe(name).title for name in names])}" for head, names in lines.items()]


def _by_group(found: dict[str, str]) -> dict[str, str]:
    """Gather words by group; where some say over- or under-unlearned, only those are kept."""
    groups: dict[str, dict[str, None]] = {}
    for name, words in found.items():
        groups.setdefault(describe(name).group, {})[words.rpartition(": ")[2]] = None
    return {
        title: listed([words for words in said if "unlearned" in words] or list(said)) for title, said in groups.items()
    }


def back_sentences(view: ReportView) -> list[tuple[bool, str]]:
    """Return, per relearned model, whether a reader must be warned, and a sentence.

    The warning is that it came back further than the reference in some way, or that no way had power.

    The way with the largest difference in answer probability counts; one without power does not.
    """
    weak = {(found.way, name) for found in view.powers for name in found.without}
    rows: dict[str, list[tuple[EstimateDict, AttackRow]]] = {}
    for row in view.attacks:
        told = row.difference if row.kind == "relearning" and row.metric == "forget.probability" else None
        if told and told["value"] is not None and (row.setting.rpartition(", ")[0], row.model) not in weak:
            rows.setdefault(row.model, []).append((told, row))
    lost = dict.fromkeys(name for _, name in sorted(weak) if name not in rows)
    none = [(True, f"Relearning had no power on {name} in any way tried: nothing follows from it.") for name in lost]
    return [*none, *(_back(name, found) for name, found in rows.items())]


def _back(name: str, found: Sequence[tuple[EstimateDict, AttackRow]]) -> tuple[bool, str]:
    told, row = max(found, key=lambda pair: float(pair[0]["value"]))
    further = told.get("ci_low") is not None and told["ci_low"] > 0
    bounds = f" [{interval(told)}]" if interval(told) else ""
    ways = "1 way of relearning" if len(found) == 1 else f"{len(found)} ways of relearning"
    start = (
        f"The forget set comes back in {name}" if further
        else f"In {ways}, {name} went no further than the {row.control_name}"
    )  # fmt: skip
    return further, (
        f"{start}: trained again ({row.setting}) its {describe(row.metric).phrase.lower()} reaches "
        f"{number(row.value['value'])}, that of the {row.control_name} {number(row.control['value'])}; the difference "
        f"is {number(told['value'])}{bounds}."
    )


def not_tested(view: ReportView) -> list[str]:
    """Return the attacks that were not run."""
    return [attack for attack in ATTACKS if attack not in view.attacks_run]


def tried_sentence(view: ReportView) -> str:
    """Say what the number of tried runs does to the numbers ("" where nobody counted)."""
    tried = view.runs_tried
    if tried is None:
        return "The number of runs tried before this one was not recorded."
    if tried <= 1:
        return "One run was tried; nothing was selected."
    return (
        f"{tried} runs were tried. Choosing one of several by its scores makes those scores look better than they are."
    )
