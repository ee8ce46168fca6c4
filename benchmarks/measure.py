# SPDX-License-Identifier: Apache-2.0
"""Paired measurements: both sides in turn, equal numbers first, ratios last."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks.settings import Moment

Result = TypeVar("Result")

#: Largest relative difference of a loss, and largest absolute difference of a metric, that counts as equal.
LOSS_TOLERANCE, METRIC_TOLERANCE = 1e-5, 1e-4


class Unequal(Exception):
    """The two sides did not compute the same numbers: there is no ratio to speak of."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Smallest, median and largest ratio of the pairs."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, tops: Sequence[float], bottoms: Sequence[float]) -> Ratio:
        """Return the ratios of paired measurements."""
        found = [top / bottom for top, bottom in zip(tops, bottoms, strict=True)]
        return cls(min(found), median(found), max(found))

    def to_list(self) -> list[float]:
        """Return the three numbers, rounded to what can be read from them."""
        return [round(value, 3) for value in (self.low, self.middle, self.high)]


def speedup(ours: Sequence[Moment], plain: Sequence[Moment]) -> dict[str, list[float]]:
    """Return how many times as long the plain side takes: by processor time and by the wall clock."""
    return {
        clock: Ratio.of([getattr(one, clock) for one in plain], [getattr(one, clock) for one in ours]).to_list()
        for clock in ("cpu", "wall")
    }


def largest_loss_difference(ours: Sequence[float], plain: Sequence[float]) -> float:
    """Return the largest relative difference of the losses of the same step.

    Raises:
        Unequal: if there are not as many, or it is above `LOSS_TOLERANCE`.
    """
    if len(ours) != len(plain):
        raise Unequal(f"{len(ours)} steps against {len(plain)}")
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, plain, strict=True))
    if not worst <= LOSS_TOLERANCE:
        raise Unequal(f"a loss differs by {worst:.2e} of its value: {list(ours)} against {list(plain)}")
    return worst


def largest_metric_difference(ours: Mapping[str, float], plain: Mapping[str, float]) -> float:
    """Return the largest absolute difference of a metric.

    Raises:
        Unequal: if the metrics are not the same ones, or it is above `METRIC_TOLERANCE`.
    """
    if ours.keys() != plain.keys():
        raise Unequal(f"metrics {sorted(ours.keys() ^ plain.keys())} are on one side only")
    worst = max(ours, key=lambda name: abs(ours[name] - plain[name]))
    apart = abs(ours[worst] - plain[worst])
    if not apart <= METRIC_TOLERANCE:
        raise Unequal(f"{worst} differs by {apart:.2e}: {ours[worst]} against {plain[worst]}")
    return apart


def apart(work: Callable[..., Result], *args: Any) -> Result:
    """Return what `work(*args)` returns in a forked process, which leaves nothing behind in this one.

    Raises:
        RuntimeError: if it fails; what it said stands on standard error.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work, args))
    process.start()
    there.close()
    try:
        found: Result = here.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}{args} failed") from None
    finally:
        process.join()
    return found


def _send(there: Connection, work: Callable[..., object], args: tuple[Any, ...]) -> None:
    there.send(work(*args))


class Peak:
    """The largest resident memory of this process above what it holds when this is made, in bytes; Linux only."""

    def __init__(self) -> None:
        self._start = _status("VmRSS")
        # Lowers the high-water mark to what is held now; without the right to, the mark stays, which is no lower.
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")
        except OSError:
            self._start = _status("VmHWM")

    def bytes(self) -> int:
        """Return the peak so far."""
        return _status("VmHWM") - self._start


def _status(field: str) -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text("ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"the system tells no {field}: memory is measured on Linux only")
