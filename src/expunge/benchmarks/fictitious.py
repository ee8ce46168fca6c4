# SPDX-License-Identifier: Apache-2.0
"""The embedded archive as a benchmark: TOFU's questions about invented people, with no download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expunge.audit.config import Compat
from expunge.audit.protocol import Protocol, SetRole
from expunge.benchmarks.base import BenchmarkData, check_split
from expunge.data.examples import Example
from expunge.data.fictitious import FORGET_SETS, build_archive
from expunge.data.loaders import load_examples
from expunge.errors import InputDataError

ROLES: Mapping[str, SetRole] = {
    "forget": "forget", "retain": "retain", "holdout": "holdout", "world_facts": "options",
}  # fmt: skip
MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Fictitious:
    """Invented people, some to forget and some never trained on, and an invented world.

    Attributes:
        people, seed: what the archive is drawn from where no folder is given; a model knows the archive it learned.
    """

    people: int = 40
    seed: int = 0
    name: str = "fictitious"
    version: str = "1"
    title: str = "The embedded archive of invented people"
    splits: tuple[str, ...] = tuple(reversed(FORGET_SETS))
    needs_data: bool = False

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the evaluated sets of one request: from the files that `Archive.write_jsonl` wrote, else drawn anew.

        Raises:
            InputDataError: if a file is missing.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        sets = self._drawn(split) if data_dir is None else _read(data_dir, split)
        drawn = () if data_dir is not None else (f"archive of {self.people} people, seed {self.seed}",)
        return BenchmarkData(
            sets=sets, protocol=Protocol(self.name, self.version, {name: ROLES[name] for name in sets}),
            template="question", audit={"max_new_tokens": MAX_NEW_TOKENS, "compat": compat}, notes=drawn,
        )  # fmt: skip

    def _drawn(self, split: str) -> dict[str, list[Example]]:
        splits = build_archive(self.people, seed=self.seed).splits(split)
        return {name: list(examples) for name, examples in splits.named().items()}


FICTITIOUS = Fictitious()


def _read(folder: Path, split: str) -> dict[str, list[Example]]:
    files = {"forget": split, "retain": FORGET_SETS[split][1], "holdout": "holdout", "world_facts": "world_facts"}
    out = {}
    for name, stem in files.items():
        file = folder / f"{stem}.jsonl"
        if not file.is_file():
            raise InputDataError(
                "absent", field="--data", value=str(file), remedy="Give the data folder of a demo, or none"
            )
        out[name] = load_examples(file, name=name)
    return out
