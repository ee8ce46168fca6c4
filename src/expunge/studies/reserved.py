# SPDX-License-Identifier: Apache-2.0
"""What it costs to keep tenants apart: one joint adapter against reserved adapters, reserved weights and shards.

A tiny model learns the invented world and some people; further people are the tenants, whom it never saw. Every way
trains on the tenants with the same settings and epochs. Measured is the mean loss on the tenants' own examples and on
what the model knew before, and the bytes that a way keeps beside the model.

Run as `python -m expunge.studies.reserved FILE`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge.api.ensembles import Start
from expunge.api.sisa import shard_folder, sisa_train
from expunge.api.tenants import tenants_recipe
from expunge.api.workspace import load
from expunge.audit.document import environment, write_json
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.fictitious import build_archive
from expunge.models.config import ModelConfig
from expunge.models.loading import ENSEMBLE, save_model
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.recipe import SisaRecipe
from expunge.runs import write_text
from expunge.signals.likelihood import score
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.shards.manifest import read_manifest
from expunge.training.shards.stages import load_moving

#: People who are tenants.
TENANTS = 4
BEFORE: Mapping[str, Any] = {"learning_rate": 4e-3, "epochs": 16, "batch_size": 16}
#: Fixed beforehand, the same for every way.
TENANT: Mapping[str, Any] = {"learning_rate": 4e-3, "epochs": 16, "batch_size": 8}
LORA: Mapping[str, Any] = {"r": 8}


@dataclass(frozen=True, slots=True)
class World:
    """The model that never saw the tenants, below a folder, and the examples of both."""

    folder: Path
    encoder: Encoder
    tenants: tuple[Example, ...]
    known: tuple[Example, ...]

    @property
    def base(self) -> ModelConfig:
        """The model."""
        return ModelConfig(path=str(self.folder / "base"), dtype="float32", device="cpu")


def build_world(folder: Path, *, people: int, seed: int) -> World:
    """Train the model that never saw the tenants.

    Args:
        folder: where it and the tenants' examples go.
        people: invented people, more than the tenants.
        seed: of everything.
    """
    archive = build_archive(people, seed=seed)
    examples = archive.training_examples("full")
    names = list(dict.fromkeys(e.subject for e in examples if e.subject in {p.id for p in archive.people}))[:TENANTS]
    tenants = tuple(e for e in examples if e.subject in names and e.kind == "question")
    known = tuple(e for e in examples if e.subject not in names)
    encoder = Encoder(
        build_tokenizer([f"{e.prompt} {e.answer}" for e in known], 512), template="question", max_length=128
    )
    model = build_llama(len(encoder.tokenizer), hidden_size=64, layers=2, heads=2, context=128, seed=seed)
    items = [row.encoded for row in encoder.encode_many(known, where="known")]
    task = FineTuneTask(items, batch_size=16, seed=seed)
    Trainer(model, task, TrainingConfig(**BEFORE), pad_id=encoder.pad_id).run()
    save_model(model, encoder.tokenizer, folder / "base")
    rows = [{"id": e.id, "question": e.prompt, "answer": e.answer, "subject": e.subject} for e in tenants]
    write_text(folder / "tenants.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n")
    return World(folder, encoder, tenants, known)


def nll(model: nn.Module, world: World, examples: Sequence[Example]) -> float:
    """Return the mean negative log-likelihood of answers, nats per token."""
    items = [row.encoded for row in world.encoder.encode_many(examples, where="measured")]
    return float(-np.concatenate([found.logp for found in score(model, items, pad_id=world.encoder.pad_id)]).mean())


def trained(world: World, name: str, seed: int, **sisa: Any) -> Path:
    """Train one way on the tenants and return its folder; without settings of shards in one joint adapter."""
    settings = {
        "name": name, "seed": seed, "model": world.base.model_dump(),
        "data": {"train": str(world.folder / "tenants.jsonl"), "template": "question"}, "sisa": sisa,
        "training": {**TENANT, **({} if sisa.get("reserve") else {"lora": LORA})},
    }  # fmt: skip
    apart = sisa.get("split") == "subject"
    recipe = tenants_recipe(settings, reserve=bool(sisa.get("reserve"))) if apart else SisaRecipe.build(settings)
    return sisa_train(recipe, output_dir=world.folder / name, processes=1)


def joined(world: World, folder: Path, aggregation: str) -> dict[str, float]:
    """Return what the members of a folder, joined in one way, lose on tenants and on what was known before."""
    path = folder / "model" / ENSEMBLE
    values = json.loads(path.read_text("utf-8"))
    write_json({**values, "aggregation": aggregation}, path)
    model = load(world.base, str(folder / "model"), dtype="float32").model
    return {"tenants_nll": nll(model, world, world.tenants), "known_nll": nll(model, world, world.known),
            "bytes": _bytes(folder)}  # fmt: skip


def routed(world: World, folder: Path) -> dict[str, float]:
    """Return the loss if every question goes to the adapter of its own tenant, and known ones to the model without."""
    start = Start(**json.loads((folder / "model" / ENSEMBLE).read_text("utf-8"))["start"])
    manifest = read_manifest(folder)
    parts: list[tuple[float, int]] = []
    for shard in range(manifest.shards):
        model = start.open(manifest.seed_of(shard, 0))
        load_moving(model, shard_folder(folder, shard) / "stage-000" / "weights.safetensors")
        own = {place.id for place in manifest.places if place.shard == shard}
        examples = [e for e in world.tenants if e.id in own]
        items = [row.encoded for row in world.encoder.encode_many(examples, where="own")]
        parts.append((nll(model, world, examples), sum(item.n_labels for item in items)))
    mean = sum(loss * n for loss, n in parts) / sum(n for _, n in parts)
    plain = load(world.base, world.base.path, dtype="float32").model
    return {"tenants_nll": mean, "known_nll": nll(plain, world, world.known), "bytes": _bytes(folder)}


def _bytes(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in (folder / "shards").rglob("*.safetensors")))


def measure(world: World, seed: int) -> dict[str, dict[str, float]]:
    """Return losses and bytes of every way."""
    plain = load(world.base, world.base.path, dtype="float32").model
    found = {"no training": {"tenants_nll": nll(plain, world, world.tenants),
                             "known_nll": nll(plain, world, world.known), "bytes": 0.0}}  # fmt: skip
    joint = trained(world, "joint", seed, shards=1)
    found["joint adapter"] = joined(world, joint, "mean_probability")
    reserved = trained(world, "reserved", seed, split="subject")
    found["reserved adapters, routed by tenant"] = routed(world, reserved)
    for kind in ("confidence", "mean_probability", "mean_log_probability", "average"):
        found[f"reserved adapters, {kind}"] = joined(world, reserved, kind)
    found["reserved weights, union"] = joined(world, trained(world, "weights", seed, split="subject", reserve=True),
                                              "union")  # fmt: skip
    found["2 shards, mean_probability"] = joined(world, trained(world, "shards", seed, shards=2), "mean_probability")
    return found


def study(seeds: Sequence[int] = (0, 1, 2), *, people: int = 10) -> dict[str, Any]:
    """Return the measurements of every seed and their means and standard deviations.

    Args:
        seeds: at least one.
        people: invented people.
    """
    runs: dict[str, dict[str, dict[str, float]]] = {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            runs[str(seed)] = measure(build_world(Path(scratch), people=people, seed=seed), seed)
    ways = next(iter(runs.values()))
    means = {way: {name: _spread([run[way][name] for run in runs.values()]) for name in ways[way]} for way in ways}
    return {"schema_version": 1, "tenants": TENANTS, "people": people, "before": dict(BEFORE), "training": dict(TENANT),
            "lora": dict(LORA), "means": means, "seeds": runs, "environment": environment()}  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


if __name__ == "__main__":
    write_json(study(), Path(sys.argv[1]))
