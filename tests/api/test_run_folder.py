# SPDX-License-Identifier: Apache-2.0
"""The run folder after a kill: what was half-written goes, what was finished stays."""

from __future__ import annotations

from pathlib import Path

from expunge.runs import RunFolder, write_json


def test_going_on_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunFolder(run).start({"kind": "run"})
    for folder in (".model-x1/new", ".model-x1/old", "model", "records/.partial-k", "records/target-1", "checkpoints"):
        (run / folder).mkdir(parents=True)
        (run / folder / "weights").write_text("w")
    write_json(run / "audit.json", {})
    (run / ".audit.json.partial").write_text("{")
    RunFolder(run, resume=True)
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    assert left == ["audit.json", "checkpoints/weights", "model/weights", "records/target-1/weights", "run.json"]
