# SPDX-License-Identifier: Apache-2.0
"""The list of methods. A file in this room that defines a `Method` with a card is a method."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from inspect import isabstract
from typing import Any

from pydantic import ValidationError

from expunge.claims import MethodCard
from expunge.errors import RecipeError, nearest
from expunge.methods.base import Method, MethodConfig


@cache
def methods() -> dict[str, Method]:
    """Return every method by name: those of this room, then those of installed packages (entry point group
    `expunge.methods`, each naming a `Method` class).

    Raises:
        ValueError: if two methods share a name.
    """
    import expunge.methods as room

    for module in pkgutil.iter_modules(room.__path__):
        import_module(f"{room.__name__}.{module.name}")
    classes = _concrete(Method)  # type: ignore[type-abstract]
    classes += [entry.load() for entry in entry_points(group="expunge.methods")]
    found: dict[str, Method] = {}
    for cls in dict.fromkeys(classes):
        name = cls.card.name
        if name in found:
            raise ValueError(f"two methods are called {name!r}: {type(found[name])} and {cls}")
        found[name] = cls()
    return dict(sorted(found.items()))


def _concrete(cls: type[Method]) -> list[type[Method]]:
    own = [cls] if not isabstract(cls) and "card" in cls.__dict__ else []
    return own + [found for child in cls.__subclasses__() for found in _concrete(child)]


def get_method(name: str) -> Method:
    """Return one method.

    Raises:
        RecipeError: if there is none of that name; the message names the nearest.
    """
    known = methods()
    if name not in known:
        raise RecipeError("no such method", field="method.name", value=name, remedy=nearest(name, known))
    return known[name]


def method_cards() -> list[MethodCard]:
    """Return the cards of all methods, by name."""
    return [method.card for method in methods().values()]


def parse_method(settings: Mapping[str, Any]) -> MethodConfig:
    """Return the typed settings of the method that `settings["name"]` names.

    Raises:
        RecipeError: for an unknown method, key or value.
    """
    if "name" not in settings:
        raise RecipeError("a method is needed", field="method.name", remedy=f"Valid: {', '.join(methods())}")
    config = get_method(str(settings["name"])).Config
    try:
        return config(**{key: value for key, value in settings.items() if key != "name"})
    except ValidationError as error:
        raise recipe_error(error, "method", config) from None


def recipe_error(error: ValidationError, where: str, model: type[Any]) -> RecipeError:
    """Turn the first validation problem into an error that names the field, the value and the remedy."""
    first = error.errors()[0]
    path = ".".join([where, *(str(part) for part in first["loc"])]).strip(".")
    if first["type"] == "extra_forbidden":
        return RecipeError(
            "no such key", field=path, remedy=nearest(str(first["loc"][-1]), _fields(model, first["loc"]))
        )
    if first["type"] == "missing":
        return RecipeError("is missing", field=path, remedy=f"Give it in the recipe or with --set {path}=VALUE")
    if first["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", str(first["ctx"]["expected"]))
        remedy = nearest(str(first["input"]), options)
        return RecipeError("no such value", field=path, value=first["input"], remedy=remedy)
    message = first["msg"].removeprefix("Value error, ")
    return RecipeError(message[0].lower() + message[1:], field=path, value=first.get("input"))


def _fields(model: type[Any], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc[:-1]:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and hasattr(o, "model_fields")), model)
    return list(model.model_fields)
