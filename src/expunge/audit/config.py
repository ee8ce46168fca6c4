# SPDX-License-Identifier: Apache-2.0
"""The audit part of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.signals.engine import EngineConfig

Compat = Literal["fixed", "paper", "locuslab", "openunlearning", "muse"]


class AuditConfig(BaseModel):
    """How a model is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = Field(("*",), description="Metric names to compute; `*` and `?` match any text.")
    compat: Compat = Field(
        "fixed",
        description="Compute as this published code where it differs; `fixed` is the mathematically right variant.",
    )
    bootstrap: int = Field(2000, ge=100, description="Bootstrap replicates behind an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Coverage of the intervals.")
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the bootstrap and of reworded neighbours; the model is measured without randomness.",
    )
    min_k: float = Field(0.2, gt=0.0, le=1.0, description="Share of tokens that Min-K% and Min-K%++ average.")
    privleak_k: float = Field(0.4, gt=0.0, le=1.0, description="Share of tokens in PrivLeak; MUSE defines it at 0.4.")
    generate: bool | tuple[str, ...] = Field(
        True,
        description="Sets to generate answers in; true: all. Without them a set has no ROUGE and no refusal rate.",
    )
    max_new_tokens: int = Field(64, ge=1, description="Longest generation, in tokens.")
    engine: EngineConfig | None = Field(
        None, description="Server that generates the answers instead of the local model; see `EngineConfig`."
    )
    batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass, padding included.")
    lowercase: bool = Field(False, description="Score lowercased answers too, for the lowercase membership attack.")
    gradient_norm: bool = Field(
        False, description="Take gradient norms for the membership attack: one backward per forget and holdout answer."
    )
    neighbours: int = Field(
        0,
        ge=0,
        description="Reworded copies to score of every forget and holdout answer, for the neighbourhood attack.",
    )
    extraction_prefixes: int = Field(
        0, ge=0, description="Prefixes to continue of every forget and holdout answer, for the extraction likelihood."
    )
    extraction_length: int = Field(10, ge=1, description="Length n of the n-grams of the extraction likelihood.")
    extraction_samples: int = Field(
        100, ge=1, description="Samples n within which an answer counts as (n, p)-discoverably extractable."
    )
    extraction_probability: float = Field(0.5, gt=0.0, lt=1.0, description="Chance p with which it must be among them.")
    canaries: str | None = Field(
        None, description="Manifest of the canaries planted in the training data: they are scored, and have a section."
    )
    limit: int | None = Field(None, ge=1, description="Use only the first so many examples of every set.")
    refusals: str | None = Field(None, description="File with one refusal sentence per line instead of our own list.")

    def generates(self, name: str) -> bool:
        """Return whether answers are generated in a set."""
        return self.generate if isinstance(self.generate, bool) else name in self.generate

    @model_validator(mode="after")
    def _room_for_an_ngram(self) -> AuditConfig:
        if self.extraction_prefixes and self.max_new_tokens < self.extraction_length:
            raise ValueError(
                f"continuations of {self.max_new_tokens} tokens hold no {self.extraction_length}-gram: raise "
                "max_new_tokens or lower extraction_length"
            )
        return self
