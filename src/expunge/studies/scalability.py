# SPDX-License-Identifier: Apache-2.0
"""Scalability: unlearn ever larger forget sets, each from the same model, and see what it costs.

Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", 2024, criterion C5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from expunge.api.workspace import Watcher
from expunge.benchmarks.base import BenchmarkData
from expunge.data.examples import Example
from expunge.data.sources import Source
from expunge.errors import RecipeError
from expunge.studies.plan import Step, make_plan, pairs_of, read_sets
from expunge.studies.steps import Study, run_study

FRACTIONS = (0.25, 0.5, 1.0)


def scalability(
    settings: Mapping[str, Any],
    *,
    folder: Path,
    fractions: Sequence[float] = (),
    sources: Sequence[Source] = (),
    seeds: Sequence[int] = (),
    benchmark: BenchmarkData | None = None,
    notes: Sequence[str] = (),
    records_dir: Path | None = None,
    overwrite: bool = False,
    commands: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Study:
    """Unlearn growing forget sets, each from the recipe's model, and draw utility and forgetting against their size.

    Called again on the same folder, finished steps are kept and the others are run.

    Args:
        settings: nested settings of a recipe; its forget set is what `fractions` are taken of.
        folder: where everything goes; `study.json` and `report.html` at its top, a run folder per seed and step below.
        fractions: shares of the forget set in 0..1, growing; all examples of a subject stay together. Default: a
            quarter, a half, all of it.
        sources: the forget sets themselves, each larger than the one before, in place of `fractions`.
        seeds: of the runs; default: the recipe's.
        benchmark: sets and protocol to measure at every step; by default the sets of the recipe, with the step's
            forget set.
        notes: what a reader of the page must know of the data.
        records_dir: where the records of audited models are, to share them with other studies.
        overwrite: start again where a study already is.
        commands: how to reproduce the study.
        watcher: follows the runs.

    Raises:
        RecipeError: for settings that cannot run, sets that do not grow, or a folder that holds another study.
        InputDataError: for data that cannot be used.
    """
    if sources and fractions:
        raise RecipeError("cannot go with sources", field="fractions", value=list(fractions), remedy="Give one of them")
    sets = read_sets(sources, settings, name="forget") if sources else _shares(settings, fractions or FRACTIONS)
    steps = [Step(examples, examples) for examples in sets]
    plan = make_plan(
        "scalability", settings, steps, folder=folder, seeds=seeds, benchmark=benchmark,
        notes=(*notes, *_growth(sets)), records_dir=records_dir,
    )  # fmt: skip
    return run_study(plan, overwrite=overwrite, commands=commands, watcher=watcher)


def nested(examples: Sequence[Example], fractions: Sequence[float]) -> list[list[Example]]:
    """Return the first share of the examples for every fraction, in whole subjects and at least one.

    Raises:
        RecipeError: if a fraction is not in 0..1, or two of them give sets of the same size.
    """
    subjects = list(dict.fromkeys(_subject(example) for example in examples))
    out = []
    for fraction in fractions:
        if not 0.0 < fraction <= 1.0:
            raise RecipeError("must be above 0 and at most 1", field="fractions", value=fraction)
        taken = set(subjects[: max(1, math.floor(fraction * len(subjects) + 0.5))])
        out.append([example for example in examples if _subject(example) in taken])
    return out


def _shares(settings: Mapping[str, Any], fractions: Sequence[float]) -> list[list[Example]]:
    whole = (settings.get("data") or {}).get("forget")
    if whole is None:
        raise RecipeError("a forget set is needed", field="data.forget", remedy="Give --forget FILE")
    return nested(read_sets([whole], settings, name="forget")[0], fractions)


def _subject(example: Example) -> tuple[str, str]:
    """Examples without a subject are their own."""
    return ("subject", example.subject) if example.subject else ("example", example.id)


def _growth(sets: Sequence[Sequence[Example]]) -> list[str]:
    """Return a note for every set that leaves out part of the one before; raise if one does not grow."""
    notes = []
    for number, (small, large) in enumerate(pairwise(sets), start=1):
        if len(large) <= len(small):
            raise RecipeError(
                f"step {number + 1} has {len(large)} examples, step {number} has {len(small)}", field="sources",
                remedy="Give growing forget sets, or fractions further apart",
            )  # fmt: skip
        if missing := len(pairs_of(small) - pairs_of(large)):
            notes.append(f"Not nested: {missing} examples of step {number} are not in step {number + 1}.")
    return notes
