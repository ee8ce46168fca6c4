# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is: named data, the part each set plays, and the settings its protocol fixes."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from expunge.audit.config import AuditConfig, Compat
from expunge.audit.protocol import Protocol
from expunge.data.examples import Example
from expunge.data.questions import QuestionSet
from expunge.errors import InputDataError, RecipeError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkData:
    """One benchmark, loaded: everything an audit needs but the model.

    Attributes:
        sets: evaluated sets by name.
        protocol: name, version and the part each set plays.
        template: prompt template the protocol fixes (`auto` where it fixes none).
        audit: settings of `AuditConfig` that the protocol fixes, such as `max_new_tokens`.
        encoding: settings of `DataConfig` that the protocol fixes, such as `max_length` and `too_long`.
        notes: what a reader must know: files that are absent, sets that were cut.
        questions: multiple-choice questions by the name of their set.
    """

    sets: Mapping[str, Sequence[Example]]
    protocol: Protocol
    template: str = "auto"
    audit: Mapping[str, Any] = field(default_factory=dict)
    encoding: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    questions: Mapping[str, QuestionSet] = field(default_factory=dict)

    def audit_config(self, config: AuditConfig) -> AuditConfig:
        """Return `config` with what the protocol fixes; a setting the caller gave explicitly wins."""
        given = config.model_dump(include=config.model_fields_set)
        return AuditConfig(**{**self.audit, **given})


class Benchmark(typing.Protocol):
    """A versioned definition: which data, which protocol, which settings. It defines no metric."""

    @property
    def name(self) -> str:
        """Name on the command line and in the audit document."""

    @property
    def version(self) -> str:
        """Changes whenever the same model could get another number."""

    @property
    def title(self) -> str:
        """Name and source in words."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Which forget requests, corpora or subjects there are; the first is the default."""

    @property
    def needs_data(self) -> bool:
        """Whether `load` needs a folder of files."""

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the sets and the protocol of one split.

        Args:
            data_dir: folder that holds the published files; None where none are needed.
            split: one of `splits`.
            compat: whose reading of the protocol: which examples are taken, how long a generation is.

        Raises:
            InputDataError: naming the file that is missing or cannot be used.
            RecipeError: for an unknown split.
        """


#: Where each benchmark is defined. Looked up only when it is asked for, so that the list costs no import.
BENCHMARKS: Mapping[str, tuple[str, str]] = {
    "tofu": ("expunge.benchmarks.tofu", "TOFU"),
    "muse": ("expunge.benchmarks.muse", "MUSE"),
    "wmdp": ("expunge.benchmarks.wmdp", "WMDP"),
    "truthfulqa": ("expunge.benchmarks.truthfulqa", "TRUTHFULQA"),
    "scienceqa": ("expunge.benchmarks.scienceqa", "SCIENCEQA"),
    "gsm8k": ("expunge.benchmarks.reasoning", "GSM8K"),
    "math": ("expunge.benchmarks.reasoning", "MATH"),
    "fictitious": ("expunge.benchmarks.fictitious", "FICTITIOUS"),
}


def get_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name.

    Raises:
        RecipeError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        raise RecipeError("no such benchmark", field="benchmark", value=name, remedy=nearest(name, BENCHMARKS))
    module, attribute = BENCHMARKS[name]
    found: Benchmark = getattr(import_module(module), attribute)
    return found


def check_split(benchmark: Benchmark, split: str) -> None:
    """Raise `RecipeError` unless `split` is one of the benchmark's."""
    if split not in benchmark.splits:
        raise RecipeError(
            f"{benchmark.name} has no such split", field="split", value=split, remedy=nearest(split, benchmark.splits)
        )


def needed_dir(benchmark: Benchmark, data_dir: Path | None) -> Path:
    """Return the data folder, or raise what to do about a missing one."""
    if data_dir is None or not data_dir.is_dir():
        raise InputDataError(
            f"{benchmark.name} needs the folder with its files", field="--data",
            value=None if data_dir is None else str(data_dir), remedy="Give --data DIR",
        )  # fmt: skip
    return data_dir
