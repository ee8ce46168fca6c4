# SPDX-License-Identifier: Apache-2.0
"""The routes of the cost study: how each prepares for requests, and how it serves one."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from expunge.api.memory import unlearn
from expunge.api.privacy import dp_statement
from expunge.api.routing import Router, routed_records
from expunge.api.sisa import sisa_forget, sisa_train
from expunge.api.tenants import tenant_remove, tenants_recipe
from expunge.api.train import train
from expunge.api.workspace import load
from expunge.audit.canaries.counts import CanaryScores
from expunge.audit.canaries.measure import score_canaries
from expunge.audit.collect import collect
from expunge.audit.config import AuditConfig
from expunge.audit.records import Records
from expunge.claims import ClaimKind
from expunge.data.encoding import Encoder
from expunge.methods.registry import get_method
from expunge.models.config import ModelConfig
from expunge.models.loading import context_length, save_model
from expunge.recipe import SisaRecipe, TrainRecipe, merge
from expunge.runs import read_run
from expunge.studies.costs_world import TEMPLATE, World

#: How customers are learned by every route with whole models that are not private: rate and batch of the demo.
TRAINING: Mapping[str, Any] = {"learning_rate": 4e-3, "epochs": 10, "batch_size": 16}
#: Shape of an adapter; it trains as long.
LORA: Mapping[str, Any] = {"r": 8}
DELTA = 1e-4
#: Nothing that measures may be part of a time: probes come once in so many steps.
_NEVER = 1_000_000


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says to every evaluated answer, to the canaries, and the processor seconds it took to score."""

    records: Records
    canaries: CanaryScores
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where one route on one world works, with what settings.

    Attributes:
        world: archive, base, request, manifest.
        folder: of the route; emptied before.
        audit: how models are measured.
        training: of customers.
    """

    world: World
    folder: Path
    audit: AuditConfig
    training: Mapping[str, Any] = field(default_factory=lambda: dict(TRAINING))

    @property
    def target(self) -> Path:
        """The run of the target, which several routes begin with."""
        return self.world.root / "target"

    def config(self, path: str) -> ModelConfig:
        """Return how a model is loaded."""
        return ModelConfig(path=path, dtype="float32", device="cpu")

    def settings(self, name: str, source: str, training: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of training the base on one of the world's files."""
        return {
            "name": name, "seed": self.world.seed, "model": self.config(self.world.base).model_dump(),
            "data": {"train": self.world.source(source), "template": TEMPLATE}, "training": dict(training),
        }  # fmt: skip


def trained(place: Place, folder: Path, source: str, training: Mapping[str, Any]) -> Path:
    """Train the base on a file and return the run folder."""
    recipe = TrainRecipe.build(place.settings(folder.name, source, training))
    return train(recipe, output_dir=folder, overwrite=True)


def measured(place: Place, path: str) -> Answers:
    """Score everything on a model or an ensemble of them."""
    model, tokenizer = load(place.config(path), path, dtype="float32")
    encoder = Encoder(tokenizer, template=TEMPLATE, max_length=context_length(model))
    started = time.process_time()
    records = collect(model, encoder, place.world.sets, config=place.audit)
    seconds = time.process_time() - started
    return Answers(records, score_canaries(model, encoder, place.world.manifest), seconds)


class Route(ABC):
    """One way to hold private data and to let a person leave.

    Attributes:
        claim: kind of claim, None where nothing is done.
        needs: what must still be there to serve a request, beside the weights.
        shares_target: it is prepared once the target is trained.
        changes: serving changes the weights.
    """

    claim: ClassVar[ClaimKind | None]
    needs: ClassVar[str]

    shares_target: ClassVar[bool] = False
    changes: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, place: Place) -> None:
        """Learn the customers."""

    @abstractmethod
    def serve(self, place: Place) -> dict[str, Any]:
        """Serve the request, and return what there is to say of it."""

    @abstractmethod
    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the models as they answer before or after the request."""

    def passes(self, place: Place) -> int:
        """Return the models that one token of an answer passes through."""
        del place
        return 1

    def typical(self, place: Place) -> float | None:
        """Return the share of retraining that another customer's request would read, on average; None if not known."""
        del place
        return None

    @abstractmethod
    def kept(self, place: Place) -> int:
        """Return the bytes of weights that must be kept, once the request is served, to answer and to serve another."""


@dataclass(frozen=True, slots=True)
class Untouched(Route):
    """The target: all customers in one model, and nobody leaves."""

    claim: ClassVar[ClaimKind | None] = None
    needs: ClassVar[str] = "–"
    changes: ClassVar[bool] = False

    def prepare(self, place: Place) -> None:
        """Train the target."""
        trained(place, place.target, "private", place.training)

    def serve(self, place: Place) -> dict[str, Any]:
        """Do nothing."""
        return {}

    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the target, whatever was asked."""
        return measured(place, str(place.target / "model"))

    def kept(self, place: Place) -> int:
        """Return one model."""
        return weights_in(place.target / "model")


@dataclass(frozen=True, slots=True)
class Retrained(Untouched):
    """Train again from the public model, without the person."""

    claim: ClassVar[ClaimKind | None] = ClaimKind.EXACT
    needs: ClassVar[str] = "all other records"
    shares_target: ClassVar[bool] = True
    changes: ClassVar[bool] = True

    def serve(self, place: Place) -> dict[str, Any]:
        """Train on what stays."""
        run = trained(place, place.folder / "retrained", "retained", place.training)
        return {"digest": read_run(run)["model"]["result_digest"]}

    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the target before, and the retrained model after."""
        return measured(place, str((place.folder / "retrained" if after else place.target) / "model"))

    def kept(self, place: Place) -> int:
        """Return the model and the public one it starts from."""
        return weights_in(place.folder / "retrained" / "model") + weights_in(Path(place.world.base))


@dataclass(frozen=True, slots=True)
class Unlearned(Untouched):
    """A method of `expunge run` on the target."""

    method: str
    training: Mapping[str, Any]
    claim: ClassVar[ClaimKind | None] = ClaimKind.APPROXIMATE
    needs: ClassVar[str] = "the request and records to keep"
    shares_target: ClassVar[bool] = True
    changes: ClassVar[bool] = True

    def serve(self, place: Place) -> dict[str, Any]:
        """Load the target, change it, and save it."""
        path = str(place.target / "model")
        model, tokenizer = load(place.config(path), path, dtype="float32")
        found = unlearn(
            model, tokenizer, forget=place.world.request, retain=place.world.retained, method=self.method,
            training={**self.training, "probe_every": _NEVER}, template=TEMPLATE, seed=place.world.seed,
        )  # fmt: skip
        save_model(found.model, tokenizer, place.folder / "unlearned", overwrite=True)
        return {"steps": found.steps, "card": get_method(self.method).card.claim}

    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the target before, and the changed model after."""
        return measured(place, str(place.folder / "unlearned" if after else place.target / "model"))

    def kept(self, place: Place) -> int:
        """Return one model."""
        return weights_in(place.folder / "unlearned")


@dataclass(frozen=True, slots=True)
class Sharded(Route):
    """SISA: whole models, each on its own part, answering by the mean of their probabilities."""

    shards: int
    slices: int
    claim: ClassVar[ClaimKind | None] = ClaimKind.EXACT
    needs: ClassVar[str] = "the other records of the shard"

    def prepare(self, place: Place) -> None:
        """Train all shards, one after the other."""
        extra = {"sisa": {"shards": self.shards, "slices": self.slices}}
        recipe = SisaRecipe.build(merge(place.settings("sisa", "private", place.training), extra))
        sisa_train(recipe, output_dir=place.folder / "sisa", overwrite=True, processes=1)

    def serve(self, place: Place) -> dict[str, Any]:
        """Train what saw the person again, without."""
        found = sisa_forget(place.folder / "sisa", subjects=[place.world.leaver], processes=1)
        return {"rows_read": found.rows_read, "rows_plain": found.rows_plain, "examples": found.examples,
                "first_stages": {str(shard): first for shard, first in found.shards.items()}}  # fmt: skip

    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the shards together, as they are now."""
        return measured(place, str(place.folder / "sisa" / "model"))

    def passes(self, place: Place) -> int:
        """Return the number of shards."""
        return self.shards

    def typical(self, place: Place) -> float | None:
        """Return the mean over all other customers, each by the plan as it is after the request."""
        others = [who for who in place.world.customers if who != place.world.leaver]
        found = [sisa_forget(place.folder / "sisa", subjects=[who], dry_run=True) for who in others]
        return sum(one.rows_read / one.rows_plain for one in found) / len(found)

    def kept(self, place: Place) -> int:
        """Return every checkpoint, and the model they start from."""
        return weights_in(place.folder / "sisa" / "shards") + weights_in(Path(place.world.base))


@dataclass(frozen=True, slots=True)
class Reserved(Route):
    """An adapter for every customer; that of the customer whom a question is about answers it."""

    training: Mapping[str, Any]
    claim: ClassVar[ClaimKind | None] = ClaimKind.EXACT
    needs: ClassVar[str] = "nothing"

    def prepare(self, place: Place) -> None:
        """Train every adapter."""
        settings = place.settings("tenants", "private", self.training)
        sisa_train(tenants_recipe(settings), output_dir=place.folder / "tenants", overwrite=True, processes=1)

    def serve(self, place: Place) -> dict[str, Any]:
        """Delete the person's adapter."""
        done = tenant_remove(place.folder / "tenants", place.world.leaver)
        return {"examples": done.examples, "files": len(done.files)}

    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the adapters as they answer now; one who left is answered by the public model."""
        world, router = place.world, Router(place.folder / "tenants")
        encoder = router.encoder()
        started = time.process_time()
        records = routed_records(router, world.sets, place.audit, encoder=encoder)
        seconds = time.process_time() - started
        own = router.at(world.leaver if world.leaver in router.tenants else None)
        return Answers(records, score_canaries(own, encoder, world.manifest), seconds)

    def kept(self, place: Place) -> int:
        """Return every adapter, and the model they go on."""
        return weights_in(place.folder / "tenants" / "shards") + weights_in(Path(place.world.base))


@dataclass(frozen=True, slots=True)
class Private(Route):
    """Private training: the bound of the request holds before it comes, and nothing is done."""

    epsilon: float
    unit: str
    training: Mapping[str, Any]
    claim: ClassVar[ClaimKind | None] = ClaimKind.STATISTICAL
    needs: ClassVar[str] = "nothing"
    changes: ClassVar[bool] = False

    def prepare(self, place: Place) -> None:
        """Train with noise found for the epsilon; units of several sequences need gradients one by one."""
        clipping = "ghost" if self.unit == "sequence" else "per_sample"
        privacy = {"epsilon": self.epsilon, "delta": DELTA, "unit": self.unit, "clipping": clipping}
        trained(place, place.folder / "private", "private", merge(self.training, {"privacy": privacy}))

    def serve(self, place: Place) -> dict[str, Any]:
        """Answer with the bound: for one unit, and for everything in the person's name."""
        run = place.folder / "private"
        records = 1 if self.unit == "subject" else len(place.world.request)
        keys = ("epsilon", "delta", "group_size", "says_something", "reason", "formula", "of_one")
        found = dp_statement(run, records)
        return {"statement": {key: found[key] for key in keys}, "unit": self.unit}

    def answers(self, place: Place, *, after: bool) -> Answers:
        """Measure the one model there is."""
        return measured(place, str(place.folder / "private" / "model"))

    def kept(self, place: Place) -> int:
        """Return one model."""
        return weights_in(place.folder / "private" / "model")


def weights_in(folder: Path) -> int:
    """Return the bytes of all weight files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def timed(place: Place, work: Callable[[Place], Any]) -> tuple[float, Any]:
    """Return the processor seconds of this process that something took, and what it returned."""
    started = time.process_time()
    found = work(place)
    return time.process_time() - started, found


def emptied(folder: Path) -> Path:
    """Return a folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
