# SPDX-License-Identifier: Apache-2.0
"""On what a measurement was made."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from expunge.audit.document import environment


def processor() -> str:
    """Return the name of the processor, as the system has it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        found = re.search(r"model name\s*: (.*)", path.read_text("utf-8"))
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def described() -> dict[str, Any]:
    """Return date, processor, threads, how busy the machine is, and versions."""
    return environment() | {
        "date": datetime.now(UTC).date().isoformat(), "processor": processor(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load_average": round(os.getloadavg()[0], 1),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def file_name(kind: str = "") -> str:
    """Return `<date>-<processor>.json`, with a kind before it."""
    slug = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    return "-".join(part for part in (kind, datetime.now(UTC).date().isoformat(), slug) if part) + ".json"
