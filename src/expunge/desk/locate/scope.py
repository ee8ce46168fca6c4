# SPDX-License-Identifier: Apache-2.0
"""What a search found, in two parts: a scope without any text, and the records themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.data.examples import Example
from expunge.desk.lineage import Artefact
from expunge.desk.locate.config import LocateConfig, Way


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CorpusScope(_Part):
    """What was searched of one corpus: rows by text, rows by a model, rows found, rows found by each way."""

    name: str
    role: str
    searched: bool
    rows: int = 0
    rows_by_model: int = 0
    found: int = 0
    by_way: dict[Way, int] = Field(default_factory=dict)


class RecordDigest(_Part):
    """A row that was found: its salted digest and the ways; neither its text nor its id."""

    corpus: str
    digest: str
    ways: tuple[Way, ...]


class Seen(_Part):
    """An artefact that one of the corpora went into in which something was found."""

    name: str
    kind: str
    reachable: bool


class NotSearched(_Part):
    """What was not searched, and why."""

    what: str
    why: str


class Threshold(_Part):
    """From where on a way of the model counts.

    Attributes:
        value: cosine.
        pairs: pairs of random rows (influence: random rows against the samples) that it was taken from.
        quantile: of their cosines.
        median: of their cosines.
    """

    value: float
    pairs: int
    quantile: float
    median: float


class Scope(_Part):
    """What `scope.json` says: counts, digests, and what was not searched."""

    schema_version: Literal[1] = 1
    looked_for: dict[str, int] = Field(description="how many identifiers, record_ids and samples were given")
    settings: LocateConfig
    thresholds: dict[Way, Threshold] = Field(default_factory=dict)
    corpora: tuple[CorpusScope, ...]
    records: tuple[RecordDigest, ...]
    artefacts: tuple[Seen, ...]
    not_searched: tuple[NotSearched, ...]

    @property
    def by_way(self) -> dict[str, int]:
        """Rows of training data found by each way, all corpora together."""
        trained = [corpus for corpus in self.corpora if corpus.role == "train"]
        return {way: count for way in self.settings.ways
                if (count := sum(corpus.by_way.get(way, 0) for corpus in trained))}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Found:
    """One row that was found.

    Attributes:
        corpus: its name.
        row: its number in it, from 1.
        id: of the record.
        ways: by which it was found.
        score: the highest similarity among them, in 0..1.
        influence: cosine of its gradient with that of the samples, if it was taken.
    """

    corpus: str
    row: int
    id: str
    ways: tuple[Way, ...]
    score: float
    influence: float | None = None


@dataclass(frozen=True, slots=True)
class Located:
    """What was found.

    Attributes:
        scope: goes into the evidence.
        found: rows of all corpora, in order.
        examples: those of corpora that were trained on, the forget set; their ids are unique.
    """

    scope: Scope
    found: list[Found]
    examples: list[Example]


def text_of(example: Example) -> str:
    """Return prompt and answer as the text by which a record is recognised."""
    return f"{example.prompt}\n{example.answer}"


def seen(artefacts: list[Artefact]) -> tuple[Seen, ...]:
    """Return artefacts as a scope lists them."""
    return tuple(Seen(name=one.name, kind=one.kind, reachable=one.reachable) for one in artefacts)


def ordered(scores: Mapping[Way, float], ways: tuple[Way, ...]) -> tuple[Way, ...]:
    """Return the ways by which a row was found in the order of the settings."""
    return tuple(way for way in ways if way in scores)
