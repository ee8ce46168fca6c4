# SPDX-License-Identifier: Apache-2.0
"""What a run measured, drawn by the functions of the report; examples of data are never shown here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from expunge.dashboard.facts import Fact
from expunge.dashboard.refusals import Absent
from expunge.errors import InputDataError
from expunge.report import sections
from expunge.report.folder import view_from_run
from expunge.report.tables import metrics_table
from expunge.report.verdict import far_sentences, measured_sentences, not_tested
from expunge.report.view import REFERENCE, TARGET, ModelView, ReportView
from expunge.report.words import listed
from expunge.runs import read_run

#: Runs that are compared at once, at most: more have no colours of their own.
MOST_COMPARED = 6


class RunFact(Fact):
    """A run in one line."""

    name: str
    status: str
    method: str
    requests: tuple[str, ...]
    started: str
    seconds: float | None
    measured: bool


def run_facts(folder: Path, requests: dict[str, list[str]]) -> list[RunFact]:
    """Return every run of a desk, newest first.

    Args:
        folder: of all runs.
        requests: those that a run was made for, by run.
    """
    found = []
    for path in sorted((p for p in folder.glob("*") if (p / "run.json").exists()), reverse=True):
        run = read_run(path)
        found.append(RunFact(
            name=path.name, status=str(run.get("status")), method=str((run.get("method") or {}).get("name", "")),
            requests=tuple(requests.get(path.name, ())), started=str(run.get("started", "")),
            seconds=run.get("seconds"), measured=(path / "audit.json").exists(),
        ))  # fmt: skip
    return found


def result_of(folder: Path) -> dict[str, Markup | str | list[str]]:
    """Return the parts of a page on one run: what was measured in words, the key numbers, the drawings."""
    view = _anonymous(view_from_run(folder))
    return {
        "said": measured_sentences(view), "far": far_sentences(view), "untested": listed(not_tested(view)),
        "cards": Markup(sections.cards(view)), "plane": Markup(sections.the_plane(view)),
        "curves": Markup(sections.trajectories(view)), "back": Markup(sections.comes_back(view)),
        "table": Markup(metrics_table(view)),
    }  # fmt: skip


def curves_of(folder: Path) -> Markup:
    """Return the training curves of a run that may still be going on; empty before its first steps."""
    try:
        view = _anonymous(view_from_run(folder))
    except InputDataError:
        return Markup("")
    return Markup(sections.trajectories(view))


def comparison(folder: Path, names: Sequence[str]) -> dict[str, Markup]:
    """Return the drawings and the table of several runs beside each other.

    Raises:
        Absent: if a run was not measured.
    """
    models: dict[str, ModelView] = {}
    for name in names[:MOST_COMPARED]:
        if not (folder / name / "audit.json").exists():
            raise Absent("no such run, or it was not measured", field="run", value=name, remedy="Choose from the list")
        view = _anonymous(view_from_run(folder / name))
        for role, model in _common(view):
            models.setdefault(role, model)
        models[name] = next(iter(view.changed.values()))
    whole = ReportView(title="Comparison", models=models)
    return {"plane": Markup(sections.the_plane(whole)), "intervals": Markup(sections.intervals(whole)),
            "table": Markup(metrics_table(whole))}  # fmt: skip


def _common(view: ReportView) -> Iterator[tuple[str, ModelView]]:
    """Yield what runs are compared with: the model before, and the reference."""
    for role in (TARGET, REFERENCE):
        model = view.first(role)
        if model is not None:
            yield role, model


def _anonymous(view: ReportView) -> ReportView:
    """Return a view without any example's text."""
    return replace(view, models={name: replace(model, examples=()) for name, model in view.models.items()})
