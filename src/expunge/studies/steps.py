# SPDX-License-Identifier: Apache-2.0
"""Run a study of several steps: every step a run folder, all of them one `study.json` and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.api.job import run
from expunge.api.workspace import Silent, Watcher
from expunge.audit.document import write_json
from expunge.report.curves import write_study_page
from expunge.runs import RunFolder, earlier_run
from expunge.studies.plan import Plan
from expunge.studies.points import point, study_document, study_view


@dataclass(frozen=True, slots=True)
class Study:
    """Where a study is, what its `study.json` holds, and the run folder of every step."""

    folder: Path
    document: Mapping[str, Any]
    runs: tuple[Path, ...]

    @property
    def file(self) -> Path:
        """What the study wrote for machines."""
        return self.folder / "study.json"

    @property
    def report(self) -> Path:
        """The page with the curves."""
        return self.folder / "report.html"


def run_study(
    plan: Plan, *, overwrite: bool = False, commands: Sequence[str] = (), watcher: Watcher | None = None
) -> Study:
    """Run the steps that are not finished yet; `study.json` and `report.html` are written after each.

    Args:
        plan: what to do, and the folder for `data/`, `records/`, a run folder per seed and step, and the results.
        overwrite: start again where a study already is; otherwise finished steps are kept.
        commands: how to reproduce the study, for its page.
        watcher: follows the runs.

    Raises:
        RecipeError: for settings that cannot run, or a folder that holds another study.
        ExpungeError: what a run raises; what is written then holds the steps before.
    """
    watch, folder = watcher or Silent(), plan.folder
    name = plan.recipe(*plan.runs[0]).name
    if not overwrite:
        earlier_run(folder, plan.hash)
    whole = RunFolder(folder, overwrite=overwrite, resume=not overwrite)
    whole.start({"kind": plan.kind, "name": name, "recipe_hash": plan.hash, "commands": list(commands)})
    document: dict[str, Any] = {}
    points: list[dict[str, Any]] = []
    with whole.recorded():
        plan.write_data()
        tokens = plan.tokens()
        for seed, number in plan.runs:
            watch.heading(_heading(plan, seed, number))
            points.append(_step(plan, seed, number, watch) | {"tokens": tokens[number - 1]})
            document = study_document(plan, points)
            write_json(document, folder / "study.json")
            write_study_page(study_view(document, commands), folder / "report.html")
    return Study(folder, document, tuple(plan.run_folder(seed, number) for seed, number in plan.runs))


def _step(plan: Plan, seed: int, number: int, watcher: Watcher) -> dict[str, Any]:
    """Run one step, or find it finished, and return its point."""
    recipe = plan.recipe(seed, number)
    done = run(
        recipe, output_dir=plan.run_folder(seed, number), resume=True, records_dir=plan.records, watcher=watcher,
        benchmark=plan.benchmark,
    )  # fmt: skip
    return point(plan, done.document, recipe, seed=seed, step=number)


def _heading(plan: Plan, seed: int, number: int) -> str:
    step = f"{plan.kind}, step {number} of {len(plan.steps)}: {len(plan.steps[number - 1].forget)} examples"
    return f"{step}, seed {seed}" if len(plan.seeds) > 1 else step
