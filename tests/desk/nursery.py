# SPDX-License-Identifier: Apache-2.0
"""A process that has imported everything and works desks off in forked children, which others may kill.

Each line on stdin is a JSON object: `desk`, `batch`, and `die`, the number of the point at which the child kills itself
(null: at none). Points are every file operation of the child and the moments around every entry of the ledger; they are
counted here, in the test, through Python's audit events. The answers: the child's process id when it begins, then how
it ended, how many points it came by and the kind of the last one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.desk import queue
from expunge.desk.service import Desk
from expunge.ledger.store import Ledger

#: One time for all entries, so that a ledger is a function of what was done.
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


class Points:
    """Counts the points of a child below a folder, and kills it at one of them."""

    def __init__(self, folder: Path, die: int | None, told: int) -> None:
        self._folder, self._die, self._told, self.count = str(folder), die, told, 0

    def pass_by(self, what: str) -> None:
        """Count a point; die there if it is the one."""
        self.count += 1
        if self.count == self._die:
            os.write(self._told, f"{self.count} {what}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count file operations in the folder; Python calls this before each of them."""
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & _WRITES):
                return
        elif event in _EVENTS:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self._folder):
            self.pass_by(f"{event} {os.path.relpath(os.fsdecode(path), self._folder)}")


def child(job: dict[str, Any], told: int) -> None:
    folder = Path(job["desk"])
    points = Points(folder, job["die"], told)
    append_all = Ledger.append_all

    def counted(self: Ledger, entries: Any, *, actor: str) -> Any:
        kind = entries[0].body.kind
        points.pass_by(f"before the {kind} entry")
        written = append_all(self, entries, actor=actor)
        points.pass_by(f"after the {kind} entry")
        return written

    Ledger.append_all = counted  # type: ignore[method-assign]
    sys.addaudithook(points.hear)
    desk = Desk(folder, clock=lambda: NOW)
    queue.work(desk, batch=job["batch"])
    desk.ledger.close()
    os.write(told, f"{points.count} the end".encode())


def serve() -> None:
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child prints is no answer
    for line in sys.stdin:
        job, (hear, told) = json.loads(line), os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(hear)
                child(job, told)
                status = 0
            finally:
                os._exit(status)
        os.close(told)
        print(json.dumps({"pid": pid}), file=say, flush=True)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(hear) as file:
            count, _, last = file.read().partition(" ")
        ended = {"status": os.waitstatus_to_exitcode(status), "points": int(count or 0), "last": last}
        print(json.dumps(ended), file=say, flush=True)


if __name__ == "__main__":
    import transformers

    import expunge.attacks.registry
    import expunge.methods.registry

    expunge.methods.registry.methods()
    expunge.attacks.registry.attacks()
    import torch

    torch.set_num_threads(1)
    print(json.dumps({"warm": transformers.__version__ and True}), flush=True)
    serve()
