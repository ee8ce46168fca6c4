# SPDX-License-Identifier: Apache-2.0
"""What a recipe points at, loaded: the data, the models, and who watches."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from expunge.data.config import DataConfig
from expunge.data.encoding import Encoder
from expunge.data.examples import Example, Splits
from expunge.data.loaders import check_overlap, load_examples
from expunge.errors import RecipeError
from expunge.models.config import ModelConfig
from expunge.models.loading import LoadedModel, context_length, load_model, stored_dtype
from expunge.training.callbacks import StepInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Watcher(Protocol):
    """Follows a run from outside: a progress display, a test, a dashboard."""

    def stage(self, text: str) -> None:
        """Called when another part of the run begins."""

    def on_step(self, info: StepInfo) -> None:
        """Called after every optimiser step."""

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Called after every probe."""

    def on_audit(self, phase: str, done: int, total: int) -> None:
        """Called after every forward of an audit."""


class Silent:
    """A watcher that does nothing."""

    def stage(self, text: str) -> None:
        """Ignore it."""

    def on_step(self, info: StepInfo) -> None:
        """Ignore it."""

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore it."""

    def on_audit(self, phase: str, done: int, total: int) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Data:
    """The sets of a recipe: those trained on, and those audited under their names."""

    splits: Splits
    audited: Mapping[str, Sequence[Example]]


def load_data(config: DataConfig, *, need_forget: bool = True) -> Data:
    """Read every set a recipe names and check that they do not share examples.

    Raises:
        RecipeError: if there is no forget set.
        InputDataError: for a source that cannot be used.
    """
    if config.forget is None and need_forget:
        raise RecipeError("a forget set is needed", field="data.forget", remedy="Give --forget FILE")

    def read(source: str | None, name: str) -> list[Example]:
        if source is None:
            return []
        return load_examples(source, name=name, columns=config.columns, limit=config.limit)

    names = ("forget", "retain", "holdout")
    forget, retain, holdout = (read(source, name) for source, name in
                               zip((config.forget, config.retain, config.holdout), names, strict=True))  # fmt: skip
    for other, name in ((retain, "retain"), (holdout, "holdout")):
        if forget and other:
            check_overlap(forget, other, names=("forget", name))
    if retain and holdout:
        check_overlap(retain, holdout, names=("retain", "holdout"))
    extra = {name: read(source, name) for name, source in config.extra.items()}
    splits = Splits(forget, retain, holdout, extra)
    audited = {**splits.named(), **{name: read(source, name) for name, source in config.evaluate.items()}}
    return Data(splits, audited)


def device_of(config: ModelConfig) -> str:
    """Return the device a recipe means; `auto` is the first GPU if there is one."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load(config: ModelConfig, path: str, *, dtype: str) -> LoadedModel:
    """Load one of the recipe's models."""
    return load_model(
        path, dtype=dtype, revision=config.revision if path == config.path else None, device=device_of(config),
        attn_implementation=config.attn_implementation, trust_remote_code=config.trust_remote_code,
    )  # fmt: skip


def final_dtype(config: ModelConfig) -> str:
    """Return the type the result is saved and audited in."""
    if config.dtype != "auto":
        return config.dtype
    return stored_dtype(config.path, revision=config.revision, trust_remote_code=config.trust_remote_code)


def build_encoder(config: DataConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Encoder:
    """Return the recipe's encoder; a length beyond the model's context is refused.

    Raises:
        RecipeError: if `max_length` exceeds the context.
    """
    context = context_length(model)
    if config.max_length is not None and config.max_length > context:
        raise RecipeError(
            f"the model's context has {context} tokens", field="data.max_length", value=config.max_length,
            remedy=f"Use at most {context}",
        )  # fmt: skip
    return Encoder(
        tokenizer, template=config.template, max_length=config.max_length or context, too_long=config.too_long,
        answer_eos=config.answer_eos,
    )  # fmt: skip


def release() -> None:
    """Give back the memory of models that are no longer referenced, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
