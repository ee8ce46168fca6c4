# SPDX-License-Identifier: Apache-2.0
"""Sustainability: request after request on one model, and what is left of it.

Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", 2024, criterion C6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from expunge.api.workspace import Watcher
from expunge.benchmarks.base import BenchmarkData
from expunge.data.examples import Example
from expunge.data.sources import Source
from expunge.studies.plan import Step, joined, make_plan, pairs_of, read_sets
from expunge.studies.steps import Study, run_study


def sustainability(
    settings: Mapping[str, Any],
    *,
    requests: Sequence[Source],
    folder: Path,
    seeds: Sequence[int] = (),
    benchmark: BenchmarkData | None = None,
    notes: Sequence[str] = (),
    records_dir: Path | None = None,
    overwrite: bool = False,
    commands: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Study:
    """Unlearn requests one after the other, each from the result of the one before, and measure after each.

    After every step the audit's forget set is everything asked so far, and each request also has a curve of its own:
    it shows whether what was unlearned earlier comes back. Called again on the same folder, finished steps are kept
    and the others are run.

    Args:
        settings: nested settings of a recipe.
        requests: the forget sets, in order; examples that two of them share are noted.
        folder: where everything goes; `study.json` and `report.html` at its top, a run folder per seed and step below.
        seeds: of the runs; default: the recipe's.
        benchmark: sets and protocol to measure at every step, in place of the sets of the recipe.
        notes: what a reader of the page must know of the data.
        records_dir: where the records of audited models are, to share them with other studies.
        overwrite: start again where a study already is.
        commands: how to reproduce the study.
        watcher: follows the runs.

    Raises:
        RecipeError: for settings that cannot run, or a folder that holds another study.
        InputDataError: for data that cannot be used.
    """
    asked = read_sets(requests, settings, name="request")
    steps = [Step(new, new if number == 1 else joined(asked[:number])) for number, new in enumerate(asked, start=1)]
    plan = make_plan(
        "sustainability", settings, steps, folder=folder, seeds=seeds, benchmark=benchmark,
        notes=(*notes, *_shared(asked)), records_dir=records_dir,
    )  # fmt: skip
    return run_study(plan, overwrite=overwrite, commands=commands, watcher=watcher)


def _shared(asked: Sequence[Sequence[Example]]) -> list[str]:
    """Return a note for every two requests that share examples."""
    notes = []
    for (i, one), (j, other) in combinations(enumerate(asked, start=1), 2):
        if common := len(pairs_of(one) & pairs_of(other)):
            notes.append(f"Requests {i} and {j} share {common} different examples.")
    return notes
