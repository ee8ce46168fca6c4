# SPDX-License-Identifier: Apache-2.0
"""Reserved adapters: every tenant is trained into weights of its own, so that its removal is the deletion of a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.api.ensembles import Start
from expunge.api.sisa import shard_folder, write_members
from expunge.api.sisa_check import Checked, sisa_check
from expunge.errors import RecipeError
from expunge.models.digests import folder_digest
from expunge.models.loading import ENSEMBLE
from expunge.recipe import SisaRecipe, merge, read_settings
from expunge.runs import RunFolder, read_run
from expunge.training.shards.manifest import Manifest, read_manifest
from expunge.training.shards.stages import WEIGHTS

#: What reserved adapters are unless a recipe says otherwise.
ADAPTERS: Mapping[str, Any] = {
    "name": "tenants", "training": {"lora": {}}, "sisa": {"split": "subject"},
}  # fmt: skip
#: Shares of the model's own weights in place of adapters.
WEIGHTS_OF_THEIR_OWN: Mapping[str, Any] = {
    "name": "tenants", "sisa": {"split": "subject", "reserve": True, "aggregation": "union"},
}  # fmt: skip


def tenants_recipe(settings: Mapping[str, Any], *, reserve: bool = False) -> SisaRecipe:
    """Return the recipe of reserved adapters, or of reserved weights of the model itself.

    Args:
        settings: nested; what they say goes before the defaults.
        reserve: give every tenant a share of the weights instead of an adapter.

    Raises:
        RecipeError: for an unknown or missing key or value, or if tenants would not be kept apart.
    """
    recipe = SisaRecipe.build(merge(WEIGHTS_OF_THEIR_OWN if reserve else ADAPTERS, settings))
    if recipe.sisa.split != "subject":
        raise RecipeError("would mix tenants", field="sisa.split", value=recipe.sisa.split, remedy="Use subject")
    return recipe


@dataclass(frozen=True, slots=True)
class Removal:
    """What the removal of a tenant did.

    Attributes:
        shard: the tenant's number; its name is not kept.
        examples: how many of its examples there were.
        files: SHA-256 of the weight files that were deleted.
        before, after: digests of the manifest.
        time: UTC, ISO 8601.
    """

    shard: int
    examples: int
    files: tuple[str, ...]
    before: str
    after: str
    time: str


def tenant_remove(folder: Path, tenant: str) -> Removal:
    """Delete a tenant's weights and name; nothing is trained, and no data and no weights are read.

    Args:
        folder: a run of `expunge tenants train`.
        tenant: its name: the subject of its examples.

    Raises:
        InputDataError: if there is no such tenant.
        RecipeError: if the run keeps no tenants apart.
        VerificationFailed: if the manifest is not what was written.
    """
    recipe = SisaRecipe.build(read_settings(folder / "recipe.yaml"))
    if recipe.sisa.split != "subject":
        raise RecipeError("its shards hold several subjects", field="folder", value=str(folder),
                          remedy="Use expunge sisa forget")  # fmt: skip
    manifest = read_manifest(folder)
    positions = manifest.find([], [tenant])
    after, shard = manifest.without(positions), manifest.places[positions[0]].shard
    run = RunFolder(folder, resume=True)
    with run.recorded():
        files = _drop(folder, after, shard, recipe)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        removal = Removal(shard, len(positions), files, manifest.digest, after.digest, time)
        run.update({"manifest": after.digest, "removals": [*run.info.get("removals", []), asdict(removal)]})
    return removal


def _drop(folder: Path, after: Manifest, shard: int, recipe: SisaRecipe) -> tuple[str, ...]:
    """Delete a tenant's files and name the others as the model; return the digests of its weights."""
    at, ensemble = shard_folder(folder, shard), folder / "model" / ENSEMBLE
    start = Start(**json.loads(ensemble.read_text("utf-8"))["start"])
    files = [digest for name, digest in folder_digest(at).items() if name.endswith(WEIGHTS)]
    after.write(folder)
    shutil.rmtree(at)
    write_members(folder, after, start, recipe.sisa.aggregation)
    return tuple(files)


def tenants_verify(folder: Path) -> Checked:
    """Check that the weights of every removed tenant are nowhere in the folder, and those of the others as trained.

    Args:
        folder: a run of `expunge tenants train`.

    Raises:
        VerificationFailed: if the manifest is not what was written.
    """
    checked, there = sisa_check(folder), folder_digest(folder)
    removals = read_run(folder).get("removals", [])
    problems = list(checked.problems)
    for removal in removals:
        problems += [f"tenant {removal['shard']}: its weights are still in {name}"
                     for name, digest in there.items() if digest in removal["files"]]  # fmt: skip
    if removals and removals[-1]["after"] != checked.facts["manifest"]:
        problems.append("the manifest is not the one after the last removal")
    return Checked({**checked.facts, "removals": removals}, tuple(problems))
