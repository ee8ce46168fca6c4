# SPDX-License-Identifier: Apache-2.0
"""What a recipe points at, loaded: the data, the models, and who watches."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from expunge.api.ensembles import load_ensemble
from expunge.audit.measure import Measurer
from expunge.audit.records import Records
from expunge.audit.store import read_records
from expunge.data.config import DataConfig
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.examples import Example, Splits
from expunge.data.loaders import check_overlap, load_examples
from expunge.data.parts import part_of
from expunge.data.preparation import Prepared, is_wanted, prepare
from expunge.errors import InputDataError, RecipeError
from expunge.models.config import ModelConfig
from expunge.models.digests import model_digest
from expunge.models.loading import ENSEMBLE, LoadedModel, check_model, context_length, load_model
from expunge.models.shape import stored_dtype
from expunge.training.callbacks import StepInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Watcher(Protocol):
    """Follows a run from outside: a progress display, a test, a dashboard."""

    def heading(self, text: str) -> None:
        """Called when a study turns to another of its runs."""

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

    def heading(self, text: str) -> None:
        """Ignore it."""

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
    """The sets of a recipe as given, those audited under their names, and the forget set prepared for training.

    Attributes:
        splits: the sets as given.
        audited: what an audit measures, by name.
        prepared: the forget set with noise or guards; None: trained on as given.
    """

    splits: Splits
    audited: Mapping[str, Sequence[Example]]
    prepared: Prepared | None = None

    @property
    def trained(self) -> Splits:
        """The sets as a method sees them."""
        return self.splits if self.prepared is None else replace(self.splits, forget=self.prepared.examples)

    def all_sets(self) -> dict[str, Sequence[Example]]:
        """Return every set that will be encoded; what is audited from another source is there twice."""
        trained = self.trained.named()
        others = {name: found for name, found in self.audited.items() if found is not trained.get(name)}
        return trained | {f"{name} (audited)" if name in trained else name: found for name, found in others.items()}


def load_data(config: DataConfig, *, need_forget: bool = True) -> Data:
    """Read every set a recipe names, check that they do not share examples, and prepare the forget set for training.

    With `robust.overlap` what forget and retain share is no error: it is left out of training.

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
        if forget and other and not (name == "retain" and config.robust.overlap is not None):
            check_overlap(forget, other, names=("forget", name))
    if retain and holdout:
        check_overlap(retain, holdout, names=("retain", "holdout"))
    extra = {name: read(source, name) for name, source in config.extra.items()}
    splits = Splits(forget, retain, holdout, extra)
    audited = {**splits.named(), **{name: read(source, name) for name, source in config.evaluate.items()}}
    if config.audit_part != "all":
        part = config.audit_part
        audited = {name: part_of(examples, part, name=name) for name, examples in audited.items()}
    noise, robust = config.noise, config.robust
    prepared = prepare(forget, retain, noise, robust) if forget and is_wanted(noise, robust) else None
    return Data(splits, audited, prepared)


def device_of(config: ModelConfig) -> str:
    """Return the device a recipe means; `auto` is the first GPU if there is one."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load(config: ModelConfig, path: str, *, dtype: str) -> LoadedModel:
    """Load one of the recipe's models; a folder with `ensemble.json` gives all of its members as one."""
    if (Path(path) / ENSEMBLE).exists():
        return load_ensemble(Path(path), config, dtype=dtype, device=device_of(config))
    return load_model(
        path, dtype=dtype, revision=config.revision if path == config.path else None, device=device_of(config),
        attn_implementation=config.attn_implementation, trust_remote_code=config.trust_remote_code,
        quantised=config.quantised if path == config.path else "none",
    )  # fmt: skip


def final_dtype(config: ModelConfig) -> str:
    """Return the type the result is saved and audited in."""
    if config.dtype != "auto":
        return config.dtype
    return stored_dtype(config)


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


@dataclass(frozen=True, slots=True)
class Opened:
    """A model in memory with its tokenizer, the recipe's encoder for it, and the digest of its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    digest: str


def open_model(config: ModelConfig, data: DataConfig, sets: Mapping[str, Sequence[Example]], *, dtype: str) -> Opened:
    """Load the recipe's model and check everything that could stop a run later, before anything is written.

    Args:
        config: the models of the recipe; those it is compared with are looked for but not loaded.
        data: how examples become token ids.
        sets: every set that will be encoded, by name.
        dtype: type to load the weights in.

    Raises:
        InputDataError: for a model folder or an example that cannot be used.
        RecipeError: for a context, device or template that does not fit the model.
    """
    for other in (config.path, config.base, config.reference):
        if other is not None and not is_records(other):
            check_model(other)
    model, tokenizer = load(config, config.path, dtype=dtype)
    encoder = build_encoder(data, tokenizer, model)
    for name, examples in sets.items():
        encoder.encode_many(examples, where=name)
    return Opened(model, tokenizer, encoder, model_digest(model))


def is_records(path: str) -> bool:
    """Return whether a path holds the records of an audit rather than a model."""
    return (Path(path) / "scored.parquet").exists()


def read_reference(path: str, measurer: Measurer) -> Records:
    """Return the records of a reference model that was audited before.

    Raises:
        InputDataError: if they are of other data than what is audited now.
    """
    records = read_records(path)
    for name, examples in measurer.sets.items():
        known = records.meta.get("data", {}).get(name)
        if known is not None and known["digest"] != data_digest(list(examples)[: measurer.config.limit]):
            raise InputDataError(
                f"the records are of another {name} set", field="model.reference", value=path,
                remedy="Audit the reference on the same data, or give its model folder",
            )  # fmt: skip
    return records


def release() -> None:
    """Give back the memory of models that are no longer referenced, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
