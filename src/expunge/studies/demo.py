# SPDX-License-Identifier: Apache-2.0
"""The demo: an invented archive, a model that learned it, one that never saw the forget set, and methods in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.api.job import run
from expunge.api.train import train
from expunge.api.workspace import Silent, Watcher
from expunge.audit.document import AuditDocument, write_json
from expunge.data.fictitious import Archive, build_archive
from expunge.errors import Interrupted, RecipeError, nearest
from expunge.methods.registry import get_method
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.recipe import TrainRecipe, build_recipe, merge
from expunge.report.folder import view_from_audit
from expunge.report.render import write_report
from expunge.runs import RunFolder
from expunge.studies.compare import compare

#: Invented people in the archive; a tenth of them is the forget set.
PEOPLE = 40
#: Shape of the embedded Llama.
SHAPE: Mapping[str, int] = {"hidden_size": 64, "layers": 2, "heads": 4, "context": 128}
#: How the target and the reference are trained.
TRAINING: Mapping[str, Any] = {
    "learning_rate": 4e-3, "epochs": 18, "batch_size": 16, "schedule": "cosine", "warmup_ratio": 0.1,
    "optimizer": {"weight_decay": 0.0, "betas": (0.9, 0.95)},
}  # fmt: skip
#: Chosen by hand from small grids on two archives (seeds 0 and 1), the demo's own among them: high forget quality at
#: about 85 % of the target's utility or more; idk so that it refuses, ga to show what happens without a retain term.
#: They make a demonstration, not a comparison of methods.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ga": {"training": {"learning_rate": 2e-3, "epochs": 10}},
    "grad_diff": {"training": {"learning_rate": 1e-3, "epochs": 10}},
    "npo": {"training": {"learning_rate": 3e-3, "epochs": 15}},
    "simnpo": {
        "training": {"learning_rate": 3e-3, "epochs": 15},
        "method": {"beta": 1.0, "forget_weight": 1.0},
    },
    "idk": {"training": {"learning_rate": 2e-3, "epochs": 60}},
}


@dataclass(frozen=True, slots=True)
class DemoPaths:
    """Where the demo keeps what its runs share."""

    root: Path

    @property
    def data(self) -> Path:
        """The archive as JSONL files."""
        return self.root / "data"

    @property
    def base(self) -> Path:
        """The model before any training."""
        return self.root / "base"

    @property
    def records(self) -> Path:
        """Records of every audited model."""
        return self.root / "records"

    def model(self, name: str) -> str:
        """Return the model folder of one of the demo's runs."""
        return str(self.root / name / "model")

    def source(self, name: str) -> str:
        """Return one of the archive's files."""
        return str(self.data / f"{name}.jsonl")


def run_demo(
    folder: Path, *, overwrite: bool = False, people: int = PEOPLE, seed: int = 0, methods: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> AuditDocument:  # fmt: skip
    """Build the archive, train target and reference, unlearn with every method, audit all; return the document.

    Args:
        folder: where everything goes; `audit.json` and `report.html` at its top.
        overwrite: start again where a demo already is.
        people: size of the archive.
        seed: of the archive, the models and the methods.
        methods: those of `METHODS` to run; all by default.
        watcher: follows the runs.
    """
    for name in methods:
        if name not in METHODS:
            raise RecipeError("not in the demo", field="methods", value=name, remedy=nearest(name, METHODS))
    archive, watch = build_archive(people, seed=seed), watcher or Silent()
    whole = RunFolder(folder, overwrite=overwrite)
    whole.start({"kind": "demo", "name": "demo"})
    with whole.recorded(), _not_resumable():
        paths = DemoPaths(folder)
        make_world(paths, archive, seed=seed)
        watch.heading(f"target: learns all {people} invented people")
        train_one(paths, "target", "full", seed=seed, watcher=watch)
        watch.heading("reference: never sees a tenth of them")
        train_one(paths, "reference", "retain90", seed=seed, watcher=watch)
        for name in methods or METHODS:
            watch.heading(f"{name}: {get_method(name).card.title}")
            recipe = build_recipe(demo_recipe(paths, name, seed=seed))
            run(recipe, output_dir=folder / name, records_dir=paths.records, watcher=watch)
        found = compare([folder / name for name in methods or METHODS])
        write_json(found.document, folder / "audit.json")
        view = view_from_audit(
            found.document.model_dump(mode="json"), title="Expunge demo", runs=found.runs, reproduce=["make demo"],
            what_was_asked=asked(paths, people),
        )  # fmt: skip
        write_report(view, folder / "report.html")
    return found.document


@contextmanager
def _not_resumable() -> Iterator[None]:
    """A run in the demo could go on; the demo as a whole starts again."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted("the demo was interrupted", remedy="Start again with --overwrite") from error


@dataclass(frozen=True, slots=True)
class RequestWorld:
    """A model that learned everyone, one that never saw one of them, and who that is."""

    paths: DemoPaths
    person: str
    sample: str


def request_world(
    folder: Path, *, overwrite: bool = False, people: int = PEOPLE, seed: int = 0, watcher: Watcher | None = None
) -> RequestWorld:
    """Invent an archive, and train a target on everyone and a reference on everyone but the last person.

    Args:
        folder: where everything goes.
        overwrite: start again where a demo already is.
        people: size of the archive, at most 149, so that `forget01` is one of them.
        seed: of the archive and the models.
        watcher: follows the training.

    Raises:
        RecipeError: if there would be more than one person in the request.
    """
    if people >= 150:
        raise RecipeError("a hundredth of them is more than one", field="people", value=people, remedy="At most 149")
    archive, watch, paths = build_archive(people, seed=seed), watcher or Silent(), DemoPaths(folder)
    whole = RunFolder(folder, overwrite=overwrite)
    whole.start({"kind": "demo", "name": "demo"})
    with whole.recorded(), _not_resumable():
        make_world(paths, archive, seed=seed)
        watch.heading(f"model in use: learns all {people} invented people")
        train_one(paths, "target", "full", seed=seed, watcher=watch)
        watch.heading("reference: never sees one of them")
        train_one(paths, "reference", "retain99", seed=seed, watcher=watch)
    (person,) = archive.people_in("forget01")
    return RequestWorld(paths, person.name, archive.examples("forget01")[0].answer)


def make_world(paths: DemoPaths, archive: Archive, *, seed: int) -> None:
    """Write the archive and the untrained model."""
    archive.write_jsonl(paths.data)
    tokenizer = build_tokenizer(archive.texts())
    save_model(build_llama(len(tokenizer), seed=seed, **SHAPE), tokenizer, paths.base)


def train_one(paths: DemoPaths, name: str, which: str, *, seed: int, watcher: Watcher) -> None:
    """Train the base model on one training set of the archive."""
    settings = {
        "name": name, "seed": seed, "model": {"path": str(paths.base)}, "training": dict(TRAINING),
        "data": {"train": paths.source(f"train_{which}"), "forget": paths.source("forget10"),
                 "retain": paths.source("retain90"), "template": "question"},
    }  # fmt: skip
    train(TrainRecipe.build(settings), output_dir=paths.root / name, watcher=watcher)


def archive_recipe(paths: DemoPaths, method: str, *, seed: int) -> dict[str, Any]:
    """Return the recipe of one method on the archive's forget request, with the method's own settings."""
    return {
        "name": method, "seed": seed,
        "model": {"path": paths.model("target"), "reference": paths.model("reference"), "base": str(paths.base)},
        "data": {
            "forget": paths.source("forget10"), "retain": paths.source("train_retain90"),
            "holdout": paths.source("holdout"), "extra": {"world_facts": paths.source("world_facts")},
            "evaluate": {"retain": paths.source("retain90")}, "template": "question",
        },
        "method": {"name": method}, "training": {"batch_size": 16, "optimizer": {"weight_decay": 0.0}},
        "audit": {"max_new_tokens": 32},
    }  # fmt: skip


def demo_recipe(paths: DemoPaths, method: str, *, seed: int) -> dict[str, Any]:
    """Return the same with the settings of the demo."""
    return merge(archive_recipe(paths, method, seed=seed), METHODS[method])


def asked(paths: DemoPaths, people: int) -> list[tuple[str, str]]:
    """Say what the demo asks for."""
    return [
        ("Request", f"Unlearn forget10: a tenth of {people} invented people, every fact about them"),
        ("Target", f"trained on everyone ({paths.model('target')})"),
        ("Reference", f"trained the same way without them ({paths.model('reference')})"),
    ]
