# SPDX-License-Identifier: Apache-2.0
"""The manifest: the plan of a sharded training, its seeds, and what was taken out since; no text is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from expunge.data.encoding import Encoded
from expunge.errors import InputDataError, VerificationFailed
from expunge.runs import write_json
from expunge.training.shards.plan import Place, stage_epochs, stage_seed
from expunge.training.shards.reserve import Reserve

MANIFEST = "manifest.json"


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hex) of a value as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def rows_digest(rows: Sequence[Encoded]) -> str:
    """Return the SHA-256 (hex) over token ids and labels of an example's sequences."""
    return digest_of([[row.ids, row.labels] for row in rows])


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a sharded training follows.

    Attributes:
        shards, slices, seed, epochs: as planned.
        reserve: every shard moves only weights reserved for it.
        recipe: everything else a stage depends on: weights of the start, settings of the loop, code; by name.
        places: one per example of the original training set, in its order; deleted ones stay as gaps.
    """

    shards: int
    slices: int
    seed: int
    epochs: int
    recipe: dict[str, Any]
    places: tuple[Place, ...]
    reserve: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over all of it."""
        return digest_of(asdict(self))

    def epochs_of(self, stage: int) -> int:
        """Return the epochs of a stage."""
        return stage_epochs(self.epochs, self.slices)[stage]

    def seed_of(self, shard: int, stage: int) -> int:
        """Return the seed of a stage."""
        return stage_seed(self.seed, shard, stage)

    def in_stage(self, shard: int, stage: int) -> list[int]:
        """Return the positions of the examples a stage trains on, deleted ones included, in order."""
        return [i for i, p in enumerate(self.places) if p.shard == shard and p.slice <= stage]

    def reserve_of(self, shard: int) -> Reserve | None:
        """Return the weights reserved for a shard, None if it may move all."""
        return Reserve(shard, self.shards) if self.reserve else None

    def left_in(self, shard: int) -> int:
        """Return how many examples of a shard are still there."""
        return sum(p.shard == shard and not p.deleted for p in self.places)

    def stage_keys(self, shard: int) -> list[str]:
        """Return the key of every stage of a shard, [R]: equal keys mean equal weights.

        A key covers what stays and where it stands, how many places there were, epochs, seed, settings, the weights
        of the start, the code, and the key of the stage before.
        """
        keys: list[str] = []
        reserve = [shard, self.shards] if self.reserve else []
        for stage in range(self.slices):
            inside = self.in_stage(shard, stage)
            rows = [[p.rows, "" if p.deleted else p.digest] for p in (self.places[i] for i in inside)]
            before = keys[-1] if keys else ""
            settings = [self.epochs_of(stage), self.seed_of(shard, stage), self.recipe, reserve]
            keys.append(digest_of([before, rows, settings]))
        return keys

    def without(self, positions: Collection[int]) -> Manifest:
        """Return the manifest with some examples taken out: their subject and digest leave with them."""
        gone = set(positions)
        places = tuple(
            replace(p, deleted=True, subject="", digest="") if i in gone else p for i, p in enumerate(self.places)
        )
        return replace(self, places=places)

    def find(self, ids: Collection[str], subjects: Collection[str]) -> list[int]:
        """Return the positions of the named examples and of all examples of the named subjects.

        Raises:
            InputDataError: for an id or subject that no example has, or that has left already.
        """
        present = [(i, p) for i, p in enumerate(self.places) if not p.deleted]
        unknown = {"id": sorted(set(ids) - {p.id for _, p in present}),
                   "subject": sorted(set(subjects) - {p.subject for _, p in present})}  # fmt: skip
        for field, names in unknown.items():
            if names:
                raise InputDataError(
                    "no example has it, or it was taken out before", field=field, value=names[0],
                    remedy="Check the manifest",
                )  # fmt: skip
        return [i for i, p in present if p.id in ids or p.subject in subjects]

    def write(self, folder: Path) -> None:
        """Write it in one rename, with its digest."""
        write_json(folder / MANIFEST, {"schema_version": 1, "digest": self.digest, **asdict(self)})


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        InputDataError: if there is none.
        VerificationFailed: if it is not what was written.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise InputDataError("holds no sharded training", field="folder", value=str(folder), remedy="Check the path")
    values = json.loads(path.read_text("utf-8"))
    said = values.pop("digest")
    values.pop("schema_version")
    values["places"] = tuple(Place(**place) for place in values["places"])
    manifest = Manifest(**values)
    if manifest.digest != said:
        raise VerificationFailed("is not what was written", field=str(path), remedy="Restore it from a copy")
    return manifest
