# SPDX-License-Identifier: Apache-2.0
"""What each guarantee costs: every route from the same public model, records and request, on three archives.

Run as `python -m expunge.studies.costs_study FOLDER`; it goes on where it was stopped. Settings are chosen on another
archive, by rules fixed beforehand. Retraining runs before and after every two routes, and the times of a route are
divided by the mean of the two retrainings around it: processor time of one process of one thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from expunge.audit.canaries.measure import CanarySettings, findings
from expunge.audit.config import AuditConfig
from expunge.audit.document import environment, write_json
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import default_protocol
from expunge.claims import SENTENCES
from expunge.studies.costs_routes import (
    DELTA,
    LORA,
    TRAINING,
    Answers,
    Place,
    Private,
    Reserved,
    Retrained,
    Route,
    Sharded,
    Unlearned,
    Untouched,
    emptied,
    timed,
    weights_in,
)
from expunge.studies.costs_world import BEFORE, DESIGN, SHAPE, Size, World, build_world

SEEDS, TUNING_SEED = (0, 1, 2), 10
METRICS = (
    "forget.probability", "forget.extraction_strength", "forget.exact_memorization", "retain.probability",
    "known.probability",
)  # fmt: skip
AUDIT = AuditConfig(metrics=METRICS, generate=False, bootstrap=300)
CANARY = CanarySettings(bootstrap=300)
SHARDS = ((2, 1), (4, 1), (4, 4))
EPSILONS = (2.0, 8.0, 32.0)
#: Where the settings of private training are chosen, and what is tried. Steps: 128 records each, on average.
TUNED_EPSILON = 8.0
PRIVATE_GRID: Mapping[str, Sequence[Any]] = {"learning_rate": (4e-3, 1e-2), "epochs": (16,)}
PRIVATE: Mapping[str, Any] = {"batch_size": 128}
ADAPTER_GRID: Mapping[str, Sequence[Any]] = {"learning_rate": (4e-3, 1e-2), "batch_size": (4,)}
ADAPTER: Mapping[str, Any] = {"epochs": TRAINING["epochs"], "lora": dict(LORA)}
METHODS = ("npo", "rmu")
METHOD_GRID: Mapping[str, Sequence[Any]] = {"learning_rate": (3e-4, 1e-3, 3e-3), "epochs": (8,)}
METHOD: Mapping[str, Any] = {"batch_size": 16, "optimizer": {"weight_decay": 0.0}}
#: Share of the target's retain probability that a method must keep while its settings are chosen.
KEEP = 0.9
Choice = Mapping[str, Mapping[str, Any]]


def routes(chosen: Choice, *, customers: int) -> dict[str, Route]:
    """Return the routes by name.

    Args:
        chosen: settings of private training (`private`), of `adapters`, and of the methods.
        customers: with the person as unit, every step takes all of them.
    """
    private = chosen["private"]
    person = {**private, "batch_size": customers, "epochs": 2 * private["epochs"]}
    return {
        "target": Untouched(),
        "retrain": Retrained(),
        **{f"sisa {s}x{r}": Sharded(s, r) for s, r in SHARDS},
        "adapters": Reserved(chosen["adapters"]),
        **{f"dp {epsilon:g}": Private(epsilon, "sequence", private) for epsilon in EPSILONS},
        f"dp {TUNED_EPSILON:g}, person": Private(TUNED_EPSILON, "subject", person),
        **{method: Unlearned(method, chosen[method]) for method in METHODS},
    }


def study(folder: Path, *, seeds: Sequence[int] = SEEDS, size: Size | None = None,
          grids: Mapping[str, Mapping[str, Sequence[Any]]] | None = None) -> dict[str, Any]:  # fmt: skip
    """Choose settings, carry out every route on every seed, and write `costs.json`; return it.

    Args:
        folder: where worlds, models and results go.
        seeds: of the archives.
        size: of the worlds; the study's own by default.
        grids: what is tried for `private`, `adapters` and the methods; the study's own by default.
    """
    size = size or Size()
    grids = grids or {"private": PRIVATE_GRID, "adapters": ADAPTER_GRID, **dict.fromkeys(METHODS, METHOD_GRID)}
    tuning = choose(folder, size, grids)
    found = {str(seed): one_seed(folder / f"seed-{seed}", seed, size, tuning["chosen"]) for seed in seeds}
    document = {
        "schema_version": 1, "kind": "guarantee costs", "seeds": list(seeds), "tuning_seed": TUNING_SEED,
        "public": size.public, "customers": size.customers, "canaries": size.canaries, "design": DESIGN,
        "shape": dict(SHAPE), "before": {**BEFORE, "epochs": size.epochs}, "training": dict(TRAINING),
        "lora": dict(LORA), "privacy": {**PRIVATE, "delta": DELTA}, "method": dict(METHOD), "keep": KEEP, **tuning,
        "runs": found, "environment": environment(),
    }  # fmt: skip
    write_json(document, folder / "costs.json")
    return document


def choose(folder: Path, size: Size, grids: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """Choose settings on the tuning archive; return `chosen` and, by name, what was `tried`.

    Private training (at one epsilon) and adapters: the highest retain probability. A method: of the settings that keep
    enough of the target's retain probability, that which comes closest to the forget probability of retraining; the
    one that keeps most if none does.
    """
    path, top = folder / "tuning.json", folder / f"seed-{TUNING_SEED}"
    if path.exists():
        return dict(json.loads(path.read_text("utf-8")))
    world = build_world(top, seed=TUNING_SEED, size=size)
    place = Place(world, emptied(top / "trial"), AUDIT)
    Untouched().prepare(place)
    target, reference = _short(place, Untouched()), _short(place, Retrained())
    tried: dict[str, list[dict[str, Any]]] = {}
    for name, grid in grids.items():
        for values in product(*grid.values()):
            route, settings = trial(name, dict(zip(grid, values, strict=True)))
            if not isinstance(route, Unlearned):
                route.prepare(place)
            tried.setdefault(name, []).append({"settings": settings, **_short(place, route)})
    chosen = {name: best(name, trials, target, reference)["settings"] for name, trials in tried.items()}
    found = {"chosen": chosen, "tried": tried, "tuning": {"target": target, "retrain": reference}}
    write_json(found, path)
    return found


def trial(name: str, values: Mapping[str, Any]) -> tuple[Route, dict[str, Any]]:
    """Return the route that is tried under a name with some values, and all of its settings."""
    if name == "private":
        return Private(TUNED_EPSILON, "sequence", {**PRIVATE, **values}), {**PRIVATE, **values}
    if name == "adapters":
        return Reserved({**ADAPTER, **values}), {**ADAPTER, **values}
    return Unlearned(name, {**METHOD, **values}), {**METHOD, **values}


def best(
    name: str, trials: Sequence[dict[str, Any]], target: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, Any]:
    """Return the trial that the rule of `choose` takes."""
    if name in ("private", "adapters"):
        return max(trials, key=lambda trial: float(trial["retain.probability"]))
    kept = [trial for trial in trials if trial["retain.probability"] >= KEEP * target["retain.probability"]]
    if not kept:
        return max(trials, key=lambda trial: float(trial["retain.probability"]))
    return min(kept, key=lambda trial: abs(trial["forget.probability"] - reference["forget.probability"]))


def _short(place: Place, route: Route) -> dict[str, float]:
    """Return the values of a prepared route after the request on the tuning archive."""
    route.serve(place)
    found = _metrics(route.answers(place, after=True), place.world)
    return {name: float(entry["value"]) for name, entry in found.items()}


def one_seed(root: Path, seed: int, size: Size, chosen: Choice) -> dict[str, Any]:
    """Carry out every route on one archive that is not done yet; return the results by route."""
    world = build_world(root, seed=seed, size=size)
    plan = routes(chosen, customers=len(world.customers))
    files = {name: root / "results" / f"{name.replace(',', '').replace(' ', '-')}.json" for name in plan}
    last: tuple[float, str] | None = None
    for pair in pairs(list(plan)):
        todo = [name for name in pair if not files[name].exists()]
        if not todo:
            last = None
            continue
        before = last or retraining(world)
        target = json.loads(files["target"].read_text("utf-8")) if files["target"].exists() else None
        done: dict[str, Any] = {}
        for name in todo:
            place = Place(world, emptied(root / f"route-{pair.index(name)}"), AUDIT)
            done[name] = carry_out(plan[name], place, target or done.get("target"))
        last = retraining(world)
        for name, result in done.items():
            around = {"seconds": [before[0], last[0]], "digests": [before[1], last[1]]}
            write_json({**result, "retraining": around}, files[name])
    return {name: json.loads(path.read_text("utf-8")) for name, path in files.items()}


def pairs(names: Sequence[str]) -> list[Sequence[str]]:
    """Return names two by two."""
    return [names[i : i + 2] for i in range(0, len(names), 2)]


def retraining(world: World) -> tuple[float, str]:
    """Return the processor seconds of retraining without the person, and the digest of the result."""
    seconds, said = timed(Place(world, emptied(world.root / "beside"), AUDIT), Retrained().serve)
    return seconds, str(said["digest"])


def carry_out(route: Route, place: Place, target: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Prepare, measure, serve and measure again; return what was found.

    Args:
        route: to carry out.
        place: where.
        target: what was found on the target, which routes that share it were before they served.
    """
    world = place.world
    prepared = None if route.shares_target else timed(place, route.prepare)[0]
    shared = target["after"] if route.shares_target and target else None
    before = shared or _found(route.answers(place, after=False), world)
    served, said = timed(place, route.serve)
    after = _found(route.answers(place, after=True), world) if route.changes else before
    return {
        "claim": route.claim, "sentence": "" if route.claim is None else SENTENCES[route.claim], "needs": route.needs,
        "passes": route.passes(place), "prepare_seconds": prepared, "serve_seconds": served,
        "typical": route.typical(place), "kept_bytes": route.kept(place), "model_bytes": weights_in(Path(world.base)),
        "served": said, "request": len(world.request), "retained": len(world.retained),
        "before": before, "after": after,
    }  # fmt: skip


def _found(answers: Answers, world: World) -> dict[str, Any]:
    shown = findings(answers.canaries, world.manifest.thresholds, "other", CANARY).to_dict()
    return {"metrics": _metrics(answers, world), "canaries": shown, "scoring_seconds": answers.seconds}


def _metrics(answers: Answers, world: World) -> dict[str, Any]:
    found = compute_metrics(answers.records, protocol=default_protocol(world.sets), config=AUDIT)
    return {name: one.to_dict() for name, one in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are tiny: a second thread only waits for the first
    study(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/costs"))
