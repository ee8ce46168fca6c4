# SPDX-License-Identifier: Apache-2.0
"""Which methods hid and which removed: everything that could bring an invented request back, on three archives.

Run as `python -m expunge.studies.reversal_study FOLDER`; it goes on where it was stopped. Methods and archives are
those of the archive study; learning rates of methods and of attacks are chosen on the tuning archive alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from expunge.api.attack import attack_folders
from expunge.api.diagnose import diagnose_folders
from expunge.api.workspace import Silent
from expunge.audit.config import AuditConfig
from expunge.audit.diagnostics.config import DiagnoseConfig
from expunge.audit.document import environment, write_json
from expunge.data.config import DataConfig
from expunge.errors import ExpungeError
from expunge.runs import read_run
from expunge.studies import archive_study as archive
from expunge.studies.archive_study import Variant, run_folder, variants, world
from expunge.studies.demo import DemoPaths, train_one
from expunge.studies.reversal_numbers import condensed, curves_of, inside, judged
from expunge.studies.reversal_rule import Rule, fair_budget, fair_rates
from expunge.studies.sweep import worker_pool

METHODS = (
    "npo", "simnpo", "grad_diff", "ga", "rmu", "adaptive_rmu", "attention_shift", "task_vector", "sta",
)  # fmt: skip
#: Learning rates of the methods that are searched.
RATES = (3e-4, 5e-4, 1e-3, 3e-3)
#: A second model that never saw the forget set, trained in another order: what the rules say of it is their error.
SECOND = "reference_2"
BUDGETS = (1, 2, 4, 8, 16, 32)
#: Learning rates of relearning that are tried on the tuning archive, by what moves.
GRID: Mapping[str, Sequence[float]] = {"full": (1e-3, 3e-3), "lora": (3e-3, 1e-2)}
#: Relearning that is meant to teach a model that never knew nothing, and on the forget set itself.
QUIET, LOUD = ("related", "unrelated"), "forget"
UNRELATED = "world_facts"
AUDIT = AuditConfig(bootstrap=500)
RULE = Rule()


def rows() -> dict[str, Variant]:
    """Return the rows of the study: those of the archive study with more rates.

    What a task vector may cost is as much as the rule that chooses the rates allows: its own limit, made for another
    rule, lets it forget next to nothing here.
    """
    known = {name: replace(variants()[name], rates=RATES) for name in METHODS}
    for name in ("task_vector", "sta"):
        known[name] = replace(known[name], settings={"method": {"max_drop": 1 - archive.RULE.keep_share}})
    return known


@dataclass(frozen=True, slots=True)
class Task:
    """One attack or diagnosis in a process of its own.

    Attributes:
        name: of the task.
        root: of the archive.
        seed: of the archive.
        models: model folders by name; a diagnosis has one.
        attacks: names of attacks; none for a diagnosis.
        settings: of the attacks.
        identity: what the models came from, so that a task is done again when they changed.
    """

    name: str
    root: Path
    seed: int
    models: Mapping[str, str]
    attacks: Sequence[str] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    identity: Sequence[str] = ()

    def folder(self, top: Path) -> Path:
        """Return its folder, whose name changes with everything the task depends on."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return top / f"archive-{self.seed}" / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def study(folder: Path, *, only: Sequence[str] = (), workers: int = 2) -> dict[str, Any]:
    """Unlearn, attack, look inside, judge, and write `reversal.json`; return it.

    Args:
        folder: where archives, runs and results go.
        only: names of methods; all by default.
        workers: processes at a time.
    """
    outputs = archive.study(folder, rows=rows(), only=only, workers=workers)
    relearning = calibrate(folder, workers)
    tasks = [task for seed in archive.SEEDS for task in tasks_of(folder, seed, outputs, relearning)]
    errors = carry_out(tasks, folder / "attacks", workers)
    attacks: dict[str, Any] = {}
    diagnostics: dict[str, Any] = {}
    for task in tasks:
        path, seed = task.folder(folder / "attacks"), str(task.seed)
        if task.attacks and not errors.get(path):
            attacks.setdefault(seed, {})[task.name] = condensed(path, RULE.measure)
        elif not task.attacks and not errors.get(path):
            diagnostics.setdefault(next(iter(task.models)), {})[seed] = inside(path)
    document = {
        **outputs, "environment": environment(), "choice": outputs["rule"], "rule": RULE.to_dict(),
        "relearning": relearning, "attacks": attacks, "diagnostics": diagnostics, "second_reference": SECOND,
        "failed": {str(path.relative_to(folder)): error for path, error in errors.items() if error},
    }  # fmt: skip
    document |= judged(document, RULE)
    write_json(document, folder / "reversal.json")
    return document


def calibrate(folder: Path, workers: int) -> dict[str, Any]:
    """Choose rates and budgets of relearning on the tuning archive, from target and reference alone.

    Returns:
        `rates` and `tried`, by way of relearning; `forget_budget`, by what moves; `budgets`.
    """
    paths = world(folder, archive.TUNING_SEED)
    models = {"target": paths.model("target")}

    def curves(on: str, how: str, rates: Sequence[float]) -> dict[float, Mapping[str, list[tuple[float, float]]]]:
        tasks = {rate: relearn_task(paths, archive.TUNING_SEED, models, (on, how), [rate], BUDGETS) for rate in rates}
        errors = carry_out(list(tasks.values()), folder / "attacks", workers)
        top = folder / "attacks"
        return {r: curves_of(t.folder(top), RULE.measure) for r, t in tasks.items() if not errors.get(t.folder(top))}

    chosen: dict[str, list[float]] = {}
    tried: dict[str, Any] = {}
    budgets: dict[str, int] = {}
    for how, rates in GRID.items():
        for on in QUIET:
            found = curves(on, how, rates)
            chosen[f"{on}-{how}"] = fair_rates({rate: both["reference"] for rate, both in found.items()}, RULE)
            tried[f"{on}-{how}"] = {f"{rate:g}": both for rate, both in found.items()}
        slowest = chosen[f"{LOUD}-{how}"] = chosen[f"related-{how}"][:1]
        found = curves(LOUD, how, slowest)
        tried[f"{LOUD}-{how}"] = {f"{rate:g}": both for rate, both in found.items()}
        budgets[how] = min((fair_budget(both["reference"], RULE) for both in found.values()), default=1)
    return {"rates": chosen, "forget_budget": budgets, "tried": tried, "budgets": list(BUDGETS)}


def tasks_of(
    folder: Path, seed: int, outputs: Mapping[str, Any], relearning: Mapping[str, Any]
) -> list[Task]:  # fmt: skip
    """Return every attack on all models of one archive, and a diagnosis of each model."""
    paths = world(folder, seed)
    if not (paths.root / SECOND / "model").exists():
        train_one(paths, SECOND, "retain90", seed=seed + 100, watcher=Silent())
    entries = {name: row["seeds"][str(seed)] for name, row in outputs["rows"].items()}
    runs = {name: entry["recipe_hash"] for name, entry in entries.items() if not entry.get("error")}
    methods = {name: str(run_folder(folder, seed, name) / "model") for name in runs}
    models = {"target": paths.model("target"), SECOND: paths.model(SECOND), **methods}
    identity = list(runs.values())
    out = []
    for way, rates in relearning["rates"].items():
        on, how = way.split("-")
        last = relearning["forget_budget"][how] if on == LOUD else BUDGETS[-1]
        budgets = [budget for budget in BUDGETS if budget <= last]
        if rates:
            out.append(replace(relearn_task(paths, seed, models, (on, how), rates, budgets), identity=identity))
    out.append(Task("quantisation", paths.root, seed, models, ("quantisation",), identity=identity))
    out.append(Task("probing", paths.root, seed, models, ("linear_probe", "logit_lens"), identity=identity))
    looked = {"reference": paths.model("reference"), **methods}
    out += [Task(f"inside-{name}", paths.root, seed, {name: path}, identity=[runs.get(name, "")])
            for name, path in looked.items()]  # fmt: skip
    return out


def relearn_task(
    paths: DemoPaths, seed: int, models: Mapping[str, str], way: tuple[str, str], rates: Sequence[float],
    budgets: Sequence[int],
) -> Task:  # fmt: skip
    """Return relearning in one way, the best of some rates counting; under `related` every fact is tested once."""
    on, how = way
    settings: dict[str, Any] = {
        "on": [on], "how": [how], "budgets": list(budgets), "learning_rates": list(rates),
        "lora_learning_rates": list(rates),
        "lora": {"r": 16, "alpha": 32}, "rotations": 5, "measure": RULE.measure.removeprefix("forget."),
    }  # fmt: skip
    return Task(f"relearn-{on}-{how}", paths.root, seed, models, ("relearning",), {"relearning": settings})


def carry_out(tasks: Sequence[Task], top: Path, workers: int) -> dict[Path, str]:
    """Carry out what is not finished yet; return the error of each by folder ("" for none)."""
    todo = [task for task in tasks if read_run(task.folder(top)).get("status") != "finished"]
    errors = {task.folder(top): "" for task in tasks}
    if todo:
        with worker_pool(workers) as pool:
            found = pool.map(_one, [(task, top) for task in todo])
            errors |= {task.folder(top): error for task, error in zip(todo, found, strict=True)}
    return errors


def _one(job: tuple[Task, Path]) -> str:
    """Do one task in this process; return the error it ended with, or ""."""
    task, top = job
    paths, path = DemoPaths(task.root), task.folder(top)
    common = {"forget": paths.source("forget10"), "retain": paths.source("retain90"), "template": "question"}
    try:
        if task.attacks:
            attack_folders(
                task.models, attacks=task.attacks, data=DataConfig(**common), reference=paths.model("reference"),
                original=paths.model("target"), unrelated=paths.source(UNRELATED), settings=task.settings, audit=AUDIT,
                seed=task.seed, output_dir=path, overwrite=True,
            )  # fmt: skip
        else:
            data = DataConfig(**common, extra={"unrelated": paths.source(UNRELATED)})
            config = DiagnoseConfig(bootstrap=AUDIT.bootstrap, measure="extraction_strength", scatter_texts=0)
            (after,) = task.models.values()
            diagnose_folders(paths.model("target"), after, data=data, output_dir=path, config=config, overwrite=True)
    except ExpungeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
    study(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/reversal"), only=sys.argv[2:])
