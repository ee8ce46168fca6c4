# SPDX-License-Identifier: Apache-2.0
"""When a request is due, by the rule it was made under."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.errors import RecipeError, nearest


class Deadline(BaseModel):
    """A period from the receipt of a request, and by how much it may be extended once.

    Months are calendar months: the same day of the later month, or its last day where it has no such day. Public
    holidays and weekends are not known here; count them yourself where your law does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what the policy is called")
    months: int = Field(0, ge=0, description="calendar months")
    days: int = Field(0, ge=0, description="days")
    extension_months: int = Field(0, ge=0, description="calendar months that may be added once, with a reason")
    extension_days: int = Field(0, ge=0, description="days that may be added once, with a reason")

    @model_validator(mode="after")
    def _some_time(self) -> Deadline:
        if not self.months and not self.days:
            raise ValueError("a deadline needs months or days")
        return self

    def due(self, received: datetime, *, extended: bool = False) -> datetime:
        """Return when an answer is due.

        Args:
            received: when the request came in, with its time zone.
            extended: add the extension.

        Raises:
            ValueError: for a time without a zone, which is no moment.
        """
        if received.tzinfo is None:
            raise ValueError("the time of receipt needs a time zone")
        months = self.months + (self.extension_months if extended else 0)
        days = self.days + (self.extension_days if extended else 0)
        return add_months(received, months) + timedelta(days=days)


def add_months(moment: datetime, months: int) -> datetime:
    """Return the same day some months later, or the last day of that month where it has no such day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


#: Sources: GDPR Art. 12(3), one month, two more where needed; CCPA, Cal. Civ. Code 1798.130(a)(2), 45 days and 45 more.
DEADLINES: dict[str, Deadline] = {
    "gdpr": Deadline(name="gdpr", months=1, extension_months=2),
    "ccpa": Deadline(name="ccpa", days=45, extension_days=45),
}


def deadline(name: str) -> Deadline:
    """Return a deadline by name, or `<n>d` for one of your own, n days.

    Raises:
        RecipeError: if there is none of that name.
    """
    if name.endswith("d") and name[:-1].isdigit() and int(name[:-1]):
        return Deadline(name=name, days=int(name[:-1]))
    if name not in DEADLINES:
        raise RecipeError("no such deadline", field="deadline", value=name,
                          remedy=nearest(name, [*DEADLINES, "30d"]))  # fmt: skip
    return DEADLINES[name]
