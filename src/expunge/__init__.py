# SPDX-License-Identifier: Apache-2.0
"""Make language models unlearn, measure what changed, and say plainly what was and was not shown."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import expunge.audit as _audit_room

if TYPE_CHECKING:
    from expunge.api.job import RunResult, run
    from expunge.api.memory import AuditReport, UnlearnResult, unlearn
    from expunge.api.train import train
    from expunge.data.examples import Example, Splits
    from expunge.recipe import Recipe, TrainRecipe, load_recipe

__version__ = "0.1.0"

#: Public names, loaded when first used: `import expunge` alone imports neither torch nor transformers.
_HOMES = {
    "AuditReport": "api.memory", "UnlearnResult": "api.memory", "unlearn": "api.memory",
    "RunResult": "api.job", "run": "api.job", "train": "api.train",
    "Recipe": "recipe", "TrainRecipe": "recipe", "load_recipe": "recipe",
    "Example": "data.examples", "Splits": "data.examples",
}  # fmt: skip

__all__ = [
    "AuditReport", "Example", "Recipe", "RunResult", "Splits", "TrainRecipe", "UnlearnResult",
    "__version__", "audit", "load_recipe", "run", "train", "unlearn",
]  # fmt: skip


class _CallableRoom(ModuleType):
    """`expunge.audit` is the verb as well as the room it is named after."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Measure a model; see `expunge.api.memory.audit`."""
        return import_module("expunge.api.memory").audit(*args, **kwargs)


_audit_room.__class__ = _CallableRoom


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    value = getattr(import_module(f"expunge.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
