# SPDX-License-Identifier: Apache-2.0
"""Every method on the same invented request: settings chosen on one archive, measured on three others.

Run as `python -m expunge.studies.archive_study FOLDER`; it goes on where it was stopped.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from expunge.api.workspace import Silent
from expunge.audit.document import AuditDocument, environment, read_audit, write_json
from expunge.data.fictitious import build_archive
from expunge.methods.registry import methods
from expunge.models.loading import load_model
from expunge.recipe import Recipe, build_recipe, merge
from expunge.studies.demo import DemoPaths, archive_recipe, make_world, train_one
from expunge.studies.sweep import SelectionRule, Trial, finished, rank, run_one, worker_pool

#: The archive on which settings are chosen, and those on which they are judged.
TUNING_SEED, SEEDS = 10, (0, 1, 2)
PEOPLE = 40
RULE = SelectionRule()
METRICS = (
    "forget_quality", "forget.truth_ratio", "forget.extraction_strength", "forget.probability",
    "forget.exact_memorization", "membership.min_k.auc", "membership.loss.auc", "model_utility", "retain.probability",
)  # fmt: skip
#: Methods that are no gradient loop have no learning rate to search.
ONE_SHOT = ("influence", "fisher_forget")
#: Methods whose epochs go over the whole retain set, which is twenty times the forget set: fewer of them.
OVER_RETAIN = ("undo", "l1_sparse")
#: Not part of the table: the reference itself, and what needs a model that the archive does not have.
LEFT_OUT = ("retrain",)


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the study: settings on top of the shared ones, and what is searched.

    Attributes:
        method: name of the method.
        settings: nested recipe settings.
        rates: learning rates that are searched; empty for methods without one.
        group: which question the row belongs to, beside the table of all.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: Sequence[float] = (1e-3, 3e-3)
    group: str = ""


def variants() -> dict[str, Variant]:
    """Return every row by name: all registered methods, then the combinations of the three claims."""
    rows = {
        name: Variant(name, rates=() if name in ONE_SHOT else (1e-3, 3e-3))
        for name in methods()
        if name not in LEFT_OUT
    }
    for name in OVER_RETAIN:
        rows[name] = Variant(name, {"training": {"epochs": 3}})
    rows["simnpo"] = Variant("simnpo", {"method": {"beta": 1.0, "forget_weight": 1.0}})
    for name in ("grad_diff", "npo"):
        for optimizer in ("sophia", "signum", "soul"):
            settings = {"training": {"optimizer": {"name": optimizer}}}
            rates = (1e-4, 3e-4)
            rows[f"{name}+{optimizer}"] = Variant(name, settings, rates, "optimisers")
        for kind in ("wagle", "random", "magnitude", "wanda"):
            settings = {"training": {"mask": dict[str, Any](kind=kind, ratio=0.5)}}
            rows[f"{name}+{kind}"] = Variant(name, settings, group="masks")
        rows[f"{name}+rewind"] = Variant(name, {"training": {"stop": {"rule": "rewind"}}}, group="rewinding")
    return rows


def settings_of(variant: Variant, paths: DemoPaths, *, seed: int, rate: float | None) -> dict[str, Any]:
    """Return the recipe settings of a row on one archive."""
    shared = archive_recipe(paths, variant.method, seed=seed)
    shared = merge(shared, {"training": {"epochs": 15}, "audit": {"bootstrap": 500, "max_new_tokens": 24}})
    if rate is not None:
        shared = merge(shared, {"training": {"learning_rate": rate}})
    return merge(shared, variant.settings)


def world(folder: Path, seed: int) -> DemoPaths:
    """Return an archive with its target and reference, made if they are not there yet."""
    paths = DemoPaths(folder / f"archive-{seed}")
    for name, which in (("target", "full"), ("reference", "retain90")):
        if not (paths.root / name / "model").exists():
            if name == "target":
                make_world(paths, build_archive(PEOPLE, seed=seed), seed=seed)
            train_one(paths, name, which, seed=seed, watcher=Silent())
    load_model(paths.model("target"))
    return paths


def study(
    folder: Path, *, rows: Mapping[str, Variant] | None = None, only: Sequence[str] = (), workers: int = 2
) -> dict[str, Any]:  # fmt: skip
    """Choose settings, measure every row on every seed, and write `study.json`; return it.

    Args:
        folder: where archives, runs and results go.
        rows: what is compared; `variants()` by default.
        only: names of rows; all by default.
        workers: processes at a time.
    """
    rows = {name: row for name, row in (rows or variants()).items() if not only or name in only}
    tuning = world(folder, TUNING_SEED)
    chosen = choose(rows, tuning, folder / "tuning", workers)
    results: dict[str, Any] = {}
    jobs: list[tuple[str, int, Recipe, Path]] = []
    for seed in SEEDS:
        paths = world(folder, seed)
        for name, row in rows.items():
            recipe = build_recipe(settings_of(row, paths, seed=seed, rate=chosen[name]["learning_rate"]))
            jobs.append((name, seed, recipe, run_folder(folder, seed, name)))
    errors = run_all([(recipe, path, path.parent / "records") for _, _, recipe, path in jobs], workers)
    for (name, seed, recipe, path), error in zip(jobs, errors, strict=True):
        found = results.setdefault(name, {"group": rows[name].group, "chosen": chosen[name], "seeds": {}})
        found["seeds"][str(seed)] = {"recipe_hash": recipe.hash, "error": error} if error else measured(recipe, path)
    document = {
        "schema_version": 1, "environment": environment(), "rule": RULE.model_dump(), "tuning_seed": TUNING_SEED,
        "people": PEOPLE, "metrics": list(METRICS), "rows": results, "anchors": anchors(folder),
    }  # fmt: skip
    write_json(document, folder / "study.json")
    return document


def run_folder(folder: Path, seed: int, name: str) -> Path:
    """Return where the run of a row on one archive is."""
    return folder / f"seed-{seed}" / name.replace("+", "-")


def choose(
    rows: Mapping[str, Variant], paths: DemoPaths, folder: Path, workers: int
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return the learning rate of every row by the rule, with how many were tried."""
    points = [(name, rate) for name, row in rows.items() for rate in row.rates]
    recipes = [build_recipe(settings_of(rows[name], paths, seed=TUNING_SEED, rate=rate)) for name, rate in points]
    folders = [folder / f"{name.replace('+', '-')}-{rate:g}" for name, rate in points]
    errors = run_all([(r, f, folder / "records") for r, f in zip(recipes, folders, strict=True)], workers)
    trials: dict[str, list[Trial]] = {name: [] for name in rows}
    for (name, rate), recipe, path, error in zip(points, recipes, folders, errors, strict=True):
        trials[name].append(trial(rate, recipe, path, error))
    return {name: choice(tried) for name, tried in trials.items()}


def choice(tried: Sequence[Trial]) -> dict[str, Any]:
    """Return the learning rate of one row by the rule, with how many were tried."""
    if not tried:
        return {"learning_rate": None, "runs_tried": 1, "kept_enough": True}
    ranked, kept = rank(tried, RULE)
    best = ranked[0].overrides["learning_rate"]
    return {"learning_rate": best, "runs_tried": len(tried), "kept_enough": kept}


def trial(rate: float, recipe: Recipe, path: Path, error: str) -> Trial:
    """Return what the rule looks at in one run."""
    if error:
        return Trial({"learning_rate": rate}, path.name, recipe.hash, None, None, error)
    document = read_audit(path / "audit.json")
    model = recipe.method.name  # type: ignore[attr-defined]
    score, kept = _value(document, model, RULE.maximise), _value(document, model, RULE.keep)
    before = _value(document, "target", RULE.keep)
    share = None if kept is None or not before else kept / before
    return Trial({"learning_rate": rate}, path.name, recipe.hash, score, share)


def _value(document: AuditDocument, model: str, metric: str) -> float | None:
    return document.models[model].metrics[metric].value


def run_all(jobs: Sequence[tuple[Recipe, Path, Path]], workers: int) -> list[str]:
    """Run what is not finished yet; return the error of each ("" for none)."""
    todo = [i for i, (recipe, path, _) in enumerate(jobs) if not finished(path, recipe)]
    errors = [""] * len(jobs)
    with worker_pool(workers) as pool:
        work = [(jobs[i][0].to_dict(), str(jobs[i][1]), str(jobs[i][2])) for i in todo]
        for i, error in zip(todo, pool.map(run_one, work), strict=True):
            errors[i] = error
    return errors


def measured(recipe: Recipe, path: Path) -> dict[str, Any]:
    """Return the numbers of one finished run."""
    from expunge.runs import read_run

    document, info = read_audit(path / "audit.json"), read_run(path)
    found = document.models[recipe.method.name].metrics  # type: ignore[attr-defined]
    values = {name: found[name].model_dump(include={"value", "ci_low", "ci_high"}) for name in METRICS}
    return {"recipe_hash": recipe.hash, "seconds": info["unlearning_seconds"], "metrics": values}


def anchors(folder: Path) -> dict[str, Any]:
    """Return the numbers of target and reference on every seed."""
    out: dict[str, Any] = {"target": {}, "reference": {}}
    for seed in SEEDS:
        run = next((folder / f"seed-{seed}").glob("*/audit.json"))
        document = read_audit(run)
        for name, found in out.items():
            metrics = document.models[name].metrics
            found[str(seed)] = {"metrics": {m: metrics[m].model_dump(include={"value", "ci_low", "ci_high"})
                                            for m in METRICS}}  # fmt: skip
    return out


def summary(row: Mapping[str, Any], metric: str) -> tuple[float, float, float] | None:
    """Return median, smallest and largest value of a metric over the seeds, or None where one has no number."""
    values = [entry.get("metrics", {}).get(metric, {}).get("value") for entry in row.values()]
    if not values or any(value is None for value in values):
        return None
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
    study(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/study"), only=sys.argv[2:])
