# SPDX-License-Identifier: Apache-2.0
"""The results of the archive study as a page: one table, the plane, and the three claims.

Run as `python -m expunge.studies.archive_page study.json PAGE.md`; the plane is written beside the page as SVG.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.report.plane import plane
from expunge.report.style import drawing_style
from expunge.report.view import ModelView, ReportView
from expunge.report.words import number
from expunge.runs import write_text
from expunge.studies.archive_study import OVER_RETAIN, summary

COLUMNS = {
    "forget_quality": "forget quality", "forget.extraction_strength": "extraction strength",
    "forget.exact_memorization": "exact memorisation", "membership.min_k.auc": "Min-K% AUC",
    "model_utility": "utility",
}  # fmt: skip


def write_page(document: Mapping[str, Any], page: Path) -> None:
    """Write the page and, beside it, the plane."""
    write_text(page.with_suffix(".svg"), plane_svg(document))
    write_text(page, "\n".join(_page(document, page.with_suffix(".svg").name)) + "\n")


def plane_svg(document: Mapping[str, Any]) -> str:
    """Return utility against extraction strength for the plain methods: medians, with the range over the seeds."""
    models = {name: _view(entry["seeds"], role=name) for name, entry in _anchors(document).items()}
    for name, row in document["rows"].items():
        if not row["group"] and summary(row["seeds"], "model_utility") is not None:
            models[name] = _view(row["seeds"], role="method")
    drawn = plane(ReportView(title="", models=models), "forget.extraction_strength", width=1000, height=620)
    return drawing_style(drawn)


def _anchors(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"seeds": found} for name, found in document["anchors"].items()}


def _view(seeds: Mapping[str, Any], *, role: str) -> ModelView:
    metrics = {}
    for name in ("forget.extraction_strength", "model_utility"):
        found = summary(seeds, name)
        if found is not None:
            metrics[name] = {"value": found[0], "ci_low": found[1], "ci_high": found[2], "n": len(seeds)}
    return ModelView(role=role, metrics=metrics)


def _page(document: Mapping[str, Any], picture: str) -> list[str]:
    rows = document["rows"]
    plain = {name: row for name, row in rows.items() if not row["group"]}
    tried = sum(row["chosen"]["runs_tried"] for row in rows.values())
    rule = document["rule"]
    seeds = ", ".join(document["anchors"]["target"])
    lines = [
        "# Every method on the archive", "",
        f"{len(rows)} rows on three archives of {document['people']} invented people each (seeds {seeds}), forget10. "
        "Each method starts from a model that learned everyone; the reference was trained the same way without the "
        f"forget set. The learning rate of each row was chosen on another archive (seed {document['tuning_seed']}) by "
        f"a rule fixed beforehand: highest `{rule['maximise']}` among those that keep {rule['keep_share']:.0%} of the "
        f"target's `{rule['keep']}`; {tried} runs were tried. Batch 16; 15 epochs, 3 for {' and '.join(OVER_RETAIN)}; "
        "simnpo with beta 1 and forget weight 1, which were found on archives 0 and 1. Everything else is at the "
        "method's defaults, which were published for models ten thousand times larger: read a poor row as *this "
        "setting did poorly here*, not as *the method is poor*. Numbers are medians over the seeds, with the smallest "
        "and the largest. *Not tested* here: relearning, quantisation, probing.", "",
        "Made by `make study`; the numbers with their recipe hashes and the environment are in "
        "`results/archive-study.json`.", "",
        f"![Utility against extraction strength; the shaded place is the reference's]({picture})", "",
        *_table(_anchors(document) | plain), "",
    ]  # fmt: skip
    for group, title, text in _CLAIMS:
        chosen = {name: row for name, row in rows.items() if row["group"] == group or name in text[1]}
        lines += [f"## {title}", "", text[0], "", *_table(chosen), ""]
    return [*lines, *_failures(rows)]


#: Group of rows, heading, and what is asked with the plain rows it is compared with.
_CLAIMS: Sequence[tuple[str, str, tuple[str, Sequence[str]]]] = (
    ("optimisers", "Second-order steps against AdamW",
     ("Sophia with sampled labels, the sign steps that the released code of SOUL amounts to, and AdamW.",
      ("grad_diff", "npo"))),
    ("masks", "Chosen weights against random ones",
     ("Half of the weights may move: chosen by WAGLE, by magnitude, by Wanda, or at random, which every choice has to "
      "beat; pruning first; and all weights.", ("grad_diff", "npo", "prune_first"))),
    ("rewinding", "With and without rewinding",
     ("Rewinding goes back to the epoch whose forget loss is closest to that of people never seen.",
      ("grad_diff", "npo", "scrub", "scrub_r"))),
)  # fmt: skip


def _table(rows: Mapping[str, Any]) -> list[str]:
    head = ["row", *COLUMNS.values(), "seconds", "learning rate"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [_cell(row["seeds"], metric) for metric in COLUMNS]
        seconds = [entry["seconds"] for entry in row["seeds"].values() if "seconds" in entry]
        rate = row.get("chosen", {}).get("learning_rate")
        kept = "" if row.get("chosen", {}).get("kept_enough", True) else " †"
        took = f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"
        lines.append("| " + " | ".join([name + kept, *cells, took, "–" if rate is None else f"{rate:g}"]) + " |")
    if any(not row.get("chosen", {}).get("kept_enough", True) for row in rows.values()):
        lines += ["", "† No learning rate that was tried keeps enough utility; the one that keeps most is shown."]
    return lines


def _cell(seeds: Mapping[str, Any], metric: str) -> str:
    found = summary(seeds, metric)
    if found is None:
        return "–"
    median, low, high = found
    return f"{number(median)} [{number(low)}–{number(high)}]"


def _failures(rows: Mapping[str, Any]) -> list[str]:
    failed = [f"- `{name}`, seed {seed}: {entry['error']}" for name, row in rows.items()
              for seed, entry in row["seeds"].items() if entry.get("error")]  # fmt: skip
    return ["## What did not run", "", *failed, ""] if failed else []


if __name__ == "__main__":
    write_page(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
