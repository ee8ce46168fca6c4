# SPDX-License-Identifier: Apache-2.0
"""Train in shards, let data leave by training again only what saw it, and check that this is what happened."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from expunge.api.ensembles import Start, write_ensemble
from expunge.api.workspace import Opened, Silent, Watcher, device_of, open_model, release
from expunge.audit.document import environment
from expunge.claims import SENTENCES
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoded
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.errors import InputDataError, RecipeError, VerificationFailed
from expunge.recipe import SisaRecipe, read_settings
from expunge.runs import RunFolder, check_output, earlier_run, write_text
from expunge.training.shards.card import SISA
from expunge.training.shards.config import check_training
from expunge.training.shards.manifest import MANIFEST, Manifest, read_manifest, rows_digest
from expunge.training.shards.plan import place_all
from expunge.training.shards.stages import (
    STAGE,
    WEIGHTS,
    ShardWork,
    Stage,
    code_identity,
    drop_from,
    file_digest,
    stage_folder,
    train_shard,
    train_shards,
    valid_stages,
)

Rows = Mapping[int, tuple[Encoded, ...]]


def shard_folder(folder: Path, shard: int) -> Path:
    """Return where the stages of a shard are."""
    return folder / "shards" / f"{shard:03d}"


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
    job = _Job(path, recipe, Start.of(recipe.model, opened.digest, recipe.training, device_of(recipe.model)), opened)
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
    examples = load_examples(data or str(recipe.data.train), name="train", columns=recipe.data.columns)
    known = {place.id for place in after.places if not place.deleted}
    examples = [example for example in examples if example.id in known]
    watch.stage("Loading the model")
    opened = open_model(recipe.model, recipe.data, {"train": examples}, dtype="float32")
    if opened.digest != after.recipe["start"]:
        raise VerificationFailed("is not the model that was trained from", field="model.path", value=recipe.model.path,
                                 remedy="Restore it")  # fmt: skip
    rows = _rows_of(after, examples, _encoded(opened, examples))
    job = _Job(folder, recipe, Start.of(recipe.model, opened.digest, recipe.training, device_of(recipe.model)), opened)
    del opened
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
        keys = after.stage_keys(shard)
        kept = valid_stages(shard_folder(folder, shard), keys)
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


def _encoded(opened: Opened, examples: Sequence[Example]) -> Rows:
    """Return the sequences of every example by position; one that was dropped for its length has none."""
    found: dict[int, list[Encoded]] = {i: [] for i in range(len(examples))}
    for row in opened.encoder.encode_many(examples, where="train"):
        found[row.index].append(row.encoded)
    return {i: tuple(rows) for i, rows in found.items()}


def _plan(recipe: SisaRecipe, opened: Opened, examples: Sequence[Example], rows: Rows) -> Manifest:
    settings = recipe.sisa
    places = place_all(
        examples, [len(rows[i]) for i in range(len(examples))], [rows_digest(rows[i]) for i in range(len(examples))],
        shards=settings.shards, slices=settings.slices, seed=recipe.seed, by_subject=settings.unit == "subject",
        threshold=settings.near_duplicates,
    )  # fmt: skip
    decides = {
        "start": opened.digest, "training": recipe.training.model_dump(mode="json"), "pad_id": opened.encoder.pad_id,
        "device": device_of(recipe.model).partition(":")[0], "attention": recipe.model.attn_implementation,
        "code": code_identity(),
    }  # fmt: skip
    return Manifest(settings.shards, settings.slices, recipe.seed, recipe.training.epochs, decides, tuple(places))


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


class _Job:
    """What stays the same while shards are trained."""

    def __init__(self, folder: Path, recipe: SisaRecipe, start: Start, opened: Opened) -> None:
        self._folder, self._recipe, self._start, self._pad_id = folder, recipe, start, opened.encoder.pad_id

    def work(self, manifest: Manifest, rows: Rows, shard: int) -> ShardWork:
        """Return what is to be done for a shard, from the first stage that is not there."""
        keys, at, stages = manifest.stage_keys(shard), shard_folder(self._folder, shard), []
        for number, key in enumerate(keys):
            items: list[Encoded | None] = []
            for i in manifest.in_stage(shard, number):
                items += rows.get(i) or [None] * manifest.places[i].rows
            stages.append(Stage(key, manifest.epochs_of(number), manifest.seed_of(shard, number), tuple(items)))
        begin = partial(self._start.open, manifest.seed_of(shard, 0))
        first = valid_stages(at, keys)
        return ShardWork(shard, at, begin, self._recipe.training, self._pad_id, tuple(stages), first)

    def bring_up_to_date(self, manifest: Manifest, rows: Rows, processes: int | None, watch: Watcher) -> dict[int, int]:
        """Delete what no longer counts, train what is missing, and write the ensemble."""
        works = [self.work(manifest, rows, shard) for shard in range(manifest.shards)]
        todo = [work for work in works if work.first < manifest.slices]
        for work in todo:
            drop_from(work.folder, work.first)
        watch.stage(f"Training {len(todo)} of {manifest.shards} shards")
        release()
        read = train_shards(
            works, processes=min(processes or os.cpu_count() or 1, manifest.shards),
            done=lambda shard: watch.stage(f"Shard {shard} is trained"),
        )  # fmt: skip
        # A shard that everything left has nothing to say, unless all are empty.
        shards = [s for s in range(manifest.shards) if manifest.left_in(s)] or list(range(manifest.shards))
        members = {s: (stage_folder(shard_folder(self._folder, s), manifest.slices - 1) / WEIGHTS,
                       manifest.seed_of(s, 0)) for s in shards}  # fmt: skip
        write_ensemble(self._folder / "model", self._start, members, self._recipe.sisa.aggregation)
        return read


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found; `problems` is empty if every statement holds."""

    facts: Mapping[str, Any]
    problems: tuple[str, ...]


def sisa_check(
    folder: Path, *, again: Collection[int] = (), data: str | None = None, watcher: Watcher | None = None
) -> Checked:
    """Check that every checkpoint follows from what is left, and that none of what left has one.

    Args:
        folder: a run of `sisa_train`.
        again: shards to train from the start in a folder of their own, and compare byte by byte.
        data: the training set, if it is elsewhere now.
        watcher: follows the work.

    Raises:
        RecipeError: if there is no such shard.
        VerificationFailed: if the manifest is not what was written.
    """
    manifest, watch = read_manifest(folder), watcher or Silent()
    if wrong := sorted(set(again) - set(range(manifest.shards))):
        raise RecipeError("no such shard", field="--again", value=wrong[0],
                          remedy=f"There are {manifest.shards}, from 0")  # fmt: skip
    problems = [line for shard in range(manifest.shards) for line in _shard_problems(folder, manifest, shard)]
    if manifest.recipe["code"] != code_identity():
        problems += ["code or libraries are others than those that trained" for _ in again][:1]
    if again and not problems:
        problems += _trained_again(folder, manifest, sorted(again), data, watch)
    facts = {
        "claim": str(SISA.claim), "sentence": SENTENCES[SISA.claim], "manifest": manifest.digest,
        "shards": manifest.shards, "slices": manifest.slices, "examples": len(manifest.places),
        "left": sum(place.deleted for place in manifest.places), "trained_again": sorted(again),
        "checkpoints": {f"{s}/{r}": file_digest(stage_folder(shard_folder(folder, s), r) / WEIGHTS)
                        for s in range(manifest.shards) for r in range(manifest.slices)},
        "note": SISA.notes,
    }  # fmt: skip
    return Checked(facts, tuple(problems))


def _shard_problems(folder: Path, manifest: Manifest, shard: int) -> list[str]:
    at = shard_folder(folder, shard)
    kept = valid_stages(at, manifest.stage_keys(shard))
    expected = {at / f"stage-{stage:03d}" for stage in range(manifest.slices)}
    strange = sorted(path.name for path in at.glob("*") if path not in expected) if at.is_dir() else []
    lines = [f"shard {shard}: {name} is in no plan" for name in strange]
    if kept < manifest.slices:
        lines.append(f"shard {shard}: stage {kept} does not follow from what is left; go on with expunge sisa forget")
    return lines


def _trained_again(
    folder: Path, manifest: Manifest, shards: Sequence[int], data: str | None, watch: Watcher
) -> list[str]:
    recipe = SisaRecipe.build(read_settings(folder / "recipe.yaml"))
    examples = load_examples(data or str(recipe.data.train), name="train", columns=recipe.data.columns)
    known = {place.id for place in manifest.places if not place.deleted}
    examples = [example for example in examples if example.id in known]
    opened = open_model(recipe.model, recipe.data, {"train": examples}, dtype="float32")
    rows = _rows_of(manifest, examples, _encoded(opened, examples))
    start = Start.of(recipe.model, str(manifest.recipe["start"]), recipe.training, device_of(recipe.model))
    job, problems = _Job(folder, recipe, start, opened), []
    with tempfile.TemporaryDirectory() as scratch:
        for shard in shards:
            watch.stage(f"Training shard {shard} from the start")
            train_shard(replace(job.work(manifest, rows, shard), folder=Path(scratch) / str(shard), first=0))
            for stage in range(manifest.slices):
                one, two = (stage_folder(at, stage) for at in (shard_folder(folder, shard), Path(scratch) / str(shard)))
                if any(file_digest(one / name) != file_digest(two / name) for name in (WEIGHTS, STAGE)):
                    problems.append(f"shard {shard}: training stage {stage} from the start gives other bytes")
    return problems
