# SPDX-License-Identifier: Apache-2.0
"""Settings of the diagnostics."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Pooling = Literal["mean", "last", "first"]
#: What E counts: a metric of a set that every answer has a value of.
Measure = Literal["exact_memorization", "probability", "extraction_strength"]


class DiagnoseConfig(BaseModel):
    """How models are compared on the inside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compat: Literal["fixed", "published"] = Field(
        "fixed",
        description="published: states, similarities and Fisher sums as the released code of the study takes them, "
        "with what is wrong about each said beside it.",
    )
    pooling: Literal["mean", "last"] = Field(
        "mean", description="State of a text: the mean over its real tokens, or the last of them."
    )
    texts: int = Field(200, ge=3, description="Texts of each set whose states are compared, from its start.")
    fisher_texts: int = Field(
        32, ge=0, description="Texts of each set that the Fisher diagonal averages over; 0 leaves it out."
    )
    layers_per_pass: int = Field(
        0, ge=0, description="Blocks whose Fisher sums are in memory at once; 0: all. Each pass reads the texts again."
    )
    scatter_texts: int = Field(60, ge=0, description="Texts of each set that the scatter plots draw.")
    measure: Measure = Field(
        "exact_memorization",
        description="What E counts for the verdict: the share of answer tokens that are the arg max, the answer's "
        "probability, or its extraction strength.",
    )
    collateral: float = Field(
        0.1, gt=0, lt=1, description="Catastrophic from this share of the retain value lost on; the threshold is ours."
    )
    forgotten: float = Field(
        0.1, gt=0, lt=1, description="Forgotten from this share of the forget value lost on; the threshold is ours."
    )
    residue: float = Field(
        0.1, gt=0, lt=1,
        description="Reversible if at most this share of the loss is left after relearning; the threshold is ours.",
    )  # fmt: skip
    bootstrap: int = Field(2000, ge=100, description="Bootstrap replicates behind an interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap; nothing else is drawn.")
    batch_tokens: int = Field(8192, ge=1, description="Tokens per forward pass, padding included.")
