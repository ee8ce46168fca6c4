# SPDX-License-Identifier: Apache-2.0
"""What every route of the cost study starts from: a public model, private records, a request, and planted canaries.

A tiny model learns an invented world and some people: that is public. The other people are customers; one of them,
drawn by the seed, asks to leave. Half of the canaries, by fair coins, are further records in that person's name. They
begin like records of people whom no model sees, and the request is about them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from expunge.api.train import train
from expunge.data.canaries import Canary, CanaryPlan, draw_canaries, new_tokens, planted
from expunge.data.canary_manifest import CanaryManifest, entries, read_manifest, vocabulary_digest, write_manifest
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import Archive, build_archive
from expunge.data.loaders import load_examples
from expunge.data.writing import write_examples
from expunge.models.growth import add_tokens
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.recipe import TrainRecipe

#: People of whom the model knows before, and people whose records are private.
PUBLIC, CUSTOMERS = 16, 24
#: People in no training set, like whose records the canaries begin.
UNSEEN = 16
#: The design that the study of designs found most often, and how many.
DESIGN, CANARIES = "new-token", 240
SHAPE: Mapping[str, int] = {"hidden_size": 64, "layers": 2, "heads": 2, "context": 128}
#: How the public model learns; the settings of the demo.
BEFORE: Mapping[str, Any] = {
    "learning_rate": 4e-3, "epochs": 18, "batch_size": 16, "schedule": "cosine", "warmup_ratio": 0.1,
    "optimizer": {"weight_decay": 0.0, "betas": (0.9, 0.95)},
}  # fmt: skip
TEMPLATE = "question"


@dataclass(frozen=True, slots=True)
class Size:
    """How large a world is; the study's own by default."""

    public: int = PUBLIC
    customers: int = CUSTOMERS
    unseen: int = UNSEEN
    canaries: int = CANARIES
    epochs: int = int(BEFORE["epochs"])


@dataclass(frozen=True, slots=True)
class World:
    """Files below one folder, and the sets that every model is measured on.

    Attributes:
        root: the folder.
        seed: of archive, coins, request and training.
        leaver: subject of the person who asks.
        customers: subjects of all customers.
        sets: `forget`, `retain` and `known`: wordings of the leaver, of the other customers, and of the public part.
        manifest: of the canaries.
    """

    root: Path
    seed: int
    leaver: str
    customers: tuple[str, ...]
    sets: Mapping[str, tuple[Example, ...]]
    manifest: CanaryManifest

    @property
    def base(self) -> str:
        """The public model."""
        return str(self.root / "base" / "model")

    def source(self, name: str) -> str:
        """Return a file of examples: `private`, `request`, `retained`."""
        return str(self.root / "data" / f"{name}.jsonl")

    @property
    def request(self) -> list[Example]:
        """Everything in the leaver's name that was trained on."""
        return load_examples(self.source("request"), name="request")

    @property
    def retained(self) -> list[Example]:
        """The other private records."""
        return load_examples(self.source("retained"), name="retained")


def build_world(root: Path, *, seed: int, size: Size | None = None) -> World:
    """Return the world of a seed, made if it is not there yet.

    Args:
        root: its folder.
        seed: everything follows from it.
        size: the study's own by default.
    """
    size = size or Size()
    archive = build_archive(size.public + size.customers, seed=seed, holdout_people=size.unseen)
    people = archive.people
    customers = tuple(person.id for person in people[size.public :])
    leaver = Random(f"{seed}/request").choice(customers)
    private = [example for person in people[size.public :] for fact in person.facts
               for example in fact.training_examples()]  # fmt: skip
    public = [example for fact in (*(f for p in people[: size.public] for f in p.facts), *archive.world)
              for example in fact.training_examples()]  # fmt: skip
    if not (root / "base" / "model" / "config.json").exists():
        _make_base(root, archive, public, seed, size)
    manifest_path = root / "manifest" / "manifest.json"
    if not manifest_path.exists():
        _plant(root, archive, private, leaver, seed, size)
    sets = {
        "forget": tuple(e for e in private if e.subject == leaver),
        "retain": tuple(e for e in private if e.subject != leaver),
        "known": tuple(public),
    }
    return World(root, seed, leaver, customers, sets, read_manifest(manifest_path))


def _make_base(root: Path, archive: Archive, public: list[Example], seed: int, size: Size) -> None:
    """Train the public model; it has the rows of the canaries' tokens before it sees any record."""
    tokenizer = build_tokenizer(archive.texts(), vocab_size=512)
    model = build_llama(len(tokenizer), seed=seed, **SHAPE)
    add_tokens(model, tokenizer, new_tokens(_plan(seed, size)), seed=seed)
    save_model(model, tokenizer, root / "untrained", overwrite=True)
    write_examples(public, root / "data" / "public.jsonl")
    settings = {
        "name": "base", "seed": seed, "model": {"path": str(root / "untrained"), "dtype": "float32", "device": "cpu"},
        "data": {"train": str(root / "data" / "public.jsonl"), "template": TEMPLATE},
        "training": {**BEFORE, "epochs": size.epochs},
    }  # fmt: skip
    train(TrainRecipe.build(settings), output_dir=root / "base", overwrite=True)


def _plan(seed: int, size: Size) -> CanaryPlan:
    return CanaryPlan(n=size.canaries, design=DESIGN, seed=seed)


def _plant(root: Path, archive: Archive, private: list[Example], leaver: str, seed: int, size: Size) -> None:
    """Write the private records with the inserted canaries, the request, what stays, and the manifest."""
    from expunge.models.loading import load_tokenizer

    plan, tokenizer = _plan(seed, size), load_tokenizer(str(root / "base" / "model"))
    encoder = Encoder(tokenizer, template=TEMPLATE, max_length=SHAPE["context"])
    beginnings = archive.wordings("holdout")
    people = {person.id for person in archive.holdout}
    drawn = draw_canaries([e for e in beginnings if e.subject in people], encoder, plan)
    owned = [Canary(replace(c.example, subject=leaver), c.secret_ids, c.inserted) for c in drawn]
    rows = planted(private, owned, plan)
    write_examples(rows, root / "data" / "private.jsonl")
    write_examples([e for e in rows if e.subject == leaver], root / "data" / "request.jsonl")
    write_examples([e for e in rows if e.subject != leaver], root / "data" / "retained.jsonl")
    write_manifest(
        CanaryManifest(
            plan=plan, template=TEMPLATE, template_id=encoder.template_id, answer_eos=True,
            tokenizer=vocabulary_digest(tokenizer), data=data_digest(private), planted=data_digest(rows),
            canaries=entries(owned),
        ), root / "manifest" / "manifest.json",
    )  # fmt: skip
