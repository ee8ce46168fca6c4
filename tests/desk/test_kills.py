# SPDX-License-Identifier: Apache-2.0
"""`expunge work` killed with SIGKILL at any point and started again: nothing is lost, done twice, or other than it was.

Workers are forked children of a process that has imported everything (`nursery.py`): the same code as the command, and
a start costs nothing. Kills come at random times of an undisturbed run, when a number of new files and entries has
appeared, and before the n-th file operation or around the n-th entry; restarted workers are killed again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from desk_world import bring_in, open_desk

from expunge.desk.service import Desk
from expunge.ledger.dsse import read_envelope
from expunge.ledger.keys import trusted_keys
from expunge.ledger.store import Ledger
from expunge.ledger.verify import verify_certificate
from expunge.models.digests import file_digest

HERE = Path(__file__).parent
REQUESTS = ("r0", "r1", "r2")
BATCH = 2
#: What differs between two undisturbed runs: times, and digests and hashes of what holds times.
TIMES = {"seconds", "started", "written", "unlearning_seconds", "peak_memory_mb", "at", "signed"}
OF_TIMES = {"audit_digest", "certificate_digest", "hash", "previous"}


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in TIMES | OF_TIMES}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """Return what a file says, up to times."""
    if path.suffix == ".jsonl" and path.name == "metrics.jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "certificate.dsse.json":
        return timeless(read_envelope(path.read_bytes()).value())
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    if path.suffix == ".md":
        return re.sub(r"\d{4}-\d\d-\d\d|Certificate: \w{64}", "", path.read_text())
    return "a report" if path.name == "report.html" else file_digest(path)


def final_state(folder: Path) -> dict[str, Any]:
    """Return everything that a desk holds, up to times: its entries, and every file by name."""
    ledger = Ledger(folder / "ledger.db")
    try:
        entries = [timeless({"seq": e.seq, "actor": e.actor, "request": e.request, "kind": e.kind, "state": e.state,
                             "once": e.once, "body": e.body}) for e in ledger.events()]  # fmt: skip
    finally:
        ledger.close()
    files = {path.relative_to(folder).as_posix(): content(path) for path in sorted(folder.rglob("*"))
             if path.is_file() and not path.name.startswith("ledger.db")}  # fmt: skip
    return {"entries": entries, **files}


def check_evidence(folder: Path) -> None:
    """The chain holds, every request was run once, and every certificate verifies against the ledger and the files."""
    desk = Desk(folder)
    events = list(desk.ledger.events())
    desk.ledger.close()
    assert desk.ledger.verify() == []
    runs = Counter(event.request for event in events if event.kind == "run")
    assert runs == Counter(REQUESTS)
    names = [event.once for event in events if event.once]
    assert len(names) == len(set(names)) == 3 * len(REQUESTS)
    for request in REQUESTS:
        own = {event.kind: event.body for event in events if event.request == request}
        run = folder / "runs" / own["run"]["run"]
        assert own["audit"]["audit_digest"] == file_digest(run / "audit.json")
        path = desk.path(request, "certificate.dsse.json")
        assert own["certificate"]["certificate_digest"] == file_digest(path)
        found = verify_certificate(path.read_bytes(), run / "model", trusted_keys(folder / "keys"), events=events)
        assert found.failed == ()


@dataclass(frozen=True)
class Kill:
    """When a worker is killed: after `at` seconds, new things that are seen from outside, or points it comes by."""

    way: str
    at: float


class World:
    """A desk that can be put back to where work begins, and workers on it."""

    def __init__(self, folder: Path) -> None:
        self.desk, self._pristine = folder / "desk", folder / "pristine"
        desk = open_desk(self.desk)
        for number, name in enumerate(REQUESTS):
            bring_in(desk, name, number)
        desk.suppressed("")  # makes the salt, which is random
        desk.ledger.close()
        shutil.copytree(self.desk, self._pristine)
        self._log = (folder / "log").open("w")
        self._nursery = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True,
        )  # fmt: skip
        assert self._answer() == {"warm": True}

    def close(self) -> None:
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait(timeout=60)
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._nursery.stdout is not None
        return dict(json.loads(self._nursery.stdout.readline()))

    def reset(self) -> None:
        shutil.rmtree(self.desk)
        shutil.copytree(self._pristine, self.desk)

    def work(self, kill: Kill | None = None) -> dict[str, Any]:
        """Start a worker, kill it as told, and return how it ended."""
        die = int(kill.at) if kill is not None and kill.way == "point" else None
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps({"desk": str(self.desk), "batch": BATCH, "die": die}) + "\n")
        self._nursery.stdin.flush()
        pid = self._answer()["pid"]
        child = os.pidfd_open(pid)
        if kill is not None and kill.way == "time":
            time.sleep(kill.at)
        if kill is not None and kill.way == "seen":
            before, alive = self.seen(), Path(f"/proc/{pid}")
            while alive.exists() and len(self.seen() - before) < kill.at:
                time.sleep(0.001)
        if kill is not None and die is None:
            with suppress(ProcessLookupError):  # it was done before
                signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
        return self._answer()

    def seen(self) -> set[str]:
        """Return the names of all files below the desk, and of all entries."""
        files = {os.path.join(where, name) for where, _, names in os.walk(self.desk) for name in names}
        with sqlite3.connect(f"file:{self.desk}/ledger.db?mode=ro", uri=True) as raw:
            (count,) = raw.execute("SELECT count(*) FROM events").fetchone()
        return files | {f"entry {number}" for number in range(count)}


@dataclass(frozen=True)
class Undisturbed:
    state: dict[str, Any]
    seconds: float
    points: int
    new: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    found = World(tmp_path_factory.mktemp("kills"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(world: World) -> Undisturbed:
    before, started = world.seen(), time.perf_counter()
    ended = world.work()
    assert ended["status"] == 0
    check_evidence(world.desk)
    seconds, new = time.perf_counter() - started, len(world.seen() - before)
    return Undisturbed(final_state(world.desk), seconds, ended["points"], new)


def drawn(draw: random.Random, whole: Undisturbed) -> Kill:
    ways = {"time": draw.uniform(0, whole.seconds), "seen": draw.randint(1, whole.new),
            "point": draw.randint(1, whole.points)}  # fmt: skip
    way = draw.choice(sorted(ways))
    return Kill(way, ways[way])


def check_trial(world: World, whole: Undisturbed, kills: list[Kill]) -> list[str]:
    """Work one desk off with kills on the way; return where those hit that came before the end."""
    world.reset()
    hit, ended = [], {"status": -signal.SIGKILL}
    for kill in [*kills, None]:
        ended = world.work(kill)
        if ended["status"] == 0:
            break
        assert ended["status"] == -signal.SIGKILL, (kills, hit, ended)
        assert kill is not None
        hit.append(f"{kill.way} {kill.at:.3g} {ended['last']}")
    assert ended["status"] == 0
    check_evidence(world.desk)
    found = final_state(world.desk)
    assert found.keys() == whole.state.keys(), hit
    assert [key for key in found if found[key] != whole.state[key]] == [], hit
    return hit


def test_a_killed_worker_is_taken_over_from(world: World, undisturbed: Undisturbed) -> None:
    draw = random.Random(8)
    hit = [place for _ in range(2) for place in
           check_trial(world, undisturbed, [drawn(draw, undisturbed) for _ in range(4)])]  # fmt: skip
    assert len(hit) >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills_at_random_points(world: World, undisturbed: Undisturbed) -> None:
    draw, hit = random.Random(0), list[str]()
    while len(hit) < 100:
        kills = [drawn(draw, undisturbed) for _ in range(draw.randint(1, 4))]
        hit += check_trial(world, undisturbed, kills)
    by_way = Counter(place.split()[0] for place in hit)
    print(f"{len(hit)} kills: {dict(by_way)}; an undisturbed run passes {undisturbed.points} points")
    assert min(by_way[way] for way in ("time", "seen", "point")) >= 15


@pytest.mark.slow
def test_the_command_itself_is_killed(world: World, undisturbed: Undisturbed) -> None:
    world.reset()
    draw, command = random.Random(1), [sys.executable, "-m", "expunge", "work", "--desk", str(world.desk)]
    command += ["--batch", str(BATCH)]
    started = time.perf_counter()
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = world.seen()
        while process.poll() is None and len(world.seen() - before) < draw.randint(2, undisturbed.new // 2):
            time.sleep(0.001)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    print(f"{killed} kills of the command in {time.perf_counter() - started:.0f} s")
    assert killed >= 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    check_evidence(world.desk)
    found = final_state(world.desk)
    assert found.keys() == undisturbed.state.keys()
    different = {key for key in found if found[key] != undisturbed.state[key]}
    # A new process stores another state of torch's own random numbers beside its optimiser; weights are the same.
    assert {key for key in different if not key.endswith("/optimizer.pt")} == set()
