# SPDX-License-Identifier: Apache-2.0
"""The audit part of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
    seed: int = Field(0, ge=0, description="Seed of the bootstrap; the model is measured without randomness.")
    min_k: float = Field(0.2, gt=0.0, le=1.0, description="Share of tokens that Min-K% and Min-K%++ average.")
    privleak_k: float = Field(0.4, gt=0.0, le=1.0, description="Share of tokens in PrivLeak; MUSE defines it at 0.4.")
    generate: bool = Field(True, description="Generate answers; without them there is no ROUGE and no refusal rate.")
    max_new_tokens: int = Field(64, ge=1, description="Longest generation, in tokens.")
    batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass, padding included.")
    lowercase: bool = Field(False, description="Score lowercased answers too, for the lowercase membership attack.")
    limit: int | None = Field(None, ge=1, description="Use only the first so many examples of every set.")
    refusals: str | None = Field(None, description="File with one refusal sentence per line instead of our own list.")
