# SPDX-License-Identifier: Apache-2.0
"""Train in shards, let data leave by training again only what saw it, and check that this is what happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from expunge.api.ensembles import Start, write_ensemble
from expunge.api.workspace import Opened, Silent, Watcher, device_of, open_model, release
from expunge.audit.document import environment
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.errors import InputDataError, RecipeError, VerificationFailed
from expunge.recipe import SisaRecipe, read_settings
from expunge.runs import RunFolder, check_output, earlier_run, write_text
from expunge.signals.ensemble import Aggregation
from expunge.training.shards.card import SISA
from expunge.training.shards.config import check_training
from expunge.training.shards.manifest import MANIFEST, Manifest, read_manifest, rows_digest
from expunge.training.shards.plan import place_all, place_by_subject
from expunge.training.shards.stages import (
    WEIGHTS,
    ShardWork,
    Stage,
    code_identity,
    drop_from,
    stage_folder,
    train_shards,
    valid_stages,
)

Rows = Mapping[int, tuple[Encoded, ...]]


def shard_folder(folder: Path, shard: int) -> Path:
    """Return where the stages of a shard are."""
    return folder / "shards" / f"{shard:03d}"


def kept_stages(folder: Path, manifest: Manifest, shard: int) -> int:
    """Return how many stages of a shard count; one that everything left needs none, and is not trained."""
    if not manifest.left_in(shard):
        return manifest.slices
    return valid_stages(shard_folder(folder, shard), manifest.stage_keys(shard))


def sisa_train(
    recipe: SisaRecipe,
    *,
    output_dir: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    processes: int | None = None,
    commands: tuple[str, ...] = (),
    watcher: Watcher | None = None,
) -> Path:
    """Train `model.path` on `data.train` in shards; return the run folder, which `expunge audit` takes as a model.

    Args:
        recipe: what to do, resolved.
        output_dir: the run folder; default `runs/<name>-<hash8>`.
        overwrite: start again where a run already is.
        resume: go on after the last finished stage of every shard.
        processes: shards trained at a time; default: as many as there are cores.
        commands: how to reproduce the run.
        watcher: follows the run.

    Raises:
        ExpungeError: one of its kinds; the run folder then says what happened.
    """
    if recipe.data.train is None:
        raise RecipeError("a training set is needed", field="data.train", remedy="Give --data FILE")
    check_training(recipe.training, recipe.sisa)
    path, watch = output_dir or Path("runs") / recipe.folder_name, watcher or Silent()
    check_output(path, overwrite=overwrite, resume=resume)
    earlier = earlier_run(path, recipe.hash) if resume else {}
    examples = load_examples(recipe.data.train, name="train", columns=recipe.data.columns, limit=recipe.data.limit)
    watch.stage("Loading the model")
    opened = open_model(recipe.model, recipe.data, {"train": examples}, dtype="float32")
    rows = _encoded(opened, examples)
    manifest = read_manifest(path) if earlier and (path / MANIFEST).exists() else _plan(recipe, opened, examples, rows)
    # What left since does not come back with --resume.
    rows = _rows_of(manifest, examples, rows)
    job = Job(path, recipe, _start(recipe, opened.digest), opened.encoder.pad_id)
    del opened
    folder = RunFolder(path, overwrite=overwrite, resume=resume)
    write_text(path / "recipe.yaml", recipe.to_yaml())
    folder.start({
        "kind": "sisa", "name": recipe.name, "method": SISA.to_dict(), "claim": SISA.claim, "recipe_hash": recipe.hash,
        "recipe": recipe.to_dict(), "environment": environment(), "commands": list(commands),
        "data": {"train": {"n": len(examples), "digest": data_digest(examples)}},
    })  # fmt: skip
    with folder.recorded():
        manifest.write(path)
        read = job.bring_up_to_date(manifest, rows, processes, watch)
        folder.update({"manifest": manifest.digest, "rows_read": sum(read.values())})
    return path


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What letting data leave took.

    Attributes:
        examples: how many left now.
        shards: that are trained again, with the first stage of each that is.
        rows_read: sequences read by that training, epochs counted.
        rows_plain: sequences that training everything that is left again would read.
        before, after: digests of the manifest.
    """

    examples: int
    shards: Mapping[int, int]
    rows_read: int
    rows_plain: int
    before: str
    after: str


def sisa_forget(
    folder: Path,
    *,
    ids: Collection[str] = (),
    subjects: Collection[str] = (),
    data: str | None = None,
    processes: int | None = None,
    again: bool = False,
    dry_run: bool = False,
    watcher: Watcher | None = None,
) -> Forgotten:
    """Take examples out: delete every checkpoint that saw them, and train those stages again without them.

    Naming nothing goes on with a deletion that was cut off.

    Args:
        folder: a run of `sisa_train`.
        ids: examples that leave.
        subjects: of whom every example leaves.
        data: the training set, if it is elsewhere now; those that leave need not be in it.
        processes: shards trained at a time; default: as many as there are cores.
        again: train every shard again where code or libraries are others than before.
        dry_run: only say what it would take.
        watcher: follows the work.

    Raises:
        InputDataError: for a name that no example has, or data that is not what was trained on.
        RecipeError: if code or libraries changed and `again` is off.
        VerificationFailed: if the manifest or the model is not what was written.
    """
    manifest, watch = read_manifest(folder), watcher or Silent()
    after = manifest.without(manifest.find(ids, subjects))
    after = _same_code(after, again)
    recipe = SisaRecipe.build(read_settings(folder / "recipe.yaml"))
    found = _forgotten(folder, manifest, after)
    if dry_run:
        return found
    watch.stage("Loading the model")
    job, rows = reopened(folder, recipe, after, data)
    run = RunFolder(folder, resume=True)
    with run.recorded():
        after.write(folder)  # from here on nothing that saw the data counts as a checkpoint
        read = job.bring_up_to_date(after, rows, processes, watch)
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "examples": found.examples,
                 "shards": {str(shard): first for shard, first in found.shards.items()},
                 "rows_read": sum(read.values()), "before": found.before, "after": found.after}  # fmt: skip
        run.update({"manifest": after.digest, "deletions": [*run.info.get("deletions", []), entry]})
    return replace(found, rows_read=sum(read.values()))


def _forgotten(folder: Path, before: Manifest, after: Manifest) -> Forgotten:
    """Return what a deletion takes, from the plan alone and the checkpoints that are there."""
    first, read, plain = dict[int, int](), 0, 0
    for shard in range(after.shards):
        kept = kept_stages(folder, after, shard)
        if kept < after.slices:
            first[shard] = kept
        for stage in range(after.slices):
            places = (after.places[i] for i in after.in_stage(shard, stage))
            rows = after.epochs_of(stage) * sum(place.rows for place in places if not place.deleted)
            plain += rows
            read += rows if stage >= kept else 0
    left = sum(p.deleted for p in after.places) - sum(p.deleted for p in before.places)
    return Forgotten(left, first, read, plain, before.digest, after.digest)


def _same_code(manifest: Manifest, again: bool) -> Manifest:
    now = code_identity()
    if manifest.recipe["code"] == now:
        return manifest
    if not again:
        before = manifest.recipe["code"]
        changed = [name for name in now if before.get(name) != now[name]]
        raise RecipeError(
            f"the shards were trained with another {' and '.join(changed)}: only part of them would be exact",
            field="folder", remedy="Use the same versions, or --again to train every shard again with these",
        )  # fmt: skip
    return replace(manifest, recipe={**manifest.recipe, "code": now})


def reopened(folder: Path, recipe: SisaRecipe, manifest: Manifest, data: str | None) -> tuple[Job, Rows]:
    """Return what trains shards of an earlier run, and the sequences of what is left.

    Args:
        folder: the run.
        recipe: of the run.
        manifest: says what is left.
        data: the training set, if it is elsewhere now.

    Raises:
        InputDataError: if an example is missing, or is not the one that was trained on.
        VerificationFailed: if the model is not the one that was trained from.
    """
    examples = load_examples(data or str(recipe.data.train), name="train", columns=recipe.data.columns)
    known = {place.id for place in manifest.places if not place.deleted}
    examples = [example for example in examples if example.id in known]
    opened = open_model(recipe.model, recipe.data, {"train": examples} if examples else {}, dtype="float32")
    if opened.digest != manifest.recipe["start"]:
        raise VerificationFailed("is not the model that was trained from", field="model.path", value=recipe.model.path,
                                 remedy="Restore it")  # fmt: skip
    rows = _rows_of(manifest, examples, _encoded(opened, examples))
    return Job(folder, recipe, _start(recipe, opened.digest), opened.encoder.pad_id), rows


def _start(recipe: SisaRecipe, digest: str) -> Start:
    return Start.of(recipe.model, digest, recipe.training, device_of(recipe.model), reserve=recipe.sisa.reserve)


def _encoded(opened: Opened, examples: Sequence[Example]) -> Rows:
    """Return the sequences of every example by position; one that was dropped for its length has none."""
    found: dict[int, list[Encoded]] = {i: [] for i in range(len(examples))}
    for row in opened.encoder.encode_many(examples, where="train"):
        found[row.index].append(row.encoded)
    return {i: tuple(rows) for i, rows in found.items()}


def _plan(recipe: SisaRecipe, opened: Opened, examples: Sequence[Example], rows: Rows) -> Manifest:
    settings, n = recipe.sisa, range(len(examples))
    counts, digests = [len(rows[i]) for i in n], [rows_digest(rows[i]) for i in n]
    if settings.split == "subject":
        places = place_by_subject(examples, counts, digests, slices=settings.slices)
    else:
        places = place_all(
            examples, counts, digests, shards=settings.shards, slices=settings.slices, seed=recipe.seed,
            by_subject=settings.unit == "subject", threshold=settings.near_duplicates,
        )  # fmt: skip
    decides = {
        "start": opened.digest, "training": recipe.training.model_dump(mode="json"), "pad_id": opened.encoder.pad_id,
        "device": device_of(recipe.model).partition(":")[0], "attention": recipe.model.attn_implementation,
        "code": code_identity(),
    }  # fmt: skip
    shards = 1 + max(place.shard for place in places)
    epochs, reserve = recipe.training.epochs, settings.reserve
    return Manifest(shards, settings.slices, recipe.seed, epochs, decides, tuple(places), reserve)


def _rows_of(manifest: Manifest, examples: Sequence[Example], rows: Rows) -> Rows:
    """Return the sequences of every place that is still taken, by its position in the manifest.

    Raises:
        InputDataError: if an example is missing, or is not the one that was trained on.
    """
    at = {example.id: i for i, example in enumerate(examples)}
    found: dict[int, tuple[Encoded, ...]] = {}
    for i, place in enumerate(manifest.places):
        if place.deleted:
            continue
        if place.id not in at:
            raise InputDataError("an example of the plan is missing", field="data.train", value=place.id,
                                 remedy="Give the set that was trained on, or let it leave by its id")  # fmt: skip
        found[i] = rows[at[place.id]]
        if rows_digest(found[i]) != place.digest:
            raise InputDataError("an example is not the one that was trained on", field="data.train", value=place.id,
                                 remedy="Give every example an id of its own, and its text back")  # fmt: skip
    return found


class Job:
    """What stays the same while shards are trained."""

    def __init__(self, folder: Path, recipe: SisaRecipe, start: Start, pad_id: int) -> None:
        self._folder, self._recipe, self._start, self._pad_id = folder, recipe, start, pad_id

    def work(self, manifest: Manifest, rows: Rows, shard: int) -> ShardWork:
        """Return what is to be done for a shard, from the first stage that is not there."""
        keys, at, stages = manifest.stage_keys(shard), shard_folder(self._folder, shard), []
        for number, key in enumerate(keys):
            items: list[Encoded | None] = []
            for i in manifest.in_stage(shard, number):
                items += rows.get(i) or [None] * manifest.places[i].rows
            stages.append(Stage(key, manifest.epochs_of(number), manifest.seed_of(shard, number), tuple(items)))
        begin = partial(self._start.open, manifest.seed_of(shard, 0))
        first, reserve = kept_stages(self._folder, manifest, shard), manifest.reserve_of(shard)
        return ShardWork(shard, at, begin, self._recipe.training, self._pad_id, tuple(stages), first, reserve)

    def bring_up_to_date(self, manifest: Manifest, rows: Rows, processes: int | None, watch: Watcher) -> dict[int, int]:
        """Delete what no longer counts, train what is missing, and write the ensemble."""
        works = [self.work(manifest, rows, shard) for shard in range(manifest.shards)]
        todo = [work for work in works if work.first < manifest.slices]
        for work in works:
            drop_from(work.folder, work.first if manifest.left_in(work.shard) else 0)
        watch.stage(f"Training {len(todo)} of {manifest.shards} shards")
        release()
        read = train_shards(
            works, processes=min(processes or os.cpu_count() or 1, manifest.shards),
            done=lambda shard: watch.stage(f"Shard {shard} is trained"),
        )  # fmt: skip
        write_members(self._folder, manifest, self._start, self._recipe.sisa.aggregation)
        return read


def write_members(folder: Path, manifest: Manifest, start: Start, aggregation: Aggregation) -> None:
    """Write the ensemble of all shards in which something is left; without any there is no model."""
    last, present = manifest.slices - 1, [shard for shard in range(manifest.shards) if manifest.left_in(shard)]
    members = {s: (stage_folder(shard_folder(folder, s), last) / WEIGHTS, manifest.seed_of(s, 0)) for s in present}
    if not members:
        shutil.rmtree(folder / "model", ignore_errors=True)
        return
    slots = manifest.shards if manifest.reserve else 0
    write_ensemble(folder / "model", start, members, aggregation, slots=slots)
