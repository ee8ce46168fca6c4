# SPDX-License-Identifier: Apache-2.0
"""A grid of runs, ranked by a rule fixed before the first of them, on a part of the data kept apart for choosing."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from expunge.api.job import run
from expunge.api.workspace import Silent, Watcher
from expunge.audit.document import AuditDocument, environment, read_audit, write_json
from expunge.errors import ExpungeError, RecipeError
from expunge.recipe import Recipe, build_recipe, merge
from expunge.runs import read_run


class SelectionRule(BaseModel):
    """Which run of a grid is chosen: the best value of one metric among those that keep enough of another.

    Where no run keeps enough, the one that keeps most is chosen, and the result says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    maximise: str = Field("forget_quality", description="metric whose largest value wins; `-name` means smallest")
    keep: str = Field("model_utility", description="metric that must not fall too far")
    keep_share: float = Field(0.85, gt=0, le=1, description="smallest share of the target's value of `keep`")


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the grid and what the rule looks at; `score` is None where the run failed or has no number."""

    overrides: Mapping[str, Any]
    folder: str
    recipe_hash: str
    score: float | None
    kept_share: float | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Every trial, best first, and the folder of the run that was made again for the chosen settings."""

    trials: list[Trial]
    chosen: Trial
    final: Path
    kept_enough: bool


def expand(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of the grid as `{"a.b": value}`, in the order given.

    Raises:
        RecipeError: if the grid or one of its lists is empty.
    """
    if not grid or any(not values for values in grid.values()):
        raise RecipeError("the grid has no values", field="--grid", remedy="Write --grid training.epochs=5,10")
    return [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*grid.values())]


def sweep(
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    folder: Path,
    *,
    rule: SelectionRule | None = None,
    workers: int = 1,
    watcher: Watcher | None = None,
) -> SweepResult:
    """Run a grid in processes, choose by the rule on the validation part, and run the choice on the test part.

    A finished run with the same recipe hash is not run again. The number of runs tried is written into the chosen
    run, and its report prints it.

    Args:
        settings: nested recipe settings that every run shares.
        grid: values by dotted key.
        folder: where the runs and `sweep.json` go.
        rule: how one is chosen; written down before the first run.
        workers: processes at a time.
        watcher: follows the sweep.

    Raises:
        RecipeError: for an invalid grid or recipe, before anything runs.
        ExpungeError: if every run failed.
    """
    rule, watch = rule or SelectionRule(), watcher or Silent()
    points = expand(grid)
    recipes = [_recipe(settings, point, "validation") for point in points]
    folder.mkdir(parents=True, exist_ok=True)
    header = {"schema_version": 1, "rule": rule.model_dump(), "grid": {k: list(v) for k, v in grid.items()},
              "runs_tried": len(points), "environment": environment()}  # fmt: skip
    write_json(header | {"status": "running"}, folder / "sweep.json")
    errors = _run_all(recipes, folder, workers, watch)
    trials = [
        _trial(point, recipe, folder, rule, error) for point, recipe, error in zip(points, recipes, errors, strict=True)
    ]
    ranked, kept_enough = rank(trials, rule)
    if ranked[0].score is None:
        raise ExpungeError(f"every one of {len(trials)} runs failed or has no number: {ranked[0].error}", field="sweep")
    watch.stage(f"The chosen settings on the test part: {ranked[0].overrides}")
    final = _final(settings, ranked[0], folder, len(trials), watch)
    write_json(
        header | {"status": "finished", "kept_enough": kept_enough, "final": final.name,
                  "trials": [_plain(trial) for trial in ranked]},
        folder / "sweep.json",
    )  # fmt: skip
    return SweepResult(ranked, ranked[0], final, kept_enough)


def _recipe(settings: Mapping[str, Any], point: Mapping[str, Any], part: str) -> Recipe:
    merged: dict[str, Any] = merge(settings, {"data": {"audit_part": part}})
    for key, value in point.items():
        nested: Any = value
        for name in reversed(key.split(".")):
            nested = {name: nested}
        merged = merge(merged, nested)
    return build_recipe(merged)


def _run_all(recipes: Sequence[Recipe], folder: Path, workers: int, watch: Watcher) -> list[str]:
    """Run every recipe that is not finished yet; return an error text for each ("" if it succeeded)."""
    errors = [""] * len(recipes)
    todo = [i for i, recipe in enumerate(recipes) if not finished(folder / recipe.folder_name, recipe)]
    watch.stage(f"{len(todo)} runs of {len(recipes)} to do, {workers} at a time")
    jobs = [(recipes[i].to_dict(), str(folder / recipes[i].folder_name), str(folder / "records")) for i in todo]
    if workers == 1:
        for i, job in zip(todo, jobs, strict=True):
            errors[i] = run_one(job)
            watch.stage(f"{recipes[i].folder_name}: {errors[i] or 'done'}")
        return errors
    with worker_pool(workers) as pool:
        futures = {pool.submit(run_one, job): i for i, job in zip(todo, jobs, strict=True)}
        for future in as_completed(futures):
            i = futures[future]
            errors[i] = future.result()
            watch.stage(f"{recipes[i].folder_name}: {errors[i] or 'done'}")
    return errors


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of fresh processes that share the cores instead of fighting for them."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=torch.set_num_threads, initargs=(threads,))


def finished(folder: Path, recipe: Recipe) -> bool:
    """Return whether a folder holds the finished run of exactly this recipe."""
    info = read_run(folder)
    return bool(info.get("status") == "finished" and info.get("recipe_hash") == recipe.hash)


def run_one(job: tuple[dict[str, Any], str, str]) -> str:
    """Run one recipe in this process; return the error it ended with, or ""."""
    settings, path, records = job
    try:
        run(build_recipe(settings), output_dir=Path(path), overwrite=True, records_dir=Path(records))
    except ExpungeError as error:
        return str(error)
    return ""


def _trial(point: Mapping[str, Any], recipe: Recipe, folder: Path, rule: SelectionRule, error: str) -> Trial:
    path = folder / recipe.folder_name
    if error:
        return Trial(point, path.name, recipe.hash, None, None, error)
    document = read_audit(path / "audit.json")
    sign, name = (-1.0, rule.maximise[1:]) if rule.maximise.startswith("-") else (1.0, rule.maximise)
    changed = recipe.method.name  # type: ignore[attr-defined]
    score, kept, before = (_value(document, changed, name), _value(document, changed, rule.keep),
                           _value(document, "target", rule.keep))  # fmt: skip
    share = None if kept is None or not before else kept / before
    missing = "" if score is not None else f"{name} has no number"
    return Trial(point, path.name, recipe.hash, None if score is None else sign * score, share, missing)


def _value(document: AuditDocument, model: str, metric: str) -> float | None:
    found = document.models[model].metrics.get(metric)
    return None if found is None else found.value


def rank(trials: Sequence[Trial], rule: SelectionRule) -> tuple[list[Trial], bool]:
    """Return the trials, best first, and whether the best keeps enough; ties keep the order of the grid."""

    def keeps(trial: Trial) -> bool:
        return trial.kept_share is not None and trial.kept_share >= rule.keep_share

    def order(trial: Trial) -> tuple[bool, bool, float]:
        worth = trial.score if keeps(trial) else trial.kept_share
        return trial.score is None, not keeps(trial), -(worth if worth is not None else float("-inf"))

    ranked = sorted(trials, key=order)
    return ranked, bool(ranked) and keeps(ranked[0])


def _final(settings: Mapping[str, Any], chosen: Trial, folder: Path, tried: int, watch: Watcher) -> Path:
    """Run the chosen settings again, audited on the part that played no role in choosing."""
    recipe = _recipe(settings, chosen.overrides, "test")
    path = folder / f"chosen-{recipe.hash[:8]}"
    if not finished(path, recipe):
        run(recipe, output_dir=path, overwrite=True, records_dir=folder / "records",
            runs_tried=tried, watcher=watch)  # fmt: skip
    return path


def _plain(trial: Trial) -> dict[str, Any]:
    return {"overrides": dict(trial.overrides), "folder": trial.folder, "recipe_hash": trial.recipe_hash,
            "score": trial.score, "kept_share": trial.kept_share, "error": trial.error}  # fmt: skip
