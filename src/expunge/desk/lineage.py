# SPDX-License-Identifier: Apache-2.0
"""The lineage file: which artefacts saw which corpora, directly or through what they were made from.

A person writes it, for models, indices, caches and back-ups alike. What run folders tell by themselves about one
checkpoint, example by example, is in `expunge.api.lineage`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expunge.desk.config import located
from expunge.errors import RecipeError, nearest
from expunge.methods.registry import recipe_error

Kind = Literal[
    "base", "finetune", "adapter", "merge", "quantised", "distilled", "rag_index", "cache", "eval_set", "backup",
    "checkpoint",
]  # fmt: skip
_FIELD = "lineage"


class Privacy(BaseModel):
    """The bound under which an artefact was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(ge=0, allow_inf_nan=False)
    delta: float = Field(ge=0, lt=1)
    unit: Literal["sequence", "subject"] = Field(description="what the bound is about")
    run: str | None = Field(None, description="folder of the private run, whose accountant can be asked again")


class Artefact(BaseModel):
    """One thing that may carry what was in a corpus. Paths are relative to the lineage file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=120)
    kind: Kind
    path: str | None = Field(None, description="where it is; none if it is out of reach or no file")
    parents: tuple[str, ...] = Field((), description="artefacts that it was made from")
    trained_on: tuple[str, ...] = Field((), description="corpora that went into it itself, beside those of its parents")
    sisa: str | None = Field(None, description="folder of the sharded training that it stands for")
    tenants: str | None = Field(None, description="folder with one adapter for each tenant")
    privacy: Privacy | None = Field(None, description="its bound, if it was trained privately")
    reachable: bool = Field(True, description="whether we can change it; false for copies in other hands")

    @property
    def known(self) -> bool:
        """Whether the file says anything about what went into it."""
        return bool(self.parents or self.trained_on)


class Lineage(BaseModel):
    """All artefacts and how they came about.

    Raises:
        RecipeError: for a name given twice, a parent that is none of them, or artefacts made from each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    artefacts: tuple[Artefact, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> Lineage:
        names = [artefact.name for artefact in self.artefacts]
        for artefact in self.artefacts:
            if names.count(artefact.name) > 1:
                raise RecipeError("two artefacts have this name", field=f"{_FIELD}.name", value=artefact.name,
                                  remedy="Give each its own")  # fmt: skip
            for parent in artefact.parents:
                if parent not in names:
                    problem = f"{artefact.name} is made from an artefact that is not here"
                    raise RecipeError(problem, field=f"{_FIELD}.parents", value=parent, remedy=nearest(parent, names))
        self.ordered()
        return self

    def ordered(self) -> list[Artefact]:
        """Return the artefacts, parents before what is made from them, otherwise in the order of the file.

        Raises:
            RecipeError: naming artefacts that are made from each other.
        """
        left, placed, out = list(self.artefacts), set[str](), list[Artefact]()
        while left:
            ready = next((artefact for artefact in left if placed.issuperset(artefact.parents)), None)
            if ready is None:
                raise RecipeError("these are made from each other", field=f"{_FIELD}.parents",
                                  value=_cycle(left), remedy="Take the parent out that came later")  # fmt: skip
            left.remove(ready)
            placed.add(ready.name)
            out.append(ready)
        return out

    def artefact(self, name: str) -> Artefact:
        """Return the artefact of a name.

        Raises:
            RecipeError: if there is none.
        """
        for artefact in self.artefacts:
            if artefact.name == name:
                return artefact
        raise RecipeError("no such artefact", field=_FIELD, value=name,
                          remedy=nearest(name, [artefact.name for artefact in self.artefacts]))  # fmt: skip

    def saw(self, corpora: Collection[str]) -> list[Artefact]:
        """Return what any of the corpora went into, derived artefacts included, parents before what is made from them.

        Args:
            corpora: names of corpora in which something was found.
        """
        reached: dict[str, Artefact] = {}
        for artefact in self.ordered():
            if set(artefact.trained_on) & set(corpora) or any(parent in reached for parent in artefact.parents):
                reached[artefact.name] = artefact
        return list(reached.values())

    def unknown(self) -> list[Artefact]:
        """Return artefacts that the file says nothing about, and those made from them: they may have seen anything."""
        reached: dict[str, Artefact] = {}
        for artefact in self.ordered():
            if not artefact.known or any(parent in reached for parent in artefact.parents):
                reached[artefact.name] = artefact
        return list(reached.values())

    def starts(self, name: str, corpora: Collection[str]) -> list[Artefact]:
        """Return ancestors of an artefact that saw none of the corpora as far as the file says, the latest first.

        Training without the data can start from any of them.
        """
        barred = {artefact.name for artefact in (*self.saw(corpora), *self.unknown())}
        above, todo = set[str](), list(self.artefact(name).parents)
        while todo:
            parent = todo.pop()
            if parent not in above:
                above.add(parent)
                todo += self.artefact(parent).parents
        return [artefact for artefact in reversed(self.ordered()) if artefact.name in above - barred]

    def corpora(self) -> list[str]:
        """Return the names of all corpora that any artefact was trained on, sorted."""
        return sorted({corpus for artefact in self.artefacts for corpus in artefact.trained_on})


def read_lineage(path: Path) -> Lineage:
    """Return the lineage of a YAML file, its paths as seen from here.

    Raises:
        RecipeError: if it cannot be read, or cannot be meant.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"cannot be read: {error}", field=_FIELD, value=str(path),
                          remedy="Give a YAML file with `artefacts`") from error  # fmt: skip
    try:
        found = Lineage.model_validate(values)
    except ValidationError as error:
        raise recipe_error(error, _FIELD, Lineage) from None
    return Lineage(artefacts=tuple(_placed(artefact, path.parent) for artefact in found.artefacts))


def _placed(artefact: Artefact, folder: Path) -> Artefact:
    paths: dict[str, Any] = {
        name: located(folder, value) for name in ("path", "sisa", "tenants")
        if (value := getattr(artefact, name)) is not None
    }  # fmt: skip
    if artefact.privacy is not None and artefact.privacy.run is not None:
        paths["privacy"] = artefact.privacy.model_copy(update={"run": located(folder, artefact.privacy.run)})
    return artefact.model_copy(update=paths)


def _cycle(left: list[Artefact]) -> str:
    """Return names that lead back to the first of them; every one of `left` has a parent in it."""
    parents = {artefact.name: artefact.parents for artefact in left}
    walk = [left[0].name]
    while walk[-1] not in walk[:-1]:
        walk.append(next(parent for parent in parents[walk[-1]] if parent in parents))
    return " from ".join(walk[walk.index(walk[-1]) :])
