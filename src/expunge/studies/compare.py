# SPDX-License-Identifier: Apache-2.0
"""Several audits of the same request side by side: one document, one table, one plane."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from expunge.audit.document import AuditDocument, ModelEntry, read_audit
from expunge.errors import ExpungeWarning, InputDataError
from expunge.report.folder import view_from_audit
from expunge.report.render import write_report
from expunge.runs import read_run

#: Settings that change the numbers of an audit.
_ASKED = ("template", "compat", "max_new_tokens", "generate", "limit", "min_k", "privleak_k")


@dataclass(frozen=True, slots=True)
class Comparison:
    """The joined document, and the run folder of every model that has one."""

    document: AuditDocument
    runs: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class _Found:
    """One model of one audit: where it was read, its name there, and its run folder if there is one."""

    label: str
    name: str
    entry: ModelEntry
    run: Path | None


def compare(folders: Sequence[Path]) -> Comparison:
    """Join the audits of several folders.

    Targets and references that are the same weights appear once. Models that share a name get that of their folder.

    Args:
        folders: run folders, or any folders with an `audit.json`.

    Raises:
        InputDataError: if a folder holds no audit, or the audits are of different data.
    """
    documents = {folder: _read(folder) for folder in dict.fromkeys(folders)}
    _check_same_data(documents)
    _warn_of_settings(documents)
    found: list[_Found] = []
    for label, (folder, document) in zip(_labels(list(documents)), documents.items(), strict=True):
        found += [model for model in _models(label, folder, document) if not _known(model, found)]
    found.sort(key=lambda model: {"target": 0, "reference": 1}.get(model.entry.role, 2))
    named = dict(_named(found))
    first = next(iter(documents.values()))
    changes = {"models": {name: model.entry for name, model in named.items()}}
    joined = first.model_copy(update=changes if len(documents) == 1 else changes | {"policy": None})
    return Comparison(joined, {name: model.run for name, model in named.items() if model.run is not None})


def write_comparison(
    comparison: Comparison, path: Path, *, commands: Sequence[str] = (), show_examples: bool = False
) -> Path:
    """Write a comparison as one offline page and return its path."""
    document, tried = comparison.document.model_dump(mode="json"), len(comparison.runs)
    asked = [(f"Run {name}", str(folder)) for name, folder in comparison.runs.items()]
    view = view_from_audit(
        document, title="Comparison", runs=comparison.runs, what_was_asked=asked, reproduce=commands,
        runs_tried=tried or None,
    )  # fmt: skip
    return write_report(view, path, show_examples=show_examples)


def _read(folder: Path) -> AuditDocument:
    try:
        return read_audit(folder / "audit.json")
    except FileNotFoundError:
        status = read_run(folder).get("status")
        problem = f"the run did not get to its audit (status: {status})" if status else "holds no audit.json"
    except ValidationError as error:
        problem = f"its audit.json does not fit the schema: {error.error_count()} problems"
    raise InputDataError(
        problem, field="runs", value=str(folder), remedy="Give folders that `run`, `audit` or `demo` wrote"
    )


def _check_same_data(documents: Mapping[Path, AuditDocument]) -> None:
    """Raise if a set of one name holds different examples in two audits: their numbers do not compare."""
    seen: dict[str, tuple[str, Path]] = {}
    for folder, document in documents.items():
        for model in document.models.values():
            for name, known in model.meta.get("data", {}).items():
                digest, where = seen.setdefault(name, (known["digest"], folder))
                if digest != known["digest"]:
                    raise InputDataError(
                        f"its {name} set differs from that of {where} ({known['digest'][:12]}, {digest[:12]})",
                        field="runs", value=str(folder), remedy="Compare runs on the same data, or audit them again",
                    )  # fmt: skip


def _warn_of_settings(documents: Mapping[Path, AuditDocument]) -> None:
    """Warn where audits asked their models in different ways: their numbers are not quite comparable."""
    seen: dict[str, set[str]] = {}
    for document in documents.values():
        for model in document.models.values():
            asked = {"template": model.meta.get("template"), **model.meta.get("settings", {})}
            for key in _ASKED:
                seen.setdefault(key, set()).add(str(asked.get(key)))
    differing = [f"{key} ({', '.join(sorted(values))})" for key, values in seen.items() if len(values) > 1]
    if differing:
        text = f"the audits differ in {'; '.join(differing)}: numbers may differ for that reason alone"
        warnings.warn(text, ExpungeWarning, stacklevel=3)


def _models(label: str, folder: Path, document: AuditDocument) -> Iterator[_Found]:
    for name, entry in document.models.items():
        run = folder if read_run(folder).get("kind") == "run" else folder / name
        own = entry.role == "method" and read_run(run).get("kind") == "run"
        yield _Found(label, name, entry, run if own else None)


def _known(model: _Found, found: Sequence[_Found]) -> bool:
    """Return whether the same weights are there already under the same name."""
    same = (model.name, model.entry.digest)
    return model.entry.digest is not None and any((other.name, other.entry.digest) == same for other in found)


def _named(found: Sequence[_Found]) -> Iterator[tuple[str, _Found]]:
    """Yield every model under a name of its own."""
    names = [model.name for model in found]
    made = [model.label for model in found if model.entry.role == "method"]
    for model in found:
        if names.count(model.name) == 1:
            yield model.name, model
        elif model.entry.role == "method" and made.count(model.label) == 1:
            yield model.label, model
        else:
            yield f"{model.label}.{model.name}", model


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts: list[Sequence[str]] = [folder.absolute().parts[1:] for folder in folders]
    for depth in range(1, max((len(part) for part in parts), default=1) + 1):
        labels = ["-".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]
