# SPDX-License-Identifier: Apache-2.0
"""`expunge diagnose`: look inside models before and after unlearning, and after a little training on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from expunge.cli import options as opt
from expunge.cli.progress import display
from expunge.cli.streams import guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts, print_paths
from expunge.errors import RecipeError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")

#: Sections that `--set` may name, with the options that fill them.
_SECTIONS = ("diagnose", "data", "model")


@guarded
def diagnose(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="The model before unlearning.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The unlearned model.")],
    relearned: Annotated[
        str | None, typer.Argument(metavar="[RELEARNED]", help="The unlearned model after a little training.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            rich_help_panel=opt.DATA,
            help="A model that never saw the forget set, trained as RELEARNED was.",
        ),
    ] = None,
    forget: opt.Forget = None,
    retain: opt.Retain = None,
    unrelated: Annotated[
        str | None, typer.Option("--unrelated", help="Texts that share nothing with either.", rich_help_panel=opt.DATA)
    ] = None,
    device: opt.Device = None,
    compat: Annotated[
        str | None, typer.Option("--compat", help="published: as the study's released code takes it.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of diagnose, data or model, such as diagnose.texts=50."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder; default runs/diagnose-AFTER.", rich_help_panel=opt.WRITE),
    ] = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Look inside: states, curvature and weights by layer, and whether what was unlearned comes back."""
    flags = {
        "data.forget": forget, "data.retain": retain, "data.extra": {"unrelated": unrelated} if unrelated else None,
        "model.device": device, "diagnose.compat": compat,
    }  # fmt: skip
    settings = opt.settings_of(None, flags, sets, needed=("data.forget",))
    quiet_libraries()
    limit_threads(before)
    from expunge.api.diagnose import diagnose_folders
    from expunge.audit.diagnostics.config import DiagnoseConfig
    from expunge.data.config import DataConfig
    from expunge.models.config import ModelConfig

    for section in settings:
        if section not in _SECTIONS:
            raise RecipeError("no such section here", field=section, remedy=nearest(section, _SECTIONS))
    path = output_dir or Path("runs") / f"diagnose-{_name(after)}"
    with interruptible(path), display() as watcher:
        document = diagnose_folders(
            before, after, relearned=relearned, control=control, output_dir=path, overwrite=overwrite,
            data=_typed(DataConfig, settings, "data"), config=_typed(DiagnoseConfig, settings, "diagnose"),
            model=_typed(ModelConfig, {"model": {**settings.get("model", {}), "path": before}}, "model"),
            commands=(opt.command_line(context),), watcher=watcher,
        )  # fmt: skip
    if as_json:
        from expunge.audit.document import to_json

        print_json(to_json(document))
        return
    print_facts(out(), _facts(document["verdict"]))
    print_paths(out(), {"json": path / "diagnostics.json", "report": path / "diagnostics.html"})


def _name(folder: str) -> str:
    """Return the name of a model folder, of the one above where it is called `model`."""
    path = Path(folder).absolute()
    return path.parent.name if path.name == "model" else path.name


def _typed(kind: type[Config], settings: Mapping[str, Any], section: str) -> Config:
    from pydantic import ValidationError

    from expunge.methods.registry import recipe_error

    try:
        return kind(**(settings.get(section) or {}))
    except ValidationError as error:
        raise recipe_error(error, section, kind) from None


def _facts(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the verdict as labels and texts."""
    from expunge.report.regime import lead

    regime, *rest = lead(verdict)
    facts = [("Regime", regime.removeprefix("Regime: ")), *(("", sentence) for sentence in rest)]
    limits = ", ".join(f"{name} {value:g}" for name, value in verdict["thresholds"].items())
    caveats = [("Note", caveat) for caveat in verdict["caveats"]]
    return [*facts, ("Thresholds", f"{limits} (ours; the study names none)"), *caveats]
