# SPDX-License-Identifier: Apache-2.0
"""Whether a recipe names all that its method reads, asked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from expunge.claims import ClaimKind
from expunge.data.preparation import is_wanted
from expunge.errors import RecipeError, require
from expunge.methods.registry import get_method
from expunge.models.loading import ENSEMBLE
from expunge.recipe import Recipe


def check_needs(recipe: Recipe) -> None:
    """Raise if an input that the method or the preparation of the forget set needs is missing.

    Raises:
        RecipeError: naming the field.
    """
    method = get_method(recipe.method.name)  # type: ignore[attr-defined]
    card, needs = method.card, method.needs(recipe.method, recipe.training)
    method.check(recipe.method, recipe.training)
    _check_preparation(recipe, trains_on_forget="forget" in card.needs)
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
    if card.claim is not ClaimKind.EXACT and (Path(recipe.model.path) / ENSEMBLE).is_file():
        raise RecipeError(
            "is an ensemble, whose members are trained apart", field="model.path", value=recipe.model.path,
            remedy="Forget with `expunge sisa forget` or `expunge tenants remove`, or retrain",
        )  # fmt: skip
    if recipe.model.quantised != "none":
        require("bitsandbytes", "quant")
        if recipe.training.lora is None:
            raise RecipeError(
                "weights held in fewer bits cannot move", field="model.quantised", value=recipe.model.quantised,
                remedy="Train an adapter over them: --set training.lora.r=8",
            )  # fmt: skip
    if "holdout" in needs and recipe.data.holdout is None:
        raise RecipeError(
            f"method {card.name!r} with these settings needs a holdout: examples "
            "like those of the forget set that no model was trained on", field="data.holdout",
            remedy="Give --holdout FILE",
        )  # fmt: skip


def _check_preparation(recipe: Recipe, *, trains_on_forget: bool) -> None:
    """Raise if noise or a guard would have no effect, or needs what is not there."""
    data, robust = recipe.data, recipe.data.robust
    if is_wanted(data.noise, robust) and not trains_on_forget:
        raise RecipeError(
            "the method does not train on the forget set", field="data.noise, data.robust", remedy="Leave them out"
        )
    read = [
        ("data.noise.kind", data.noise.kind, data.noise.kind == "mislabel", "retain", data.retain),
        ("data.robust.overlap", robust.overlap, robust.overlap is not None, "retain", data.retain),
        ("data.robust.memorised", robust.memorised, robust.memorised == "holdout", "holdout", data.holdout),
        ("data.robust.memorised", robust.memorised, robust.memorised == "base", "base", recipe.model.base),
    ]
    for field, value, is_on, name, source in read:
        if is_on and source is None:
            what = "the model that never saw the data" if name == "base" else f"a {name} set"
            raise RecipeError(f"needs {what}", field=field, value=value, remedy=f"Give --{name}")
