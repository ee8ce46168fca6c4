# SPDX-License-Identifier: Apache-2.0
"""The results of the three-domains study as a page: what was learned, lost, and came back, and what changed inside.

Run as `python -m expunge.studies.domains_page study.json PAGE.md`; a figure a domain is written beside the page as SVG.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.report.plots import relearning
from expunge.report.style import drawing_style
from expunge.report.view import CurvePoint, ModelView, RelearnView, ReportView
from expunge.report.words import check, number
from expunge.runs import write_text

Document = Mapping[str, Any]
#: One entry of `seeds`.
Entry = Mapping[str, Any]
_NAMES = {"text": "Text", "math": "Mathematics", "code": "Code"}
_RIGHT = {
    "text": "the answer holds the value asked for",
    "math": "every sum of the worked answer holds and it ends with the result",
    "code": "the function gives the right result on its check",
}
_KINDS = {"forget": "Trained again on the forget set", "related": "Trained on some items of each subject, tested on "
          "the others"}  # fmt: skip
_PROBABILITY, _EXTRACTION = "forget.probability", "forget.extraction_strength"


def write_page(document: Document, page: Path) -> None:
    """Write the page and, beside it, a figure for every domain."""
    for domain in document["domains"]:
        write_text(_figure_path(page, domain), figure(document, domain))
    text = "\n".join(_page(document, page)) + "\n"
    check(text)
    write_text(page, text)


def figure(document: Document, domain: str) -> str:
    """Return how the forget answers climb when the models of one domain are trained on them again."""
    found = document["domains"][domain]
    curves = {"reference": _curve(found["anchors"]["reference"])}
    curves |= {name: _curve(row["seeds"]) for name, row in found["rows"].items()}
    roles = {name: "reference" if name == "reference" else "method" for name in curves}
    view = ReportView(title="", models={name: ModelView(role=role, metrics={}) for name, role in roles.items()})
    drawn = RelearnView(metric=_PROBABILITY, budget_unit="optimiser steps", curves=curves)
    return drawing_style(relearning(view, drawn, width=760, height=320))


def _curve(seeds: Mapping[str, Entry]) -> list[CurvePoint]:
    """Return medians over the seeds, with the range."""
    runs = [entry["relearning"]["curves"]["forget"][_PROBABILITY] for entry in _ran(seeds)]
    out = []
    for points in zip(*runs, strict=True):
        values = [point["value"] for point in points]
        out.append(
            CurvePoint(
                budget=points[0]["budget"], value=statistics.median(values), ci_low=min(values), ci_high=max(values)
            )
        )
    return out


def _figure_path(page: Path, domain: str) -> Path:
    return page.with_name(f"{page.stem}-{domain}.svg")


def _ran(seeds: Mapping[str, Entry]) -> list[Entry]:
    return [entry for entry in seeds.values() if not entry.get("error")]


def _page(document: Document, page: Path) -> list[str]:
    domains = document["domains"]
    lines = ["# Three domains: text, mathematics, code", "", *_intro(document), "", "## In short", "",
             *_short_of_it(document), "", "## What the target learned", "",
             *_learned(document), ""]  # fmt: skip
    for domain, found in domains.items():
        name = _NAMES[domain]
        lines += [f"## {name}", "", *_lost(domain, found), "", "### Does it come back?", "",
                  *_sentences(found), "", f"![{name}: probability of the forget answers while models are trained on "
                  f"them again]({_figure_path(page, domain).name})", "", *_back(found), "",
                  "### Inside", "", *_inside(found), ""]  # fmt: skip
    return [*lines, *_rule(document), "", *_limits(document)]


def _intro(document: Document) -> list[str]:
    shape, rule, seeds = document["shape"], document["rule"], ", ".join(map(str, document["seeds"]))
    methods = next(iter(document["domains"].values()))["rows"]
    steps = document["relearning"]["budgets"][-1]
    return [
        f"One Llama of {document['parameters']:,} parameters ({shape['layers']} blocks of width "
        f"{shape['hidden_size']}, the shape of the demo, which was large enough) learns three domains at once: "
        f"facts about {document['people']} invented people, "
        f"{document['families'] * document['per_family']} word problems with worked answers in {document['families']} "
        "families, and as many small functions with a docstring and a check. A request names a tenth of one domain, "
        "whole people or families; each has a reference of its own, trained the same way without it. Utility is "
        "measured on the rest of the domain and on the other two.",
        "",
        f"Three draws (seeds {seeds}). {', '.join(methods)}: the learning rate of each was chosen in each domain on "
        f"another draw (seed {document['tuning_seed']}) out of "
        f"{', '.join(f'{rate:g}' for rate in document['learning_rates'])} by the rule of the archive study: highest "
        f"`{rule['maximise']}` among those that keep {rule['keep_share']:.0%} of the target's `{rule['keep']}`. "
        "Numbers are medians over the seeds with the smallest and the largest. Intervals of single runs redraw whole "
        "people or families, of which a forget set has two (people) or four: read them as rough.",
        "",
        f"Tested: relearning with all weights, {steps} steps of {document['relearning']['batch']} items, always beside "
        "the reference relearned in the same way. *Not tested*: LoRA relearning, quantisation, probing, prompts, "
        "pruning, other seeds of the initial weights.",
        "",
        "Made by `python -m expunge.studies.domains_study FOLDER` and `python -m expunge.studies.domains_page "
        "results/domains-study.json docs/three-domains.md`; all numbers with their recipe hashes are in "
        "`results/domains-study.json`.",
    ]  # fmt: skip


def _learned(document: Document) -> list[str]:
    rows = []
    for domain, found in document["domains"].items():
        for name in ("target", "reference"):
            seeds = found["anchors"][name]
            right = (_cell(_right(seeds, part)) for part in ("forget", "retain", "holdout"))
            rows.append([_NAMES[domain], name, *_cells(seeds, _PROBABILITY, _EXTRACTION), *right])
    about = "; ".join(f"{_NAMES[d].lower()}: {words}" for d, words in _RIGHT.items())
    heads = ["domain", "model", "probability, forget", "extraction strength, forget", "right answers, forget",
             "right, rest", "right, never trained on"]  # fmt: skip
    text = (
        f"A generated answer is right where it can be checked ({about}; no text is run). The last column is on people "
        "and families that no model saw. What the reference gets right on the forget set is what a model can do "
        "without it; where the last column is low, answers were memorised and not worked out."
    )
    return [text, "", *_table(heads, rows)]


def _short_of_it(document: Document) -> list[str]:
    """Return, by method and domain, how much further than the reference the relearned models went."""
    domains = document["domains"]
    rows = []
    for method in next(iter(domains.values()))["rows"]:
        cells = [method]
        for found in domains.values():
            runs = [_beyond(entry, "forget") for entry in _ran(found["rows"][method]["seeds"])]
            cells.append(
                f"{_cell([run['value'] for run in runs], signed=True)}; above in {_above(runs)} of {len(runs)}"
            )
        rows.append(cells)
    text = (
        "Probability of the forget answers once the models were trained on them again, less that of the reference "
        "trained the same way, and in how many runs the whole interval is above zero. Above zero, the model has "
        "something that the reference does not learn from the same training, or had never lost it (the probability "
        "before stands in the tables below); below zero, it learned less from it than the reference did. A value near "
        "zero or below is what this one attack found, no more."
    )
    return [text, "", *_table(["method", *(_NAMES[domain] for domain in domains)], rows)]


def _beyond(entry: Entry, kind: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = entry["relearning"]["beyond_reference"][kind][_PROBABILITY]
    return found


def _above(runs: Sequence[Mapping[str, Any]]) -> int:
    return sum(run["ci_low"] is not None and run["ci_low"] > 0 for run in runs)


def _lost(domain: str, found: Mapping[str, Any]) -> list[str]:
    others = [name for name in found["others"] if name in _NAMES]
    heads = ["model", "extraction strength", "probability", "right answers", "forget quality", "Min-K% AUC",
             "right, rest of the domain", *(f"right, {_NAMES[name].lower()}" for name in others), "utility",
             "rate"]  # fmt: skip
    rows = []
    for name, seeds in _models(found).items():
        chosen = found["rows"].get(name, {}).get("chosen", {})
        kept = "" if chosen.get("kept_enough", True) else " †"
        rows.append([
            name + kept, *_cells(seeds, _EXTRACTION, _PROBABILITY), _cell(_right(seeds, "forget")),
            *_cells(seeds, "forget_quality", "membership.min_k.auc"), _cell(_right(seeds, "retain")),
            *(_cell(_right(seeds, other)) for other in others), *_cells(seeds, "model_utility"),
            f"{chosen['learning_rate']:g}" if chosen else "–",
        ])  # fmt: skip
    note = ["", "† No learning rate that was tried keeps enough utility; the one that keeps most is shown."]
    noted = any("†" in row[0] for row in rows)
    return [f"The first five columns of numbers are on the forget set. Right: {_RIGHT[domain]}.", "",
            *_table(heads, rows), *(note if noted else [])]  # fmt: skip


def _models(found: Mapping[str, Any]) -> dict[str, Mapping[str, Entry]]:
    return dict(found["anchors"]) | {name: row["seeds"] for name, row in found["rows"].items()}


def _sentences(found: Mapping[str, Any]) -> list[str]:
    """Say of every method in how many runs the relearned model ended beyond the reference, with what it rests on."""
    out = []
    for kind, words in _KINDS.items():
        said = []
        for name, row in found["rows"].items():
            runs = [_beyond(entry, kind) for entry in _ran(row["seeds"])]
            below = sum(run["ci_high"] is not None and run["ci_high"] < 0 for run in runs)
            span = _cell([run["value"] for run in runs], signed=True)
            said.append(f"{name} ended above the reference in {_above(runs)} and below it in {below} of {len(runs)} "
                        f"runs ({span})")  # fmt: skip
        out.append(f"- {words}: {'; '.join(said)}.")
    return ["Probability of the answers after relearning, less the reference's; a run counts where its whole interval "
            "lies on one side of zero.", "", *out]  # fmt: skip


def _back(found: Mapping[str, Any]) -> list[str]:
    heads = ["model", "before", "relearned on the forget set", "relearned on related items", "extraction strength "
             "before", "relearned on the forget set", "share of the loss that came back", "regimes"]  # fmt: skip
    rows = []
    for name, seeds in {
        "reference": found["anchors"]["reference"],
        **{n: r["seeds"] for n, r in found["rows"].items()},
    }.items():
        ran = _ran(seeds)
        rows.append([
            name, _cell(_ends(ran, "forget", _PROBABILITY, 0)), _cell(_ends(ran, "forget", _PROBABILITY, -1)),
            _cell(_ends(ran, "related", _PROBABILITY, -1)), _cell(_ends(ran, "forget", _EXTRACTION, 0)),
            _cell(_ends(ran, "forget", _EXTRACTION, -1)), *_regimes(ran),
        ])  # fmt: skip
    return _table(heads, rows)


def _ends(ran: Sequence[Entry], kind: str, metric: str, place: int) -> list[float]:
    return [entry["relearning"]["curves"][kind][metric][place]["value"] for entry in ran]


def _regimes(ran: Sequence[Entry]) -> list[str]:
    """Return the recovery, and the verdicts with how many runs had each; nothing for the reference."""
    found = [entry["relearning"]["regime"]["forget"] for entry in ran if "regime" in entry["relearning"]]
    if not found:
        return ["–", "–"]
    recovered = [f["recovery"]["value"] for f in found if f["recovery"]["value"] is not None]
    counted = Counter(f["label"] for f in found)
    return [_cell(recovered), "; ".join(f"{label} ({count})" for label, count in counted.items())]


def _inside(found: Mapping[str, Any]) -> list[str]:
    heads = ["method", "texts", "CKA", "cos of first directions", "shift of the mean", "Fisher mass, ratio"]
    rows = []
    for name, row in found["rows"].items():
        ran = _ran(row["seeds"])
        for texts in ("forget", "retain", "unrelated"):
            values = [
                [_mean(entry["inside"][texts][what]) for entry in ran] for what in ("cka", "pc1", "shift", "fisher")
            ]
            rows.append([name, "other domains" if texts == "unrelated" else texts, *map(_cell, values)])
    text = (
        "Against the target, averaged over the blocks: 1, 1, 0 and 1 would be no change. The shift is in standard "
        "deviations of the texts. CKA is the estimate without bias; on sixteen texts it is coarse. These numbers "
        "describe; they are no attack."
    )
    return [text, "", *_table(heads, rows)]


def _rule(document: Document) -> list[str]:
    """Say how the rate of relearning was chosen, with what each rate did."""
    relearned = document["relearning"]
    rows = []
    for domain, tried in relearned["rates"].items():
        for rate, seen in tried["seen"].items():
            mark = " (taken)" if float(rate) == tried["chosen"] else ""
            rows.append([_NAMES[domain], rate + mark, *(number(value) for value in seen.values())])
    names = list(next(iter(next(iter(relearned["rates"].values()))["seen"].values())))
    text = (
        f"The published rates of relearning are for large models. Here the rate is, in each domain, the largest of "
        f"{', '.join(next(iter(relearned['rates'].values()))['seen'])} at which relearning takes the reference at most "
        f"{relearned['halfway']:.0%} of the way from where it stands to the target, on the tuning draw: beyond that "
        "anyone learns the forget set anew, and what comes back says nothing about what was left. Probability of the "
        "forget answers:"
    )
    return [
        "## How hard to relearn",
        "",
        text,
        "",
        *_table(["domain", "rate", *(name.replace("_", ", ") for name in names)], rows),
    ]


def _limits(document: Document) -> list[str]:
    failed = [f"- {_NAMES[domain]}, `{name}`, seed {seed}: {entry['error']}"
              for domain, found in document["domains"].items() for name, row in found["rows"].items()
              for seed, entry in row["seeds"].items() if entry.get("error")]  # fmt: skip
    lines = ["## What this page cannot show", "",
             "- How larger models, other methods or settings, or text that nobody generated would come out.",
             "- Whether another relearning, longer or on other data, would bring more back.",
             "- The regimes rest on thresholds of ours (a tenth lost, a tenth left); the study that named them gives "
             "none."]  # fmt: skip
    return [*lines, *(["", "## What did not run", "", *failed] if failed else [])]


def _cells(seeds: Mapping[str, Entry], *metrics: str) -> list[str]:
    return [_cell([entry["metrics"][metric]["value"] for entry in _ran(seeds)]) for metric in metrics]


def _right(seeds: Mapping[str, Entry], dataset: str) -> list[float]:
    return [entry["right"][dataset]["value"] for entry in _ran(seeds)]


def _cell(values: Sequence[float | None], *, signed: bool = False) -> str:
    """Return median, smallest and largest; a dash where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    write: Callable[[float], str] = (lambda v: f"{v:+.2f}".replace("-", "−")) if signed else _short
    low, middle, high = write(min(known)), write(statistics.median(known)), write(max(known))
    return middle if low == high else f"{middle} [{low} to {high}]"


def _short(value: float) -> str:
    return number(value) if 0 < abs(value) < 0.005 else f"{value:.2f}".replace("-", "−")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
