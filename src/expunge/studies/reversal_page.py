# SPDX-License-Identifier: Apache-2.0
"""The results of the reversal study as a page: verdicts with their intervals, curves, probes and the inside.

Run as `python -m expunge.studies.reversal_page reversal.json PAGE.md`; the drawings are written beside the page as SVG.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.attacks.base import REFERENCE
from expunge.report.words import check, number
from expunge.runs import write_text
from expunge.studies.archive_study import METRICS, summary
from expunge.studies.reversal_figures import Document, curves, glance, middle, similarity
from expunge.studies.reversal_numbers import ATTACKS
from expunge.studies.reversal_rule import HID, NO_SIGN, SAID, UNDECIDED, VERDICTS
from expunge.studies.reversal_tables import attacked, excess_cell, inside, probes, regimes, rounding, table, two

_OUTPUTS = {
    "forget_quality": "forget quality", "forget.extraction_strength": "extraction strength",
    "forget.exact_memorization": "exact memorisation", "forget.probability": "answer probability",
    "membership.min_k.auc": "Min-K% AUC", "model_utility": "utility",
}  # fmt: skip
_WAYS = {"related": "other facts of the same people", "unrelated": "unrelated facts", "forget": "the forget set itself"}
_HOW = {"full": "all weights", "lora": "LoRA"}
_SECOND = "a second reference (trained in another order)"


def write_page(document: Document, page: Path) -> None:
    """Write the page and, beside it, the drawings.

    Raises:
        ExpungeError: if the page would say a sentence that must not be written.
    """
    drawings = {"glance": glance(document, _short(document)), "similarity": similarity(document)}
    drawings |= {on: curves(document, on) for on in _WAYS}
    text = check("\n".join(_page(document, page.stem)) + "\n")
    for name, drawn in drawings.items():
        write_text(page.with_name(f"{page.stem}-{name}.svg"), drawn)
    write_text(page, text)


def _page(document: Document, stem: str) -> list[str]:
    return [
        "# Hidden or removed?", "", *_lead(document), "",
        f"![What every model gives, before and after relearning]({stem}-glance.svg)", "",
        *_verdicts(document), "", *_rule(document), "", *_outputs(document), "", *_relearning(document, stem), "",
        *regimes(document), "", *probes(document), "", *rounding(document), "", *inside(document, stem), "",
        *_calibration(document), "", *_limits(document),
    ]  # fmt: skip


def _lead(document: Document) -> list[str]:
    seeds, people = ", ".join(document["attacks"]), document["people"]
    return [
        f"{len(document['rows'])} methods unlearned the same request on three archives of {people} invented people "
        f"each (seeds {seeds}): every fact of a tenth of them. Then each result was attacked, always beside a "
        "*reference* that was trained without these people and attacked in exactly the same way. What the attacked "
        "model gives beyond the attacked reference was still in it. No test shows that something is no longer in a "
        "model: the page says what came back under which attack, and where nothing did under those that were run.", "",
        "Made by `make study-reversal`; all numbers are in `results/reversal-study.json`. Extraction strength is the "
        "share of an answer that the model completes by itself. Markers are medians over the archives, whiskers the "
        "smallest and the largest.",
    ]  # fmt: skip


def _short(document: Document) -> dict[str, str]:
    """Return the verdicts as written beside the rows of the drawing."""
    words = {SAID: "still says it", HID: "came back", NO_SIGN: "no sign under these attacks", UNDECIDED: "undecided"}
    out = {name: words[found["verdict"]] for name, found in document["verdicts"].items()}
    broken = " (model damaged)"
    out = {name: words + (broken if _damaged(document, name) else "") for name, words in out.items()}
    return out | {"target": "never unlearned", document["second_reference"]: f"never saw it: {_second(document)}"}


def _second(document: Document) -> str:
    found = document["verdicts"][document["second_reference"]]["verdict"]
    return {HID: "wrongly called hidden", SAID: "wrongly called said"}.get(found, VERDICTS[found].split(" under")[0])


def _damaged(document: Document, name: str) -> bool:
    """Return whether a method lost more utility than the rule of choice allows, in the median."""
    kept = document["verdicts"][name]["utility_kept"]
    return bool(kept) and middle(kept).value < document["choice"]["keep_share"]


def _verdicts(document: Document) -> list[str]:
    """Say of every method, in words, what came back, with the intervals."""
    out = ["## What hid and what did not come back", ""]
    rows = document["rows"]
    for kind, title in (
        (HID, "**Hid: on outputs it looked gone, and it came back.**"),
        (SAID, "**Not gone: the model still says it without any attack**, so there is nothing to bring back."),
        (NO_SIGN, "**No sign of it under any attack that was run.**"),
        (UNDECIDED, "**Undecided.**"),
    ):
        names = [name for name in rows if document["verdicts"][name]["verdict"] == kind]
        if names:
            out += [title, "", *(_sentence(document, name) for name in names), ""]
        elif kind == NO_SIGN:
            out += ["No method of these is without a sign of it under every attack that was run.", ""]
    second = document["second_reference"]
    found = document["verdicts"][second]
    out.append(
        f"*The rule on a model that never knew.* {_SECOND.capitalize()}, put through everything as if it had "
        f"unlearned: {VERDICTS[found['verdict']]}. Its excess after other facts of the same people is "
        f"{excess_cell(document, second, 'relearn-related-full')}."
    )
    return out


def _sentence(document: Document, name: str) -> str:
    found, seeds = document["verdicts"][name], document["rows"][name]["seeds"]
    text = f"- `{name}`: as it is, {_as_it_is(seeds)}"
    text += "" if not _damaged(document, name) else ", **more utility lost than the rule of choice allows**"
    excess = excess_cell(document, name, "relearn-related-full")
    text += f". After other facts of the same people (all weights) it gives {excess} more than the reference."
    if found["verdict"] != HID:
        return text
    half = [steps for steps in found["steps_to_half"]["related-full"] if steps is not None]
    if half:
        text += f" Half of what the target knew is back after {_steps(half)}"
        text += "" if len(half) == found["archives"] else f" on {len(half)} of {found['archives']} archives"
        text += "."
    back = [f"{ATTACKS[attack]} ({count})" for attack, count in found["came_back"].items()]
    return text + f" Came back under (on how many archives): {'; '.join(back)}."


def _as_it_is(seeds: Mapping[str, Any]) -> str:
    found = [(_OUTPUTS[metric], summary(seeds, metric)) for metric in
             ("forget.extraction_strength", "forget_quality", "model_utility")]  # fmt: skip
    return ", ".join(f"{words} {number(value[0])}" for words, value in found if value is not None)


def _steps(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g} to {high:g} steps" if low != high else f"{low:g} step{'' if low == 1 else 's'}"


def _rule(document: Document) -> list[str]:
    rule, archives = document["rule"], len(document["attacks"])
    return [
        "## The rule, fixed before these archives were attacked", "",
        "1. *Still says it*: without any attack, the interval of the extraction strength lies wholly above that of "
        f"the reference, on at least {rule['seeds']} of {archives} archives.",
        "2. *Hid*: under one and the same attack the excess over the reference attacked alike is above 0 with its "
        f"whole interval, on at least {rule['seeds']} archives. The attacks are those that taught the reference next "
        f"to nothing on archive {document['tuning_seed']}: {'; '.join(ATTACKS.values())}.",
        "3. *No sign*: under every one of these attacks the whole interval of that excess is below "
        f"{rule['margin']:g}, on at least {rule['seeds']} archives.",
        "4. Otherwise *undecided*. Under the logit lens the excess is in the share of facts whose right answer is "
        "preferred, elsewhere in extraction strength.", "",
        "An interval redraws the people of one archive; a forget set has four, so that single intervals are "
        f"rough. That is why one archive is never enough, and why the second reference stands here: {len(ATTACKS)} "
        "attacks are many chances to be above 0 by luck.",
    ]  # fmt: skip


def _outputs(document: Document) -> list[str]:
    rows = {name: {"seeds": seeds} for name, seeds in document["anchors"].items()} | dict(document["rows"])
    body = [[f"{name}{' †' if name in document['verdicts'] and _damaged(document, name) else ''}",
             *(_range(row["seeds"], metric) for metric in _OUTPUTS if metric in METRICS),
             f"{rate:g}" if (rate := row.get("chosen", {}).get("learning_rate")) is not None else "–"]
            for name, row in rows.items()]  # fmt: skip
    choice = document["choice"]
    return [
        "## On outputs", "",
        "What an audit sees before any attack: medians, with the smallest and the largest of the three archives.", "",
        *table(["model", *_OUTPUTS.values(), "learning rate"], body), "",
        f"† lost more utility than the rule of choice allows. That rule, applied on archive {document['tuning_seed']} "
        f"to the rates of each method: highest `{choice['maximise']}` among those that keep {choice['keep_share']:.0%} "
        f"of the target's `{choice['keep']}`.",
    ]  # fmt: skip


def _range(seeds: Mapping[str, Any], metric: str) -> str:
    found = summary(seeds, metric)
    return "–" if found is None else f"{number(found[0])} [{number(found[1])}–{number(found[2])}]"


def _relearning(document: Document, stem: str) -> list[str]:
    out = ["## Relearning, beside the reference", "",
           "Excess: extraction strength minus that of the reference after the same training, on each archive, with its "
           "interval. The last row is what the reference itself gained.", ""]  # fmt: skip
    for on, words in _WAYS.items():
        tasks = [(how, f"relearn-{on}-{how}") for how in _HOW if document["relearning"]["rates"].get(f"{on}-{how}")]
        heads = [f"{_HOW[how]}: excess at {_last(document, task)} steps" for how, task in tasks]
        body = [[name, *(excess_cell(document, name, task) for _, task in tasks)] for name in attacked(document)]
        body.append(["*reference, its own gain*", *(_gain(document, task) for _, task in tasks)])
        out += [f"### On {words}", "", f"![Curves]({stem}-{on}.svg)", "", *table(["model", *heads], body), ""]
    return out[:-1]


def _gain(document: Document, task: str) -> str:
    """Return how much further the reference is at the end of its curve than at its start, on every archive."""
    curves_of = [tasks[task]["curves"][document["rule"]["measure"]] for tasks in document["attacks"].values()
                 if task in tasks]  # fmt: skip
    return " / ".join(two(found[REFERENCE][-1][1] - found[REFERENCE][0][1]) for found in curves_of)


def _last(document: Document, task: str) -> int:
    found = next(iter(tasks[task] for tasks in document["attacks"].values() if task in tasks))
    return int(found["curves"][document["rule"]["measure"]][REFERENCE][-1][0])


def _calibration(document: Document) -> list[str]:
    found, rule = document["relearning"], document["rule"]
    body = []
    for way, rates in found["tried"].items():
        on, how = way.split("-")
        for rate, points in rates.items():
            own, control = points["target"], points[REFERENCE]
            mark = "used" if float(rate) in found["rates"][way] else "teaches the reference"
            cells = (
                f"{number(control[0][1])} → {number(control[-1][1])}",
                f"{number(own[0][1])} → {number(own[-1][1])}",
            )
            body.append([_WAYS[on], _HOW[how], rate, *cells, mark])
    steps = ", ".join(f"{found['forget_budget'][how]} steps with {_HOW[how]}" for how in found["forget_budget"])
    return [
        "## How the attacks were set", "",
        f"On archive {document['tuning_seed']} alone, from the reference: every rate of the grid at which, over "
        f"{found['budgets'][-1]} steps of 8 facts, its extraction strength never rises by more than "
        f"{rule['teaches']:g}. At each number of steps the rate that is best for the attacker counts, for the "
        "reference as well. Grid and limit were set after looking at curves of that archive, those of rmu, "
        "adaptive_rmu and simnpo among them. "
        "Relearning on the forget set itself teaches anyone; it uses the lowest rate for related facts and ends where "
        f"the reference begins to learn by the same limit: {steps}. The defaults of the attack are for models ten "
        "thousand times larger and move nothing here.", "",
        "The answer probability could not serve as E: on related facts the reference learns the wording, and its "
        "probability rises with no fact behind it. Unrelated facts are those about invented countries, which every "
        "model was trained on. Also tried on that archive: word problems and facts of people that nobody was trained "
        "on (the first brought nothing back, the second about as much as the countries), and facts of retained people, "
        "which brought more back from adaptive_rmu and are of the same kinds as what was unlearned.", "",
        *table(["shown", "moves", "rate", "reference", "target", ""], body),
    ]  # fmt: skip


def _limits(document: Document) -> list[str]:
    out = [
        "## What this does not show", "",
        "- One request, three archives, a model of 230,000 parameters with two blocks: a method that hides here may do "
        "otherwise in a large model, and the other way round.",
        "- Settings were searched along the learning rate only; everything else is at the defaults of the method, but "
        "for simnpo (as in the archive study) and what a task vector may cost (as much as the rule of choice allows).",
        "- Where a method still says it, a stronger setting would forget more at a cost in utility that the rule does "
        "not allow; [the archive study](archive-study.md) shows some of them.",
        "- *Not tested*: prompt attacks, pruning, interpolation, direction ablation, suffix search, trace detection.",
        "- Where nothing came back under these attacks, another attack may bring it back.",
    ]  # fmt: skip
    failed = [f"- `{name}`: {error}" for name, error in document["failed"].items()]
    return [*out, *(["", "## What did not run", "", *failed] if failed else [])]


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
