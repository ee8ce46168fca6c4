# SPDX-License-Identifier: Apache-2.0
"""The sections of a report, each a function from the view to markup ("" where there is nothing to show)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from expunge.claims import MISMATCHES, SENTENCES, ClaimKind
from expunge.report import attacks
from expunge.report.judge import CLOSE, OFF, anchor, judge
from expunge.report.markup import bullets, details, pairs, para, quote, tag
from expunge.report.metrics import describe, direction, key_metrics, plane_metric
from expunge.report.plane import plane
from expunge.report.plots import forest, relearning, strip, trajectory
from expunge.report.tables import ARROWS, metrics_table, swatch
from expunge.report.verdict import nearest, not_tested, tried_sentence
from expunge.report.view import REFERENCE, TARGET, ModelView, RelearnView, ReportView
from expunge.report.words import duration, flat, interval, number, plain, settings_sentence

#: What each attack would have shown, for the list of attacks that were not run.
_ATTACK_WORDS = {
    "relearning": "training again on a few forget examples, beside the reference trained on the same",
    "quantisation": "rounding the weights to 8 or 4 bits, which can undo small changes",
    "probing": "reading the answer from hidden layers",
    "prompt attacks": "paraphrases, prefixes, role play, answered examples, misspelling",
    "pruning": "cutting the weights that hold the answer back",
    "interpolation": "walking back towards the original weights",
    "direction ablation": "projecting out the direction that unlearning added to hidden states",
    "suffix search": "tokens after the question, chosen by gradient",
    "trace detection": "telling the model from one that never learned",
}


def cards(view: ReportView) -> str:
    """Return the key numbers, each with what it was before and in the reference."""
    items = "".join(_key_card(view, name) for name in key_metrics(view))
    return tag("div", items, "cards") if items else ""


def _key_card(view: ReportView, name: str) -> str:
    """Return one card: of the only changed model, or of the one nearest to the reference."""
    changed = {key: m for key, m in view.changed.items() if m.value(name) is not None}
    chosen = nearest(view, name) or next(iter(changed))
    estimate, words = changed[chosen].metrics[name], describe(name)
    verdict = judge(name, estimate, anchor(view, name))
    arrow, meaning = ARROWS.get(direction(view, name), ARROWS[""])
    head = tag("h3", escape(words.title) + " " + tag("span", arrow, "arrow", {"title": meaning}))
    who = tag("span", "nearest to the reference: " + tag("strong", escape(chosen)), "who") if len(changed) > 1 else ""
    big = tag("p", tag("span", number(estimate["value"]), "big") + _range(estimate), "bigline")
    said = f"{verdict.mark} {verdict.words}"
    chip = tag("p", tag("span", escape(said), f"chip j-{verdict.level}"), "chips") if verdict.words else ""
    others = []
    for role, label in ((TARGET, "before"), (REFERENCE, "reference")):
        model = view.first(role)
        if model is not None and model.value(name) is not None:
            others.append(f"{label} {number(model.metrics[name]['value'])}")
    around = tag("p", escape(" · ".join(others)), "around") if others else ""
    return tag("article", head + who + big + chip + strip(view, name) + around + para(words.means, "means"), "card")


def _range(estimate: Mapping[str, Any]) -> str:
    text = interval(estimate)
    return tag("span", escape(text), "ci", {"title": "95 % interval"}) if text else ""


def asked(view: ReportView) -> str:
    """Return what was asked, and the thresholds that came with it."""
    content = pairs(view.what_was_asked) if view.what_was_asked else ""
    if view.policy:
        rows = "".join(
            tag("tr", tag("td", escape(r.rule)) + tag("td", escape(r.measured)) + tag("td", *_met(r.met)))
            for r in view.policy
        )
        heads = "".join(tag("th", head, "", {"scope": "col"}) for head in ("Threshold", "Measured", "Result"))
        content += tag("h3", "Policy") + tag(
            "table", tag("thead", tag("tr", heads)) + tag("tbody", rows), "plain-table"
        )
    return content


def _met(met: bool | None) -> tuple[str, str]:
    if met is None:
        return "not measured", "j-warn"
    return ("✓ met", "j-good") if met else ("✗ not met", "j-bad")


def done(view: ReportView) -> str:
    """Return what was done: a method card per changed model, and how many runs were tried."""
    changed = view.changed
    folds = "".join(_method(view, name, model, len(changed) == 1) for name, model in changed.items())
    return folds + para(tried_sentence(view), "aside")


def _method(view: ReportView, name: str, model: ModelView, opened: bool) -> str:
    card = model.method or {}
    claim = model.claim
    head = swatch(view, name) + tag("strong", escape(name)) + " "
    head += tag("span", escape(str(card.get("title", "no method card recorded"))), "mtitle")
    if claim:
        head += tag(
            "span",
            escape(claim.value),
            f"chip claim-{claim.value}",
            {"title": "the kind of claim this method supports"},
        )
    if model.seconds is not None:
        head += tag("span", duration(model.seconds), "hint")
    return details(head, _method_body(card, None if opened or not view.measured else claim, model), opened, "method")


def _method_body(card: Mapping[str, Any], claim: ClaimKind | None, model: ModelView) -> str:
    """Return formula, source, differences and settings of one method."""
    parts = [tag("p", escape(SENTENCES[claim]), "claimline") if claim else ""]
    if card.get("formula"):
        parts.append(tag("pre", escape(str(card["formula"])), "formula"))
    if card.get("paper"):
        paper = ", ".join(str(card[key]) for key in ("paper", "authors", "venue", "year") if card.get(key))
        parts.append(tag("p", "Source: " + quote(paper, "cite")))
    rows = [("Family", "family"), ("Needs", "needs"), ("Cost per step", "cost"), ("Formula from", "provenance"),
            ("Defaults from", "defaults_source"), ("Notes", "notes")]  # fmt: skip
    parts.append(pairs([(label, plain(card[key])) for label, key in rows if card.get(key)]))
    if card:
        differences = [str(item) for item in card.get("differences", ())]
        parts += [tag("h4", "Differences from the source"), bullets(differences or ["None on purpose."])]
    sentence = settings_sentence(model.settings)
    parts.append(para(sentence) if sentence else "")
    if model.settings:
        every = pairs([(key, plain(value)) for key, value in flat(model.settings).items()], "facts mono")
        parts.append(details("All settings", every))
    return "".join(parts)


def measured(view: ReportView) -> str:
    """Return the table of all metrics with the rule behind its colours."""
    table = metrics_table(view)
    rule = (
        f"Green lies within {CLOSE:g} of the reference (in units of the metric's range), red lies more than {OFF:g} "
        "away with intervals that do not touch, amber lies between. Without a reference, membership is compared with "
        "chance level and utility with the model before; a forgetting number alone gets no colour. Where only one "
        "side counts, the better side is green, but a forgetting number far beyond the reference is amber. "
        "Intervals are 95 %. Rows say how many items stand behind a number."
    )
    return table + details("How the colours are chosen", para(rule)) if table else ""


def the_plane(view: ReportView) -> str:
    """Return the plane in a wide and a narrow drawing, of which the page shows one."""
    name = plane_metric(view)
    wide = plane(view, name) if name else ""
    if not wide:
        return ""
    text = (
        "Up: more useful. Left: less of the forget set comes out. The wish is the shaded place around the reference: "
        "left of it, less comes out than from a model that never saw the data, which is over-unlearning; below it, "
        "the model lost what it should have kept. Whiskers are 95 % intervals."
    )
    drawings = tag("div", wide, "wide-only") + tag("div", plane(view, name, 360, 400), "narrow-only")
    return para(text) + tag("figure", drawings)


def intervals(view: ReportView) -> str:
    """Return an interval plot per key metric."""
    figures = [(name, forest(view, name)) for name in key_metrics(view)]
    items = "".join(
        tag("figure", tag("figcaption", escape(describe(name).title)) + drawing) for name, drawing in figures if drawing
    )
    text = "The dashed line and the shade are what each metric is compared with: the reference and its interval."
    return para(text) + tag("div", items, "panels") if items else ""


def trajectories(view: ReportView) -> str:
    """Return training curves, a block per model that has them."""
    blocks = ""
    for name, model in view.models.items():
        panels = trajectory(view, model)
        if panels:
            title = str((model.method or {}).get("title", ""))
            head = tag("h3", swatch(view, name) + escape(name) + tag("small", escape(title)))
            blocks += tag("figure", head + tag("div", "".join(panels), "panels"), "run")
    text = "Loss parts and what the probes saw, by step. A dashed line is the reference on the forget set."
    return para(text) + tag("div", blocks, "runs") if blocks else ""


def comes_back(view: ReportView) -> str:
    """Return the relearning curves if there are any, and every attack that was not run."""
    parts = []
    if view.relearning is not None:
        drawings = tag("figcaption", escape(_curve_title(view.relearning)))
        drawings += tag("div", relearning(view, view.relearning), "wide-only")
        drawings += tag("div", relearning(view, view.relearning, 360, 320), "narrow-only")
        roles = {view.models[name].role for name in view.relearning.curves if name in view.models}
        text = "Each model is trained again a little. The curve of the reference is the control: "
        text += "a model that climbs faster than it may have kept something."
        if REFERENCE not in roles:
            text = "Each model is trained again a little. No control curve of a reference is given, "
            text += "so a climb cannot be told from ordinary learning."
        parts += [para(text), attacks.powers(view), tag("figure", drawings), attacks.verdicts(view)]
        parts.append(attacks.more_curves(view))
    ran = [attack for attack in view.attacks_run if view.relearning is None or attack != "relearning"]
    if ran:
        where = (
            "below, each number beside its control" if view.attacks else "in the table of metrics, as far as recorded"
        )
        parts.append(para(f"Also run: {', '.join(ran)}. What they found stands {where}."))
    parts.append(attacks.tables(view))
    missing = not_tested(view)
    if missing:
        rows = [f"{attack}: {_ATTACK_WORDS.get(attack, 'no description')}" for attack in missing]
        words = "These ways of bringing knowledge back were not tried. Nothing is known about them here."
        parts += [tag("h3", "Not tested"), para(words), bullets(rows, "untested")]
    return "".join(parts)


def _curve_title(curve: RelearnView) -> str:
    """Return on what and how models were trained, and what was measured."""
    measured = describe(curve.metric).title
    return f"{curve.title[:1].upper()}{curve.title[1:]}: {measured}" if curve.title else measured


def cannot_show(view: ReportView) -> str:
    """Return the five mismatches that every report prints, and what the audit says that it does not show."""
    items = "".join(tag("li", tag("strong", escape(text)) + " " + escape(_WHY[text])) for text in MISMATCHES)
    said = dict.fromkeys(str(e.get("caveat") or "") for m in view.models.values() for e in m.metrics.values())
    missing = [*view.not_shown, *(f"Membership numbers are {caveat}." for caveat in said if caveat)]
    more = tag("h3", "Also not shown by this audit") + bullets(missing) if missing else ""
    return tag("ol", items, "mismatches") + more


_WHY = {
    "Suppressing outputs is not removing data.": "An answer that no longer appears may still be stored.",
    "Removing data does not guarantee outputs.": "The same fact can be said from other sources or by inference.",
    "A model is not a database.": "There is no row to point at, before or after.",
    "A model is not its outputs.": "What a test asks is a sample of what could be asked.",
    "Unlearning has side effects.": "Utility, neighbours of the forget set and other people's data can suffer.",
}


def surroundings(view: ReportView) -> str:
    """Return the environment."""
    rows = [(key, plain(value)) for key, value in flat(view.environment).items()]
    return pairs(rows, "facts mono") if rows else ""


def commands(lines: Sequence[str]) -> str:
    """Return the commands that repeat the run."""
    return tag("pre", quote("\n".join(lines), "code"), "commands", {"tabindex": "0"}) if lines else ""
