# SPDX-License-Identifier: Apache-2.0
"""The benchmark is a folder beside the package, run from the root of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
