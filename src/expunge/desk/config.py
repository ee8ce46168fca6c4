# SPDX-License-Identifier: Apache-2.0
"""The settings of a desk, `desk.yaml`: fixed before requests come in, so that no threshold is chosen after the fact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.audit.policy import Policy
from expunge.desk.locate.config import LocateConfig
from expunge.errors import RecipeError
from expunge.ledger.statement import UtilityBudget
from expunge.methods.registry import recipe_error


class DeskConfig(BaseModel):
    """What a desk works with. Paths are relative to the desk's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ledger: str = Field("ledger.db", description="file of SQLite, or URL of a PostgreSQL database")
    model: str = Field(description="the model in use when the desk opens")
    reference: str | None = Field(None, description="a model that never saw the data of any request, to compare with")
    corpora: dict[str, str] = Field(min_length=1, description="training data by name: files of examples")
    holdout: str | None = Field(None, description="examples like those of requests that no model was trained on")
    columns: dict[str, str] = Field(default_factory=dict, description="our column names to those of the corpora")
    lineage: str | None = Field(None, description="file that says which artefacts saw which corpora")
    locate: LocateConfig = Field(LocateConfig(), description="by which ways the records of a request are found")
    facts: dict[str, Any] = Field(default_factory=dict, description="facts for advice that the desk cannot know")
    recipe: dict[str, Any] = Field(default_factory=dict, description="settings under every plan, as in a recipe")
    policy: Policy = Field(description="thresholds that every run is held against")
    budget: UtilityBudget = Field(UtilityBudget(), description="how much utility one request may cost")
    attacks: tuple[str, ...] = Field((), description="attacks run before a certificate is written")
    deadline: str = Field("gdpr", description="gdpr, ccpa, or a number of days such as 20d")
    four_eyes: bool = Field(True, description="a plan is approved by another person than who made it")
    key: str = Field("keys/desk", description="file of the signing key")
    trusted: str = Field("keys", description="folder with the public keys that verification trusts")
    webhooks: tuple[str, ...] = Field((), description="URLs that are told of changes of state; see docs: dashboard")


def read_config(folder: Path) -> DeskConfig:
    """Return the settings of a desk.

    Raises:
        RecipeError: if there are none, or they cannot be meant.
    """
    path = folder / "desk.yaml"
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"is no desk: {error.strerror}", field="desk", value=str(folder),
                          remedy="Open one: expunge desk init FOLDER") from error  # fmt: skip
    except yaml.YAMLError as error:
        raise RecipeError(f"is no YAML: {error}", field="desk", value=str(path)) from error
    if not isinstance(values, dict):
        raise RecipeError("holds no settings", field="desk", value=str(path), remedy="See docs: desk.yaml")
    try:
        return DeskConfig(**values)
    except ValidationError as error:
        raise recipe_error(error, "", DeskConfig) from None


def located(folder: Path, source: str) -> str:
    """Return a source of the settings as seen from anywhere: a file below the desk's folder, else as it is written."""
    inside = folder / source
    return str(inside) if inside.exists() else source
