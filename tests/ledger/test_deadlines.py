# SPDX-License-Identifier: Apache-2.0
"""When a request is due, by hand-counted calendars."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from expunge.errors import RecipeError
from expunge.ledger.deadlines import Deadline, deadline


def day(year: int, month: int, date: int) -> datetime:
    return datetime(year, month, date, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "start", "end", "extended"),
    [
        ("gdpr", day(2026, 3, 15), day(2026, 4, 15), day(2026, 6, 15)),
        ("gdpr", day(2026, 1, 31), day(2026, 2, 28), day(2026, 4, 30)),
        ("gdpr", day(2024, 1, 31), day(2024, 2, 29), day(2024, 4, 30)),
        ("gdpr", day(2026, 12, 31), day(2027, 1, 31), day(2027, 3, 31)),
        ("ccpa", day(2026, 1, 1), day(2026, 2, 15), day(2026, 4, 1)),
        ("10d", day(2026, 2, 25), day(2026, 3, 7), day(2026, 3, 7)),
    ],
)
def test_days_counted_by_hand(name: str, start: datetime, end: datetime, extended: datetime) -> None:
    assert deadline(name).due(start) == end
    assert deadline(name).due(start, extended=True) == extended


def test_bad_deadlines_are_named() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'gdpr'"):
        deadline("gpdr")
    with pytest.raises(RecipeError):
        deadline("0d")
    with pytest.raises(ValueError, match="months or days"):
        Deadline(name="none")
    with pytest.raises(ValueError, match="time zone"):
        deadline("gdpr").due(datetime(2026, 1, 1))  # noqa: DTZ001
