# SPDX-License-Identifier: Apache-2.0
"""The studies of a benchmark over several requests: its forget sets, its protocol, any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from expunge.api.train import train
from expunge.api.workspace import Silent, Watcher
from expunge.benchmarks.muse import MUSE, forget_folds, nested_forget_sets
from expunge.data.examples import Example
from expunge.data.fictitious import Archive, build_archive
from expunge.data.writing import write_examples
from expunge.errors import RecipeError, nearest
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.recipe import TrainRecipe, build_recipe, merge
from expunge.studies.collapse import Collapse, collapse
from expunge.studies.demo import METHODS, SHAPE, TRAINING
from expunge.studies.scalability import scalability
from expunge.studies.steps import Study
from expunge.studies.sustainability import sustainability

Criterion = Literal["scalability", "sustainability", "collapse"]
CRITERIA: tuple[Criterion, ...] = ("scalability", "sustainability", "collapse")
#: Learning rates of a collapse map.
RATES = (3e-4, 1e-3, 3e-3)
#: Invented people, the share of them that one request names, and how many requests there are.
PEOPLE, SHARE, REQUESTS = 20, 0.1, 3


def run_criterion(
    benchmark: str,
    criterion: str,
    settings: Mapping[str, Any],
    *,
    folder: Path,
    data_dir: Path | None = None,
    split: str = "news",
    requests: int | None = None,
    people: int = PEOPLE,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = (),
    overwrite: bool = False,
    commands: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Study | Collapse:
    """Run one of the studies on the forget sets of a benchmark.

    Args:
        benchmark: `muse`, whose recipe needs a model, and a retain set if the method does; or `fictitious`, which
            invents an archive and trains its own model and reference unless the recipe names them.
        criterion: `scalability` (more asked for at once), `sustainability` (one request after the other), or, of
            `fictitious` only, `collapse` (both, at several learning rates).
        settings: nested settings of a recipe, the method above all.
        folder: where everything goes; what `fictitious` invents and trains stands beside it, in `<folder>-world`.
        data_dir: folder with the files of `muse`.
        split: corpus of `muse`.
        requests: how many steps; default: all four folds of `muse`, three requests of `fictitious`.
        people: size of the archive of `fictitious`; each request names a tenth of them.
        rates: learning rates of `collapse`.
        seeds: of the runs; default: the recipe's.
        overwrite: start again where a study already is.
        commands: how to reproduce the study.
        watcher: follows the runs.

    Raises:
        RecipeError: for a benchmark or criterion without such a study, or settings that cannot run.
        InputDataError: for files that are missing or cannot be used.
    """
    if criterion not in CRITERIA:
        raise RecipeError("no such study", field="criterion", value=criterion, remedy=nearest(criterion, CRITERIA))
    if benchmark == "muse" and criterion != "collapse":
        return _muse(
            criterion, settings, folder=folder, data_dir=data_dir, split=split, requests=requests, seeds=seeds,
            overwrite=overwrite, commands=commands, watcher=watcher,
        )  # fmt: skip
    if benchmark == "fictitious":
        return _fictitious(
            criterion, settings, folder=folder, requests=requests or REQUESTS, people=people, rates=rates,
            seeds=seeds, overwrite=overwrite, commands=commands, watcher=watcher,
        )  # fmt: skip
    known = ("fictitious",) if criterion == "collapse" else ("muse", "fictitious")
    raise RecipeError("has no such study", field="benchmark", value=benchmark, remedy=nearest(benchmark, known))


def _muse(
    criterion: str, settings: Mapping[str, Any], *, folder: Path, data_dir: Path | None, split: str,
    requests: int | None, seeds: Sequence[int], overwrite: bool, commands: Sequence[str], watcher: Watcher | None,
) -> Study:  # fmt: skip
    """Measure VerbMem, KnowMem, leakage and utility after every fold."""
    loaded = MUSE.load(data_dir, split=split)
    retain = None if data_dir is None else data_dir / split / "raw" / "retain1.json"
    own = dict(settings)
    if retain is not None and retain.is_file():
        own = merge({"data": {"retain": str(retain)}}, own)
    if criterion == "scalability":
        sets, note = nested_forget_sets(data_dir, split)
        return scalability(
            own, sources=list(sets.values())[:requests], folder=folder, seeds=seeds, benchmark=loaded,
            notes=[note] if note else [], overwrite=overwrite, commands=commands, watcher=watcher,
        )  # fmt: skip
    return sustainability(
        own, requests=list(forget_folds(data_dir, split).values())[:requests], folder=folder, seeds=seeds,
        benchmark=loaded, overwrite=overwrite, commands=commands, watcher=watcher,
    )  # fmt: skip


def _fictitious(
    criterion: str, settings: Mapping[str, Any], *, folder: Path, requests: int, people: int,
    rates: Sequence[float], seeds: Sequence[int], overwrite: bool, commands: Sequence[str], watcher: Watcher | None,
) -> Study | Collapse:  # fmt: skip
    """Ask for the last people of an archive, a tenth of all a request."""
    seed, given = int(settings.get("seed", 0)), settings.get("model") or {}
    archive, world = build_archive(people, seed=seed), folder.with_name(f"{folder.name}-world")
    asked = _people_asked(archive, requests)
    shared: dict[str, Any] = {
        "seed": seed, "data": _write_world(world / "data", archive, asked),
        "training": {"batch_size": 16, "optimizer": {"weight_decay": 0.0}}, "audit": {"max_new_tokens": 32},
    }  # fmt: skip
    name = str((settings.get("method") or {}).get("name", ""))
    own = merge(merge(shared, METHODS.get(name, {})), settings)
    if "path" not in given:
        models = {"path": str(world / "target" / "model"), "reference": str(world / "reference" / "model"),
                  "base": str(world / "base")}  # fmt: skip
        own = merge(own, {"model": {**models, **given}})
    build_recipe(merge(own, {"data": {"forget": "checked"}}))  # before minutes of training
    if "path" not in given:
        _train_world(world, archive, seed=seed, overwrite=overwrite, watcher=watcher or Silent())
    count = requests * _per_request(archive)
    note = f"Of {people} invented people the last {count} are asked for. The reference never saw any of them."
    if criterion == "collapse":
        return collapse(
            own, requests=asked, rates=rates, folder=folder, seeds=seeds, notes=[note], overwrite=overwrite,
            commands=commands, watcher=watcher,
        )  # fmt: skip
    if criterion == "scalability":
        grown = [[e for group in asked[:k] for e in group] for k in range(1, requests + 1)]
        return scalability(
            own, sources=grown, folder=folder, seeds=seeds, notes=[note], overwrite=overwrite, commands=commands,
            watcher=watcher,
        )  # fmt: skip
    return sustainability(
        own, requests=asked, folder=folder, seeds=seeds, notes=[note], overwrite=overwrite, commands=commands,
        watcher=watcher,
    )  # fmt: skip


def _per_request(archive: Archive) -> int:
    return max(1, round(SHARE * len(archive.people)))


def _people_asked(archive: Archive, requests: int) -> list[list[Example]]:
    """Return the facts of the last people, in requests of equal size.

    Raises:
        RecipeError: if more than half of the people would be asked for.
    """
    size, people = _per_request(archive), archive.people
    if not 0 < requests * size <= len(people) // 2:
        raise RecipeError(
            f"{len(people)} people allow 1 to {len(people) // 2 // size}", field="requests", value=requests,
            remedy="Ask for fewer",
        )  # fmt: skip
    starts = range(len(people) - requests * size, len(people), size)
    return [[fact.example() for person in people[s : s + size] for fact in person.facts] for s in starts]


def _write_world(folder: Path, archive: Archive, asked: Sequence[Sequence[Example]]) -> dict[str, Any]:
    """Write the sets that every step shares and return the data part of the recipe."""
    gone = {example.subject for examples in asked for example in examples}
    kept = [person for person in archive.people if person.id not in gone]
    retained, world = [fact for person in kept for fact in person.facts], list(archive.world)
    sets = {
        "train_full": archive.training_examples("full"),
        "train_retain": [e for fact in [*retained, *world] for e in fact.training_examples()],
        "retain": [fact.example() for fact in retained],
        "holdout": [fact.example() for person in archive.holdout for fact in person.facts],
        "world_facts": [fact.example() for fact in world],
    }
    path = {name: str(write_examples(examples, folder / f"{name}.jsonl")) for name, examples in sets.items()}
    return {
        "retain": path["train_retain"], "holdout": path["holdout"], "extra": {"world_facts": path["world_facts"]},
        "evaluate": {"retain": path["retain"]}, "template": "question",
    }  # fmt: skip


def _train_world(world: Path, archive: Archive, *, seed: int, overwrite: bool, watcher: Watcher) -> None:
    """Train the model that knows everyone and the one that never saw the people asked for, unless they are there."""
    if overwrite or not (world / "base").is_dir():
        tokenizer = build_tokenizer(archive.texts())
        save_model(build_llama(len(tokenizer), seed=seed, **SHAPE), tokenizer, world / "base", overwrite=True)
    for name, which in (("target", "full"), ("reference", "retain")):
        watcher.heading(f"{name}: trained on {'everyone' if name == 'target' else 'those who stay'}")
        data = world / "data"
        settings = {
            "name": name, "seed": seed, "model": {"path": str(world / "base")}, "training": dict(TRAINING),
            "data": {"train": str(data / f"train_{which}.jsonl"), "retain": str(data / "retain.jsonl"),
                     "template": "question"},
        }  # fmt: skip
        train(
            TrainRecipe.build(settings), output_dir=world / name, overwrite=overwrite, resume=not overwrite,
            watcher=watcher,
        )  # fmt: skip
