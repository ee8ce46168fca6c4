# SPDX-License-Identifier: Apache-2.0
"""Whether a recipe names all that its method reads, asked before anything is loaded."""

from __future__ import annotations

from expunge.data.preparation import is_wanted
from expunge.errors import RecipeError
from expunge.methods.registry import get_method
from expunge.recipe import Recipe


def check_needs(recipe: Recipe) -> None:
    """Raise if an input that the method or the preparation of the forget set needs is missing.

    Raises:
        RecipeError: naming the field.
    """
    method = get_method(recipe.method.name)  # type: ignore[attr-defined]
    card, needs = method.card, method.needs(recipe.method, recipe.training)
    method.check(recipe.method, recipe.training)
    if "forget" not in card.needs and is_wanted(recipe.data.noise, recipe.data.robust):
        raise RecipeError(
            f"method {card.name!r} does not train on the forget set", field="data.noise, data.robust",
            remedy="Leave them out",
        )  # fmt: skip
    if recipe.data.robust.memorised == "base" and recipe.model.base is None:
        raise RecipeError(
            "needs the model that never saw the data", field="data.robust.memorised", value="base",
            remedy="Give --base DIR, or use holdout",
        )  # fmt: skip
    if "retain" in needs and recipe.data.retain is None:
        raise RecipeError(
            f"method {card.name!r} needs a retain set", field="data.retain",
            remedy="Give --retain FILE, or do without what reads it: method.retain, or training.mask.kind wagle",
        )  # fmt: skip
    if "base_model" in needs and recipe.model.base is None:
        raise RecipeError(
            f"method {card.name!r} needs the model that never saw the data", field="model.base",
            remedy="Give --base DIR",
        )  # fmt: skip
    if "holdout" in needs and recipe.data.holdout is None:
        raise RecipeError(
            f"method {card.name!r} with these settings needs a holdout: examples "
            "like those of the forget set that no model was trained on", field="data.holdout",
            remedy="Give --holdout FILE",
        )  # fmt: skip
