# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.startup SIDE FOLDER`: begin an audit and leave at its first forward pass with exit code 0.

This file imports nothing that an audit would import: that is what is measured.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

MODULE, CLASS = "transformers.models.llama.modeling_llama", "LlamaForCausalLM"


def leave_at_first_forward() -> None:
    """Wait until the model's module is loaded, then let its first forward pass end the process."""
    while not hasattr(sys.modules.get(MODULE), CLASS):
        time.sleep(0.002)

    def leave(*_args: object, **_kwargs: object) -> None:
        os._exit(0)

    sys.modules[MODULE].LlamaModel.forward = leave


def ours(folder: Path, output: str) -> None:
    """Begin the audit as a user does, from the command line."""
    from expunge.cli.main import main

    files = {name: str(folder / f"{name}.jsonl") for name in ("forget", "retain", "holdout", "authors", "facts")}
    sys.argv = [
        "expunge", "audit", str(folder / "model"), "--forget", files["forget"], "--retain", files["retain"],
        "--holdout", files["holdout"], "--extra", f"real_authors={files['authors']}",
        "--extra", f"world_facts={files['facts']}", "--output-dir", output, "--overwrite",
    ]  # fmt: skip
    main()


def plain(folder: Path) -> None:
    """Begin the plain audit."""
    from benchmarks.plain_audit import PlainAudit
    from benchmarks.settings import DEFAULT_METRICS
    from benchmarks.workload import open_workload

    workload = open_workload(folder)
    PlainAudit(workload, *workload.load()).values(DEFAULT_METRICS)


def run(side: str, folder: Path) -> None:
    """Begin the audit of one side."""
    threading.Thread(target=leave_at_first_forward, daemon=True).start()
    with tempfile.TemporaryDirectory() as output:
        if side == "ours":
            ours(folder, f"{output}/audit")
        else:
            plain(folder)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
    sys.exit("no forward pass was made")
