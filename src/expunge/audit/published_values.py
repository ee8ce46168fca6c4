# SPDX-License-Identifier: Apache-2.0
"""Values of a published log: read by index whatever their container, checked, or refused with their place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from expunge.errors import InputDataError

SOURCE = "published log"
"""Version of the protocols that describe logs; name of the place that errors give."""


def refuse(problem: str, *, where: str, remedy: str = "Give the log as its authors' code wrote it") -> InputDataError:
    """Return the error for a log that cannot be used."""
    return InputDataError(problem, field=SOURCE, value=where, remedy=remedy)


def by_index(values: Any, *, where: str) -> dict[str, Any]:
    """Return per-item values by index, from a mapping or from a list.

    Raises:
        InputDataError: for anything else.
    """
    if isinstance(values, Mapping):
        return {str(key): value for key, value in values.items()}
    if isinstance(values, list):
        return {str(number): value for number, value in enumerate(values)}
    raise refuse(f"per-item values are of type {type(values).__name__}", where=where)


def finite(value: Any, *, where: str) -> float:
    """Return a number that is one.

    Raises:
        InputDataError: for NaN, infinity or anything that is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise refuse(f"not a finite number: {value!r}", where=where, remedy="Nothing can be computed from this item")
    return float(value)


def text(value: Any, *, where: str) -> str:
    """Return a text.

    Raises:
        InputDataError: for anything else.
    """
    if not isinstance(value, str):
        raise refuse(f"a text is of type {type(value).__name__}", where=where)
    return value
