# SPDX-License-Identifier: Apache-2.0
"""Which parameters may move, chosen by regular expressions on their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from torch import nn

from expunge.errors import RecipeError

_FIELD = "trainable"
_STACKS = "layers|h|blocks|block"  # what Llama-like, GPT-2-like and other models call their list of decoder blocks


def select_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the parameters that any pattern matches somewhere, in the order of the model.

    Args:
        model: its `named_parameters` are searched; a tied weight has one name, the first.
        patterns: regular expressions, at least one; `^...$` makes one match whole names.

    Raises:
        RecipeError: if a pattern is not a regular expression or matches nothing.
    """
    if not patterns:
        raise RecipeError("no pattern is given", field=_FIELD, remedy="Use '.*' for every parameter")
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if _compiled(pattern).search(name)]
        if not found:
            close = get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0.3) or names[:3]
            remedy = f"Names near it: {', '.join(close)}"
            raise RecipeError("the pattern matches no parameter", field=_FIELD, value=pattern, remedy=remedy)
        chosen.update(found)
    return [name for name in names if name in chosen]


def freeze_except(model: nn.Module, names: Iterable[str]) -> int:
    """Let only the named parameters train, and return how many numbers they hold.

    Raises:
        RecipeError: if a name is not a parameter of the model.
    """
    parameters = dict(model.named_parameters())
    wanted = set(names)
    if unknown := sorted(wanted - parameters.keys()):
        remedy = "Take names from select_parameters"
        raise RecipeError("not a parameter of this model", field=_FIELD, value=unknown[0], remedy=remedy)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted)
    return sum(parameters[name].numel() for name in wanted)


def select_layers(layers: Sequence[int]) -> list[str]:
    """Return one pattern per decoder block, for `select_parameters`; block 3 does not match block 30.

    Args:
        layers: block numbers from 0.

    Raises:
        RecipeError: if a number is negative.
    """
    if any(layer < 0 for layer in layers):
        raise RecipeError("blocks count from 0", field=_FIELD, value=list(layers), remedy="Use numbers from 0")
    return [rf"(?:^|\.)(?:{_STACKS})\.{layer}\." for layer in layers]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        remedy = "Escape special characters with a backslash"
        raise RecipeError(f"not a regular expression: {error}", field=_FIELD, value=pattern, remedy=remedy) from error
