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
from expunge.studies.reversal_numbers import ATTACKS, LENS
from expunge.studies.reversal_rule import HID, NO_SIGN, SAID, UNDECIDED, VERDICTS, Number

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
        *_regimes(document), "", *_probes(document), "", *_rounding(document), "", *_inside(document, stem), "",
        *_calibration(document), "", *_limits(document),
    ]  # fmt: skip


def _lead(document: Document) -> list[str]:
    seeds, people = ", ".join(document["attacks"]), document["people"]
    return [
        f"Nine methods unlearned the same request on three archives of {people} invented people each (seeds {seeds}): "
        "every fact of a tenth of them. Then each result was attacked, always beside a *reference* that was trained "
        "without these people and attacked in exactly the same way. What the attacked model gives beyond the attacked "
        "reference was still in it. No test shows that something is no longer in a model: the page says what came back "
        "under which attack, and where nothing did under those that were run.", "",
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
        f"{_excess_cell(document, second, 'relearn-related-full')}."
    )
    return out


def _sentence(document: Document, name: str) -> str:
    found, before = document["verdicts"][name], document["rows"][name]["seeds"]
    outputs = {m: summary(before, m) for m in ("forget.extraction_strength", "model_utility")}
    strength, utility = outputs["forget.extraction_strength"], outputs["model_utility"]
    text = f"- `{name}`: "
    if strength and utility:
        text += f"extraction strength {number(strength[0])} as it is, utility {number(utility[0])}"
    text += "" if not _damaged(document, name) else ", **more utility lost than the rule of choice allows**"
    excess = _excess_cell(document, name, "relearn-related-full")
    text += f". After other facts of the same people (all weights) it gives {excess} more than the reference."
    half = [steps for steps in found["steps_to_half"]["related-full"] if steps is not None]
    if half and found["verdict"] == HID:
        text += f" Half of what the target knew is back after {_steps(half)} steps"
        text += "" if len(half) == found["archives"] else f" (on {len(half)} of {found['archives']} archives)"
        text += "."
    back = [f"{ATTACKS[attack]} ({count})" for attack, count in found["came_back"].items()]
    return text + (f" Came back under, on so many archives: {', '.join(back)}." if back else "")


def _steps(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _rule(document: Document) -> list[str]:
    rule = document["rule"]
    return [
        "## The rule, fixed before these archives were attacked", "",
        "1. *Still says it*: without any attack, the interval of the extraction strength lies wholly above that of "
        f"the reference, on at least {rule['seeds']} of {len(document['attacks'])} archives.",
        "2. *Hid*: under one and the same attack that teaches the reference nothing, the excess over the reference "
        f"attacked alike is above 0 with its whole interval, on at least {rule['seeds']} archives. The attacks: "
        f"{', '.join(ATTACKS.values())}.",
        "3. *No sign*: under every one of these attacks the whole interval of that excess is below "
        f"{rule['margin']:g}, on at least {rule['seeds']} archives.",
        "4. Otherwise *undecided*. Under the logit lens the excess is in the share of facts whose right answer is "
        "preferred, elsewhere in extraction strength.", "",
        "An interval redraws the people of one archive; a forget set has four, so that single intervals are "
        "rough, which is why one archive is never enough.",
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
        *_table(["model", *_OUTPUTS.values(), "learning rate"], body), "",
        f"† lost more utility than the rule of choice allows. That rule, applied on archive {document['tuning_seed']} "
        f"to the rates of each method: highest `{choice['maximise']}` among those that keep {choice['keep_share']:.0%} "
        f"of the target's `{choice['keep']}`.",
    ]  # fmt: skip


def _range(seeds: Mapping[str, Any], metric: str) -> str:
    found = summary(seeds, metric)
    return "–" if found is None else f"{number(found[0])} [{number(found[1])}–{number(found[2])}]"


def _relearning(document: Document, stem: str) -> list[str]:
    out = ["## Relearning, beside the reference", ""]
    for on, words in _WAYS.items():
        tasks = [(how, f"relearn-{on}-{how}") for how in _HOW if document["relearning"]["rates"].get(f"{on}-{how}")]
        heads = [f"{_HOW[how]}: excess at {_last(document, task)} steps" for how, task in tasks]
        body = [[name, *(_excess_cell(document, name, task) for _, task in tasks)] for name in _attacked(document)]
        out += [f"### On {words}", "", f"![Curves]({stem}-{on}.svg)", "", *_table(["model", *heads], body), ""]
    return [*out, "Excess: extraction strength minus that of the reference after the same training, on each archive, "
            "with its interval."]  # fmt: skip


def _attacked(document: Document) -> list[str]:
    return ["target", *document["rows"], document["second_reference"]]


def _last(document: Document, task: str) -> int:
    found = next(iter(tasks[task] for tasks in document["attacks"].values() if task in tasks))
    return int(found["curves"][document["rule"]["measure"]][REFERENCE][-1][0])


def _excess_cell(document: Document, model: str, task: str) -> str:
    """Return the excess of a model over the reference on every archive, in words."""
    found = [one["excess"] for one in _findings(document, model, task) if one["metric"] == document["rule"]["measure"]]
    return " / ".join(_estimate(one) for one in found) or "not run"


def _findings(document: Document, model: str, task: str) -> list[Mapping[str, Any]]:
    return [one for tasks in document["attacks"].values() for one in tasks.get(task, {}).get("findings", ())
            if one["model"] == model]  # fmt: skip


def _estimate(found: Number) -> str:
    value, low, high = (found[key] for key in ("value", "ci_low", "ci_high"))
    if value is None:
        return "–"
    return _two(value) + ("" if low is None or high is None else f" [{_two(low)}, {_two(high)}]")


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _regimes(document: Document) -> list[str]:
    body = []
    for name in document["rows"]:
        found = [(seed, tasks["relearn-related-full"]["regimes"].get(name)) for seed, tasks in
                 document["attacks"].items() if "relearn-related-full" in tasks]  # fmt: skip
        for seed, one in found:
            if one and one.get("label"):
                body.append([name, seed, one["label"], *(_estimate(one[key]) for key in
                             ("forget_drop", "retain_drop", "recovery", "excess_recovery"))])  # fmt: skip
    limits = next(iter(next(iter(document["attacks"].values()))["relearn-related-full"]["regimes"].values()))
    levels = limits["thresholds"]
    return [
        "## The regime, and the recovery that nobody could have learned", "",
        "The regime of *Unlearning Isn't Deletion*, with extraction strength as E and relearning on other facts of the "
        f"same people. Lost: more than {levels['forgotten']:g} of E on the forget set is gone. Catastrophic: more than "
        f"{levels['collateral']:g} on the retain set. Reversible: at most {levels['residue']:g} of the loss is left. "
        "The thresholds are ours. *Recovery* is the share of the loss that came back. *Excess recovery* takes out what "
        "the same training teaches a model that never knew: 0 as far as the reference, 1 back at the target.", "",
        *_table(["model", "archive", "regime", "lost", "lost on retain", "recovery", "excess recovery"], body),
    ]  # fmt: skip


def _probes(document: Document) -> list[str]:
    return ["## Reading the hidden layers", "", *_lens(document), "", *_probe(document)]


def _lens(document: Document) -> list[str]:
    blocks = [f"block {i}" for i in range(next(iter(_by_block(document, "logit_lens", "target", "choice_accuracy"))))]
    body = []
    for name in (*_attacked(document)[:-1], document["second_reference"], REFERENCE):
        found = _by_block(document, "logit_lens", name, "choice_accuracy")
        medians = next(iter(found.values())) if found else []
        excess = [one["excess"] for one in _findings(document, name, "probing") if one["metric"] == LENS]
        body.append([name, *medians, " / ".join(_estimate(one) for one in excess) or "–"])
    return [
        "**Logit lens.** Each block is read through the model's own head, at the first word where the right answer "
        "parts from five wrong ones: share of facts whose right answer comes first (median, smallest and largest). An "
        "earlier block that knows more than the last one is knowledge that the outputs do not show.", "",
        *_table(["model", *blocks, "best block minus the reference's, by archive"], body),
    ]  # fmt: skip


def _by_block(document: Document, attack: str, model: str, key: str) -> dict[int, list[str]]:
    """Return {number of blocks: the cells of a model}; {} where it was not read."""
    found = [tasks["probing"]["by_block"][attack]["models"].get(model, {}).get(key) for tasks in
             document["attacks"].values() if "probing" in tasks]  # fmt: skip
    rows = [row for row in found if row]
    if not rows:
        return {}
    cells = [middle([row[i] for row in rows]) for i in range(len(rows[0]))]
    return {len(cells): [f"{_two(cell.value)} [{_two(cell.low)}–{_two(cell.high)}]" for cell in cells]}


def _probe(document: Document) -> list[str]:
    every = {name: [one for one in _findings(document, name, "probing") if one["attack"] == "linear_probe"]
             for name in _attacked(document)}  # fmt: skip
    notes = [tasks["probing"]["by_block"]["linear_probe"] for tasks in document["attacks"].values()]
    rows = [[name, *(" / ".join(_estimate(one[key]) for one in found if one[key]) for key in ("value", "over_random"))]
            for name, found in every.items()]  # fmt: skip
    head = (
        f"**Linear probe.** A linear reader of truth, fitted on {notes[0]['fitted_on']} facts of retained people and "
        f"on the other people of the forget set, picks the right of six answers (chance {_two(notes[0]['chance'])}). "
    )
    if not document["probe_has_power"]:
        head += (
            "**Not informative here**: on the target itself, which knows every answer, the probe is not above its "
            "control task (the same states, random labels). What it says of a method says nothing; the numbers are "
            "printed so that this can be seen."
        )
    return [head, "", *_table(["model", "accuracy, by archive", "selectivity (minus random labels)"], rows)]


def _rounding(document: Document) -> list[str]:
    schemes = ("int8", "int4", "nf4")
    body = []
    for name in _attacked(document):
        found = _findings(document, name, "quantisation")
        cells = [" / ".join(_estimate(one["excess"]) for one in found if one["setting"] == scheme
                            and one["metric"] == document["rule"]["measure"]) for scheme in schemes]  # fmt: skip
        body.append([name, *cells])
    return ["## Rounding the weights", "",
            "Excess over the reference rounded alike, by archive (simulated, groups of 64 weights).", "",
            *_table(["model", "int8", "int4", "NF4"], body)]  # fmt: skip


def _inside(document: Document, stem: str) -> list[str]:
    heads = ["model", "CKA forget", "CKA retain", "first direction, forget", "shift, forget", "Fisher mass ×, forget",
             "Fisher mass ×, retain", "weights moved"]  # fmt: skip
    body = [[name, *_looks(list(seeds.values()))] for name, seeds in document["diagnostics"].items()]
    return [
        "## Inside, without any attack", "", f"![Similarity to the target by block]({stem}-similarity.svg)", "",
        "Against the target, per block, medians over the archives: linear CKA (1: the same arrangement of texts), "
        "cosine of the first principal direction, length of the mean shift, Fisher mass after over before, and the "
        "length of the weight update as a share of the weights. The reference is another training run from the same "
        "start: it shows how far two models that agree about everything else lie apart.", "",
        *_table(heads, body),
    ]  # fmt: skip


def _looks(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    def cells(pick: Sequence[Sequence[float | None]]) -> str:
        layers = [[v for v in column if v is not None] for column in zip(*pick, strict=True)]
        return " · ".join(number(middle(column).value) if column else "–" for column in layers)

    states = [(which, key) for key, which in (("cka", "forget"), ("cka", "retain"), ("pc1", "forget"),
                                              ("shift", "forget"))]  # fmt: skip
    out = [cells([entry["states"][which][key] for entry in entries]) for which, key in states]
    out += [cells([entry["fisher"][which] for entry in entries]) for which in ("forget", "retain")]
    blocks = range(entries[0]["layers"])
    moved = [[u["relative"] for u in entry["updates"] if u["layer"] in blocks] for entry in entries]
    return [*out, cells(moved)]


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
        f"{rule['teaches']:g}. At each number of steps the rate that is best for the attacker counts, for the reference as well. Grid and "
        "limit were set after looking at curves of that archive, those of rmu, adaptive_rmu and simnpo among them. "
        "Relearning on the forget set itself teaches anyone; it uses the lowest rate for related facts and ends where "
        f"the reference begins to learn by the same limit: {steps}. The defaults of the attack are for models ten "
        "thousand times larger and move nothing here.", "",
        "The answer probability could not serve as E: on related facts the reference learns the wording, and its "
        "probability rises with no fact behind it. Unrelated facts are those about invented countries, which every "
        "model was trained on. Also tried on that archive: word problems and facts of people that nobody was trained "
        "on (the first brought nothing back, the second about as much as the countries), and facts of retained people, "
        "which brought more back from adaptive_rmu and are of the same kinds as what was unlearned.", "",
        *_table(["shown", "moves", "rate", "reference", "target", ""], body),
    ]  # fmt: skip


def _limits(document: Document) -> list[str]:
    out = [
        "## What this does not show", "",
        "- One request, three archives, a model of 230,000 parameters with two blocks: a method that hides here may do "
        "otherwise in a large model, and the other way round.",
        "- Settings were searched along the learning rate only; everything else is at the defaults of the method.",
        "- *Not tested*: prompt attacks, pruning, interpolation, direction ablation, suffix search, trace detection.",
        "- Where nothing came back under these attacks, another attack may bring it back.",
    ]  # fmt: skip
    failed = [f"- `{name}`: {error}" for name, error in document["failed"].items()]
    return [*out, *(["", "## What did not run", "", *failed] if failed else [])]


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = ["| " + " | ".join(cells) + " |" for cells in body]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *rows]


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
