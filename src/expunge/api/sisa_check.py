# SPDX-License-Identifier: Apache-2.0
"""Check a training in shards: that every checkpoint follows from what is left."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.api.sisa import kept_stages, reopened, shard_folder
from expunge.api.workspace import Silent, Watcher
from expunge.claims import SENTENCES
from expunge.errors import RecipeError
from expunge.recipe import SisaRecipe, read_settings
from expunge.training.shards.card import SISA
from expunge.training.shards.manifest import Manifest, read_manifest
from expunge.training.shards.stages import STAGE, WEIGHTS, code_identity, file_digest, stage_folder, train_shard


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
                        for s in range(manifest.shards) if manifest.left_in(s) for r in range(manifest.slices)},
        "note": SISA.notes,
    }  # fmt: skip
    return Checked(facts, tuple(problems))


def _shard_problems(folder: Path, manifest: Manifest, shard: int) -> list[str]:
    at = shard_folder(folder, shard)
    kept = kept_stages(folder, manifest, shard)
    stages = range(manifest.slices if manifest.left_in(shard) else 0)
    expected = {stage_folder(at, stage) for stage in stages}
    strange = sorted(path.name for path in at.glob("*") if path not in expected) if at.is_dir() else []
    lines = [f"shard {shard}: {name} is in no plan" for name in strange]
    if kept < manifest.slices:
        lines.append(f"shard {shard}: stage {kept} does not follow from what is left; go on with expunge sisa forget")
    return lines


def _trained_again(
    folder: Path, manifest: Manifest, shards: Sequence[int], data: str | None, watch: Watcher
) -> list[str]:
    recipe = SisaRecipe.build(read_settings(folder / "recipe.yaml"))
    (job, rows), problems = reopened(folder, recipe, manifest, data), list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        for shard in shards:
            watch.stage(f"Training shard {shard} from the start")
            train_shard(replace(job.work(manifest, rows, shard), folder=Path(scratch) / str(shard), first=0))
            for stage in range(manifest.slices):
                one, two = (stage_folder(at, stage) for at in (shard_folder(folder, shard), Path(scratch) / str(shard)))
                if any(file_digest(one / name) != file_digest(two / name) for name in (WEIGHTS, STAGE)):
                    problems.append(f"shard {shard}: training stage {stage} from the start gives other bytes")
    return problems
