# SPDX-License-Identifier: Apache-2.0
"""Who may do what: one rule a route, by the route's name. A route without a rule is open to nobody."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Role(StrEnum):
    """What a person is here for."""

    REQUESTER = "requester"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"


#: What each role is told about itself.
DUTIES: Mapping[Role, str] = {
    Role.REQUESTER: "You can hand in requests, follow your own, and withdraw them.",
    Role.OPERATOR: "You verify requests, locate records and make plans. Another person approves them.",
    Role.APPROVER: "You approve plans that others made.",
    Role.AUDITOR: "You read everything, verify certificates and export the ledger. You change nothing.",
}

_ALL = frozenset(Role)
_STAFF = _ALL - {Role.REQUESTER}
_INTAKE = frozenset({Role.REQUESTER, Role.OPERATOR})
_REQUESTER = frozenset({Role.REQUESTER})
_OPERATOR = frozenset({Role.OPERATOR})
_APPROVER = frozenset({Role.APPROVER})
_AUDITOR = frozenset({Role.AUDITOR})

#: Pages and their counterparts in the API, `api_` before the name, share a rule.
RULES: Mapping[str, frozenset[Role]] = {
    "queue": _ALL,
    "request_page": _ALL,
    "live": _ALL,
    "certificate": _ALL,
    "notice": _ALL,
    "logout": _ALL,
    "me": _ALL,
    "schema": _ALL,
    "intake_form": _INTAKE,
    "intake": _INTAKE,
    "withdraw": _REQUESTER,
    "move": _OPERATOR,
    "extend": _OPERATOR,
    "locate": _OPERATOR,
    "routes": _OPERATOR,
    "plan": _OPERATOR,
    "approve": _APPROVER,
    "runs": _STAFF,
    "compare": _STAFF,
    "run_report": _STAFF,
    "verify_form": _STAFF,
    "verify": _STAFF,
    "ledger": _AUDITOR,
    "ledger_export": _AUDITOR,
}


def may(role: Role, route: str) -> bool:
    """Return whether a role may use a route, named as its function is."""
    return role in RULES.get(route.removeprefix("api_"), frozenset())
