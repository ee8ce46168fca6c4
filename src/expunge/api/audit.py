# SPDX-License-Identifier: Apache-2.0
"""Measure model folders: several models on the same data, against the same reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from expunge.api.memory import check_metrics, document, entry, estimate
from expunge.api.workspace import (
    Data,
    Opened,
    Silent,
    Watcher,
    final_dtype,
    is_records,
    load_data,
    open_model,
    read_reference,
    release,
)
from expunge.audit.canaries.session import CanaryAudit, canary_audit_of
from expunge.audit.document import AuditDocument, ModelEntry, ModelRole, environment, estimates, model_entry, write_json
from expunge.audit.estimate import Estimate
from expunge.audit.lm_eval_adapter import HarnessRun, run_lm_eval
from expunge.audit.measure import Measurer
from expunge.audit.policy import Policy, Verdict
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import Records
from expunge.benchmarks.base import BenchmarkData
from expunge.data.config import DataConfig
from expunge.data.digests import data_digest
from expunge.data.examples import Splits
from expunge.data.questions import QuestionSet
from expunge.errors import InputDataError, RecipeError
from expunge.models.config import ModelConfig
from expunge.models.loading import check_model
from expunge.recipe import AuditRecipe
from expunge.report.folder import view_from_audit
from expunge.report.render import write_report
from expunge.runs import RunFolder, check_output, earlier_run, read_run, write_text

REFERENCE: Final = "reference"
#: What is compared with comes first.
_ORDER = {"target": 0, "reference": 1}


@dataclass(frozen=True, slots=True)
class AuditResult:
    """Where an audit is, what it found, which limits of its policy are met, and the run behind each model."""

    folder: Path
    document: AuditDocument
    verdicts: list[Verdict]
    runs: Mapping[str, Path]


def audit_folders(
    recipe: AuditRecipe,
    *,
    output_dir: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    commands: tuple[str, ...] = (),
    watcher: Watcher | None = None,
    show_examples: bool = False,
    benchmark: BenchmarkData | None = None,
    lm_eval: Sequence[str] = (),
) -> AuditResult:
    """Measure every model of a recipe; write `audit.json`, `report.html` and `records/`.

    Args:
        recipe: which models, data and settings.
        output_dir: where to write; default `runs/audit-<hash8>`.
        overwrite: start again where an audit already is.
        resume: go on where an audit was interrupted; models that were measured already are not measured again.
        commands: how to reproduce the audit, for its report.
        watcher: follows the audit.
        show_examples: write example texts into the report instead of redacting them.
        benchmark: sets, protocol and questions to measure in place of those of the recipe.
        lm_eval: tasks of lm-evaluation-harness to run on every model beside the audit.

    Raises:
        ExpungeError: one of its kinds.
    """
    recipe = recipe if benchmark is None else _as_fixed(recipe, benchmark)
    path = output_dir or Path("runs") / recipe.folder_name
    check_output(path, overwrite=overwrite, resume=resume)
    if resume:
        earlier_run(path, recipe.hash)
    subject = _subject(recipe, benchmark)
    data = subject.data
    if not (data.audited or subject.questions or lm_eval):
        raise RecipeError("nothing to audit on", field="data", remedy="Give --forget, --retain, --holdout or --extra")
    check_metrics(recipe.audit, subject.protocol)
    for source in recipe.models.values():
        check_model(source)
    job = _Audit(recipe, subject, watcher or Silent(), path / "records", lm_eval)
    opened = [job.open(next(iter(recipe.models.values())))]  # what cannot be encoded stops here, before any writing
    job.canaries = canary_audit_of(recipe.audit, opened[0].encoder)
    folder = RunFolder(path, overwrite=overwrite, resume=resume)
    write_text(path / "recipe.yaml", recipe.to_yaml())
    folder.start({
        "kind": "audit", "name": recipe.name, "recipe": recipe.to_dict(), "recipe_hash": recipe.hash,
        "environment": environment(), "commands": list(commands),
        "data": {name: {"n": len(found), "digest": data_digest(found)} for name, found in data.audited.items()},
    })  # fmt: skip
    with folder.recorded():
        result, verdicts = job.carry_out(opened)
        write_json(result, path / "audit.json")
        runs = _runs(recipe.models, result)
        view = view_from_audit(
            result.model_dump(mode="json"), title=recipe.name.capitalize(), runs=runs,
            what_was_asked=_asked(recipe, data), reproduce=commands,
        )  # fmt: skip
        write_report(view, path / "report.html", show_examples=show_examples)
    return AuditResult(path, result, verdicts, runs)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What every model is measured on."""

    data: Data
    protocol: Protocol
    questions: Mapping[str, QuestionSet]


def _subject(recipe: AuditRecipe, benchmark: BenchmarkData | None) -> _Subject:
    """Return the sets of a benchmark, or those of the recipe under the default protocol."""
    if benchmark is not None:
        return _Subject(Data(Splits(()), benchmark.sets), benchmark.protocol, benchmark.questions)
    data = load_data(recipe.data, need_forget=False)
    return _Subject(data, default_protocol(data.audited), {})


def _as_fixed(recipe: AuditRecipe, benchmark: BenchmarkData) -> AuditRecipe:
    """Return the recipe with what the benchmark's protocol fixes; what the caller gave explicitly wins."""
    given = recipe.data.model_dump(include=recipe.data.model_fields_set)
    fixed = {"template": benchmark.template, **benchmark.encoding}
    return recipe.model_copy(
        update={"data": DataConfig(**{**fixed, **given}), "audit": benchmark.audit_config(recipe.audit)}
    )


class _Audit:
    def __init__(
        self, recipe: AuditRecipe, subject: _Subject, watcher: Watcher, records: Path, lm_eval: Sequence[str]
    ) -> None:
        self._recipe, self._subject, self._watcher, self._folder = recipe, subject, watcher, records
        self._data, self._tasks = subject.data, tuple(lm_eval)
        self._harness: dict[str, HarnessRun] = {}
        self.canaries: CanaryAudit | None = None

    def open(self, source: str) -> Opened:
        """Load one model with the encoder that belongs to it."""
        self._watcher.stage(f"Loading {source}")
        config = self._config(source)
        return open_model(config, self._recipe.data, self._data.audited, dtype=final_dtype(config))

    def carry_out(self, opened: list[Opened]) -> tuple[AuditDocument, list[Verdict]]:
        """Measure the reference and every model; `opened` holds the first model and is emptied."""
        recipe, entries = self._recipe, dict[str, ModelEntry]()
        measured: dict[str, tuple[Measurer, Records]] = {}
        for name, source in recipe.models.items():
            measured[name] = self._measure(name, opened.pop() if opened else self.open(source))
        # The first model's measurer stands for the reference where only its records are there.
        measurer = next(iter(measured.values()))[0]
        reference = self._reference(measurer)
        verdicts = []
        for name, (own, records) in measured.items():
            metrics = estimate(own, records, reference, canaries=self._shown(name))
            role, method = _made_by(name, recipe.models[name])
            made = self._with_harness(name, entry(records, metrics, role=role, method=method))
            entries[name] = made.model_copy(update={"path": recipe.models[name]})
            verdicts += _verdicts(recipe.policy, entries[name], name if len(measured) > 1 else "")
        if reference is not None:
            metrics = estimate(measurer, reference, reference, canaries=self._shown(REFERENCE))
            made = entry(reference, metrics, role="reference")
            entries[REFERENCE] = self._with_harness(REFERENCE, made)
        entries = dict(sorted(entries.items(), key=lambda item: _ORDER.get(item[1].role, len(_ORDER))))
        planted = None if self.canaries is None else self.canaries.document()
        update = {"policy": policy_dict(recipe.policy, verdicts), "canaries": planted}
        return document(measurer, entries).model_copy(update=update), verdicts

    def _shown(self, name: str) -> Mapping[str, Estimate]:
        return {} if self.canaries is None else self.canaries.estimates(name)

    def _with_harness(self, name: str, made: ModelEntry) -> ModelEntry:
        """Add what lm-evaluation-harness found on a model, with the versions of its tasks."""
        found = self._harness.get(name)
        if found is None:
            return made
        extra = model_entry(found.estimates)
        return made.model_copy(
            update={"metrics": made.metrics | extra.metrics, "meta": made.meta | {"lm_eval": found.meta()}}
        )

    def _config(self, source: str) -> ModelConfig:
        own = source == self._recipe.model.path
        revision = self._recipe.model.revision if own else None
        return self._recipe.model.model_copy(update={"path": source, "revision": revision})

    def _measure(self, name: str, opened: Opened) -> tuple[Measurer, Records]:
        self._watcher.stage(f"Auditing {name}")
        measurer = Measurer(
            opened.encoder, self._data.audited, self._recipe.audit, self._subject.protocol, self._folder,
            self._watcher.on_audit, self._subject.questions,
        )  # fmt: skip
        records = measurer.measure(opened.model, name=name, model_digest=opened.digest)
        if self.canaries is not None:
            role: ModelRole = REFERENCE if name == REFERENCE else _made_by(name, self._recipe.models[name])[0]
            self.canaries.measure(name, role, opened.model, opened.encoder)
        if self._tasks:
            self._watcher.stage(f"Running {', '.join(self._tasks)} on {name}")
            tokenizer, limit = opened.encoder.tokenizer, self._recipe.audit.limit
            self._harness[name] = run_lm_eval(opened.model, tokenizer, self._tasks, limit=limit)
        del opened
        release()
        return measurer, records

    def _reference(self, measurer: Measurer) -> Records | None:
        path = self._recipe.model.reference
        if path is None:
            return None
        return read_reference(path, measurer) if is_records(path) else self._measure(REFERENCE, self.open(path))[1]


def _verdicts(policy: Policy, found: ModelEntry, name: str) -> list[Verdict]:
    """Hold one model against the policy; `name` is put before its rules where there are several models."""
    verdicts = policy.check(estimates(found))
    return [verdict._replace(rule=f"{name}: {verdict.rule}") for verdict in verdicts] if name else verdicts


def policy_dict(policy: Policy, verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """Return the policy part of the audit document, None without limits."""
    if not verdicts:
        return None
    return {"name": policy.name, "version": policy.version, "rules": [verdict._asdict() for verdict in verdicts]}


def _made_by(name: str, source: str) -> tuple[ModelRole, str]:
    """Return what a model is to the comparison, and the method that made it ("" if no run says so)."""
    info = read_run(Path(source).absolute().parent)
    if info.get("kind") == "run":
        return "method", str(info["method"]["name"])
    return ("target" if name == "target" else "other"), ""


def _runs(models: Mapping[str, str], found: AuditDocument) -> dict[str, Path]:
    """Return the run folders of the models that a method made."""
    return {name: Path(models[name]).parent for name, model in found.models.items() if model.role == "method"}


def _asked(recipe: AuditRecipe, data: Data) -> list[tuple[str, str]]:
    """Say what was measured, on what."""
    rows = [(f"Model {name}", source) for name, source in recipe.models.items()]
    if recipe.model.reference:
        rows.append(("Reference", recipe.model.reference))
    for name, examples in data.audited.items():
        words = f"{len(examples)} examples, digest {data_digest(examples)[:12]}"
        rows.append((f"{name.replace('_', ' ').capitalize()} set", words))
    return rows


def name_models(sources: Sequence[str], *, reference: str | None = None) -> dict[str, str]:
    """Return models by name: that of their folder, or of the one above where the folder is called `model`.

    A run folder stands for the `model` folder in it, and the reference is not measured twice. Names that are equal
    get the folder above in front.

    Raises:
        InputDataError: if a model is named twice, or none is left.
    """
    paths = list(dict.fromkeys(_model_folder(source) for source in sources))
    if len(paths) < len(sources):
        raise InputDataError("a model is named twice", field="models", value=list(sources), remedy="Name each once")
    compared = None if reference is None else Path(_model_folder(reference)).absolute()
    paths = [path for path in paths if Path(path).absolute() != compared]
    if not paths:
        raise InputDataError("no model but the reference", field="models", remedy="Name at least one other model")
    names = {path: _tail(path, 1) for path in paths}
    for depth in range(2, 1 + max(len(Path(path).absolute().parts) for path in paths)):
        taken = [*names.values(), *([REFERENCE] if reference else [])]
        names = {path: _tail(path, depth) if taken.count(name) > 1 else name for path, name in names.items()}
    return {name: path for path, name in names.items()}


def _model_folder(source: str) -> str:
    """Return the model folder that a run folder holds; anything else is returned as it is."""
    path = Path(source)
    inside = path.is_dir() and not any((path / f"{kind}config.json").exists() for kind in ("", "adapter_"))
    return str(path / "model") if inside and (path / "model").is_dir() else source


def _tail(source: str, depth: int) -> str:
    """Return the last parts of a path as a name, leaving out a last part called `model`."""
    path = Path(source)
    parts = [part for part in (path.absolute() if path.exists() else path).parts if part != path.anchor]
    parts = parts[:-1] if parts[-1] == "model" and len(parts) > 1 else parts
    return "-".join(parts[-depth:])
