# SPDX-License-Identifier: Apache-2.0
"""The list of attacks. A file in this room that defines an `Attack` with a card is an attack."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from inspect import isabstract
from typing import Any

from pydantic import ValidationError

from expunge.attacks.base import Attack, AttackCard, AttackConfig, AttackContext, AttackResult
from expunge.errors import RecipeError, nearest


@cache
def attacks() -> dict[str, Attack]:
    """Return every attack by name.

    Raises:
        ValueError: if two attacks share a name.
    """
    import expunge.attacks as room

    for module in pkgutil.iter_modules(room.__path__):
        import_module(f"{room.__name__}.{module.name}")
    found: dict[str, Attack] = {}
    for cls in _concrete(Attack):  # type: ignore[type-abstract]
        if cls.card.name in found:
            raise ValueError(f"two attacks are called {cls.card.name!r}: {type(found[cls.card.name])} and {cls}")
        found[cls.card.name] = cls()
    return dict(sorted(found.items()))


def _concrete(cls: type[Attack]) -> list[type[Attack]]:
    own = [cls] if not isabstract(cls) and "card" in cls.__dict__ else []
    return own + [found for child in cls.__subclasses__() for found in _concrete(child)]


def attack_cards() -> list[AttackCard]:
    """Return the cards of all attacks, by name."""
    return [attack.card for attack in attacks().values()]


def choose(names: Iterable[str]) -> list[Attack]:
    """Return the attacks of some names, each once; a kind such as `probing` stands for all of it, `all` for all.

    Raises:
        RecipeError: if there is none of that name; the message names the nearest.
    """
    known, chosen = attacks(), dict[str, Attack]()
    kinds = {attack.card.kind for attack in known.values()}
    for name in names:
        if name not in known and name not in kinds and name != "all":
            remedy = nearest(name, [*known, *kinds, "all"])
            raise RecipeError("no such attack", field="attack", value=name, remedy=remedy)
        chosen |= {key: a for key, a in known.items() if name in (key, a.card.kind, "all")}
    if not chosen:
        raise RecipeError("no attack is named", field="attack", remedy=f"Valid: {', '.join(known)}, all")
    return list(chosen.values())


def parse_attack(name: str, settings: Mapping[str, Any]) -> AttackConfig:
    """Return the typed settings of an attack.

    Raises:
        RecipeError: for an unknown attack, key or value.
    """
    (attack,) = choose([name])
    try:
        return attack.Config(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([name, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            remedy = nearest(str(first["loc"][-1]), attack.Config.model_fields)
            raise RecipeError("no such key", field=field, remedy=remedy) from None
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(message[0].lower() + message[1:], field=field, value=first.get("input")) from None


#: Attacks with their settings, checked against what there is.
Prepared = Sequence[tuple[Attack, AttackConfig]]


def prepare(
    names: Sequence[str], context: AttackContext, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> Prepared:
    """Return the attacks with their settings; what any of them lacks is said here, before work begins.

    Args:
        names: see `choose`.
        context: models and data.
        settings: by name of the attack.

    Raises:
        RecipeError: for an unknown attack or setting, or a missing input.
    """
    given, chosen = dict(settings or {}), choose(names)
    if unused := given.keys() - {attack.card.name for attack in chosen}:
        name = min(unused)
        raise RecipeError("settings of an attack that is not run", field=name, remedy=f"Add --attack {name}")
    prepared = [(attack, parse_attack(attack.card.name, given.get(attack.card.name, {}))) for attack in chosen]
    for attack, config in prepared:
        attack.check(config, context)
    return prepared


def run_prepared(prepared: Prepared, context: AttackContext) -> list[AttackResult]:
    """Run attacks one after the other."""
    out = []
    for attack, config in prepared:
        context.stage(f"Attack: {attack.card.title}")
        out.append(attack.run(config, context))
    return out


def run_attacks(
    names: Sequence[str], context: AttackContext, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[AttackResult]:
    """Prepare and run attacks; see `prepare`."""
    return run_prepared(prepare(names, context, settings), context)
