# SPDX-License-Identifier: Apache-2.0
"""What a route would take on this machine, from the plan of its recipe; without a recipe nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from expunge.api.needs import check_needs
from expunge.api.plan import Ground, plan, survey
from expunge.desk.advise.situation import Situation
from expunge.errors import ExpungeError
from expunge.recipe import build_recipe, merge


class Prediction(NamedTuple):
    """Seconds and bytes; `why` says why one is None or how they came about, `stops` what the run would stop at."""

    seconds: float | None = None
    bytes: int | None = None
    why: str = ""
    stops: str = ""


#: Estimates a method (its name) under settings of the recipe.
Predictor = Callable[[str, Mapping[str, Any]], Prediction]


def planned(situation: Situation) -> Predictor:
    """Return estimates through the situation's recipe, its method exchanged; model and data are read once."""
    grounds: dict[str, Ground] = {}

    def predict(method: str, settings: Mapping[str, Any]) -> Prediction:
        if situation.recipe is None:
            return Prediction(why="Time and memory are not estimated: no recipe with model and data is given.")
        return _plan(recipe_settings(situation.recipe, method, settings), grounds)

    return predict


def recipe_settings(recipe: Mapping[str, Any], method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings for another method; those of its own method stay only where it is the same."""
    own = dict(recipe.get("method") or {})
    kept = own if own.get("name") == method else {}
    return merge(merge({**recipe, "method": kept}, settings), {"method": {"name": method}})


def _plan(settings: Mapping[str, Any], grounds: dict[str, Ground]) -> Prediction:
    try:
        recipe = build_recipe(settings)
        check_needs(recipe)
        key = f"{recipe.model.path} {recipe.model.revision} {recipe.data.model_dump_json()}"
        if key not in grounds:
            grounds[key] = survey(recipe)
        found = plan(recipe, grounds[key])
    except ExpungeError as error:
        return Prediction(stops=str(error))
    return Prediction(found["seconds"], found["memory_mb"] << 20)
