# SPDX-License-Identifier: Apache-2.0
"""Live progress on stderr: bars where it is a terminal, plain lines where it is not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from expunge.cli.streams import err

if TYPE_CHECKING:
    from expunge.training.callbacks import StepInfo


class Display:
    """Follows a run in plain lines; `LiveDisplay` draws bars on top of the same bookkeeping."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.perf_counter()
        self._text = ""
        self._clear()

    def _clear(self) -> None:
        self._started = time.perf_counter()
        self._step, self._total = 0, 0
        self._probes: list[Mapping[str, float]] = []

    def __enter__(self) -> Display:
        """Begin to watch."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last stage."""
        self._end(good=kind is None)

    def heading(self, text: str) -> None:
        """Turn to another run."""
        self._end(good=True)
        self._console.print(Text(text, style="bold"))

    def stage(self, text: str) -> None:
        """End one stage and begin the next."""
        self._end(good=True)
        self._text = text
        self._clear()
        self._begin(text)

    def on_step(self, info: StepInfo) -> None:
        """Count an optimiser step."""
        self._step, self._total = info.step, info.total
        self._move(self._text, info.step, info.total, f"loss {sum(info.losses.values()):.3f}")

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Keep what a probe saw."""
        del step
        self._probes.append(values)

    def on_audit(self, phase: str, done: int, total: int) -> None:
        """Count what an audit has measured."""
        self._move(self._text, done, total, phase)

    def _summary(self) -> str:
        """Say how many steps a stage took, and how its probes moved."""
        if not self._step:
            return ""
        parts = [f"{self._step} steps" if self._step == self._total else f"step {self._step} of {self._total}"]
        for name in self._probes[0] if self._probes else ():
            # A run that rewinds is probed for its errors too.
            last = next(probe[name] for probe in reversed(self._probes) if name in probe)
            first = self._probes[0][name]
            parts.append(f"{name.partition('.')[0]} {first:.2f} → {last:.2f}")
        parts += [f"back to step {probe['rewind.step']:.0f}" for probe in self._probes if "rewind.step" in probe]
        return ", ".join(parts)

    def _end(self, *, good: bool) -> None:
        if self._text:
            self._finish(self._text, self._summary(), time.perf_counter() - self._started, good)
        self._text = ""

    def _begin(self, text: str) -> None:
        since = time.perf_counter() - self._began
        self._console.print(f"{since:7.1f} s  {text}", markup=False, soft_wrap=True)

    def _move(self, text: str, done: int, total: int, note: str) -> None:
        """Lines do not move."""

    def _finish(self, text: str, summary: str, seconds: float, good: bool) -> None:
        if summary:
            self._console.print(f"           {summary}", markup=False, soft_wrap=True)


class LiveDisplay(Display):
    """One bar for the stage at work; finished stages stay above it as lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"), TextColumn("{task.fields[note]}", style="dim"), TimeElapsedColumn(),
            console=console, transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the last stage and leave the terminal as it was."""
        super().__exit__(kind, error, trace)
        self._bars.stop()

    def _begin(self, text: str) -> None:
        self._task = self._bars.add_task(_plain(text), total=None, count="", note="")

    def _move(self, text: str, done: int, total: int, note: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, count=f"{done}/{total}", note=note)

    def _finish(self, text: str, summary: str, seconds: float, good: bool) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        mark = ("✓", "green") if good else ("✗", "red")
        words: list[Any] = [mark, f" {text} "]
        words += [(f" {summary} ", "cyan")] if summary else []
        self._console.print(Text.assemble(*words, (f" {seconds:.1f} s", "dim")), soft_wrap=True)


def _plain(text: str) -> str:
    """Return text that rich does not read as markup."""
    return text.replace("[", r"\[")


def display() -> Display:
    """Return the display that fits stderr."""
    console = err()
    return LiveDisplay(console) if console.is_terminal else Display(console)
