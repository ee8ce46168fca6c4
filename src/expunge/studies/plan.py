# SPDX-License-Identifier: Apache-2.0
"""What a study of several steps is going to do: the forget set of every step, and the recipe that runs it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.benchmarks.base import BenchmarkData
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.data.sources import Source
from expunge.data.writing import write_examples
from expunge.errors import InputDataError, RecipeError
from expunge.models.loading import load_tokenizer
from expunge.recipe import Recipe, build_recipe, merge

Kind = Literal["scalability", "sustainability"]

#: Longer than any sequence: texts are counted whole.
_WHOLE = 1 << 30


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a study: what it unlearns, and what was asked up to and with it, which is audited as `forget`."""

    forget: Sequence[Example]
    so_far: Sequence[Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study does.

    Attributes:
        kind: `scalability` (every step starts from the recipe's model) or `sustainability` (from the step before).
        settings: nested settings of the recipe; each step puts in its forget set, seed and model.
        steps: the runs, in order.
        folder: where everything goes.
        seeds: the steps are run once for each.
        benchmark: sets and protocol to measure; None measures the sets of the recipe.
        notes: what a reader must know of the data.
        records_dir: where the records of audited models are, to share them with other studies; default: `records`.
    """

    kind: Kind
    settings: Mapping[str, Any]
    steps: Sequence[Step]
    folder: Path
    seeds: tuple[int, ...]
    benchmark: BenchmarkData | None = None
    notes: tuple[str, ...] = ()
    records_dir: Path | None = None

    @property
    def hash(self) -> str:
        """SHA-256 over the settings, the forget sets and what is measured, hex."""
        parts: list[Any] = [self.kind, self.settings, self.seeds, [data_digest(step.forget) for step in self.steps]]
        if self.benchmark is not None:
            sets = {name: data_digest(examples) for name, examples in self.benchmark.sets.items()}
            parts.append([self.benchmark.protocol.to_dict(), sets])
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(seed, step number from 1) of every run, in order."""
        return [(seed, number) for seed in self.seeds for number in range(1, len(self.steps) + 1)]

    @property
    def records(self) -> Path:
        """Records of every audited model."""
        return self.records_dir or self.folder / "records"

    def run_folder(self, seed: int, number: int) -> Path:
        """Return the run folder of one step."""
        return self.folder / f"seed-{seed}" / f"step-{number}"

    def recipe(self, seed: int, number: int) -> Recipe:
        """Return the recipe of one step.

        Raises:
            RecipeError: for settings that cannot run.
        """
        data: dict[str, Any] = {"forget": str(self._file("forget", number))}
        if self._audits_more(number):
            data["evaluate"] = {"forget": str(self._file("so-far", number))}
        own: dict[str, Any] = {"name": f"{self.kind}-{number}", "seed": seed, "data": data}
        if self.kind == "sustainability" and number > 1:
            own["model"] = {"path": str(self.run_folder(seed, number - 1) / "model")}
        return build_recipe(merge(self.settings, own))

    def write_data(self) -> None:
        """Write the forget set of every step, and what it is audited on where that is more."""
        columns = (self.settings.get("data") or {}).get("columns")
        for number, step in enumerate(self.steps, start=1):
            write_examples(step.forget, self._file("forget", number), columns=columns)
            if self._audits_more(number):
                write_examples(step.so_far, self._file("so-far", number), columns=columns)

    def tokens(self) -> list[int]:
        """Return how many tokens the requests up to each step hold: those that are scored."""
        recipe = self.recipe(*self.runs[0])
        model, data = recipe.model, recipe.data
        tokenizer = load_tokenizer(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)
        encoder = Encoder(tokenizer, template=data.template, max_length=_WHOLE, answer_eos=data.answer_eos)
        rows = (encoder.encode_many(step.so_far, where="forget") for step in self.steps)
        return [sum(row.encoded.n_labels for row in found) for found in rows]

    def _audits_more(self, number: int) -> bool:
        step = self.steps[number - 1]
        return step.so_far is not step.forget and self.benchmark is None

    def _file(self, what: str, number: int) -> Path:
        return self.folder / "data" / f"{what}-{number}.jsonl"


def make_plan(
    kind: Kind, settings: Mapping[str, Any], steps: Sequence[Step], *, folder: Path, seeds: Sequence[int],
    benchmark: BenchmarkData | None, notes: Sequence[str], records_dir: Path | None = None,
) -> Plan:  # fmt: skip
    """Return a plan whose settings hold what the benchmark fixes, below the recipe's own.

    Raises:
        RecipeError: if there is no step, or a seed comes twice.
    """
    if not steps:
        raise RecipeError("a study needs at least one forget set", field="sources", remedy="Give some")
    own = dict(settings)
    if benchmark is not None:
        fixed = {"data": {"template": benchmark.template, **benchmark.encoding}, "audit": dict(benchmark.audit)}
        own, notes = merge(fixed, own), (*benchmark.notes, *notes)
    chosen = tuple(seeds) or (int(own.get("seed", 0)),)
    if len(set(chosen)) < len(chosen):
        raise RecipeError("a seed comes twice", field="seeds", value=list(chosen), remedy="Give different ones")
    return Plan(
        kind=kind, settings=own, steps=steps, folder=folder, seeds=chosen, benchmark=benchmark, notes=tuple(notes),
        records_dir=records_dir,
    )  # fmt: skip


def read_sets(sources: Sequence[Source], settings: Mapping[str, Any], *, name: str) -> list[list[Example]]:
    """Return the examples of several sources.

    Raises:
        InputDataError: for a source that cannot be used.
        RecipeError: if the recipe limits the number of examples, which would cut the sets again.
    """
    data = settings.get("data") or {}
    if data.get("limit") is not None:
        raise RecipeError(
            "would cut the sets of a study", field="data.limit", value=data["limit"],
            remedy="Give smaller sources; audit.limit makes the audits smaller",
        )  # fmt: skip
    columns = data.get("columns")
    return [load_examples(source, name=f"{name}{k}", columns=columns) for k, source in enumerate(sources, start=1)]


def joined(sets: Sequence[Sequence[Example]]) -> list[Example]:
    """Return the examples of several requests as one set.

    Raises:
        InputDataError: if two of them have the same id.
    """
    every = [example for examples in sets for example in examples]
    twice = [name for name, count in Counter(example.id for example in every).items() if count > 1]
    if twice:
        raise InputDataError(
            f"{len(twice)} ids occur in several requests", field="requests", value=twice[0],
            remedy="Make ids unique, or leave them out to number the rows",
        )  # fmt: skip
    return every


def pairs_of(examples: Sequence[Example]) -> set[tuple[str, str]]:
    """Return the different (prompt, answer) pairs of a set."""
    return {(example.prompt, example.answer) for example in examples}
