# SPDX-License-Identifier: Apache-2.0
"""The page of a collapse map: what is left of a model after N requests at each learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from expunge.claims import SENTENCES, ClaimKind
from expunge.report import sections
from expunge.report.heat import HeatCell, heat_map
from expunge.report.markup import bullets, pairs, para, tag
from expunge.report.metrics import describe
from expunge.report.page import footer, frame
from expunge.report.view import ReportView
from expunge.report.words import check_page, duration, listed, number
from expunge.runs import write_text

Document = Mapping[str, Any]

_WAYS = {"single": "All requests at once", "continual": "One request after the other"}
_NOT_SHOWN = ("Where the border of collapse runs for other models, methods or data.",)


def render_collapse(document: Document, *, commands: Sequence[str] = ()) -> str:
    """Return the page of a collapse map as one offline HTML document.

    Args:
        document: what `collapse.json` holds.
        commands: how to reproduce it.

    Raises:
        ExpungeError: if the page would say a sentence that must not be written.
    """
    limits = ReportView(title="", models={}, environment=document["environment"], not_shown=_NOT_SHOWN)
    method = document["method"]
    asked = [
        ("Method", method["title"]), ("Learning rates", ", ".join(f"{rate:g}" for rate in document["rates"])),
        ("Forget examples up to each request", ", ".join(map(str, document["requests"]))),
        ("Took", duration(document["seconds"])),
    ]  # fmt: skip
    content = [
        ("map", "What is left of the model", _utility(document)),
        ("forgetting", "What is left of the forget set", _forgetting(document)),
        ("asked", "What was asked", pairs(asked)),
        ("notes", "About the data", bullets(document["notes"]) if document.get("notes") else ""),
        ("limits", "What this page cannot show", sections.cannot_show(limits)),
        ("environment", "Environment", sections.surroundings(limits)),
        ("reproduce", "How to reproduce", sections.commands(commands)),
    ]
    title = f"Collapse map of {method['name']}"
    bottom = footer([f"collapse schema {document['schema_version']}"])
    return check_page(frame(title, _header(document, title), content, bottom, kind="unlearning study"))


def write_collapse_page(document: Document, path: Path, *, commands: Sequence[str] = ()) -> Path:
    """Write the page of a collapse map and return its path; nothing is written if `render_collapse` raises."""
    write_text(path, render_collapse(document, commands=commands))
    return path


def _header(document: Document, title: str) -> str:
    claim = ClaimKind(document["claim"])
    chip = tag("span", claim.value, f"chip claim-{claim.value}")
    banner = "" if document["complete"] else para("The map is not complete: runs are missing.", "alarm")
    said = "".join(para(sentence, "lead") for sentence in lead(document))
    sentence = tag("p", chip + " " + escape(SENTENCES[claim]), "claimline")
    rest = escape(listed(document["not_tested"])) + "."
    untested = tag("p", tag("strong", "Not tested: ") + rest, "nottested") if document["not_tested"] else ""
    return tag("header", banner + tag("h1", escape(title)) + said + sentence + untested)


def lead(document: Document) -> list[str]:
    """Say, for either way, how many cells collapsed."""
    out = []
    for way, words in _WAYS.items():
        cells = [cell for cell in document["cells"] if cell["way"] == way]
        if cells:
            gone = sum(_state(cell) in ("✗", "diverged") for cell in cells)
            out.append(f"{words}: {gone} of {len(cells)} cells collapsed.")
    return out


def _utility(document: Document) -> str:
    metric = document["utility"]
    if metric is None:
        return para("No utility metric has a number before and after every run, so nothing can be said of collapse.")
    about = (
        f"{describe(metric).title}, as a share of the original's. ✗ marks a cell that lost more than "
        f"{100 * document['threshold']:g} % of it with its whole 95 % interval, ? one whose interval spans that line. "
        "The line is ours. Cells are medians over seeds."
    )
    return para(about) + _maps(document, "kept", "lost")


def _forgetting(document: Document) -> str:
    metric = document["forgetting"]
    if metric is None:
        return ""
    about = f"{describe(metric).title} on everything asked up to each column. {describe(metric).means}"
    return para(about) + _maps(document, "forgetting", "left")


def _maps(document: Document, what: str, style: str) -> str:
    """Return one map a way, side by side where there is room."""
    drawn = maps(document, what, style=style)
    figures = "".join(tag("figure", tag("figcaption", escape(words)) + drawing) for words, drawing in drawn.items())
    return tag("div", figures, "panels")


def maps(document: Document, what: str, *, style: str) -> dict[str, str]:
    """Return the map of either way by its title, as SVG.

    Args:
        document: what `collapse.json` holds.
        what: `kept`, the share of the utility that is left, or `forgetting`.
        style: see `heat_map`.
    """
    rates, sizes = document["rates"], document["requests"]
    out = {}
    for way, words in _WAYS.items():
        cells = {
            (rates.index(cell["rate"]), cell["requests"] - 1): _drawn(cell, what)
            for cell in document["cells"]
            if cell["way"] == way
        }
        out[words] = heat_map(
            words, [f"{rate:g}" for rate in rates], [str(k) for k in range(1, len(sizes) + 1)], cells,
            axes=("learning rate", "requests"), style=style,
        )  # fmt: skip
    return out


def _drawn(cell: Mapping[str, Any], what: str) -> HeatCell:
    value = cell[what]
    if value is None:
        return HeatCell("–", None, str(cell["reason"]))
    state = _state(cell)
    before = cell["utility_before" if what == "kept" else "forgetting_before"]
    about = f"{number(value)}, {len(cell['seeds'])} seeds" + ("" if before is None else f", original {number(before)}")
    if what == "kept":
        return HeatCell(f"{number(value)} {state}".strip(), 1.0 - value, about)
    return HeatCell(number(value), value, about)


def _state(cell: Mapping[str, Any]) -> str:
    """Return the mark of a cell: collapsed in most seeds, undecided, kept, or a run that diverged."""
    if cell["kept"] is None:
        return "diverged"
    half = len(cell["seeds"]) / 2
    return "✗" if cell["collapsed"] > half else "?" if cell["collapsed"] + cell["undecided"] > half else ""
