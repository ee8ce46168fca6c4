# SPDX-License-Identifier: Apache-2.0
"""Attack model folders, and write what came back, beside its controls, into the audit and its report."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.api.audit import name_models
from expunge.api.workspace import Silent, Watcher, is_records, load, load_data, open_model
from expunge.attacks.base import AttackContext, AttackResult, Subject
from expunge.attacks.gauge import mean
from expunge.attacks.registry import Prepared, prepare, run_prepared
from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, ModelEntry, environment, model_entry, read_audit, write_json
from expunge.data.config import DataConfig
from expunge.data.digests import data_digest
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.errors import RecipeError
from expunge.models.adapters import is_lora, merge_lora
from expunge.models.config import ModelConfig
from expunge.models.loading import check_model
from expunge.report.folder import view_from_audit, view_from_run
from expunge.report.render import write_report
from expunge.runs import RunFolder, check_output, read_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTACKS_VERSION = 1


@dataclass(frozen=True, slots=True)
class AttackRun:
    """Where the attacks were written, the audit document that holds them, and what each found."""

    folder: Path
    document: AuditDocument
    results: tuple[AttackResult, ...]


@dataclass(frozen=True, slots=True)
class _Request:
    """Models and data after a run folder filled in what was not given."""

    models: Mapping[str, str]
    reference: str | None
    original: str | None
    second_reference: str | None
    data: DataConfig
    run: Path | None


def attack_folders(
    model: str | Sequence[str] | Mapping[str, str],
    *,
    attacks: Sequence[str] = ("relearning", "quantisation"),
    data: DataConfig | None = None,
    reference: str | None = None,
    original: str | None = None,
    second_reference: str | None = None,
    unrelated: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    audit: AuditConfig | None = None,
    device: str = "auto",
    seed: int = 0,
    output_dir: Path | None = None,
    overwrite: bool = False,
    commands: tuple[str, ...] = (),
    watcher: Watcher | None = None,
) -> AttackRun:
    """Attack models; write `attacks.json`, `audit.json` and `report.html`.

    A run folder stands for the model in it, and fills in data, reference and original from its recipe; its own audit
    and report then gain the attacks. Elsewhere a folder of its own is made.

    Args:
        model: a run folder, model folder or hub id, several of them, or sources by name.
        attacks: names or kinds of attacks, or `all`; see `expunge.attacks.registry.choose`.
        data: the forget set and others, and how they are encoded.
        reference: a model that never saw the forget set; attacked alike, it is the control.
        original: the model before unlearning.
        second_reference: another model that never saw it, for the control of `traces`.
        unrelated: a data source that shares nothing with the forget set, for relearning on it.
        settings: by name of the attack.
        audit: intervals, batch sizes and length of generations.
        device: auto, cpu, cuda or cuda:N.
        seed: of every random choice.
        output_dir: where to write; default: the run folder of the model, else `runs/attack-<hash8>`.
        overwrite: start again where attacks of their own already are.
        commands: how to reproduce this.
        watcher: follows the work.

    Raises:
        ExpungeError: one of its kinds.
    """
    watch, request = watcher or Silent(), _resolve(model, data, reference, original, second_reference)
    path = output_dir or request.run or Path("runs") / f"attack-{_hash(request, attacks, settings, seed)}"
    extends = (path / "audit.json").exists() and read_run(path).get("kind") != "attack"
    if not extends:
        check_output(path, overwrite=overwrite)
    watch.stage("Loading the model")
    context = _context(request, unrelated, audit or AuditConfig(), device, seed, watch)
    prepared = prepare(attacks, context, settings)
    facts = _facts(request, context, commands)
    if extends:
        document, results = _carry_out(prepared, context, read_audit(path / "audit.json"))
        _write(path, document, results, facts)
        return AttackRun(path, document, tuple(results))
    folder = RunFolder(path, overwrite=overwrite)
    folder.start({"kind": "attack", "name": "attack", "environment": environment(), **facts})
    with folder.recorded():
        document, results = _carry_out(prepared, context, None)
        _write(path, document, results, facts)
    return AttackRun(path, document, tuple(results))


def _resolve(
    model: str | Sequence[str] | Mapping[str, str], data: DataConfig | None, reference: str | None,
    original: str | None, second_reference: str | None,
) -> _Request:  # fmt: skip
    """Name the models, and take from the run of the first what was not given.

    Raises:
        RecipeError: if the reference is given as records: it is attacked too, and must be a model.
    """
    if isinstance(model, Mapping):
        models = dict(model)
    else:
        models = name_models([model] if isinstance(model, str) else list(model), reference=reference)
    folder = Path(next(iter(models.values()))).absolute().parent
    run = read_run(folder)
    if run.get("kind") == "run":
        recipe = run["recipe"]
        reference, original = reference or recipe["model"]["reference"], original or recipe["model"]["path"]
        data = DataConfig(**{**recipe["data"], **(data.model_dump(exclude_unset=True) if data else {})})
        if len(models) == 1 and not isinstance(model, Mapping):
            models = {str(run["method"]["name"]): next(iter(models.values()))}
    own = folder if run.get("kind") == "run" and len(models) == 1 else None
    if reference is not None and is_records(reference):
        raise RecipeError("records cannot be attacked", field="reference", value=reference,
                          remedy="Give the model that they are of")  # fmt: skip
    for other in (*models.values(), reference, original, second_reference):
        if other is not None:
            check_model(other)
    return _Request(models, reference, original, second_reference, data or DataConfig(), own)


def _context(
    request: _Request, unrelated: str | None, audit: AuditConfig, device: str, seed: int, watch: Watcher
) -> AttackContext:
    """Load the data and one model, for its tokenizer; the models themselves are loaded by the attacks."""
    data = load_data(request.data)
    config = request.data
    more: list[Example] = []
    if unrelated is not None:
        more = load_examples(unrelated, name="unrelated", columns=config.columns, limit=config.limit)
    first = ModelConfig(path=next(iter(request.models.values())), device=device)
    sets = {**data.splits.named(), **({"unrelated": more} if more else {})}
    encoder = open_model(first, config, sets, dtype="float32").encoder
    return AttackContext(
        subjects=[_subject(name, source, device) for name, source in request.models.items()], encoder=encoder,
        splits=data.splits, reference=_other("reference", request.reference, device),
        original=_other("original", request.original, device), unrelated=more, audit=audit, seed=seed,
        second_reference=_other("second reference", request.second_reference, device), stage=watch.stage,
        callbacks=[watch],
    )  # fmt: skip


def _other(name: str, source: str | None, device: str) -> Subject | None:
    return None if source is None else _subject(name, source, device)


def _subject(name: str, source: str, device: str) -> Subject:
    def fresh() -> PreTrainedModel:
        config = ModelConfig(path=source, device=device)
        model = load(config, source, dtype="float32").model
        return merge_lora(model) if is_lora(model) else model

    return Subject(name, fresh)


def _carry_out(
    prepared: Prepared, context: AttackContext, earlier: AuditDocument | None
) -> tuple[AuditDocument, list[AttackResult]]:
    """Run the attacks and return the document that holds them, and those that it held before."""
    results = run_prepared(prepared, context)
    document = earlier or AuditDocument(environment=environment(), models=_measured(context))
    kinds = dict.fromkeys([*document.attacks_run, *(result.card.kind for result in results)])
    found = {**document.attacks, **{result.card.name: result.to_dict() for result in results}}
    return document.model_copy(update={"attacks_run": list(kinds), "attacks": found}), results


def _measured(context: AttackContext) -> dict[str, ModelEntry]:
    """Return the entries of all models as they are before any attack."""
    roles = [*((s, "method") for s in context.subjects), (context.reference, "reference"), (context.original, "target")]
    out: dict[str, ModelEntry] = {}
    for subject, role in roles:
        if subject is not None:
            which = [name for name in ("forget", "retain") if name in context.splits.named()]
            found = {name: context.before(subject, name) for name in which}
            metrics = {f"{n}.{m}": mean(c, context.audit) for n, columns in found.items() for m, c in columns.items()}
            name = "target" if role == "target" else subject.name
            out.setdefault(name, model_entry(metrics, role=role))  # type: ignore[arg-type]
    return out


def _facts(request: _Request, context: AttackContext, commands: tuple[str, ...]) -> dict[str, Any]:
    sets = {**context.splits.named(), **({"unrelated": context.unrelated} if context.unrelated else {})}
    return {
        "models": dict(request.models), "reference": request.reference, "original": request.original,
        "second_reference": request.second_reference, "seed": context.seed, "commands": list(commands),
        "data": {name: {"n": len(found), "digest": data_digest(found)} for name, found in sets.items()},
        "audit": context.audit.model_dump(mode="json"),
    }  # fmt: skip


def _write(path: Path, document: AuditDocument, results: Sequence[AttackResult], facts: Mapping[str, Any]) -> None:
    """Write what was found, the audit that holds it, and the report over both."""
    known = path / "attacks.json"
    earlier = json.loads(known.read_text("utf-8"))["attacks"] if known.exists() else {}
    entries = {result.card.name: result.to_dict() | {"asked": dict(facts)} for result in results}
    body = {"schema_version": ATTACKS_VERSION, "environment": environment(), "attacks": {**earlier, **entries}}
    write_json({**body, "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, known)
    write_json(document, path / "audit.json")
    run = read_run(path)
    if run.get("kind") == "run":
        view = view_from_run(path)
    else:
        asked = [(f"Model {name}", source) for name, source in facts["models"].items()]
        view = view_from_audit(
            document.model_dump(mode="json"), title=str(run.get("name", "attack")).capitalize(), what_was_asked=asked,
            reproduce=tuple(facts["commands"]),
        )  # fmt: skip
    write_report(view, path / "report.html")


def _hash(
    request: _Request, attacks: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None, seed: int
) -> str:
    parts = [dict(request.models), request.data.model_dump(mode="json"), list(attacks), dict(settings or {}), seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
