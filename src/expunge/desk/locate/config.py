# SPDX-License-Identifier: Apache-2.0
"""What is looked for, where, and by which ways."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Way = Literal["id", "exact", "identifier", "ngram", "near", "paraphrase", "influence"]
#: Ways that read texts alone, in one pass.
LEXICAL: tuple[Way, ...] = ("id", "exact", "identifier", "ngram", "near")
#: Ways that need a model, and a second pass.
BY_MODEL: tuple[Way, ...] = ("paraphrase", "influence")
#: What of a subject each way looks for.
LOOKS_FOR: dict[Way, str] = {
    "id": "record_ids", "identifier": "identifiers", "exact": "samples", "ngram": "samples", "near": "samples",
    "paraphrase": "samples", "influence": "samples",
}  # fmt: skip


class Subject(BaseModel):
    """Whom or what is looked for.

    Attributes:
        identifiers: names, numbers and addresses that occur in a text, or name its subject.
        record_ids: ids of records.
        samples: texts, whole or in part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identifiers: tuple[str, ...] = ()
    record_ids: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _something(self) -> Subject:
        if not any(text.strip() for texts in (self.identifiers, self.record_ids, self.samples) for text in texts):
            raise ValueError("names nobody and nothing: give identifiers, record_ids or samples")
        return self


class Corpus(BaseModel):
    """Where is looked.

    Attributes:
        name: as the lineage file calls it.
        path: of the file (JSONL, JSON, Parquet, CSV), or a hub id.
        columns: our column name to the one in the file.
        role: what was found in `train` data is to be unlearned; `eval` and `other` data are searched and reported.
        searchable: false for what exists and cannot be read here; `why_not` says why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=120)
    path: str
    columns: dict[str, str] = Field(default_factory=dict)
    role: Literal["train", "eval", "other"] = "train"
    searchable: bool = True
    why_not: str = ""

    @model_validator(mode="after")
    def _reasoned(self) -> Corpus:
        if not self.searchable and not self.why_not.strip():
            raise ValueError("a corpus that is not searched needs why_not")
        return self


class LocateConfig(BaseModel):
    """By which ways rows are found. Similarities are in 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ways: tuple[Way, ...] = Field(LEXICAL, min_length=1, description="paraphrase and influence need a model")
    ngram: int = Field(5, ge=2, le=50, description="words of an n-gram")
    overlap: float = Field(
        0.5, gt=0, le=1, description="found from this share of the n-grams of the row or of the sample, the smaller one"
    )
    passage: int = Field(30, ge=1, description="found from this many n-grams of a sample, whatever share they are")
    shingle: int = Field(3, ge=1, le=50, description="words of a shingle, for near-duplicates")
    near: float = Field(0.5, gt=0, le=1, description="found from this Jaccard similarity of shingles")
    common: float = Field(
        0.05, gt=0, le=1, description="n-grams and shingles in more than this share of all rows do not count"
    )
    permutations: int = Field(128, ge=16, le=4096, description="of a MinHash signature")
    layer: int | None = Field(None, ge=0, description="block whose states are compared; null: the middle one")
    device: str = Field("cpu", description="where the model runs: cpu, cuda or cuda:N")
    calibration: int = Field(1024, ge=32, le=8192, description="random rows that thresholds of a model are taken from")
    false_rate: float = Field(
        1e-3, gt=0, lt=1, description="share of pairs of random rows and samples that may pass for a paraphrase"
    )
    nearest: int = Field(1000, ge=1, description="paraphrases kept at most, the nearest ones")
    model_rows: int = Field(100_000, ge=1, description="rows of a corpus that a model reads at most")
    influence_rows: int = Field(200, ge=1, description="nearest rows whose gradients are taken, beside rows found")
    seed: int = Field(0, ge=0, description="of the random rows")
    memory_mb: int = Field(512, ge=16, description="MiB that an index and what was found may take, models aside")
