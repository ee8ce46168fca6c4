# SPDX-License-Identifier: Apache-2.0
"""`expunge attack`: does it come back?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.progress import display
from expunge.cli.streams import guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_paths

if TYPE_CHECKING:
    from expunge.attacks.base import Finding


@guarded
def attack(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs or models to attack; a run brings its own data.")
    ],
    names: Annotated[
        str, typer.Option("--attack", metavar="A,B", help="Names or kinds with commas between, or all.")
    ] = "relearning,quantisation",
    reference: opt.Reference = None,
    original: Annotated[
        str | None, typer.Option("--original", help="The model before unlearning.", rich_help_panel=opt.DATA)
    ] = None,
    second_reference: Annotated[
        str | None,
        typer.Option("--second-reference", help="Another such model, for traces.", rich_help_panel=opt.DATA),
    ] = None,
    forget: opt.Forget = None,
    retain: opt.Retain = None,
    holdout: opt.Holdout = None,
    unrelated: Annotated[
        str | None, typer.Option("--unrelated", help="Texts that share nothing with it.", rich_help_panel=opt.DATA)
    ] = None,
    device: opt.Device = None,
    seed: opt.Seed = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of an attack, data or audit: relearning.budgets=[1,4]."),
    ] = None,
    output_dir: opt.OutputDir = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Try to bring the forget set back, always beside a model that never saw it."""
    flags = {"data.forget": forget, "data.retain": retain, "data.holdout": holdout}
    settings = opt.settings_of(None, flags, sets)
    quiet_libraries()
    limit_threads(models[0])
    from expunge.api.attack import attack_folders
    from expunge.recipe import audit_config, data_config

    data, audit = data_config(settings), audit_config(settings)
    own = {key: value for key, value in settings.items() if key not in ("data", "audit")}
    with interruptible(output_dir or Path(models[0])), display() as watcher:
        result = attack_folders(
            models, attacks=[name for name in names.split(",") if name], data=data, reference=reference,
            original=original, second_reference=second_reference, unrelated=unrelated, settings=own, audit=audit,
            device=device or "auto", seed=seed or 0, output_dir=output_dir, overwrite=overwrite,
            commands=(opt.command_line(context),), watcher=watcher,
        )  # fmt: skip
    if as_json:
        print_json((result.folder / "attacks.json").read_text("utf-8"))
        return
    for found in result.results:
        out().print(f"{found.card.title}", style="bold", highlight=False)
        for finding in found.findings:
            out().print(f"  {_line(finding)}", highlight=False)
    print_paths(out(), {"attacks": result.folder / "attacks.json", "report": result.folder / "report.html"})


def _line(finding: Finding) -> str:
    """Return one number with what it must be read beside."""
    from expunge.report.words import interval, number

    def shown(estimate: dict[str, object]) -> str:
        value = estimate["value"]
        return (
            f"– ({estimate['reason']})"
            if value is None
            else f"{number(float(str(value)))} {interval(estimate)}".strip()
        )

    beside = "; ".join(f"{name} {shown(found.to_dict())}" for name, found in finding.controls.items())
    return f"{finding.model}, {finding.setting}: {finding.metric} {shown(finding.value.to_dict())} | {beside}"
