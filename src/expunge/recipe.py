# SPDX-License-Identifier: Apache-2.0
"""What a user writes: the union of the rooms' own configuration classes, with overrides, a hash and a JSON schema."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, TypeAdapter, ValidationError, field_validator

from expunge.audit.config import AuditConfig
from expunge.audit.policy import Policy
from expunge.data.config import DataConfig
from expunge.errors import RecipeError, nearest
from expunge.methods.base import MethodConfig
from expunge.methods.registry import get_method, methods, parse_method, recipe_error
from expunge.models.config import ModelConfig
from expunge.training.config import TrainingConfig
from expunge.training.shards.config import ShardConfig


class _Named(BaseModel):
    """A recipe with every value that matters written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("run", description="name of the run; part of its folder's name", pattern=r"^[\w.-]+$")

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved recipe as JSON values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @property
    def hash(self) -> str:
        """SHA-256 over the resolved recipe, hex."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        """Name of the run's folder: name and the first eight characters of the hash."""
        return f"{self.name}-{self.hash[:8]}"


class _Resolved(_Named):
    seed: int = Field(0, ge=0, description="seed of every random choice")
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig


class Recipe(_Resolved):
    """One unlearning run."""

    method: SerializeAsAny[MethodConfig]
    audit: AuditConfig
    policy: Policy

    @field_validator("audit")
    @classmethod
    def _writes_its_own_texts(cls, value: AuditConfig) -> AuditConfig:
        if value.engine is not None:
            raise ValueError("engine must be left out of a run that changes the model: no server holds the model yet")
        return value

    @field_validator("training")
    @classmethod
    def _unlearns_without_noise(cls, value: TrainingConfig) -> TrainingConfig:
        if value.privacy is not None:
            raise ValueError("privacy must be left out: private steps are a route of `expunge train`, not a method")
        return value


class TrainRecipe(_Resolved):
    """Plain fine-tuning: how targets and references are made."""

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> TrainRecipe:
        """Return the typed recipe for nested settings.

        Raises:
            RecipeError: for an unknown or missing key, or a value out of range.
        """
        values = {**settings, **{key: _section(settings, key) for key in ("model", "data", "training")}}
        try:
            return cls(**values)
        except ValidationError as error:
            raise recipe_error(error, "", cls) from None


class SisaRecipe(_Resolved):
    """Training in shards and slices."""

    name: str = Field("sisa", description="name of the run; part of its folder's name", pattern=r"^[\w.-]+$")
    sisa: ShardConfig

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> SisaRecipe:
        """Return the typed recipe for nested settings; raises as `TrainRecipe.build`."""
        values = {**settings, **{key: _section(settings, key) for key in ("model", "data", "training", "sisa")}}
        try:
            return cls(**values)
        except ValidationError as error:
            raise recipe_error(error, "", cls) from None


class AuditRecipe(_Named):
    """Measuring models that exist already, all on the same data and against the same reference."""

    name: str = Field("audit", description="name of the audit; part of its folder's name", pattern=r"^[\w.-]+$")
    models: dict[str, str] = Field(min_length=1, description="models to measure by name: folders or hub ids")
    model: ModelConfig
    data: DataConfig
    audit: AuditConfig
    policy: Policy

    @classmethod
    def build(cls, models: Mapping[str, str], settings: Mapping[str, Any]) -> AuditRecipe:
        """Return the typed recipe of an audit.

        Args:
            models: folders or hub ids by name.
            settings: nested settings; of an unlearning recipe, the parts that concern an audit are taken.

        Raises:
            RecipeError: for an unknown key or a value out of range.
        """
        parts = {key: _section(settings, key) for key in ("model", "data", "audit", "policy")}
        parts["model"] = {key: value for key, value in parts["model"].items() if key != "base"}
        parts["model"]["path"] = next(iter(models.values()), "")
        try:
            return cls(models=dict(models), **parts)
        except ValidationError as error:
            raise recipe_error(error, "", cls) from None


def build_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Return the typed recipe for nested settings.

    A method's published training settings stand in for those the user did not give.

    Raises:
        RecipeError: for an unknown or missing key, or a value out of range, naming it and the nearest valid one.
    """
    for key in settings:
        if key not in Recipe.model_fields:
            raise RecipeError("no such key", field=key, remedy=nearest(key, Recipe.model_fields))
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    method = parse_method(_section(values, "method"))
    defaults = get_method(str(method.name)).training_defaults  # type: ignore[attr-defined]
    values |= {
        "method": method,
        "training": merge(defaults, _section(values, "training")),
        "audit": _section(values, "audit"),
        "data": _section(values, "data"),
        "policy": _section(values, "policy"),
    }
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise recipe_error(error, "", Recipe) from None


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key) or {}
    if not isinstance(section, Mapping):
        raise RecipeError("must be a mapping", field=key, value=section, remedy=f"Write {key}: followed by its keys")
    return dict(section)


def audit_config(settings: Mapping[str, Any]) -> AuditConfig:
    """Return the typed audit settings out of nested settings.

    Raises:
        RecipeError: for an unknown key or value.
    """
    try:
        return AuditConfig(**_section(settings, "audit"))
    except ValidationError as error:
        raise recipe_error(error, "audit", AuditConfig) from None


def data_config(settings: Mapping[str, Any]) -> DataConfig:
    """Return the typed data settings out of nested settings; raises as `audit_config`."""
    try:
        return DataConfig(**_section(settings, "data"))
    except ValidationError as error:
        raise recipe_error(error, "data", DataConfig) from None


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file with `a.b=c` overrides applied.

    Raises:
        RecipeError: if the file is missing or no YAML mapping, an override is malformed, or the recipe is invalid.
    """
    settings = read_settings(path) if path is not None else {}
    return build_recipe(apply_overrides(settings, overrides))


def read_settings(path: Path) -> dict[str, Any]:
    """Return a recipe file as nested settings; `extends: other.yaml` takes another file's settings first."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise RecipeError("no such file", field="recipe", value=str(path), remedy="Check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise RecipeError(f"cannot be read: {error}", field="recipe", value=str(path)) from None
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"is not valid YAML: {error}", field="recipe", value=str(path)) from None
    if not isinstance(settings, dict):
        raise RecipeError("must be a mapping of keys to values", field="recipe", value=str(path))
    parent = settings.pop("extends", None)
    if parent is None:
        return settings
    base = path.parent / str(parent)
    inherited = read_settings(base)
    return merge(inherited, settings)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top, key by key."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merge(out[key], value) if both else value
    return out


def apply_overrides(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings with each `a.b=c` applied; c is read as YAML."""
    out = dict(settings)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError("must have the form key.sub=value", field="--set", value=override)
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        nested: dict[str, Any] = {key.split(".")[-1]: value}
        for part in reversed(key.split(".")[:-1]):
            nested = {part: nested}
        out = merge(out, nested)
    return out


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file, with every registered method's settings."""
    configs = tuple(method.Config for method in methods().values())
    union = Annotated[Union[configs], Field(discriminator="name")]  # type: ignore[valid-type]  # noqa: UP007
    schema = Recipe.model_json_schema(mode="validation")
    method_schema = TypeAdapter(union).json_schema(ref_template="#/$defs/{model}")
    schema.setdefault("$defs", {}).update(method_schema.pop("$defs", {}))
    schema["properties"]["method"] = method_schema
    schema["properties"]["extends"] = {"type": "string", "description": "another recipe file to start from"}
    schema["required"] = ["model", "data", "method"]
    return schema
