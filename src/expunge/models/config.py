# SPDX-License-Identifier: Apache-2.0
"""Which models a run touches."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelConfig(BaseModel):
    """The model to change and those it is compared with: hub ids or folders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="model to change: a folder or a hub id")
    base: str | None = Field(None, description="model that never saw the data; methods that retrain start from it")
    reference: str | None = Field(
        None,
        description="model retrained without the data, or records of its audit: what the result is held against",
    )
    revision: str | None = Field(None, description="branch, tag or commit, for hub ids")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type the result is saved and audited in; auto: as stored. Training keeps float32 masters"
    )
    quantised: Literal["none", "int8", "nf4"] = Field(
        "none", description="hold the weights of the model to change in 8 or 4 bits (bitsandbytes) and train a LoRA "
        "adapter over them: needs training.lora",
    )  # fmt: skip
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = Field(
        "sdpa", description="attention implementation, as in transformers"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    trust_remote_code: bool = Field(False, description="run code that ships with the model; recorded in the run")
