# SPDX-License-Identifier: Apache-2.0
"""Digests of data: what was unlearned or scored, without keeping it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict

from expunge.data.examples import Example


def data_digest(examples: Iterable[Example]) -> str:
    """Return the SHA-256 (hex) over the examples as canonical JSON, one a line; their order counts."""
    digest = hashlib.sha256()
    for example in examples:
        line = json.dumps(asdict(example), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()
