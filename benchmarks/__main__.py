# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks`: measure, draw, write the page."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import described, file_name
from benchmarks.figures import write_figures
from benchmarks.page import write_page
from benchmarks.profiling import profiles
from benchmarks.rows import TITLES, measured
from benchmarks.scale import AXES, scaled
from benchmarks.sizes import PRESETS, Sizes
from benchmarks.workload import build_workload, token_counts

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
#: Begins the names of results against OpenUnlearning, which are measured elsewhere.
BESIDE = "open-unlearning"


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def line(row: dict[str, Any]) -> str:
    """Return a row as one line: ratio with smallest and largest, and how equal the numbers were."""
    by, (low, middle, high) = next(iter(row["ratio"].items()))
    equal = row.get("equal")
    checked = f"equal to {equal['largest']:.1e}, limit {equal['tolerance']:.0e}" if equal else "nothing to compare"
    return f"{row['title']:<48} {middle:6.2f} [{low:.2f} to {high:.2f}] by {by}; {checked}"


def run(sizes: Sizes, names: list[str], axes: list[str], *, profile: bool) -> dict[str, Any]:
    """Measure rows and curves and return everything; `profile` also says where the time goes."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found: dict[str, Any] = {"environment": described(), "sizes": sizes.to_dict(), "rows": {}, "scale": {}}
    with tempfile.TemporaryDirectory() as folder:
        workload = build_workload(Path(folder), sizes)
        found["tokens"] = token_counts(workload, workload.load()[1])
        for name in names:
            found["rows"][name] = measured(name, workload)
            say(line(found["rows"][name]))
        found["profiles"] = profiles(workload) if profile else {}
    for axis in axes:
        found["scale"][axis] = scaled(axis)
        slopes = ", ".join(f"{key} {value:.2f}" for key, value in found["scale"][axis]["slopes"].items())
        say(f"{axis:<48} slopes on log-log: {slopes}")
    found["environment"]["load_average_after"] = described()["load_average"]
    return found


def newest(pattern: str) -> Path | None:
    """Return the newest results of a kind; their names begin with the day, after the kind."""
    return max(RESULTS.glob(pattern), default=None)


def page(results: Path | None, beside: Path | None) -> None:
    """Write the page and its drawing."""
    if results is None:
        sys.exit("no results yet: make bench")
    found = json.loads(results.read_text("utf-8"))
    other = json.loads(beside.read_text("utf-8")) if beside else None
    write_figures(found["scale"], DOCS)
    write_page(found, other, DOCS / "performance.md", results.name)


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Expunge against plain code.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="measure and write the results")
    runs.add_argument("--preset", choices=list(PRESETS), default="full")
    runs.add_argument("--rows", nargs="*", choices=list(TITLES), default=list(TITLES))
    runs.add_argument("--scale", nargs="*", choices=list(AXES), default=None, help="default: all of them, quick: none")
    runs.add_argument("--pairs", type=int, help="measured repetitions of each row")
    runs.add_argument("--threads", type=int, default=1)
    runs.add_argument("--output", type=Path, help="default: benchmarks/results/; quick: nothing is written")
    pages = verbs.add_parser("page", help="write docs/performance.md and its drawings from results")
    pages.add_argument("results", type=Path, nargs="?", help="default: the newest in benchmarks/results/")
    pages.add_argument("--beside", type=Path, help="ratios against another tool; default: the newest")
    return parser.parse_args()


def main() -> None:
    """Do what the arguments ask for."""
    asked = parsed()
    if asked.verb == "page":
        page(asked.results or newest("[0-9]*.json"), asked.beside or newest(f"{BESIDE}-*.json"))
        return
    torch.set_num_threads(asked.threads)
    sizes = PRESETS[asked.preset]
    sizes = sizes if asked.pairs is None else sizes.changed(pairs=asked.pairs)
    axes = asked.scale if asked.scale is not None else list(AXES) if asked.preset == "full" else []
    found = run(sizes, asked.rows, axes, profile=asked.preset == "full" and bool(asked.rows))
    output = asked.output or (RESULTS / file_name() if asked.preset == "full" else None)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        say(f"written to {output}")


if __name__ == "__main__":
    main()
