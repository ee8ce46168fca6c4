# SPDX-License-Identifier: Apache-2.0
"""One byte string for every JSON value, so that a digest of it means the value and not its spelling.

Source: RFC 8785, JSON Canonicalization Scheme: keys sorted by UTF-16 code units, numbers as ECMAScript writes them,
shortest escapes, no spaces, UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def canonical(value: Any) -> bytes:
    """Return the canonical form of a JSON value, UTF-8.

    Raises:
        ValueError: for NaN, infinities, integers that a double does not keep and unpaired surrogates: they have no
            canonical form.
        TypeError: for what is no JSON value.
    """
    return _write(value).encode("utf-8")


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical form of a JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _write(value: Any) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return json.dumps(value, ensure_ascii=False)
        case int():
            return _integer(value)
        case float():
            return _number(value)
        case Mapping():
            return _object(value)
        case Sequence():
            return "[" + ",".join(_write(entry) for entry in value) + "]"
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _object(value: Mapping[Any, Any]) -> str:
    if not all(isinstance(key, str) for key in value):
        raise TypeError("keys of JSON objects are strings")
    keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
    return "{" + ",".join(f"{_write(key)}:{_write(value[key])}" for key in keys) + "}"


def _integer(value: int) -> str:
    text = _number(float(value)) if abs(value) < sys.float_info.max else ""
    if text != str(value):
        raise ValueError(f"{value} would not survive a reader that keeps numbers as doubles; write it as a string")
    return text


def _number(value: float) -> str:
    """Return a float as ECMAScript does: the shortest digits that read back, exponents from 1e21 and below 1e-6."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no JSON form")
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value!r}".lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    return ("-" if value < 0 else "") + _placed(digits, point)


def _placed(digits: str, point: int) -> str:
    """Return 0.`digits` * 10**`point` in decimal or exponent form."""
    if 0 < point <= 21:
        return digits.ljust(point, "0") if len(digits) <= point else f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"
