# SPDX-License-Identifier: Apache-2.0
"""How weights are trained: everything a user may set about the loop."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.models.adapters import LoraSettings
from expunge.optim.config import MaskConfig, OptimizerConfig, ProximalConfig
from expunge.optim.wrapper_config import WrapperConfig
from expunge.training.privacy_config import PrivacyConfig, check_private


class StopConfig(BaseModel):
    """When a run ends before its planned steps, or with which of its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["steps", "utility_drop", "rewind"] = Field(
        "steps",
        description="steps: run them all; utility_drop: stop when the retain probability has fallen too far; rewind: "
        "run them all, then go back to the epoch whose forget loss is closest to the loss of the holdout",
    )
    max_drop: float = Field(
        0.1, gt=0, lt=1, description="utility_drop: largest relative fall of the retain probability from its start"
    )


class TrainingConfig(BaseModel):
    """Settings of the training loop; methods bring their own published defaults for some of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    epochs: int = Field(5, ge=1, description="passes over the forget set (or over the training set of `train`)")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(32, ge=1, description="forget examples per optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="forget examples per forward; default: on a CPU what makes 768 tokens, else batch_size"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="decay after warm-up")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the gradient's L2 norm; null: never")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    precision: Literal["auto", "fp32", "bf16", "pure_bf16"] = Field(
        "auto",
        description="auto: bf16 autocast over float32 weights where the hardware has it, else float32; "
        "pure_bf16: bfloat16 weights without a float32 master, for reproducing published runs only",
    )
    dropout: bool = Field(False, description="keep the model's own dropout active while training")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    compile: bool = Field(
        False,
        description="compile the decoder blocks; pays on a GPU after minutes of compiling, on padded batches only",
    )
    cache_mb: int = Field(
        2048, ge=0, description="hidden states below the lowest weight that moves are computed once; those that take "
        "more memory than this, MiB, are mapped from a file in the run folder",
    )  # fmt: skip
    lora: LoraSettings | None = Field(None, description="train a LoRA adapter instead of the weights")
    trainable: tuple[str, ...] = Field((), description="regular expressions of parameters that may move; empty: all")
    mask: MaskConfig = Field(default_factory=MaskConfig)
    privacy: PrivacyConfig | None = Field(
        None, description="differentially private steps, of `expunge train` only; max_grad_norm is null by default then"
    )
    proximal_l1: ProximalConfig | None = Field(None, description="make the linear layers sparse while training")
    wrapper: WrapperConfig = Field(default_factory=WrapperConfig)
    stop: StopConfig = Field(default_factory=StopConfig)
    probe_every: int = Field(0, ge=0, description="steps between probes of the likelihoods; 0: once per epoch")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0: once per epoch")
    keep_checkpoints: int = Field(1, ge=1, description="checkpoints kept while running")

    @model_validator(mode="before")
    @classmethod
    def _noisy_gradients_stay_whole(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("privacy") is not None:
            return {"max_grad_norm": None, **values}
        return values

    @model_validator(mode="after")
    def _private_as_accounted(self) -> TrainingConfig:
        check_private(self)
        return self

    @model_validator(mode="after")
    def _lora_or_selection(self) -> TrainingConfig:
        if self.lora is not None and self.trainable:
            raise ValueError("lora and trainable exclude each other: LoRA trains only its adapter")
        return self

    @model_validator(mode="after")
    def _scores_need_values(self) -> TrainingConfig:
        if self.lora is not None and self.mask.kind in ("magnitude", "wanda"):
            raise ValueError(
                f"mask.kind {self.mask.kind} says nothing about a fresh adapter, half of which is zero: "
                "use wagle or random, or leave lora out"
            )
        return self

    @model_validator(mode="after")
    def _one_choice_of_weights(self) -> TrainingConfig:
        if self.wrapper.name == "weight_averaging" and self.stop.rule == "rewind":
            raise ValueError(
                "wrapper weight_averaging and stop.rule rewind exclude each other: both choose the weights"
            )
        return self

    @model_validator(mode="after")
    def _free_epochs_fit(self) -> TrainingConfig:
        if self.proximal_l1 is not None and self.proximal_l1.free_epochs > self.epochs:
            raise ValueError("proximal_l1.free_epochs must not exceed epochs")
        return self
