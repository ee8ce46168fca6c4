# SPDX-License-Identifier: Apache-2.0
"""One recipe from start to end: measure, unlearn, save, measure again, write it all down."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.api.lineage import write_seen
from expunge.api.memory import check_metrics, document, entry, estimate
from expunge.api.needs import check_needs
from expunge.api.screen import screen
from expunge.api.workspace import (
    Data,
    Opened,
    Silent,
    Watcher,
    final_dtype,
    is_records,
    load,
    load_data,
    open_model,
    read_reference,
    release,
)
from expunge.audit.canaries.session import CanaryAudit, canary_audit_of
from expunge.audit.document import AuditDocument, ModelRole, environment, estimates, read_audit, write_json
from expunge.audit.examples import shown_examples
from expunge.audit.measure import Measurer
from expunge.audit.policy import Verdict
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import Records
from expunge.benchmarks.base import BenchmarkData
from expunge.data.digests import data_digest
from expunge.data.preparation import in_words
from expunge.errors import ExpungeError
from expunge.methods.base import MethodContext, MethodOutcome
from expunge.methods.registry import get_method
from expunge.models.adapters import is_lora
from expunge.models.digests import model_digest
from expunge.models.loading import DTYPES, save_model
from expunge.recipe import Recipe
from expunge.report.folder import view_from_run
from expunge.report.render import write_report
from expunge.runs import RunFolder, check_output, earlier_run, write_text
from expunge.training.probe import LikelihoodProbe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run is, what its audit found, and which limits of its policy it meets."""

    folder: Path
    document: AuditDocument
    verdicts: list[Verdict]
    stopped: str


def run(
    recipe: Recipe,
    *,
    output_dir: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    records_dir: Path | None = None,
    commands: tuple[str, ...] = (),
    watcher: Watcher | None = None,
    show_examples: bool = False,
    benchmark: BenchmarkData | None = None,
    runs_tried: int | None = None,
) -> RunResult:
    """Carry out a recipe.

    Args:
        recipe: what to do, resolved.
        output_dir: the run folder; default `runs/<name>-<hash8>`.
        overwrite: start again where a run already is.
        resume: go on where a run was interrupted; a finished run is returned as it is.
        records_dir: where records of audits are kept and found; default inside the run folder.
        commands: how to reproduce the run, for its report.
        watcher: follows the run.
        show_examples: write example texts into the report instead of redacting them.
        benchmark: sets and protocol to measure in place of those of the recipe; its other settings are not looked at.
        runs_tried: how many runs were tried before these settings were chosen, for the report; None if nobody counted.

    Raises:
        ExpungeError: one of its kinds; the run folder then says what happened.
    """
    check_needs(recipe)
    path, watch = output_dir or Path("runs") / recipe.folder_name, watcher or Silent()
    check_output(path, overwrite=overwrite, resume=resume)
    earlier = earlier_run(path, recipe.hash) if resume else {}
    if earlier.get("status") == "finished":
        return _finished(recipe, path, str(earlier.get("stopped", "")))
    data = load_data(recipe.data)
    protocol = default_protocol(data.audited)
    check_metrics(recipe.audit, protocol)
    if benchmark is not None:
        data, protocol = replace(data, audited=benchmark.sets), benchmark.protocol
    watch.stage("Loading the model")
    opened = [open_model(recipe.model, recipe.data, data.all_sets(), dtype=_training_dtype(recipe))]
    canaries = canary_audit_of(recipe.audit, opened[0].encoder)
    folder = RunFolder(path, overwrite=overwrite, resume=resume)
    job = _Job(recipe, data, protocol, folder, records_dir or path / "records", watch, show_examples, canaries)
    with job.recorded(commands, runs_tried):
        # Handed over, not shared: a method that trains another model must not keep this one in memory.
        return job.carry_out(opened.pop(), resume=resume)


def _finished(recipe: Recipe, path: Path, stopped: str) -> RunResult:
    """Return what an earlier, finished run found."""
    document = read_audit(path / "audit.json")
    name = get_method(recipe.method.name).card.name  # type: ignore[attr-defined]
    return RunResult(path, document, recipe.policy.check(estimates(document.models[name])), stopped)


def _training_dtype(recipe: Recipe) -> str:
    return "bfloat16" if recipe.training.precision == "pure_bf16" else "float32"


class _Job:
    def __init__(
        self, recipe: Recipe, data: Data, protocol: Protocol, folder: RunFolder, records_dir: Path, watcher: Watcher,
        show_examples: bool, canaries: CanaryAudit | None,
    ) -> None:  # fmt: skip
        self._recipe, self._data, self._folder, self._watcher = recipe, data, folder, watcher
        self._protocol, self._records_dir, self._show = protocol, records_dir, show_examples
        self._canaries = canaries
        self._card = get_method(recipe.method.name).card  # type: ignore[attr-defined]
        self._name = self._card.name

    @contextmanager
    def recorded(self, commands: tuple[str, ...], runs_tried: int | None) -> Iterator[None]:
        """Keep `run.json` true whatever happens, and a report beside it."""
        recipe, folder = self._recipe, self._folder
        write_text(folder.path / "recipe.yaml", recipe.to_yaml())
        write_seen(folder.path, [*self._data.splits.forget, *self._data.splits.retain])
        folder.start({
            "kind": "run", "name": recipe.name, "method": self._card.to_dict(), "claim": self._card.claim,
            "recipe_hash": recipe.hash, "recipe": recipe.to_dict(), "environment": environment(),
            "data": {name: {"n": len(examples), "digest": data_digest(examples)}
                     for name, examples in self._data.splits.named().items()},
            "prepared": None if self._data.prepared is None else self._data.prepared.to_dict(),
            "commands": list(commands), "runs_tried": runs_tried,
        })  # fmt: skip
        try:
            with folder.recorded():
                yield
        except BaseException:
            with suppress(ExpungeError):  # what stopped the run is the error to show, not that its report failed too
                self._report()
            raise
        self._report()

    def carry_out(self, opened: Opened, *, resume: bool) -> RunResult:
        """Measure, unlearn, save, measure."""
        recipe, watch = self._recipe, self._watcher
        model, tokenizer, encoder, digest = opened.model, opened.tokenizer, opened.encoder, opened.digest
        dtype = final_dtype(recipe.model)
        self._folder.update({
            "model": {"path": recipe.model.path, "digest": digest,
                      "parameters": sum(p.numel() for p in model.parameters()), "saved_dtype": dtype},
        })  # fmt: skip
        measurer = Measurer(
            encoder, self._data.audited, recipe.audit, self._protocol, self._records_dir, self._watcher.on_audit
        )
        watch.stage("Auditing the model before")
        before = self._measure(measurer, model, "target", dtype, digest)
        reference = self._reference(measurer, dtype)
        self._screen(model, encoder)
        watch.stage(f"Unlearning with {self._name}{self._preparation()}")
        outcome = self._unlearn(model, encoder, digest, resume=resume)
        del model, opened
        release()
        watch.stage("Saving the model")
        self._cast(outcome.model, DTYPES[dtype])
        save_model(outcome.model, tokenizer, self._folder.path / "model", overwrite=True)
        watch.stage("Auditing the model after")
        after = self._measure(measurer, outcome.model, self._name, dtype, model_digest(outcome.model))
        result = self._document(measurer, before, after, reference)
        self._folder.update({"stopped": outcome.training.stopped, "notes": {**outcome.training.notes, **outcome.notes}})
        verdicts = recipe.policy.check(estimates(result.models[self._name]))
        return RunResult(self._folder.path, result, verdicts, outcome.training.stopped)

    def _measure(self, measurer: Measurer, model: PreTrainedModel, name: str, dtype: str, digest: str) -> Records:
        """Measure in the type that is stored, then go back to the one that trains."""
        training_dtype = model.dtype
        self._cast(model, DTYPES[dtype])
        records = measurer.measure(model, name=name, model_digest=digest)
        self._score_canaries(name, "target" if name == "target" else "method", model, measurer)
        self._cast(model, training_dtype)
        return records

    def _score_canaries(self, name: str, role: ModelRole, model: PreTrainedModel, measurer: Measurer) -> None:
        if self._canaries is not None:
            self._canaries.measure(name, role, model, measurer.encoder)

    def _cast(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        """Store the weights in another type; those held in fewer bits stay as they are."""
        if self._recipe.model.quantised == "none":
            model.to(dtype)

    def _reference(self, measurer: Measurer, dtype: str) -> Records | None:
        path = self._recipe.model.reference
        if path is None:
            return None
        if is_records(path):
            return read_reference(path, measurer)
        self._watcher.stage("Auditing the reference")
        model, _ = load(self._recipe.model, path, dtype=dtype)
        records = measurer.measure(model, name="reference", model_digest=model_digest(model))
        self._score_canaries("reference", "reference", model, measurer)
        del model
        release()
        return records

    def _screen(self, model: PreTrainedModel, encoder: Any) -> None:
        """Leave out what the model does not know, if the recipe says so, and write down what is trained on."""
        robust, data = self._recipe.data.robust, self._data
        if robust.memorised == "none" or data.prepared is None:
            return
        self._watcher.stage(f"Looking for what the model knows better than the {robust.memorised}")
        kept = screen(
            data.prepared, robust, model=model, encoder=encoder, holdout=data.splits.holdout,
            load_base=self._load_base(),
        )  # fmt: skip
        release()
        self._data = replace(data, prepared=kept)
        self._folder.update({"prepared": kept.to_dict()})

    def _preparation(self) -> str:
        prepared = self._data.prepared
        return "" if prepared is None else f" ({in_words(prepared.to_dict())})"

    def _load_base(self) -> Callable[[], PreTrainedModel] | None:
        recipe, base = self._recipe, self._recipe.model.base
        return None if base is None else lambda: load(recipe.model, base, dtype=_training_dtype(recipe)).model

    def _unlearn(self, model: PreTrainedModel, encoder: Any, digest: str, *, resume: bool) -> MethodOutcome:
        recipe, splits = self._recipe, self._data.trained
        method = get_method(self._name)
        context = MethodContext(
            model=model, encoder=encoder, splits=splits, training=recipe.training, seed=recipe.seed,
            pad_id=encoder.pad_id, model_digest=digest, folder=self._folder.path,
            load_base=self._load_base(), probe=LikelihoodProbe(encoder, splits), callbacks=[self._watcher],
            resume=resume,
        )  # fmt: skip
        started = time.perf_counter()
        outcome = method.run(recipe.method, context)
        self._folder.update({
            "steps": outcome.training.steps, "unlearning_seconds": round(time.perf_counter() - started, 3),
            "peak_memory_mb": peak_memory_mb(), "adapter": is_lora(outcome.model),
        })  # fmt: skip
        return outcome

    def _document(
        self, measurer: Measurer, before: Records, after: Records, reference: Records | None
    ) -> AuditDocument:
        entries = {"target": entry(before, estimate(measurer, before, reference), role="target")}
        if reference is not None:
            entries["reference"] = entry(reference, estimate(measurer, reference, reference), role="reference")
        metrics = estimate(measurer, after, reference)
        entries[self._name] = entry(after, metrics, role="method", method=self._name)
        policy = self._recipe.policy
        verdicts = policy.check(metrics)
        rules: Mapping[str, Any] = {
            "name": policy.name,
            "version": policy.version,
            "rules": [verdict._asdict() for verdict in verdicts],
        }
        planted = None if self._canaries is None else self._canaries.document()
        result = document(measurer, entries).model_copy(
            update={"policy": rules if verdicts else None, "canaries": planted}
        )
        write_json(result, self._folder.path / "audit.json")
        shown = shown_examples(measurer.sets.get("forget", ()), before, after, reference)
        write_json({self._name: shown}, self._folder.path / "examples.json")
        return result

    def _report(self) -> None:
        write_report(view_from_run(self._folder.path), self._folder.path / "report.html", show_examples=self._show)


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10), 1)
