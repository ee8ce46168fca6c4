# SPDX-License-Identifier: Apache-2.0
"""The page of a diagnosis: the verdict, and what changed in states, curvature and weights, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from expunge.report import sections
from expunge.report.layers import Lines, by_layer, histograms, key, plane
from expunge.report.markup import bullets, details, pairs, para, scroll, tag
from expunge.report.page import footer, frame
from expunge.report.regime import lead, numbers
from expunge.report.view import ReportView
from expunge.report.words import check_page, duration, number
from expunge.runs import write_text

Document = Mapping[str, Any]
Entry = Mapping[str, Any]

_TITLES = {"forget": "Forget set", "retain": "Retain set", "unrelated": "Unrelated texts"}
_ABOUT = {
    "cka": "Linear CKA: how far the model after arranges the same texts as the model before did, whatever the axes and "
    "the scale. 1 (dashed) is the same arrangement. Where there are fewer than two texts a dimension, the estimate "
    "without bias is used: unrelated arrangements then come out around 0, and it can fall below.",
    "pc1": "|cos| between the first principal directions of the states. 1 (dashed) is the same direction. Where the "
    "first two variances are nearly equal, the direction is arbitrary and a low value says little: the table of layers "
    "has the gap between them.",
    "shift": "How far the mean state moved in the plane of the first two components of the model before, in standard "
    "deviations of the texts in that plane.",
    "scatter": "The same texts in the model before, after and relearned, in the plane of the model before. Arrows lead "
    "from the mean before to the others.",
    "fisher": "Mass of the Fisher diagonal: how sharply the loss of a text depends on the weights of a block, over "
    "what it was before, as log₁₀: 0 (dashed) is no change, −1 a tenth.",
    "spread": "How the entries of the diagonal are spread over powers of ten, as a share of the weights of the block.",
    "weights": "Length of the change of all weights of a block, over the length of the weights before.",
    "ranks": "Ranks of the change of a block's weight matrices, as medians: the stable rank is the squared Frobenius "
    "norm over the squared spectral norm, the effective rank the exponential of the entropy of the singular values. "
    "Low ranks mean that few directions were changed.",
}
_NOT_SHOWN = (
    "Whether what looks unchanged inside can be brought out: numbers on states and weights are descriptions, not "
    "attacks, and carry no interval.",
    "What a longer or another relearning would bring back.",
)


def render_diagnostics(document: Document, *, commands: Sequence[str] = ()) -> str:
    """Return the page of a diagnosis as one offline HTML document.

    Args:
        document: what `diagnostics.json` holds.
        commands: how to reproduce it.

    Raises:
        ExpungeError: if the page would say a sentence that must not be written.
    """
    limits = ReportView(title="", models={}, environment=document["environment"], not_shown=_NOT_SHOWN)
    content = [
        ("verdict", "Verdict", numbers(document["verdict"])),
        ("arrangement", "Are the texts arranged alike?", _curves(document, "cka", _value("cka"), level=1.0, low=0.0)),
        ("direction", "Does the main direction stay?", _curves(document, "pc1", _value("pc1"), level=1.0, low=0.0)),
        ("shift", "How far did the mean move?", _curves(document, "shift", _shift, level=0.0) + _planes(document)),
        ("fisher", "How sharply does the loss depend on the weights?", _fisher(document)),
        ("weights", "How did the weights move?", _weights(document)),
        ("layers", "Every layer", _tables(document)),
        ("asked", "What was compared", _compared(document)),
        ("limits", "What this page cannot show", sections.cannot_show(limits)),
        ("environment", "Environment", sections.surroundings(limits)),
        ("reproduce", "How to reproduce", sections.commands(commands)),
    ]
    schema = footer([f"diagnostics schema {document['schema_version']}"])
    return check_page(frame("Inside the model", _header(document), content, schema, kind="diagnosis"))


def write_diagnostics_page(document: Document, path: Path, *, commands: Sequence[str] = ()) -> Path:
    """Write the page of a diagnosis and return its path; nothing is written if `render_diagnostics` raises."""
    write_text(path, render_diagnostics(document, commands=commands))
    return path


def _header(document: Document) -> str:
    said = "".join(para(sentence, "lead") for sentence in lead(document["verdict"]))
    notes = "".join(para(note, "alarm") for note in (*document["notes"], *document["verdict"]["caveats"]))
    if document["compat"] == "published":
        notes += para(
            "States, similarities and Fisher sums are taken as the released code of the study takes them. "
            "They stand here to be compared with published figures, not to be believed.", "alarm",
        )  # fmt: skip
    return tag("header", tag("h1", "Inside the model") + said + notes)


def _value(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry[name]["value"]


def _shift(entry: Entry) -> float | None:
    found = entry["shift"]
    return None if found["value"] is None else float(found.get("relative", found["value"]))


def _curves(
    document: Document, name: str, value: Callable[[Entry], float | None], *, level: float, low: float | None = None
) -> str:
    """Return one panel a set, a line a model, and why points are missing."""
    lines = {dataset: _points(document, dataset, value) for dataset in document["sets"]}
    figures = _row_of(document, lines, level=level, include=[] if low is None else [low])
    reason = document["compat_reasons"].get({"pc1": "pca_similarity", "shift": "pca_shift"}.get(name, name))
    warning = para(reason, "alarm") if reason else ""
    missing = list(_missing(document, name))
    return para(_ABOUT[name]) + warning + figures + (bullets(missing) if missing else "")


def _row_of(document: Document, lines: Mapping[str, Lines], *, level: float, include: Sequence[float] = ()) -> str:
    """Return one panel a set; they share their vertical axis, so that sets can be compared."""
    every = [value for found in lines.values() for points in found.values() for _, value in points]
    figures = "".join(
        _figure(_TITLES[dataset], by_layer(found, layers=document["layers"], level=level, include=[*include, *every]))
        for dataset, found in lines.items()
    )
    return tag("div", figures, "panels three")


def _points(
    document: Document, dataset: str, value: Callable[[Entry], float | None]
) -> dict[str, list[tuple[float, float]]]:
    out = {}
    for model, change in document["changes"].items():
        found = [(float(entry["layer"]), value(entry)) for entry in change["states"][dataset]]
        out[model] = [(layer, v) for layer, v in found if v is not None]
    return out


def _missing(document: Document, name: str) -> Iterator[str]:
    """Yield why layers have no number, once for every reason."""
    for dataset in document["sets"]:
        for model, change in document["changes"].items():
            reasons: dict[str, list[int]] = {}
            for entry in change["states"][dataset]:
                if entry[name]["value"] is None:
                    reasons.setdefault(entry[name]["reason"], []).append(entry["layer"])
            for reason, layers in reasons.items():
                yield f"{_TITLES[dataset]}, {model}, blocks {', '.join(map(str, layers))}: {reason}."


def _planes(document: Document) -> str:
    """Return the scatter plots, a row of panels a set."""
    names = ["before", *document["changes"]]
    out = tag("h3", "Texts in the plane of the model before") + para(_ABOUT["scatter"]) + key(names)
    for dataset, drawings in document["scatter"].items():
        figures = ""
        for found in drawings:
            models = found["models"]
            points = {name: model["points"] for name, model in models.items()}
            means = {name: model["mean"] for name, model in models.items()}
            share = f", {100 * sum(found['explained']):.0f} % of the variance" if models else ""
            caption = f"Block {found['layer']}{share}"
            figures += _figure(caption, plane(points, means)) if models else para(found["reason"], "aside")
        out += tag("h4", escape(_TITLES[dataset])) + tag("div", figures, "panels three")
    return out


def _fisher(document: Document) -> str:
    if not any(change["fisher"] for change in document["changes"].values()):
        return para("Not measured: no texts were asked for.")
    lines = {
        dataset: {
            model: [(float(entry["layer"]), math.log10(entry["value"])) for entry in change["fisher"][dataset]
                    if entry["value"]]
            for model, change in document["changes"].items()
        }
        for dataset in document["sets"]
    }  # fmt: skip
    reason = document["compat_reasons"].get("fisher")
    warning = para(reason, "alarm") if reason else ""
    out = para(_ABOUT["fisher"]) + warning + _row_of(document, lines, level=0.0)
    out += tag("h3", "Spread of the entries") + para(_ABOUT["spread"]) + key(["before", *document["changes"]])
    for dataset in document["sets"]:
        figures = "".join(_histogram(document, dataset, layer) for layer in document["shown_layers"])
        out += tag("h4", escape(_TITLES[dataset])) + tag("div", figures, "panels three")
    return out


def _histogram(document: Document, dataset: str, layer: int) -> str:
    """Return the histogram of one block and set, with what the models share of it."""
    shares: dict[str, list[tuple[float, float]]] = {}
    shared = []
    for model, change in document["changes"].items():
        entry = change["fisher"][dataset][layer]
        if entry["value"] is None:
            continue
        shares.setdefault("before", _bins(entry["before"], document["histogram_edges"]))
        shares[model] = _bins(entry["after"], document["histogram_edges"])
        shared.append(f"{model} {number(entry['overlap'])}")
    caption = f"Block {layer}, shared area: {', '.join(shared)}"
    return _figure(caption, histograms(shares)) if shares else para(f"Block {layer}: no curvature.", "aside")


def _bins(counts: Mapping[str, Any], edges: Sequence[float]) -> list[tuple[float, float]]:
    total = sum(counts["counts"]) + counts["zeros"]
    return [(edges[counts["start"] + i], count / total) for i, count in enumerate(counts["counts"])]


def _weights(document: Document) -> str:
    lines = {
        model: [(float(u["layer"]), u["relative"]) for u in change["updates"] if 0 <= u["layer"] < document["layers"]]
        for model, change in document["changes"].items()
    }
    figure = _figure("Relative change", by_layer(lines, layers=document["layers"], level=0.0, width=560))
    heads = ["Layer"]
    for model in document["changes"]:
        heads += [f"{model}: relative", "length", "largest", "weights moved", "stable rank", "effective rank", "of"]
    rows = [_update_row(document, index) for index in range(len(next(iter(document["changes"].values()))["updates"]))]
    table = scroll(_table(heads, rows), "Updates by layer, scrolls sideways")
    return para(_ABOUT["weights"]) + figure + tag("h3", "Size and rank") + para(_ABOUT["ranks"]) + table


def _update_row(document: Document, index: int) -> list[str]:
    updates = [change["updates"][index] for change in document["changes"].values()]
    row = [_layer_name(updates[0]["layer"], document["layers"])]
    for update in updates:
        row += [
            number(update["relative"]),
            number(update["norm"]),
            number(update["largest"]),
            f"{100 * update['moved']:.1f} %",
        ]
        row += ["–" if update[name] is None else number(update[name]) for name in ("stable_rank", "effective_rank")]
        row.append("–" if update["full_rank"] is None else f"{update['full_rank']:g}")
    return row


def _layer_name(layer: int, layers: int) -> str:
    return "embeddings" if layer < 0 else "norm and head" if layer >= layers else f"block {layer}"


def _tables(document: Document) -> str:
    """Return a folded table a set with every number by layer and model."""
    heads = ("Block", "Model", "CKA", "|cos| of the first directions", "gap before", "gap after", "shift",
             "in deviations", "Fisher mass before", "after", "ratio", "overlap", "largest hundredth before",
             "after")  # fmt: skip
    out = ""
    for dataset in document["sets"]:
        rows = []
        for model, change in document["changes"].items():
            fisher = change["fisher"].get(dataset) or [{}] * document["layers"]
            rows += [_layer_row(model, entry, found)
                     for entry, found in zip(change["states"][dataset], fisher, strict=True)]  # fmt: skip
        table = scroll(_table(heads, rows), f"{_TITLES[dataset]} by block, scrolls sideways")
        out += details(escape(_TITLES[dataset]), table)
    return out


def _layer_row(model: str, entry: Entry, fisher: Entry) -> list[str]:
    pc1, shift = entry["pc1"], entry["shift"]
    values = [entry["cka"]["value"], pc1["value"], pc1.get("gap_before"), pc1.get("gap_after"), shift["value"],
              shift.get("relative"), *(fisher.get(k) for k in ("mass_before", "mass_after", "value", "overlap",
                                                               "top_before", "top_after"))]  # fmt: skip
    return [str(entry["layer"]), model, *("–" if value is None else number(value) for value in values)]


def _compared(document: Document) -> str:
    rows = [(f"Model {role}", f"{model['path']} · {model['dtype']} · digest {model['digest'][:12]}")
            for role, model in document["models"].items()]  # fmt: skip
    texts = document["settings"]["fisher_texts"]
    rows += [(_TITLES[name], f"{found['n']} examples, states of {found['compared']} sequences, Fisher over "
              f"{min(texts, found['compared'])}; digest {found['digest'][:12]}")
             for name, found in document["sets"].items()]  # fmt: skip
    took = ", ".join(f"{name} {duration(seconds)}" for name, seconds in document["seconds"].items())
    return pairs([*rows, ("Took", took)])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(tag("th", escape(name), "", {"scope": "col"}) for name in heads)
    body = "".join(tag("tr", "".join(tag("td", escape(cell)) for cell in row)) for row in rows)
    return tag("table", tag("thead", tag("tr", head)) + tag("tbody", body), "plain-table")


def _figure(caption: str, drawing: str) -> str:
    return tag("figure", tag("figcaption", escape(caption)) + drawing) if drawing else ""
