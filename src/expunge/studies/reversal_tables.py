# SPDX-License-Identifier: Apache-2.0
"""Sections of the page of the reversal study that are tables: regimes, probes, rounding, and the inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.attacks.base import REFERENCE
from expunge.report.words import number
from expunge.studies.reversal_figures import Document, middle
from expunge.studies.reversal_numbers import LENS
from expunge.studies.reversal_rule import Number


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in body]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *rows]


def attacked(document: Document) -> list[str]:
    """Return the models that were attacked beside the reference, in the order of the tables."""
    return ["target", *document["rows"], document["second_reference"]]


def excess_cell(document: Document, model: str, task: str) -> str:
    """Return the excess of a model over the reference on every archive, in words."""
    found = [one["excess"] for one in findings(document, model, task) if one["metric"] == document["rule"]["measure"]]
    return " / ".join(estimate(one) for one in found) or "not run"


def findings(document: Document, model: str, task: str) -> list[Mapping[str, Any]]:
    """Return what one task found of a model, archive after archive."""
    return [one for tasks in document["attacks"].values() for one in tasks.get(task, {}).get("findings", ())
            if one["model"] == model]  # fmt: skip


def estimate(found: Number) -> str:
    """Return a number with its interval, in two decimals."""
    value, low, high = (found[key] for key in ("value", "ci_low", "ci_high"))
    if value is None:
        return "–"
    return two(value) + ("" if low is None or high is None else f" [{two(low)}, {two(high)}]")


def two(value: float) -> str:
    """Return a number with two decimals and a real minus sign."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def regimes(document: Document) -> list[str]:
    """Return the regime of every method after two ways of relearning, with recovery and excess recovery."""
    ways = {"relearn-related-full": "related", "relearn-forget-full": "forget set"}
    body = [[name, words, *_regime(document, name, task)] for name in document["rows"] for task, words in ways.items()]
    first = next(iter(next(iter(document["attacks"].values()))["relearn-related-full"]["regimes"].values()))
    levels = first["thresholds"]
    return [
        "## Regime, recovery and excess recovery", "",
        "The regimes of *Unlearning Isn't Deletion*, with extraction strength as E, after relearning with all weights "
        "on other facts of the same people and on the forget set for a few steps. Lost: more than "
        f"{levels['forgotten']:g} of E on the forget set is gone. Catastrophic: more than {levels['collateral']:g} on "
        f"the retain set. Reversible: at most {levels['residue']:g} of the loss is left. The thresholds are ours; "
        "undecided is where an interval spans its threshold. *Recovery* is the share of the loss that came back. "
        "*Excess recovery* takes out what the same training teaches a model that never knew: 0 as far as the "
        "reference, 1 back at the target. Related facts also cost: of its own extraction strength the target itself "
        f"keeps {_target_keeps(document)} after them, so that what is short of 1 there is not all due to unlearning.",
        "",
        *table(["model", "relearned on", "regime, by archive", "lost", "lost on retain", "recovery", "excess recovery"],
               body),
    ]  # fmt: skip


def _regime(document: Document, name: str, task: str) -> list[str]:
    every = [tasks[task]["regimes"].get(name) for tasks in document["attacks"].values() if task in tasks]
    found = [one for one in every if one and one.get("label")]
    labels = [_label(one) for one in found]
    words = labels[0] + " (all)" if len(set(labels)) == 1 else " / ".join(labels)
    keys = ("forget_drop", "retain_drop", "recovery", "excess_recovery")
    return [words, *(" / ".join(estimate(one[key]) for one in found) for key in keys)]


def _label(found: Mapping[str, Any]) -> str:
    """Return a regime in two words: whether it comes back, and whether other knowledge went with it."""
    back = {True: "reversible", False: "irreversible", None: "undecided"}[found["reversible"]]
    harm = {True: "catastrophic", False: "non-catastrophic", None: "undecided"}[found["catastrophic"]]
    return f"{back}, {harm}"


def _target_keeps(document: Document) -> str:
    measure = document["rule"]["measure"]
    lines = [tasks["relearn-related-full"]["curves"][measure]["target"] for tasks in document["attacks"].values()]
    return " / ".join(two(points[-1][1] / points[0][1]) for points in lines)


def probes(document: Document) -> list[str]:
    """Return what the logit lens and the linear probe read, or that the probe cannot read anything."""
    return ["## Reading the hidden layers", "", *_lens(document), "", *_probe(document)]


def _lens(document: Document) -> list[str]:
    blocks = [f"block {i}" for i in range(next(iter(_by_block(document, "logit_lens", "target", "choice_accuracy"))))]
    body = []
    for name in (*attacked(document)[:-1], document["second_reference"], REFERENCE):
        found = _by_block(document, "logit_lens", name, "choice_accuracy")
        medians = next(iter(found.values())) if found else []
        excess = [one["excess"] for one in findings(document, name, "probing") if one["metric"] == LENS]
        body.append([name, *medians, " / ".join(estimate(one) for one in excess) or "–"])
    return [
        "**Logit lens.** Each block is read through the model's own head, at the first word where the right answer "
        "parts from five wrong ones: share of facts whose right answer comes first (median, smallest and largest). An "
        "earlier block that knows more than the last one is knowledge that the outputs do not show.", "",
        *table(["model", *blocks, "best block minus the reference's, by archive"], body),
    ]  # fmt: skip


def _by_block(document: Document, attack: str, model: str, key: str) -> dict[int, list[str]]:
    """Return {number of blocks: the cells of a model}; {} where it was not read."""
    found = [tasks["probing"]["by_block"][attack]["models"].get(model, {}).get(key) for tasks in
             document["attacks"].values() if "probing" in tasks]  # fmt: skip
    rows = [row for row in found if row]
    if not rows:
        return {}
    cells = [middle([row[i] for row in rows]) for i in range(len(rows[0]))]
    return {len(cells): [f"{two(cell.value)} [{two(cell.low)}–{two(cell.high)}]" for cell in cells]}


def _probe(document: Document) -> list[str]:
    every = {name: [one for one in findings(document, name, "probing") if one["attack"] == "linear_probe"]
             for name in attacked(document)}  # fmt: skip
    notes = [tasks["probing"]["by_block"]["linear_probe"] for tasks in document["attacks"].values()]
    rows = [[name, *(" / ".join(estimate(one[key]) for one in found if one[key]) for key in ("value", "over_random"))]
            for name, found in every.items()]  # fmt: skip
    head = (
        f"**Linear probe.** A linear reader of truth, fitted on {notes[0]['fitted_on']} facts of retained people and "
        f"on the other people of the forget set, picks the right of six answers (chance {two(notes[0]['chance'])}). "
    )
    if not document["probe_has_power"]:
        head += (
            "**Not informative here**: on the target itself, which knows every answer, the probe does not beat its "
            "control task (the same states, random labels) with its whole interval on at least "
            f"{document['rule']['seeds']} archives. Its numbers for a method say nothing; they are printed so that "
            "this can be seen."
        )
    return [head, "", *table(["model", "accuracy, by archive", "selectivity (minus random labels)"], rows)]


def rounding(document: Document) -> list[str]:
    """Return the excess of every model after rounding its weights."""
    schemes = ("int8", "int4", "nf4")
    body = []
    for name in attacked(document):
        found = findings(document, name, "quantisation")
        cells = [" / ".join(estimate(one["excess"]) for one in found if one["setting"] == scheme
                            and one["metric"] == document["rule"]["measure"]) for scheme in schemes]  # fmt: skip
        body.append([name, *cells])
    return ["## Rounding the weights", "",
            "Excess over the reference rounded alike, by archive (simulated, groups of 64 weights).", "",
            *table(["model", "int8", "int4", "NF4"], body)]  # fmt: skip


def inside(document: Document, stem: str) -> list[str]:
    """Return what unlearning changed in states, curvature and weights."""
    heads = ["model", "CKA forget", "CKA retain", "first direction, forget", "shift, forget", "Fisher mass ×, forget",
             "Fisher mass ×, retain", "weights moved"]  # fmt: skip
    body = [[name, *_looks(list(seeds.values()))] for name, seeds in document["diagnostics"].items()]
    return [
        "## Inside, without any attack", "", f"![Similarity to the target by block]({stem}-similarity.svg)", "",
        "Against the target, per block, medians over the archives: linear CKA (1: the same arrangement of texts), "
        "cosine of the first principal direction, length of the mean shift, Fisher mass after over before, and the "
        "length of the weight update as a share of the weights. The reference is another training run from the same "
        "start: it shows how far two models that agree about everything else lie apart.", "",
        *table(heads, body),
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
