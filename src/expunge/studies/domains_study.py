# SPDX-License-Identifier: Apache-2.0
"""Forgetting in text, mathematics and code: one model of all three, a request in each, attacked and looked into.

Run as `python -m expunge.studies.domains_study FOLDER`; it goes on where it was stopped. The plan is that of Xu et al.,
"Unlearning Isn't Deletion: Investigating Reversibility of Machine Unlearning in LLMs", 2025 (arXiv:2505.16831), on
domains that are generated.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.audit.document import AuditDocument, environment, read_audit, write_json
from expunge.audit.store import read_records
from expunge.data.fictitious import DOMAINS
from expunge.data.fictitious.answers import is_right
from expunge.models.loading import load_model
from expunge.recipe import Recipe, build_recipe
from expunge.runs import read_run
from expunge.studies.archive_study import RULE, SEEDS, TUNING_SEED, choice, run_all, trial
from expunge.studies.demo import SHAPE, TRAINING
from expunge.studies.domains_inside import (
    BATCH,
    BUDGETS,
    HALFWAY,
    KINDS,
    RELEARNING_RATES,
    Look,
    look_inside,
    relearn,
    strongest,
)
from expunge.studies.domains_world import FAMILIES, MODELS, PEOPLE, PER_FAMILY, World, asked
from expunge.studies.sweep import Trial, worker_pool

METHODS = ("npo", "grad_diff", "rmu")
RATES = (3e-4, 1e-3, 3e-3)
#: What every run shares; of each set at most so many examples are measured.
SHARED: Mapping[str, Any] = {
    "training": {"batch_size": 8, "epochs": 15, "optimizer": {"weight_decay": 0.0}},
    "audit": {"bootstrap": 500, "max_new_tokens": 80, "limit": 60,
              "metrics": ("forget_quality", "forget.*", "membership.min_k.auc", "model_utility", "*.probability",
                          "*.extraction_strength")},
}  # fmt: skip
METRICS = (
    "forget_quality", "forget.probability", "forget.extraction_strength", "membership.min_k.auc", "model_utility",
    "retain.probability", "retain.extraction_strength",
)  # fmt: skip
#: (domain, method) of a row.
Row = tuple[str, str]
ROWS: tuple[Row, ...] = tuple((domain, method) for domain in DOMAINS for method in METHODS)


def study(folder: Path, *, workers: int = 2) -> dict[str, Any]:
    """Train, choose, unlearn, relearn and look inside on every seed; write `study.json` and return it.

    Args:
        folder: where worlds, runs and results go.
        workers: processes at a time.
    """
    worlds = {seed: World(folder / f"archive-{seed}", seed) for seed in (TUNING_SEED, *SEEDS)}
    for world in worlds.values():
        world.write()
    with worker_pool(workers) as pool:
        list(pool.map(_learn, [(world, name) for world in worlds.values() for name in MODELS]))
    chosen, tuning = choose(worlds[TUNING_SEED], folder / "tuning", workers)
    rates = calibrate(worlds[TUNING_SEED], tuning, folder / "tuning", workers)
    runs, errors = unlearn_all(worlds, chosen, folder, workers)
    looks = [
        Look(worlds[seed], domain, models, folder / f"seed-{seed}", rates[domain]["chosen"])
        for seed in SEEDS
        for domain in DOMAINS
        if (models := {m: str(path / "model") for (s, d, m), path in runs.items() if (s, d) == (seed, domain)})
    ]
    with worker_pool(workers) as pool:
        relearned, inside = list(pool.map(relearn, looks)), list(pool.map(look_inside, looks))
    found = {(look.world.seed, look.domain): pair for look, *pair in zip(looks, relearned, inside, strict=True)}
    document = _header(worlds[TUNING_SEED]) | {
        "relearning": {"rates": rates, "batch": BATCH, "budgets": BUDGETS, "kinds": KINDS, "halfway": HALFWAY},
        "domains": {d: _domain(d, worlds, runs, errors, chosen, found) for d in DOMAINS},
    }  # fmt: skip
    write_json(document, folder / "study.json")
    return document


def _learn(job: tuple[World, str]) -> None:
    world, name = job
    world.learn(name)


def _header(world: World) -> dict[str, Any]:
    weights = sum(p.numel() for p in load_model(world.model("target")).model.parameters())
    return {
        "schema_version": 1, "environment": environment(), "rule": RULE.model_dump(), "tuning_seed": TUNING_SEED,
        "seeds": list(SEEDS), "people": PEOPLE, "families": FAMILIES, "per_family": PER_FAMILY, "shape": dict(SHAPE),
        "parameters": weights, "learning": dict(TRAINING), "unlearning": dict(SHARED), "learning_rates": list(RATES),
    }  # fmt: skip


def _recipe(world: World, row: Row, rate: float) -> Recipe:
    more = {**SHARED, "training": {**SHARED["training"], "learning_rate": rate}}
    return build_recipe(world.recipe(*row, more))


def choose(world: World, folder: Path, workers: int) -> tuple[dict[Row, dict[str, Any]], dict[Row, Path]]:
    """Return the learning rate of every row by the rule, and the run on the tuning archive that has it."""
    points = [(row, rate) for row in ROWS for rate in RATES]
    recipes = [_recipe(world, row, rate) for row, rate in points]
    folders = [folder / f"{'-'.join(row)}-{rate:g}" for row, rate in points]
    jobs = [(recipe, path, folder / row[0] / "records")
            for recipe, path, (row, _) in zip(recipes, folders, points, strict=True)]  # fmt: skip
    trials: dict[Row, list[Trial]] = {row: [] for row in ROWS}
    for (row, rate), (recipe, path, _), error in zip(points, jobs, run_all(jobs, workers), strict=True):
        trials[row].append(trial(rate, recipe, path, error))
    chosen = {row: choice(tried) for row, tried in trials.items()}
    return chosen, {row: folder / f"{'-'.join(row)}-{found['learning_rate']:g}" for row, found in chosen.items()}


def calibrate(world: World, tuning: Mapping[Row, Path], folder: Path, workers: int) -> dict[str, dict[str, Any]]:
    """Return, for every domain, the rate at which models are relearned, with what each rate did on the tuning archive.

    It is the largest at which relearning takes the reference at most half of the way to the target: beyond, what comes
    back says nothing about what was left.
    """
    looks = [
        Look(world, domain, {m: str(tuning[domain, m] / "model") for m in METHODS}, folder, rate)
        for domain in DOMAINS
        for rate in RELEARNING_RATES
    ]
    with worker_pool(workers) as pool:
        found = list(pool.map(relearn, looks))
    out: dict[str, dict[str, Any]] = {}
    for domain in DOMAINS:
        tried = {look.rate: result for look, result in zip(looks, found, strict=True) if look.domain == domain}
        out[domain] = strongest(tried)
    return out


def unlearn_all(
    worlds: Mapping[int, World], chosen: Mapping[Row, Mapping[str, Any]], folder: Path, workers: int
) -> tuple[dict[tuple[int, str, str], Path], dict[tuple[int, str, str], str]]:
    """Run every row on every seed; return the folders of what finished, and the errors of what did not."""
    keys = [(seed, *row) for seed in SEEDS for row in ROWS]
    paths = [folder / f"seed-{seed}" / f"{domain}-{method}" for seed, domain, method in keys]
    jobs = [(_recipe(worlds[seed], (domain, method), chosen[domain, method]["learning_rate"]), path,
             path.parent / f"records-{domain}")
            for (seed, domain, method), path in zip(keys, paths, strict=True)]  # fmt: skip
    errors = dict(zip(keys, run_all(jobs, workers), strict=True))
    done = {key: path for key, path in zip(keys, paths, strict=True) if not errors[key]}
    return done, {key: error for key, error in errors.items() if error}


def _domain(
    domain: str, worlds: Mapping[int, World], runs: Mapping[tuple[int, str, str], Path],
    errors: Mapping[tuple[int, str, str], str], chosen: Mapping[Row, Mapping[str, Any]],
    found: Mapping[tuple[int, str], Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """Return everything that was measured on the requests in one domain."""
    anchors: dict[str, dict[str, Any]] = {"target": {}, "reference": {}}
    rows: dict[str, dict[str, Any]] = {m: {"chosen": chosen[domain, m], "seeds": {}} for m in METHODS}
    for seed in SEEDS:
        relearned, inside = found.get((seed, domain), ({}, {}))
        for method, row in rows.items():
            if (path := runs.get((seed, domain, method))) is None:
                row["seeds"][str(seed)] = {"error": errors[seed, domain, method]}
                continue
            document, records = read_audit(path / "audit.json"), path.parent / f"records-{domain}"
            run = read_run(path)
            row["seeds"][str(seed)] = _measured(document, method, records, worlds[seed]) | {
                "recipe_hash": run["recipe_hash"], "seconds": run["unlearning_seconds"],
                "relearning": relearned[method], "inside": inside[method],
            }  # fmt: skip
            for name, anchor in anchors.items():
                anchor[str(seed)] = _measured(document, name, records, worlds[seed])
        if str(seed) in anchors["reference"]:
            anchors["reference"][str(seed)]["relearning"] = relearned["reference"]
    return {"anchors": anchors, "rows": rows, "others": worlds[SEEDS[0]].others(domain)}


def _measured(document: AuditDocument, model: str, records: Path, world: World) -> dict[str, Any]:
    """Return the metrics of one model, and the share of right answers on every set."""
    entry = document.models[model]
    values = {name: entry.metrics[name].model_dump(include={"value", "ci_low", "ci_high"}) for name in METRICS}
    return {"metrics": values, "right": _right(records, str(entry.digest), asked(world.seed))}


def _right(records: Path, digest: str, items: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the share of generated answers that are right, by set."""
    every = (read_records(path) for path in sorted(records.iterdir()))
    found = next(read for read in every if read.meta["model_digest"] == digest)
    right: dict[str, list[bool]] = {}
    for item in found.generated:
        if item.prompt_variant == "question":
            right.setdefault(item.set, []).append(is_right(items[item.id], item.prediction))
    return {name: {"value": sum(each) / len(each), "n": len(each)} for name, each in right.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
    study(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/domains"))
