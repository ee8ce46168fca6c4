# SPDX-License-Identifier: Apache-2.0
"""Collapse maps of several methods as one page.

Run as `python -m expunge.studies.collapse_page RESULTS.json PAGE.md [MAP.json...]`; with maps, which are the
`collapse.json` of finished runs, the results are written from them first. The drawings are written beside the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.audit.document import write_json
from expunge.errors import InputDataError
from expunge.report.collapse import lead, maps
from expunge.report.metrics import describe
from expunge.report.style import drawing_style
from expunge.report.words import check, listed, number
from expunge.runs import write_text

Document = Mapping[str, Any]
#: Settings that are paths of the machine that ran them.
_PATHS = ("data", "model")
#: What the two drawings of a map are called.
_PLACE = ("single", "continual")


def gather(sources: Sequence[Path]) -> dict[str, Any]:
    """Return several maps as one document, by method and without the paths of their runs.

    Raises:
        InputDataError: for a map that is not complete.
    """
    found: dict[str, Any] = {}
    for source in sources:
        document = json.loads(source.read_text("utf-8"))
        if not document["complete"]:
            raise InputDataError("the map is not complete", field="MAP", value=str(source), remedy="Run it again")
        settings = {key: value for key, value in document["settings"].items() if key not in _PATHS}
        found[document["method"]["name"]] = {**document, "settings": settings}
    return {"schema_version": 1, "maps": found}


def write_page(results: Mapping[str, Any], page: Path) -> None:
    """Write the page and, beside it, the drawings of every map."""
    for name, document in results["maps"].items():
        for place, drawing in zip(_PLACE, _maps(document).values(), strict=True):
            write_text(_drawing(page, name, place), drawing_style(drawing))
    write_text(page, check("\n".join(_page(results, page)) + "\n"))


def _maps(document: Document) -> dict[str, str]:
    return maps(document, "kept", style="lost")


def _drawing(page: Path, name: str, place: str) -> Path:
    return page.with_name(f"{page.stem}-{name}-{place}.svg")


def _page(results: Mapping[str, Any], page: Path) -> list[str]:
    first = next(iter(results["maps"].values()))
    sizes, seeds = first["requests"], max((cell["seeds"] for cell in first["cells"]), key=len)
    commands = [f"expunge benchmark fictitious --criterion collapse --method {name} "
                f"--rates {','.join(f'{rate:g}' for rate in document['rates'])} --requests {len(sizes)} "
                f"--seeds {','.join(map(str, seeds))} {_sets(document)}-o runs/collapse-{name}"
                for name, document in results["maps"].items()]  # fmt: skip
    lines = [
        "# Request after request: when does a model collapse?", "",
        f"{len(sizes)} requests of {sizes[0]} facts each, asked at once (from the original) or one after the other "
        f"(each from the model of the one before), at {len(first['rates'])} learning rates. {' '.join(first['notes'])} "
        f"Cells are the share of the original's utility that is left, medians over the seeds of the runs "
        f"({', '.join(map(str, seeds))}). ✗: lost more than {100 * first['threshold']:g} % of "
        f"the original's {describe(first['utility']).title.lower()} with its whole 95 % interval in most seeds; ?: the "
        "interval spans that line. The line is ours. The grid is that of *Unlearning Isn't Deletion* "
        "(arXiv:2505.16831). *Not tested*: "
        f"{listed(first['not_tested'])}.", "",
        "```", *commands, "```", "", "The numbers are in `results/collapse.json`.", "",
    ]  # fmt: skip
    for name, document in results["maps"].items():
        lines += _section(name, document, page)
    return [*lines, "Where the border runs for other models, methods or data, this page cannot show."]


def _sets(document: Document) -> str:
    """Return the settings that differ from those of the study by itself, as options."""
    training, audit = document["settings"]["training"], document["settings"]["audit"]
    values = {"training.epochs": training.get("epochs"), "audit.bootstrap": audit.get("bootstrap"),
              "audit.max_new_tokens": audit.get("max_new_tokens")}  # fmt: skip
    return "".join(f"--set {key}={value} " for key, value in values.items() if value is not None)


def _section(name: str, document: Document, page: Path) -> list[str]:
    lines = [f"## {document['method']['title']}", "", " ".join(lead(document)), ""]
    drawn = _maps(document)
    pictures = [f"![Utility left, {words.lower()}]({_drawing(page, name, place).name})"
                for words, place in zip(drawn, _PLACE, strict=True)]  # fmt: skip
    lines += ["| " + " | ".join(drawn) + " |", "|---|---|", "| " + " | ".join(pictures) + " |", ""]
    return [*lines, *_table(document), ""]


def _table(document: Document) -> list[str]:
    lines = ["| way | learning rate | requests | utility left | "
             f"{describe(document['forgetting']).title.lower()}, before | after | collapsed |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for cell in document["cells"]:
        said = [cell["way"], f"{cell['rate']:g}", str(cell["requests"])]
        if cell["kept"] is None:
            lines.append("| " + " | ".join([*said, "–", "–", "–", cell["reason"]]) + " |")
            continue
        seeds = len(cell["seeds"])
        states = [f"{cell['collapsed']} of {seeds}"] + ([f"{cell['undecided']} undecided"] if cell["undecided"] else [])
        values = (cell["kept"], cell["forgetting_before"], cell["forgetting"])
        shown = ["–" if value is None else number(value) for value in values]
        lines.append("| " + " | ".join([*said, *shown, ", ".join(states)]) + " |")
    return lines


if __name__ == "__main__":
    target, written, *given = map(Path, sys.argv[1:])
    if given:
        write_json(gather(given), target)
    write_page(json.loads(target.read_text("utf-8")), written)
