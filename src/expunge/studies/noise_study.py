# SPDX-License-Identifier: Apache-2.0
"""Forget sets with noise in them: what each kind costs at which rate, and what the guards against it give back.

Run as `python -m expunge.studies.noise_study FOLDER`; it goes on where it was stopped. Learning rates and the guards'
settings are chosen on one archive and judged on three others; the audit always measures the clean, full forget set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from expunge.audit.document import environment, read_audit, write_json
from expunge.recipe import Recipe, build_recipe, merge
from expunge.runs import read_run
from expunge.studies.archive_study import PEOPLE, RULE, TUNING_SEED, choose, run_all, settings_of, world
from expunge.studies.archive_study import variants as archive_variants
from expunge.studies.demo import DemoPaths
from expunge.studies.sweep import Trial, rank

#: Archives that no setting was chosen on.
SEEDS = (3, 4, 5)
METHODS = ("npo", "simnpo")
KINDS = ("mask", "rewrite", "mislabel", "swap", "drop", "duplicate")
RATES = (0.2, 0.5)
METRICS = ("forget_quality", "forget.extraction_strength", "model_utility")
#: Kinds and rate on which the guards' settings are chosen, and on which each guard is tried by itself.
PROBED, PROBED_RATE = ("mask", "mislabel", "swap"), RATES[-1]
OFF, ON = "off", "on"
#: Names of the guards by themselves.
ALONE = ("overlap", "memorised", "trim")
#: Similarity from which an item overlaps; the default of `without_overlap`.
OVERLAP = 0.7
#: What is searched: the margin of the memorisation filter in nats per token (None: no filter), and the share trimmed.
MARGINS: tuple[float | None, ...] = (None, 0.0, 3.0)
TRIMS = (0.125, 0.25)


@dataclass(frozen=True, slots=True)
class Guards:
    """The settings of the three guards; None or 0 turns one off."""

    overlap: float | None = None
    margin: float | None = None
    trim: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Return them as nested recipe settings."""
        robust: dict[str, Any] = {"overlap": self.overlap}
        if self.margin is not None:
            robust |= {"memorised": "holdout", "margin": self.margin}
        return {"data": {"robust": robust}, "method": {"trim": self.trim}}


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition: a method, a kind of noise at a rate, and which guards are on."""

    method: str
    kind: str
    rate: float
    guards: str

    @property
    def folder(self) -> str:
        """Name of its run folders."""
        return f"{self.method}-{self.kind}-{self.rate:g}-{self.guards}"


def cells() -> list[Cell]:
    """Return every condition: the clean set and every kind without and with guards, and each guard alone.

    The first method sees every rate, the others the highest.
    """
    out = []
    for method in METHODS:
        rates = RATES if method == METHODS[0] else RATES[-1:]
        noises = [("none", 0.0), *((kind, rate) for kind in KINDS for rate in rates)]
        out += [Cell(method, kind, rate, guards) for kind, rate in noises for guards in (OFF, ON)]
    return out + [Cell(METHODS[0], kind, PROBED_RATE, guard) for kind in PROBED for guard in ALONE]


def guards_named(chosen: Guards) -> dict[str, Guards]:
    """Return the guards of a condition by name: none, all, and each by itself at the chosen settings."""
    margin = 0.0 if chosen.margin is None else chosen.margin
    return {
        OFF: Guards(), ON: chosen, "overlap": Guards(overlap=chosen.overlap), "memorised": Guards(margin=margin),
        "trim": Guards(trim=chosen.trim),
    }  # fmt: skip


def recipe_of(cell: Cell, guards: Guards, paths: DemoPaths, *, seed: int, rate: float | None) -> Recipe:
    """Return the recipe of a condition on one archive; its noise is drawn from the archive's seed."""
    settings = settings_of(archive_variants()[cell.method], paths, seed=seed, rate=rate)
    noise = {"kind": cell.kind, "rate": cell.rate, "seed": seed}
    more = {"data": {"noise": noise}, "audit": {"metrics": METRICS}}
    return build_recipe(merge(merge(settings, more), guards.settings()))


def study(folder: Path, *, workers: int = 2) -> dict[str, Any]:
    """Choose settings, run every condition on every seed, and write `noise-study.json`; return it.

    Args:
        folder: where archives, runs and results go.
        workers: processes at a time.
    """
    tuning = world(folder, TUNING_SEED)
    rates = choose({name: archive_variants()[name] for name in METHODS}, tuning, folder / "tuning", workers)
    guards, trials = choose_guards(tuning, folder / "tuning", rates, workers)
    named, jobs = guards_named(guards), []
    for seed in SEEDS:
        paths = world(folder, seed)
        for cell in cells():
            rate = rates[cell.method]["learning_rate"]
            recipe = recipe_of(cell, named[cell.guards], paths, seed=seed, rate=rate)
            jobs.append((cell, seed, recipe, folder / f"seed-{seed}" / cell.folder))
    errors = run_all([(recipe, path, path.parent / "records") for _, _, recipe, path in jobs], workers)
    rows: dict[Cell, dict[str, Any]] = {}
    for (cell, seed, recipe, path), error in zip(jobs, errors, strict=True):
        rows.setdefault(cell, {})[str(seed)] = {"recipe_hash": recipe.hash, "error": error} if error else _found(
            recipe, path
        )  # fmt: skip
    document = {
        "schema_version": 1, "environment": environment(), "rule": RULE.model_dump(), "tuning_seed": TUNING_SEED,
        "people": PEOPLE, "metrics": list(METRICS), "learning_rates": rates,
        "guards": {"overlap": guards.overlap, "margin": guards.margin, "trim": guards.trim, "runs_tried": len(trials)},
        "guard_trials": trials, "anchors": _anchors(folder),
        "rows": [{"method": c.method, "kind": c.kind, "rate": c.rate, "guards": c.guards, "seeds": found}
                 for c, found in rows.items()],
    }  # fmt: skip
    write_json(document, folder / "noise-study.json")
    return document


def choose_guards(
    paths: DemoPaths, folder: Path, rates: Mapping[str, Mapping[str, Any]], workers: int
) -> tuple[Guards, list[dict[str, Any]]]:
    """Return the guards' settings by the archive study's rule, on means over the probed kinds; and all trials.

    A setting under which nothing is left to train on leaves the model as it was, and counts so.
    """
    options = [Guards(OVERLAP, margin, trim) for margin in MARGINS for trim in TRIMS]
    probed = [Cell(METHODS[0], kind, PROBED_RATE, ON) for kind in PROBED]
    jobs = []
    for number, option in enumerate(options):
        for cell in probed:
            rate = rates[cell.method]["learning_rate"]
            recipe = recipe_of(cell, option, paths, seed=TUNING_SEED, rate=rate)
            jobs.append((recipe, folder / f"guards-{number}" / cell.folder, folder / "records"))
    errors = run_all(jobs, workers)
    pairs = [_score(recipe, path, error) for (recipe, path, _), error in zip(jobs, errors, strict=True)]
    trials = []
    for number in range(len(options)):
        own = slice(number * len(probed), (number + 1) * len(probed))
        score, kept = (fmean(values) for values in zip(*pairs[own], strict=True))
        failed = [error for error in errors[own] if error]
        trials.append(Trial({"option": number, "errors": failed}, f"guards-{number}", "", score, kept))
    best = int(rank(trials, RULE)[0][0].overrides["option"])
    plain = [
        {"margin": options[at].margin, "trim": options[at].trim, "score": trial.score, "kept_share": trial.kept_share,
         "errors": trial.overrides["errors"]}
        for at, trial in enumerate(trials)
    ]  # fmt: skip
    return options[best], plain


def _score(recipe: Recipe, path: Path, error: str) -> tuple[float, float]:
    """Return what the rule maximises and the share kept of what it keeps, after one run."""
    if error:
        return 0.0, 1.0
    models = read_audit(path / "audit.json").models
    after, before = models[recipe.method.name].metrics, models["target"].metrics  # type: ignore[attr-defined]
    score, kept, whole = after[RULE.maximise].value, after[RULE.keep].value, before[RULE.keep].value
    assert score is not None
    assert kept is not None
    assert whole
    return score, kept / whole


def _found(recipe: Recipe, path: Path) -> dict[str, Any]:
    metrics = read_audit(path / "audit.json").models[recipe.method.name].metrics  # type: ignore[attr-defined]
    info = read_run(path)
    trained_on = (info["prepared"] or info["data"]["forget"])["n"]
    return {
        "recipe_hash": recipe.hash, "metrics": _values(metrics), "trained_on": trained_on, "prepared": info["prepared"],
    }  # fmt: skip


def _values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name].model_dump(include={"value", "ci_low", "ci_high"}) for name in METRICS}


def _anchors(folder: Path) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {"target": {}, "reference": {}}
    for seed in SEEDS:
        models = read_audit(next((folder / f"seed-{seed}").glob("*/audit.json"))).models
        for name, found in out.items():
            found[str(seed)] = {"metrics": _values(models[name].metrics)}
    return out


def rows_by(
    document: Mapping[str, Any], method: str, guards: Sequence[str] = (OFF, ON)
) -> dict[tuple[str, float], Any]:
    """Return the seeds of one method's rows by (kind, rate), then by guards."""
    out: dict[tuple[str, float], Any] = {}
    for row in document["rows"]:
        if row["method"] == method and row["guards"] in guards:
            out.setdefault((row["kind"], row["rate"]), {})[row["guards"]] = row["seeds"]
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
    study(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/noise-study"))
