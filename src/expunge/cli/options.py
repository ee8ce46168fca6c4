# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how they are laid over a recipe file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.errors import InputDataError, RecipeError

DATA, WRITE, SHOW = "Models and data", "Output", "Display"

RecipeFile = Annotated[Path | None, typer.Argument(metavar="RECIPE", help="YAML file; the options go on top of it.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Model to change: a folder or a hub id.", rich_help_panel=DATA)
]
Base = Annotated[
    str | None, typer.Option("--base", help="Model that never saw the data, for `retrain`.", rich_help_panel=DATA)
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="Model trained without the forget set, or its records.", rich_help_panel=DATA),
]
Forget = Annotated[
    str | None, typer.Option("--forget", help="What to unlearn: JSONL, Parquet, CSV.", rich_help_panel=DATA)
]
Retain = Annotated[str | None, typer.Option("--retain", help="What to keep.", rich_help_panel=DATA)]
Holdout = Annotated[
    str | None, typer.Option("--holdout", help="Never trained on; needed for membership.", rich_help_panel=DATA)
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=DATA)]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random choice.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, such as method.beta=0.2; repeatable."),
]
OutputDir = Annotated[
    Path | None,
    typer.Option("--output-dir", "-o", help="Run folder; default runs/NAME-HASH.", rich_help_panel=WRITE),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start again where a run already is.", rich_help_panel=WRITE)
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a run was interrupted.", rich_help_panel=WRITE)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.", rich_help_panel=SHOW)]
AllMetrics = Annotated[bool, typer.Option("--all-metrics", help="Every metric in the table.", rich_help_panel=SHOW)]
ShowExamples = Annotated[
    bool, typer.Option("--show-examples", help="Write example texts into the report.", rich_help_panel=WRITE)
]

#: Keys a command cannot do without, and the option that gives each.
OPTION_OF = {"model.path": "--model DIR", "method.name": "--method NAME", "data.forget": "--forget FILE",
             "data.train": "--data FILE"}  # fmt: skip


def settings_of(
    recipe: Path | None, flags: Mapping[str, Any], sets: Sequence[str] | None, *, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return nested settings: the recipe file, then the options, then every `--set`.

    Args:
        recipe: YAML file, or None.
        flags: values of the options by dotted key; None where an option was not given.
        sets: `key=value` texts.
        needed: dotted keys that must be there in the end.

    Raises:
        RecipeError: for a file or an override that cannot be read, or a needed key that is missing.
    """
    from expunge.recipe import apply_overrides, merge, read_settings

    settings = read_settings(recipe) if recipe is not None else {}
    for key, value in flags.items():
        if value is not None:
            settings = merge(settings, nest(key, value))
    settings = apply_overrides(settings, sets or ())
    for key in needed:
        if _at(settings, key) is None:
            raise RecipeError("is missing", field=key, remedy=f"Give {OPTION_OF[key]}, or write it in a recipe")
    return settings


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return `value` under a dotted key as nested mappings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _at(settings: Mapping[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def one_of(overwrite: bool, resume: bool) -> None:
    """Raise if both were asked for."""
    if overwrite and resume:
        raise RecipeError("excludes --overwrite", field="--resume", remedy="Choose one of the two")


def ids_of(ids: Sequence[str] | None, file: Path | None) -> set[str]:
    """Return the ids given one by one, and those of a file with one a line.

    Raises:
        InputDataError: if the file cannot be read.
    """
    if file is None:
        return set(ids or ())
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputDataError(f"cannot be read: {error.strerror}", field="--ids-file", value=str(file),
                             remedy="Check the path") from error  # fmt: skip
    return {*(ids or ()), *(line.strip() for line in lines if line.strip())}


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """Return `NAME=VALUE` texts as a mapping.

    Raises:
        RecipeError: for a text of another form.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise RecipeError("must have the form NAME=FILE", field=option, value=text)
        found[name] = value
    return found


def command_line(context: typer.Context) -> str:
    """Return the command as the user gave it, to be typed again."""
    return shlex.join(["expunge", *context.meta.get("expunge.arguments", [])])
