# SPDX-License-Identifier: Apache-2.0
"""Turn Ctrl-C and SIGTERM into a clean stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptFlag:
    """Set once the user asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def catch_interrupt() -> Iterator[InterruptFlag]:
    """Yield a flag that the first SIGINT or SIGTERM sets; a second one stops at once.

    Outside the main thread signals cannot be caught and the flag is never set.
    """
    flag = InterruptFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        if flag.requested:
            raise KeyboardInterrupt
        flag.requested = True

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
