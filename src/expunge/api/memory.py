# SPDX-License-Identifier: Apache-2.0
"""Unlearn and audit models that are already in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, ModelEntry, environment, model_entry
from expunge.audit.estimate import Estimate
from expunge.audit.measure import Measurer
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import Records
from expunge.data.encoding import Encoder
from expunge.data.examples import Example, Splits
from expunge.data.loaders import check_overlap, load_examples
from expunge.data.sources import Source
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.registry import get_method, parse_method
from expunge.models.digests import model_digest
from expunge.models.loading import context_length
from expunge.recipe import merge
from expunge.training.config import TrainingConfig
from expunge.training.probe import LikelihoodProbe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class UnlearnResult:
    """The changed model, how long it took, and why it stopped early ("" if it did not)."""

    model: PreTrainedModel
    steps: int
    seconds: float
    stopped: str
    card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found, as estimates and as the records they come from."""

    metrics: Mapping[str, Estimate]
    records: Records
    seconds: float
    document: AuditDocument = field(repr=False)

    def to_json(self) -> str:
        """Return the document that `audit.json` holds."""
        from expunge.audit.document import to_json

        return to_json(self.document)

    def to_html(self) -> str:
        """Return the report as one offline HTML page."""
        from expunge.report.folder import view_from_audit
        from expunge.report.render import render

        return render(view_from_audit(self.document.model_dump(mode="json"), title="Audit"))


def unlearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    forget: Source,
    retain: Source | None = None,
    holdout: Source | None = None,
    method: str = "npo",
    settings: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    base: PreTrainedModel | None = None,
    template: str = "auto",
    seed: int = 0,
) -> UnlearnResult:
    """Make a model unlearn a forget set, in place where the method allows it.

    Args:
        model: a causal language model, in float32 unless `training` asks for `pure_bf16`.
        tokenizer: its tokenizer.
        forget: what to unlearn: a path, a hub id, a list of mappings or of `Example`.
        retain: what to keep.
        holdout: never trained on, for stop rules that need it.
        method: name of a method, see `expunge methods`.
        settings: the method's own settings, such as `{"beta": 0.2}`.
        training: settings of the loop; the method's published ones stand in for what is missing.
        base: the model that never saw the data, for methods that retrain.
        template: prompt template.
        seed: of every random choice.

    Raises:
        RecipeError: for an unknown method or setting, or a missing input.
        InputDataError: for data that cannot be used.
    """
    encoder = Encoder(tokenizer, template=template, max_length=context_length(model))
    splits = Splits(
        load_examples(forget, name="forget"),
        load_examples(retain, name="retain") if retain is not None else (),
        load_examples(holdout, name="holdout") if holdout is not None else (),
    )
    chosen = get_method(method)
    config = parse_method({"name": method, **(settings or {})})
    context = MethodContext(
        model=model, encoder=encoder, splits=splits, seed=seed, pad_id=encoder.pad_id,
        training=TrainingConfig(**merge(chosen.training_defaults, training or {})),
        model_digest=model_digest(model), load_base=None if base is None else lambda: base,
        probe=LikelihoodProbe(encoder, splits),
    )  # fmt: skip
    outcome: MethodOutcome = chosen.run(config, context)
    trained = outcome.training
    return UnlearnResult(outcome.model, trained.steps, trained.seconds, trained.stopped, chosen.card.to_dict())


def audit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sets: Mapping[str, Source],
    reference: PreTrainedModel | Records | None = None,
    config: AuditConfig | None = None,
    template: str = "auto",
) -> AuditReport:
    """Measure a model on named sets.

    Args:
        model: the model to measure.
        tokenizer: its tokenizer.
        sets: by name; `forget`, `retain` and `holdout` play what they are called, others are utility.
        reference: the model retrained without the forget set, or its records.
        config: settings of the audit.
        template: prompt template.

    Raises:
        RecipeError: for an unknown metric.
        InputDataError: for data that cannot be used.
    """
    config = config or AuditConfig()
    examples: dict[str, Sequence[Example]] = {name: load_examples(source, name=name) for name, source in sets.items()}
    if "forget" in examples and "holdout" in examples:
        check_overlap(examples["forget"], examples["holdout"], names=("forget", "holdout"))
    encoder = Encoder(tokenizer, template=template, max_length=context_length(model))
    measurer = Measurer(encoder, examples, config, default_protocol(examples))
    started = time.perf_counter()
    records = measurer.measure(model, name="model", model_digest=model_digest(model))
    held: Records | None = None
    if reference is not None:
        held = reference if isinstance(reference, Records) else measurer.measure(
            reference, name="reference", model_digest=model_digest(reference)
        )  # fmt: skip
    metrics = estimate(measurer, records, held)
    seconds = time.perf_counter() - started
    entries = {"model": entry(records, metrics)}
    if held is not None:
        entries["reference"] = entry(held, estimate(measurer, held, held), role="reference")
    return AuditReport(metrics, records, seconds, document(measurer, entries))


def check_metrics(config: AuditConfig, protocol: Protocol) -> None:
    """Raise what would keep the metrics of an audit from being computed; nothing is measured.

    Raises:
        RecipeError: for a metric that does not exist, or a file of the audit that cannot be used.
    """
    compute_metrics(Records([], []), protocol=protocol, config=config)


def estimate(
    measurer: Measurer, records: Records, reference: Records | None, *, canaries: Mapping[str, Estimate] | None = None
) -> dict[str, Estimate]:
    """Return every selected metric of one model: of its records, and of its canaries if they were scored."""
    return compute_metrics(
        records, protocol=measurer.protocol, config=measurer.config, reference=reference,
        reference_name=None if reference is None else str(reference.meta.get("name", "reference")), canaries=canaries,
    )  # fmt: skip


def entry(records: Records, metrics: Mapping[str, Estimate], *, role: Any = "other", method: str = "") -> ModelEntry:
    """Return a model's entry in the audit document."""
    seconds = sum(records.meta.get("seconds", {}).values())
    made = model_entry(metrics, role=role, seconds=seconds)
    kept = ("template", "max_length", "dtype", "settings", "counts", "data", "engine")
    meta = {key: records.meta[key] for key in kept if key in records.meta}
    return made.model_copy(update={"meta": meta, "digest": records.meta.get("model_digest"), "method": method or None})


def document(measurer: Measurer, entries: Mapping[str, ModelEntry]) -> AuditDocument:
    """Return the audit document of several models measured alike."""
    return AuditDocument(
        environment=environment(),
        protocol=measurer.protocol.to_dict(),
        models=dict(entries),
    )
