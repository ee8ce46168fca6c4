# SPDX-License-Identifier: Apache-2.0
"""Pages from templates: everything is escaped, and no page says what may not be said."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from expunge import __version__
from expunge.claims import ClaimKind
from expunge.dashboard.access import Person
from expunge.dashboard.roles import DUTIES, Role
from expunge.ledger.states import State
from expunge.report.style import CSS
from expunge.report.words import check_page, duration, number

#: How a state looks: quiet, at work, good, careful, bad.
LOOKS = {
    State.CERTIFIED: "good", State.DEPLOYED: "good", State.MONITORED: "good", State.PARTIAL: "warn",
    State.ON_HOLD: "warn", State.FAILED: "bad", State.REFUSED: "bad", State.RUNNING: "busy", State.AUDITED: "busy",
    State.APPROVED: "busy",
}  # fmt: skip


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("expunge.dashboard", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"day": _day, "moment": _moment, "days": _days, "words": _words, "duration": duration,
                      "number": number, "size": _size, "look": lambda state: LOOKS.get(state, "quiet")}  # fmt: skip
    found.globals |= {"Role": Role, "State": State, "ClaimKind": ClaimKind, "DUTIES": DUTIES, "version": __version__,
                      "csrf": _csrf}  # fmt: skip
    return found


def page(request: Request, name: str, person: Person | None, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page.

    Args:
        request: that is answered.
        name: of the template.
        person: who looks at it; None before the sign-in.
        status: HTTP status.
        values: what the template shows.

    Raises:
        ExpungeError: if it would say what may not be said.
    """
    text = _environment().get_template(name).render(person=person, here=request.url.path, **values)
    return HTMLResponse(check_page(text), status)


@cache
def style() -> str:
    """Return the style sheet: that of the report, and what the dashboard adds."""
    return CSS + static("dashboard.css")


@pass_context
def _csrf(context: Context) -> Markup:
    """Return the field that every form carries."""
    value = context["person"].csrf if context["person"] else context["csrf_value"]
    return Markup('<input type="hidden" name="csrf" value="{}">').format(value)


@cache
def static(name: str) -> str:
    """Return a file that every page loads."""
    return (files("expunge.dashboard") / "static" / name).read_text("utf-8")


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y}"


def _moment(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC"


def _days(left: float) -> str:
    """Say how many days are left, or how late it is; parts of a day count as hours."""
    size, late = abs(left), left < 0
    if size < 1:
        hours = int(size * 24)
        text = "less than an hour" if hours == 0 else f"{hours} hour{'s' if hours != 1 else ''}"
    else:
        text = f"{int(size)} day{'s' if int(size) != 1 else ''}"
    return f"{text} late" if late else f"{text} left"


def _words(text: object) -> str:
    return str(text).replace("_", " ")


def _size(number: float) -> str:
    """Format bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
