# SPDX-License-Identifier: Apache-2.0
"""How far a run is, read from its folder: the worker is a process of its own, and the page only looks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.dashboard.facts import Fact
from expunge.errors import InputDataError
from expunge.report.folder import read_trajectory
from expunge.runs import read_run

#: Seconds without a change of the folder after which the worker is taken for stopped.
SILENCE = 180


class Progress(Fact):
    """A run: `stage` in words, `total` steps if the recipe fixes them, `silent` seconds since its folder changed."""

    run: str
    status: str
    stage: str
    step: int | None
    total: int | None
    loss: float | None
    probe: dict[str, float]
    seconds: float | None
    silent: float | None
    error: str | None

    @property
    def running(self) -> bool:
        """Whether a worker seems to be at it."""
        return self.status == "running" and (self.silent or 0) < SILENCE


def progress_of(folder: Path, name: str, now: datetime) -> Progress:
    """Return how far a run is.

    Args:
        folder: of all runs.
        name: of the run.
        now: the time.
    """
    path = folder / name
    run, rows = _read(path)
    steps = [row for row in rows if "probe" not in row]
    probes = [row for row in rows if "probe" in row]
    last = steps[-1] if steps else {}
    error = run.get("error")
    return Progress(
        run=name, status=str(run.get("status", "preparing")), stage=_stage(path, run, bool(rows)),
        step=last.get("step"), total=((run.get("recipe") or {}).get("training") or {}).get("max_steps"),
        loss=last.get("loss"), probe=probes[-1]["probe"] if probes else {}, seconds=run.get("seconds"),
        silent=_silent(path, now), error=None if error is None else str(error).partition(":")[0],
    )  # fmt: skip


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return `run.json` and the log; a log that is being written over just now is read at the next look."""
    run = read_run(path)
    try:
        return run, read_trajectory(path / "metrics.jsonl")[0]
    except InputDataError:
        return run, []


def _stage(path: Path, run: dict[str, Any], logged: bool) -> str:
    status = run.get("status")
    if status in ("finished", "failed", "interrupted"):
        return {"finished": "Unlearned and measured", "failed": "Failed", "interrupted": "Interrupted"}[str(status)]
    if (path / "model").is_dir():
        return "Measuring the changed model"
    return "Unlearning" if logged else "Loading and measuring what was there before"


def _silent(path: Path, now: datetime) -> float | None:
    """Return seconds since anything was written at the top of the folder."""
    times = [file.stat().st_mtime for file in path.iterdir()] if path.is_dir() else []
    if not times:
        return None
    return max(0.0, (now - datetime.fromtimestamp(max(times), UTC)).total_seconds())
