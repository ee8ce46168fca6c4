# SPDX-License-Identifier: Apache-2.0
"""The results of the noise study as a page: what was measured, what that supports, the tables and a drawing.

Run as `python -m expunge.studies.noise_page noise-study.json PAGE.md`; the drawing is written beside the page as SVG.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.report.style import drawing_style
from expunge.report.svg import Scale, axis_bottom, canvas, domain, group, line, marker, text, ticks
from expunge.report.words import number
from expunge.runs import write_text
from expunge.studies.archive_study import summary
from expunge.studies.noise_study import ALONE, METHODS, METRICS, OFF, ON, PROBED_RATE, rows_by

TITLES = {
    "forget_quality": "forget quality", "forget.extraction_strength": "extraction strength", "model_utility": "utility",
}  # fmt: skip
_KINDS = {
    "none": "clean", "mask": "words masked", "rewrite": "reworded", "mislabel": "retain items among them",
    "swap": "answers exchanged", "drop": "items missing", "duplicate": "items twice",
}  # fmt: skip
_DRAWN = ("forget.extraction_strength", "model_utility")
_LOOKS = {OFF: ("circle", "m1", "without guards"), ON: ("diamond", "m0", "with guards")}

#: How a recipe asks for what the page measured.
_USE = (
    "## In a recipe", "", "```yaml", "data:",
    "  noise: {kind: mislabel, rate: 0.2, seed: 0}   # for experiments: the audit sees the clean set",
    "  robust:", "    overlap: 0.7            # leave out forget items this alike to a retain item (word 3-grams)",
    "    memorised: holdout      # leave out what the model knows no better than unseen items; or base",
    "    margin: 3.0             # by how many nats per token", "method:", "  name: npo",
    "  trim: 0.25                # leave out the forget examples with the highest loss in each forward", "```", "",
    "The guards work with every method that trains on a forget set, `trim` with every method of gradient steps on a "
    "forget term. How many items each step touched or left out is printed when unlearning begins, kept in `run.json` "
    "and shown in the report. With `overlap`, items that are in both sets are no error. What a guard leaves out is "
    "still part of the request: the audit measures it.", "",
    "Masking and rewriting follow Wang et al., *LLM Unlearning on Noisy Forget Sets*, AISec 2025 (arXiv:2510.09007); "
    "the other kinds and the guards are our own.", "",
)  # fmt: skip

Seeds = Mapping[str, Any]


def write_page(document: Mapping[str, Any], page: Path) -> None:
    """Write the page and, beside it, the drawing."""
    write_text(page.with_suffix(".svg"), drawing(document))
    write_text(page, "\n".join(_page(document, page.with_suffix(".svg").name)) + "\n")


def apart(before: Seeds, after: Seeds, metric: str) -> int:
    """Return 1 or -1 if every seed of `after` lies above (below) every seed of `before`, else 0; 0 where one failed.

    Args:
        before: entries by seed, each with `metrics`.
        after: the same of another condition.
        metric: which number.
    """
    first, second = summary(before, metric), summary(after, metric)
    if first is None or second is None:
        return 0
    return 1 if second[1] > first[2] else -1 if second[2] < first[1] else 0


def effects(
    document: Mapping[str, Any], kind: str, rate: float, *, of: str, by: Sequence[str] = METHODS
) -> dict[str, int]:
    """Return, by metric, the direction in which every method moved with its ranges apart; 0 where not all did.

    Args:
        document: of the study.
        kind: of noise.
        rate: of noise.
        of: `noise`: from the clean set to this one, without guards; `guards`: on this set, from none to all.
        by: the methods.
    """
    out = {}
    for metric in METRICS:
        found = set()
        for method in by:
            rows = rows_by(document, method)
            before = rows["none", 0.0][OFF] if of == "noise" else rows[kind, rate][OFF]
            found.add(apart(before, rows[kind, rate][OFF if of == "noise" else ON], metric))
        out[metric] = found.pop() if len(found) == 1 else 0
    return out


def _page(document: Mapping[str, Any], picture: str) -> list[str]:
    guards = document["guards"]
    rates = ", ".join(f"{name} {document['learning_rates'][name]['learning_rate']:g}" for name in METHODS)
    seeds = ", ".join(document["anchors"]["target"])
    filter_text = "no memorisation filter" if guards["margin"] is None else (
        f"memorisation filter against the holdout with a margin of {guards['margin']:g} nats per token"
    )  # fmt: skip
    runs = sum(len(row["seeds"]) for row in document["rows"])
    lines = [
        "# Noisy forget sets", "",
        f"What a request costs when its forget set is not clean. {runs} runs on three archives of {document['people']} "
        f"invented people (seeds {seeds}), forget10. Noise was put into the forget set that the method "
        "trains on; **the audit always measures the clean, full forget set**. Epochs stay the same, so that a set "
        "with more items is trained on for more steps.", "",
        f"Learning rates ({rates}) and the guards' settings were chosen on another archive (seed "
        f"{document['tuning_seed']}): overlap from a similarity of {guards['overlap']:g}, {filter_text}, "
        f"{guards['trim']:.3g} of the examples of a step trimmed at the high end. "
        f"{guards['runs_tried']} settings of the guards were tried there. Numbers are medians over the three "
        "archives, with the smallest and the largest. *Not tested* here: relearning, quantisation, probing, "
        "noise that someone made on purpose.", "",
        "Made by `python -m expunge.studies.noise_study` and `python -m expunge.studies.noise_page`; the numbers with "
        "their recipe hashes and the environment are in `results/noise-study.json`.", "",
        "## What was found", "", *findings(document), "",
        f"![Extraction strength and utility per kind of noise, without and with guards]({picture})", "",
    ]  # fmt: skip
    for method in METHODS:
        lines += [f"## {method}", "", *_table(document, method), ""]
    lines += ["## Each guard by itself", "",
              f"{METHODS[0]}, rate {PROBED_RATE:g}; the memorisation filter with the margin that was chosen, 0 if none "
              "was.", "",
              *_alone(document), ""]  # fmt: skip
    return [*lines, *_choice(document), *_failures(document), *_USE]


def findings(document: Mapping[str, Any]) -> list[str]:
    """Return what the numbers support: only where every method's range over the seeds is clear of the other's."""
    shared = set.intersection(*(set(rows_by(document, method)) for method in METHODS))
    noises = [key for key in rows_by(document, METHODS[0]) if key in shared and key != ("none", 0.0)]
    lines = [
        f"A difference is stated only where, for {' and '.join(METHODS)} alike, every archive lies on one side of "
        "every archive of the other condition, and the same side: by chance that happens to independent runs once in "
        "two hundred comparisons.", "",
    ]  # fmt: skip
    lines += [f"- {_name(kind, rate)}: {_said(document, kind, rate)}." for kind, rate in noises]
    clean = _moves(effects(document, "none", 0.0, of="guards"))
    lines += [f"- clean set: {f'with the guards {clean}' if clean else 'the guards make no clear difference'}.", ""]
    return [*lines, *_lower_rates(document, shared), *_restored(document), *_published(document)]


def _said(document: Mapping[str, Any], kind: str, rate: float) -> str:
    noise = _moves(effects(document, kind, rate, of="noise"))
    first = f"against the clean set {noise}" if noise else "no clear difference from the clean set"
    guarded = [rows_by(document, method)[kind, rate][ON] for method in METHODS]
    if all(entry.get("error") for seeds in guarded for entry in seeds.values()):
        return f"{first}; the guards leave nothing to train on"
    guards = _moves(effects(document, kind, rate, of="guards"))
    return f"{first}; {f'with the guards {guards}' if guards else 'the guards make no clear difference'}"


def _lower_rates(document: Mapping[str, Any], shared: set[tuple[str, float]]) -> list[str]:
    """Say what differs at the rates that only the first method saw."""
    said = []
    for kind, rate in rows_by(document, METHODS[0]):
        if (kind, rate) not in shared:
            found = _moves(effects(document, kind, rate, of="noise", by=METHODS[:1]))
            said += [f"{_name(kind, rate)}: {found}"] if found else []
    differs = f"without guards, {'; '.join(said)}. Nothing else differs" if said else "nothing differs"
    return [f"At the lower rate, which only {METHODS[0]} saw, against the clean set {differs} in this sense, which "
            "for one method alone happens by chance once in ten comparisons.", ""]  # fmt: skip


def _restored(document: Mapping[str, Any]) -> list[str]:
    """Say whether overlap detection gives back the clean run where copies of retain items were put into the set."""
    rows = rows_by(document, METHODS[0], (OFF, "overlap"))
    clean, found = rows["none", 0.0][OFF], rows["mislabel", PROBED_RATE]["overlap"]
    if any(clean[seed]["metrics"] != found[seed].get("metrics") for seed in clean):
        return []
    return ["Overlap detection alone gives back the clean run number for number where retain items were put among the "
            "forget set. They are copies of items that are still in the retain set, which is what it looks for; a copy "
            "whose twin is not there it cannot see.", ""]  # fmt: skip


def _published(document: Mapping[str, Any]) -> list[str]:
    """Set the effect of masking beside the published one, if it is another one here."""
    lowest = min(rate for kind, rate in rows_by(document, METHODS[0]) if kind == "mask")
    if effects(document, "mask", lowest, of="noise", by=METHODS[:1])["forget_quality"] >= 0:
        return []
    return [f"Wang et al. (2025) report that masking up to 30 % is tolerable, for running text and models of 7 billion "
            f"parameters. Here, with answers of one sentence and a model of 230,000 parameters, {lowest:.0%} is not.",
            ""]  # fmt: skip


def _moves(found: Mapping[str, int]) -> str:
    words = [f"{TITLES[metric]} is {'higher' if sign > 0 else 'lower'}" for metric, sign in found.items() if sign]
    return ", ".join(words)


def _name(kind: str, rate: float) -> str:
    return _KINDS[kind] if kind == "none" else f"{_KINDS[kind]} ({kind}) {rate:g}"


def _table(document: Mapping[str, Any], method: str) -> list[str]:
    lines = _head("noise", "guards", "trained on")
    for name, found in document["anchors"].items():
        lines.append(_row([name, "", "–"], found))
    for (kind, rate), by_guards in rows_by(document, method).items():
        for guards, seeds in by_guards.items():
            lines.append(_row([_name(kind, rate), guards, _trained(seeds)], seeds))
    return lines


def _alone(document: Mapping[str, Any]) -> list[str]:
    names = (OFF, *ALONE, ON)
    lines = _head("noise", "guard", "trained on")
    for (kind, rate), by_guards in rows_by(document, METHODS[0], names).items():
        if len(by_guards) == len(names):
            lines += [_row([_name(kind, rate), name, _trained(by_guards[name])], by_guards[name]) for name in names]
    return lines


def _choice(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "## How the guards' settings were chosen", "",
        f"Means on archive {document['tuning_seed']} over the kinds that the table above shows, {METHODS[0]}, rate "
        f"{PROBED_RATE:g}: the highest {TITLES['forget_quality']} among those that keep "
        f"{document['rule']['keep_share']:.0%} of the target's utility. A run in which nothing was left to train on "
        "counts as the unchanged model.", "",
        "| margin, nats per token | trim | forget quality | share of utility kept | nothing left |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for trial in document["guard_trials"]:
        margin = "no filter" if trial["margin"] is None else f"{trial['margin']:g}"
        numbers = [number(trial["score"]), number(trial["kept_share"]), str(len(trial["errors"]))]
        lines.append(f"| {margin} | {trial['trim']:g} | {' | '.join(numbers)} |")
    return [*lines, ""]


def _failures(document: Mapping[str, Any]) -> list[str]:
    failed: dict[tuple[str, str], list[str]] = {}
    for row in document["rows"]:
        name = f"{row['method']}, {_name(row['kind'], row['rate'])}, guards {row['guards']}"
        for seed, entry in row["seeds"].items():
            if entry.get("error"):
                failed.setdefault((name, entry["error"]), []).append(seed)
    lines = [f"- {name}, seeds {', '.join(seeds)}: {error}" for (name, error), seeds in failed.items()]
    return ["## What did not run", "", *lines, ""] if failed else []


def _head(*first: str) -> list[str]:
    head = [*first, *TITLES.values()]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def _row(first: Sequence[str], seeds: Seeds) -> str:
    return "| " + " | ".join([*first, *(_cell(seeds, metric) for metric in TITLES)]) + " |"


def _cell(seeds: Seeds, metric: str) -> str:
    found = summary(seeds, metric)
    return "–" if found is None else f"{number(found[0])} [{number(found[1])}–{number(found[2])}]"


def _trained(seeds: Seeds) -> str:
    """Return how many items were trained on; the range where the archives differ."""
    counts = sorted(entry.get("trained_on", 0) for entry in seeds.values())
    return str(counts[0]) if counts[0] == counts[-1] else f"{statistics.median(counts):g} [{counts[0]}–{counts[-1]}]"


def drawing(document: Mapping[str, Any]) -> str:
    """Return, per method, extraction strength and utility of every noise: medians with the range over the archives."""
    pitch, top, left, width = 26.0, 44.0, 232.0, 330.0
    scales = [_range(document, metric) for metric in _DRAWN]
    parts, first = [_legend(left)], 24.0
    for method in METHODS:
        rows = rows_by(document, method)
        parts.append(text(0, first + top - 12, method, "name"))
        parts += [text(left - 12, first + top + pitch * (i + 0.5) + 4, _name(*key), "", "end")
                  for i, key in enumerate(rows)]  # fmt: skip
        for p, (metric, (low, high)) in enumerate(zip(_DRAWN, scales, strict=True)):
            start = left + p * (width + 40)
            scale = Scale(low, high, start + 8, start + width - 8)
            parts.append(_panel(document, rows, metric, scale, first + top, pitch))
        first += top + pitch * len(rows) + 34
    label = f"Extraction strength and utility by noise, without and with guards, for {', '.join(METHODS)}"
    return drawing_style(canvas(left + 2 * width + 60, first, parts, label))


def _range(document: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Return the range of a metric over everything that is drawn, so that the methods can be compared."""
    found = [summary(row["seeds"], metric) for row in document["rows"] if row["guards"] in _LOOKS]
    found.append(summary(document["anchors"]["reference"], metric))
    return domain(value for three in found if three is not None for value in three)


def _panel(
    document: Mapping[str, Any], rows: Mapping[tuple[str, float], Any], metric: str, scale: Scale, top: float,
    pitch: float,
) -> str:  # fmt: skip
    bottom = top + pitch * len(rows)
    parts = [text(scale.start - 8, top - 12, TITLES[metric], "label"),
             axis_bottom(scale, bottom, ticks(scale.low, scale.high), "", top)]  # fmt: skip
    reference = summary(document["anchors"]["reference"], metric)
    if reference is not None:
        parts.append(line(scale(reference[0]), top, scale(reference[0]), bottom, "refline"))
    for i, (key, by_guards) in enumerate(rows.items()):
        for guards, seeds in by_guards.items():
            y = top + pitch * (i + (0.32 if guards == OFF else 0.68))
            parts.append(_mark(seeds, metric, guards, scale, y, _name(*key)))
    return "".join(parts)


def _mark(seeds: Seeds, metric: str, guards: str, scale: Scale, y: float, name: str) -> str:
    found = summary(seeds, metric)
    shape, style, words = _LOOKS[guards]
    if found is None:
        return text((scale.start + scale.end) / 2, y + 4, f"{words}: did not run", "tick", "middle")
    tip = f"{name}, {words}: {TITLES[metric]} {number(found[0])}, {number(found[1])} to {number(found[2])}"
    whisker = line(scale(found[1]), y, scale(found[2]), y, f"whisker {style}")
    return group([whisker, marker(shape, scale(found[0]), y, 4.2, f"mark {style}")], title=tip)


def _legend(left: float) -> str:
    parts = []
    for i, (shape, style, words) in enumerate(_LOOKS.values()):
        parts += [marker(shape, left + 150 * i + 6, 12, 5, f"mark {style}"), text(left + 150 * i + 18, 16, words)]
    x = left + 150 * len(_LOOKS)
    return "".join([*parts, line(x, 12, x + 24, 12, "refline"), text(x + 32, 16, "reference, median")])


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
