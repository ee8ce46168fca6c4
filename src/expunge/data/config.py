# SPDX-License-Identifier: Apache-2.0
"""Which data a run reads and how it becomes token ids."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from expunge.data.noise import NoiseConfig
from expunge.data.robust import RobustConfig


class DataConfig(BaseModel):
    """Sources are paths (JSONL, JSON, Parquet, CSV) or hub ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    forget: str | None = Field(None, description="what the model must stop carrying")
    retain: str | None = Field(None, description="what it must keep, sampled beside the forget set while training")
    holdout: str | None = Field(None, description="never trained on, drawn like the forget set: for membership")
    train: str | None = Field(None, description="what `expunge train` fine-tunes on")
    extra: dict[str, str] = Field(default_factory=dict, description="further sets to audit, by name")
    evaluate: dict[str, str] = Field(
        default_factory=dict, description="audit another source for a set than the one trained on, by set name"
    )
    audit_part: Literal["all", "validation", "test"] = Field(
        "all", description="audit only the subjects of one fixed half: settings chosen on one are judged on the other"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="our column name: the file's column name")
    template: Literal["auto", "raw", "question", "llama2", "tofu_llama2", "tofu_phi", "chat"] = Field(
        "auto", description="prompt template; auto: the tokenizer's chat template if it has one, else question"
    )
    max_length: int | None = Field(None, ge=2, description="longest sequence in tokens; default: the model's context")
    too_long: Literal["error", "truncate", "drop"] = Field("error", description="what happens to longer examples")
    answer_eos: bool = Field(True, description="end every answer with an end-of-sequence token")
    limit: int | None = Field(None, ge=1, description="read at most this many examples of each set")
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    robust: RobustConfig = Field(default_factory=RobustConfig)
