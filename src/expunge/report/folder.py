# SPDX-License-Identifier: Apache-2.0
"""From run folders and audit documents to a view; a run that failed still gives one, and says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge.claims import ClaimKind
from expunge.data.preparation import in_words
from expunge.errors import InputDataError
from expunge.report.attacks import curves_of, kinds_run, powers_of, regimes_of, rows_of, trace_metrics
from expunge.report.view import (
    REFERENCE,
    TARGET,
    UNLEARNED,
    ExampleView,
    ModelView,
    PolicyRule,
    ReportView,
)
from expunge.report.words import number

_CUT = "The last line of {} is cut off, as after a kill; it is left out."


def view_from_run(folder: Path) -> ReportView:
    """Return the view of one run folder.

    Args:
        folder: holds `run.json`; `audit.json`, `metrics.jsonl` and `examples.json` are read where they exist.

    Raises:
        InputDataError: if `run.json` is missing or a file is not what it should be.
    """
    run = _read(folder / "run.json")
    audit = _read(folder / "audit.json") if (folder / "audit.json").exists() else {}
    models = _models(audit)
    rows, notes = read_trajectory(folder / "metrics.jsonl")
    name = _own_model(models, run)
    given = models.get(name, ModelView(role=UNLEARNED))
    models[name] = replace(
        given,
        method=run.get("method") or given.method,
        seconds=run.get("unlearning_seconds", run.get("seconds")),
        trajectory=rows,
        settings=run.get("recipe") or {},
    )
    _add_examples(models, folder / "examples.json", name)
    if not audit:
        notes = [*notes, "There is no audit.json: nothing was measured."]
    return ReportView(
        title=_title(run, folder),
        models=models,
        what_was_asked=_asked(run),
        run=run,
        claim=ClaimKind(run["claim"]) if run.get("claim") else None,
        environment=run.get("environment") or audit.get("environment") or {},
        reproduce=tuple(run.get("commands") or ()),
        **_attacks(audit),
        runs_tried=run.get("runs_tried"),
        policy=_policy(audit),
        not_shown=tuple(audit.get("not_shown") or ()),
        notes=tuple(notes),
        schemas=_schemas(run=run, audit=audit),
    )


def view_from_audit(
    document: Mapping[str, Any],
    *,
    title: str,
    runs: Mapping[str, Path] | None = None,
    what_was_asked: Sequence[tuple[str, str]] = (),
    reproduce: Sequence[str] = (),
    runs_tried: int | None = None,
) -> ReportView:
    """Return the view of an audit of several models.

    Args:
        document: an `audit.json` that was read already.
        title: headline of the report.
        runs: run folder by model name, for method card, settings, trajectory and examples.
        what_was_asked: rows of (label, text).
        reproduce: shell commands, in order.
        runs_tried: how many runs were tried, or None if nobody counted.

    Raises:
        InputDataError: if a run belongs to no model of the audit, or a file is not what it should be.
    """
    models, notes = _models(document), []
    for name, folder in (runs or {}).items():
        if name not in models:
            raise InputDataError("a run of no audited model", field="runs", value=name, remedy=f"Known: {list(models)}")
        one = view_from_run(folder)
        own = one.models[_own_model(one.models, one.run)]
        models[name] = replace(
            models[name],
            method=own.method or models[name].method,
            seconds=own.seconds,
            trajectory=own.trajectory,
            examples=models[name].examples or own.examples,
            settings=own.settings,
        )
        if not one.finished:
            notes.append(f"The run of {name} did not finish (status: {one.run.get('status')}).")
    return ReportView(
        title=title,
        models=models,
        what_was_asked=tuple(what_was_asked),
        environment=document.get("environment") or {},
        reproduce=tuple(reproduce),
        **_attacks(document),
        runs_tried=runs_tried,
        policy=_policy(document),
        not_shown=tuple(document.get("not_shown") or ()),
        notes=tuple(notes),
        schemas=_schemas(audit=document),
    )


def read_trajectory(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a `metrics.jsonl` and remarks; a cut last line is left out, any other bad line raises."""
    if not path.exists():
        return [], []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows: list[dict[str, Any]] = []
    for index, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if index == len(lines) - 1:
                return rows, [_CUT.format(path.name)]
            raise InputDataError(
                "not a JSON line", field=path.name, value=f"line {index + 1}", remedy="Write one object per line"
            ) from error
    return rows, []


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputDataError(
            "missing file", field=path.name, value=str(path.parent), remedy="Give a run folder"
        ) from error
    except json.JSONDecodeError as error:
        raise InputDataError(
            "not JSON", field=path.name, value=str(error), remedy="Run again, or restore it"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    document = _parse(path)
    if not isinstance(document, dict):
        raise InputDataError("not a JSON object", field=path.name, value=type(document).__name__)
    return document


def _models(audit: Mapping[str, Any]) -> dict[str, ModelView]:
    """Read the models of an audit; without a role, the names `target` and `reference` speak for themselves.

    What trace detection found stands beside membership. The seconds of an audit are those of measuring; how long a
    method took stands in its run.
    """
    out, traces = {}, trace_metrics(audit)
    for name, entry in (audit.get("models") or {}).items():
        role = entry.get("role") or (name if name in (TARGET, REFERENCE) else UNLEARNED)
        method = entry.get("method")
        out[name] = ModelView(
            role=role,
            method=method if isinstance(method, dict) else None,
            metrics={**(entry.get("metrics") or {}), **traces.get(name, {})},
        )
    return out


def _own_model(models: Mapping[str, ModelView], run: Mapping[str, Any]) -> str:
    """Find which audited model a run made: by its name, its method's name, or because it is the only one changed."""
    method = run.get("method") or {}
    wanted = [str(name) for name in (run.get("name"), method.get("name")) if name]
    changed = [name for name, model in models.items() if model.role not in (TARGET, REFERENCE)]
    for name in wanted:
        if name in changed:
            return name
    if len(changed) == 1:
        return changed[0]
    return wanted[0] if wanted else "after"


def _add_examples(models: dict[str, ModelView], path: Path, own: str) -> None:
    """Attach `examples.json`: a list for the run's own model, or lists by model name."""
    if not path.exists():
        return
    document = _parse(path)
    by_model = document if isinstance(document, dict) else {own: document}
    for name, items in by_model.items():
        if name not in models:
            raise InputDataError(
                "examples of no known model", field=path.name, value=name, remedy=f"Known: {list(models)}"
            )
        models[name] = replace(models[name], examples=tuple(_example(item, path) for item in items))


def _example(item: Mapping[str, Any], path: Path) -> ExampleView:
    try:
        return ExampleView(**item)
    except TypeError as error:
        raise InputDataError(
            "an example with missing or unknown fields", field=path.name, value=sorted(item),
            remedy="Fields: set, id, prompt, target, before, after, reference, overlap",
        ) from error  # fmt: skip


def _title(run: Mapping[str, Any], folder: Path) -> str:
    """Join the name of the run with the title of its method."""
    name, method = str(run.get("name") or folder.name), str((run.get("method") or {}).get("title", ""))
    return str(run.get("title") or (f"{name}: {method}" if method and method != name else name))


def _asked(run: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Say what was asked: the model, the sets with their sizes and digests, the method."""
    rows = []
    model = run.get("model") or {}
    if model.get("path"):
        count = f"{model['parameters']:,}".replace(",", "\u202f") if model.get("parameters") else ""
        size = f", {count} parameters" if count else ""
        digest = f", digest {str(model['digest'])[:12]}" if model.get("digest") else ""
        rows.append(("Model", f"{model['path']}{size}{digest}"))
    for name, entry in (run.get("data") or {}).items():
        digest = f", digest {str(entry['digest'])[:12]}" if entry.get("digest") else ""
        rows.append(
            (f"{name.replace('_', ' ').capitalize()} set", f"{entry.get('n', 'unknown number of')} examples{digest}")
        )
    if run.get("prepared"):
        rows.append(("Forget set in training", f"{in_words(run['prepared'])}; audited as given"))
    trimmed = (run.get("notes") or {}).get("trimmed")
    if trimmed:
        ends = {"high": "highest", "low": "lowest", "both": "highest and as many with the lowest"}
        text = (
            f"{trimmed['examples']} of the {trimmed['of']} forget examples of a full forward left out, those with the "
        )
        rows.append(("Trimmed forget loss", f"{text}{ends[trimmed['side']]} loss"))
    return tuple(rows)


def _attacks(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Return what attacks and canaries found, as fields of the view."""
    curves = curves_of(audit)
    return {
        "attacks_run": kinds_run(audit), "relearning": curves[0] if curves else None,
        "more_relearning": tuple(curves[1:]),
        "attacks": tuple(rows_of(audit)), "regimes": tuple(regimes_of(audit)), "powers": tuple(powers_of(audit)),
        "canaries": audit.get("canaries") or {},
    }  # fmt: skip


def _policy(audit: Mapping[str, Any]) -> tuple[PolicyRule, ...]:
    out = []
    for rule in (audit.get("policy") or {}).get("rules", ()):
        measured = rule.get("measured")
        text = number(measured) if isinstance(measured, (int, float)) else "not measured"
        text += f" ({rule['reason']})" if rule.get("reason") else ""
        out.append(PolicyRule(rule=str(rule["rule"]), measured=text, met=rule.get("met")))
    return tuple(out)


def _schemas(**documents: Mapping[str, Any]) -> dict[str, Any]:
    return {name: doc["schema_version"] for name, doc in documents.items() if "schema_version" in doc}
