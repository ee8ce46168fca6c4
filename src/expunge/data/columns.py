# SPDX-License-Identifier: Apache-2.0
"""From the columns of a row to an example. Errors name columns and rows, never the text in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.data.examples import Example, Turn
from expunge.errors import InputDataError, RecipeError, nearest

#: Columns that make an example, by kind; the first kind whose columns are all there is taken.
SHAPES: dict[str, tuple[str, ...]] = {
    "question": ("question", "answer"),
    "completion": ("prompt", "completion"),
    "chat": ("messages",),
    "text": ("text",),
}
OPTIONAL = ("id", "subject", "paraphrased_question", "paraphrased_answer", "perturbed_answer")
ALIASES = {"author": "subject"}
_ROLES = ("system", "user", "assistant")
_SHOWN = 40  # characters of a name or id that an error may show


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of one row under our column names, and where the row stands."""

    values: Mapping[str, Any]
    field: str
    place: str

    def error(self, column: str, problem: str, remedy: str) -> InputDataError:
        """Return the error for one cell."""
        return InputDataError(f"{self.place}, column {column!r} {problem}", field=self.field, remedy=remedy)

    def check(self, column: str, value: object, *, empty: bool = False) -> str:
        """Return `value` as text that can be tokenised; `empty` allows a blank one."""
        if not isinstance(value, str):
            what = "is missing" if value is None else f"is of type {type(value).__name__}, not a string"
            raise self.error(column, what, "Every row needs it as a string")
        if not empty and not value.strip():
            raise self.error(column, "is empty", "Fill it or leave the row out")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise self.error(column, "holds half a surrogate pair, which is not text", "Repair its encoding")
        return value

    def text(self, column: str, *, empty: bool = False) -> str:
        """Return a required cell."""
        return self.check(column, self.values.get(column), empty=empty)

    def optional(self, column: str) -> str | None:
        """Return an optional cell; a blank or missing one is None."""
        value = self.values.get(column)
        return None if value is None else self.check(column, value, empty=True) or None

    def label(self, column: str) -> str:
        """Return an identifier, text or whole number, as text; "" if missing."""
        value = self.values.get(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.optional(column) or ""

    def texts(self, column: str) -> tuple[str, ...]:
        """Return a list cell; one string is a list of one, a missing cell an empty list."""
        value = self.values.get(column)
        if value is None:
            return ()
        if isinstance(value, str):
            return (self.check(column, value),)
        if not isinstance(value, Sequence):
            raise self.error(column, f"is of type {type(value).__name__}", "Write a list of strings or one string")
        return tuple(self.check(column, item) for item in value)


def shown(names: Sequence[str], most: int = 20) -> str:
    """Return names for an error, each cut short, and how many more there are."""
    cut = [name if len(name) <= _SHOWN else name[:_SHOWN] + "..." for name in map(str, names[:most])]
    return ", ".join(cut) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_mapping(columns: Mapping[str, str], *, field: str) -> None:
    """Raise `RecipeError` if `columns` (our name to the name in the file) uses a name we do not have."""
    known = [name for shape in SHAPES.values() for name in shape] + list(OPTIONAL)
    for ours in columns:
        if ours not in known:
            raise RecipeError(
                "not a column of an example", field=f"{field}.columns", value=ours, remedy=nearest(ours, known)
            )


def rename(value: Mapping[str, Any], columns: Mapping[str, str], *, field: str, place: str) -> Cells:
    """Return the row under our names: aliases first, then the user's mapping, which wins."""
    cells = dict(value)
    for alias, ours in ALIASES.items():
        if alias in cells:
            cells.setdefault(ours, cells[alias])
    for ours, theirs in columns.items():
        if theirs not in value:
            raise InputDataError(
                f"{place} has no column {theirs!r}, which columns.{ours} names",
                field=field,
                remedy=f"Columns found: {shown(list(value))}",
            )
        cells[ours] = value[theirs]
    return Cells(cells, field, place)


def kind_of(cells: Cells, columns: Mapping[str, str]) -> str:
    """Return which kind of example the columns make; a column the user mapped decides before others."""
    ranked = sorted(SHAPES, key=lambda kind: not set(SHAPES[kind]) & set(columns))
    for kind in ranked:
        if all(name in cells.values for name in SHAPES[kind]):
            return kind
    accepted = " | ".join("{" + ", ".join(shape) + "}" for shape in SHAPES.values())
    raise InputDataError(
        f"{cells.place} has the columns {shown(list(cells.values)) or 'none'}",
        field=cells.field,
        remedy=f"Accepted: {accepted}; name others with columns, for example columns.answer=their_name",
    )


def to_example(cells: Cells, kind: str, *, default_id: str) -> Example:
    """Return the example of one row.

    Raises:
        InputDataError: if a cell is missing, empty or not text.
    """
    turns: tuple[Turn, ...] = ()
    if kind == "question":
        prompt, answer = cells.text("question"), cells.text("answer")
    elif kind == "completion":
        prompt, answer = cells.text("prompt", empty=True), cells.text("completion")
    elif kind == "chat":
        turns, answer = _conversation(cells)
        prompt = next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
    else:
        prompt, answer = "", cells.text("text")
    return Example(
        id=cells.label("id") or default_id,
        prompt=prompt,
        answer=answer,
        kind=kind,
        turns=turns,
        subject=cells.label("subject"),
        paraphrased_prompt=cells.optional("paraphrased_question"),
        paraphrased_answer=cells.optional("paraphrased_answer"),
        perturbed_answers=cells.texts("perturbed_answer"),
    )


def _conversation(cells: Cells) -> tuple[tuple[Turn, ...], str]:
    """Return the turns before the last assistant turn, and what that turn says."""
    messages = cells.values.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise cells.error("messages", "is not a list", "Write a list of {role, content}")
    turns = [_turn(cells, message) for message in messages]
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if not any(turn.role == "user" for turn in turns[: max(last, 0)]):
        raise cells.error("messages", "has no answer after a user turn", "End with an assistant turn")
    return tuple(turns[:last]), cells.check("messages", turns[last].content)


def _turn(cells: Cells, message: object) -> Turn:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise cells.error("messages", "has a turn without a known role", f"Roles: {', '.join(_ROLES)}")
    return Turn(role=message["role"], content=cells.check("messages", message.get("content"), empty=True))
