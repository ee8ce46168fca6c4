# SPDX-License-Identifier: Apache-2.0
"""The states of a request and which moves between them are allowed."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from expunge.errors import RecipeError


class State(StrEnum):
    """Where a request stands."""

    RECEIVED = "received"
    VERIFIED = "verified"
    LOCATED = "located"
    PLANNED = "planned"
    APPROVED = "approved"
    RUNNING = "running"
    AUDITED = "audited"
    CERTIFIED = "certified"
    PARTIAL = "partial"
    FAILED = "failed"
    REFUSED = "refused"
    DEPLOYED = "deployed"
    MONITORED = "monitored"
    DUPLICATE = "duplicate"
    WITHDRAWN = "withdrawn"
    ON_HOLD = "on_hold"


#: Before the first weight moves, a request may still be stopped for any of these reasons.
_STOPS = (State.DUPLICATE, State.WITHDRAWN, State.ON_HOLD, State.REFUSED)
#: After a result was written, a later fine-tune, merge or quantised copy asks for another audit.
_LATER = (State.AUDITED,)
MOVES: Mapping[State, tuple[State, ...]] = {
    State.RECEIVED: (State.VERIFIED, *_STOPS),
    State.VERIFIED: (State.LOCATED, *_STOPS),
    State.LOCATED: (State.PLANNED, State.LOCATED, *_STOPS),
    State.PLANNED: (State.APPROVED, State.PLANNED, State.LOCATED, *_STOPS),
    State.APPROVED: (State.RUNNING, State.PLANNED, State.WITHDRAWN, State.ON_HOLD),
    State.RUNNING: (State.AUDITED, State.FAILED),
    State.AUDITED: (State.CERTIFIED, State.PARTIAL, State.FAILED),
    State.CERTIFIED: (State.DEPLOYED, *_LATER),
    State.PARTIAL: (State.DEPLOYED, State.PLANNED, *_LATER),
    State.FAILED: (State.PLANNED, State.REFUSED),
    State.REFUSED: (),
    State.DEPLOYED: (State.MONITORED, *_LATER),
    State.MONITORED: (State.PLANNED, *_LATER),
    State.DUPLICATE: (),
    State.WITHDRAWN: (),
    State.ON_HOLD: (),  # goes back to where it was held, and nowhere else: see `allowed`
}
#: States in which nobody has to do anything any more.
CLOSED = (State.REFUSED, State.DUPLICATE, State.WITHDRAWN, State.DEPLOYED, State.MONITORED)


def allowed(state: State, *, held_in: State | None = None) -> tuple[State, ...]:
    """Return the states that may follow.

    Args:
        state: where the request stands.
        held_in: for a request on hold, where it stood before.
    """
    if state is not State.ON_HOLD:
        return MOVES[state]
    return (State.WITHDRAWN, *((held_in,) if held_in else ()))


def check_move(state: State, to: State, *, held_in: State | None = None) -> None:
    """Refuse a move that is not allowed.

    Raises:
        RecipeError: naming the moves that are.
    """
    options = allowed(state, held_in=held_in)
    if to not in options:
        named = ", ".join(options) or "none: the request is closed"
        raise RecipeError(f"a request that is {state} cannot become {to}", field="state", value=str(to),
                          remedy=f"Allowed from here: {named}")  # fmt: skip
