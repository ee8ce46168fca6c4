# SPDX-License-Identifier: Apache-2.0
"""What is known of a request before a route is chosen. What nobody knows stays None and is never filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from expunge.claims import ClaimKind
from expunge.desk.lineage import Kind
from expunge.errors import RecipeError
from expunge.methods.registry import recipe_error

Need = Literal["verbatim", "knowledge", "capability", "all"]
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def _measured(value: Any, units: Mapping[str, int], example: str) -> Any:
    """Return `30d` or `24GiB` as a number; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if found is None or found[2].lower() not in units:
        raise ValueError(f"must be a number with one of the units {', '.join(filter(None, units))}, such as {example}")
    return float(found[1]) * units[found[2].lower()]


def _seconds(value: Any) -> Any:
    return _measured(value, _SECONDS, "30d")


def _bytes(value: Any) -> Any:
    number = _measured(value, _BYTES, "24GiB")
    return int(number) if isinstance(value, str) else number


def _private(value: Any) -> Any:
    """Read `RUN` or `EPSILON,DELTA,UNIT`."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return dict(zip(("epsilon", "delta", "unit"), parts, strict=True)) if len(parts) == 3 else {"run": value}


class Bound(BaseModel):
    """The privacy bound of one unit under which the model was trained: numbers, or the run that holds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float | None = Field(None, ge=0, allow_inf_nan=False, description="of one unit")
    delta: float | None = Field(None, ge=0, lt=1, description="of one unit")
    unit: Literal["sequence", "subject"] = Field("sequence", description="what the bound is about")
    per_record: int = Field(1, ge=1, description="sequences that one record became at most")
    run: str | None = Field(None, description="folder of the private run, which is asked instead of the numbers")

    @model_validator(mode="after")
    def _known(self) -> Bound:
        if self.run is None and (self.epsilon is None or self.delta is None):
            raise ValueError("needs epsilon and delta, or the run that holds them")
        return self


class Saw(BaseModel):
    """Something that the data went into."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=120)
    kind: Kind
    reachable: bool = Field(True, description="whether we can change it")


class Situation(BaseModel):
    """What the rules ask about. A fact that is None is unknown, and a rule that needs it does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    need: Need = Field(
        "all", description="what has to go: verbatim text, knowledge, a capability, or all that the data left"
    )
    wanted: ClaimKind | None = Field(None, description="the least claim that is wanted")
    order: bool = Field(False, description="an authority ordered the models destroyed (disgorgement)")
    forget: int | None = Field(None, ge=1, description="records that are meant")
    subjects: int | None = Field(None, ge=1, description="people or tenants that are meant")
    dataset: int | None = Field(None, ge=1, description="records that the model was trained on")
    parameters: int | None = Field(None, ge=1, description="weights of the model")
    memory_bytes: Annotated[int | None, BeforeValidator(_bytes)] = Field(
        None, ge=1, description="memory of the machine, such as 24GiB"
    )
    deadline_seconds: Annotated[float | None, BeforeValidator(_seconds)] = Field(
        None, description="time that is left, such as 30d"
    )
    adapter: str | None = Field(None, description="folder of `expunge tenants` in which the data has its own adapter")
    shards: str | None = Field(None, description="folder of `expunge sisa` that the model was trained in")
    shard_share: float | None = Field(
        None, ge=0, le=1, description="share of all rows that training those shards again would read"
    )
    private: Annotated[Bound | None, BeforeValidator(_private)] = Field(
        None, description="private training: its run folder, or EPSILON,DELTA,UNIT"
    )
    epsilon: float | None = Field(None, gt=0, description="largest epsilon for all records that is accepted")
    ensemble: bool | None = Field(None, description="the model is several that answer together, as shards may be")
    below_saw: bool | None = Field(
        None, description="what adapter, shards or private run were made from saw the data too"
    )
    base: str | None = Field(None, description="a checkpoint that never saw the data")
    data_kept: bool = Field(True, description="the training data is still there")
    weights_leave: bool | None = Field(None, description="the weights are handed to others, who may train them further")
    reference: bool = Field(False, description="a model trained without the data is there to compare with")
    served: bool | None = Field(None, description="every answer passes through a server of ours")
    model: str | None = Field(None, description="name of the model in use among the artefacts")
    artefacts: tuple[Saw, ...] = Field((), description="what the data went into")
    recipe: dict[str, Any] | None = Field(None, description="settings of a run, for predictions: model, data and more")

    @property
    def share(self) -> float | None:
        """Share of the training data that is meant."""
        return None if self.forget is None or self.dataset is None else self.forget / self.dataset

    @property
    def others(self) -> tuple[Saw, ...]:
        """What the data went into beside the model in use."""
        return tuple(found for found in self.artefacts if found.name != self.model)


def situation_from(values: Mapping[str, Any]) -> Situation:
    """Return a situation.

    Raises:
        RecipeError: for an unknown fact or value.
    """
    try:
        return Situation(**values)
    except ValidationError as error:
        raise recipe_error(error, "", Situation) from None


def read_facts(text: str, source: str) -> dict[str, Any]:
    """Return the facts of a YAML text.

    Raises:
        RecipeError: if it holds none.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"is no YAML: {error}", field="situation", value=source) from None
    if not isinstance(values, dict):
        raise RecipeError("holds no facts", field="situation", value=source,
                          remedy=f"Facts: {', '.join(Situation.model_fields)}")  # fmt: skip
    return values
