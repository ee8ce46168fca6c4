# SPDX-License-Identifier: Apache-2.0
"""Errors a user can act on: each names the field, the value and the remedy, and carries its exit code."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExpungeWarning(UserWarning):
    """Something works but will surprise; tests turn it into an error."""


class ExpungeError(Exception):
    """Base of every error that Expunge raises on purpose.

    Args:
        problem: what is wrong, in one clause.
        field: the recipe key, option, column or file concerned.
        value: the offending value.
        remedy: what to do about it.
    """

    exit_code = 1

    def __init__(self, problem: str, *, field: str = "", value: object = None, remedy: str = "") -> None:
        self.problem, self.field, self.value, self.remedy = problem, field, value, remedy
        text = f"{field}: {problem}" if field else problem
        if value is not None:
            text += f" (got {value!r})"
        if remedy:
            text += f". {remedy}"
        super().__init__(text)


class RecipeError(ExpungeError):
    """A recipe, option or combination of them that cannot run."""

    exit_code = 2


class PolicyNotMet(ExpungeError):
    """The audit ran and its thresholds are not met."""

    exit_code = 3


class VerificationFailed(ExpungeError):
    """A digest, signature or chain does not verify."""

    exit_code = 4


class MissingDependency(ExpungeError):
    """An optional package is needed and absent."""

    exit_code = 5


class InputDataError(ExpungeError):
    """A data or model file that cannot be used as it is."""

    exit_code = 6


class TrainingDiverged(ExpungeError):
    """The loss stopped being a finite number; the last good checkpoint is kept."""


class Interrupted(ExpungeError):
    """The user interrupted the run; its state is saved and can be resumed."""

    exit_code = 130


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a remedy sentence that names the closest valid spelling of `name`."""
    options = sorted(known)
    close = get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(options)}"


def require(module: str, extra: str) -> None:
    """Raise `MissingDependency` unless `module` can be imported; `extra` is the pip extra that brings it."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise MissingDependency(
            "an optional package is needed for this", field=module, remedy=f"Install it: pip install 'expunge[{extra}]'"
        )
