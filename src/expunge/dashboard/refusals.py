# SPDX-License-Identifier: Apache-2.0
"""What the dashboard refuses, each with the HTTP status that says so."""

from __future__ import annotations

from typing import ClassVar

from expunge.errors import ExpungeError


class Refusal(ExpungeError):
    """Base of what is refused at the door; `status` is the HTTP status."""

    status: ClassVar[int] = 400
    exit_code = 2


class Unknown(Refusal):
    """Nobody is signed in, or the token does not count."""

    status = 401


class Forbidden(Refusal):
    """The role may not do this, or the form was not sent from our page."""

    status = 403


class Absent(Refusal):
    """There is no such thing, or it belongs to somebody else: the two look alike from outside."""

    status = 404


class TooMany(Refusal):
    """Too many requests in a short time."""

    status = 429


def status_of(error: ExpungeError) -> int:
    """Return the HTTP status of an error: that of a refusal, 409 where the desk refuses, 500 where it broke."""
    if isinstance(error, Refusal):
        return error.status
    return 409 if error.exit_code > 1 else 500
