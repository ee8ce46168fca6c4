# SPDX-License-Identifier: Apache-2.0
"""`expunge sisa`: training in shards that data can leave exactly."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.progress import display
from expunge.cli.streams import guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts, print_paths
from expunge.errors import RecipeError, VerificationFailed

if TYPE_CHECKING:
    from expunge.recipe import SisaRecipe

sisa_app = typer.Typer(
    no_args_is_help=True, help="Train in shards, so that forgetting retrains only what saw the data."
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Run folder of `expunge sisa train`.")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="Shards trained at a time; default: cores.")]
Source = Annotated[str | None, typer.Option("--data", help="The training set, if it is elsewhere now.")]


@sisa_app.command(no_args_is_help=True)
@guarded
def train(
    context: typer.Context,
    recipe: opt.RecipeFile = None,
    model: opt.Model = None,
    data: Annotated[str | None, typer.Option("--data", help="What to train on: JSONL, Parquet, CSV.")] = None,
    shards: Annotated[int | None, typer.Option("--shards", help="Models, each trained on its own part.")] = None,
    slices: Annotated[int | None, typer.Option("--slices", help="Checkpoints of each.")] = None,
    device: opt.Device = None,
    seed: opt.Seed = None,
    sets: opt.Sets = None,
    processes: Processes = None,
    output_dir: opt.OutputDir = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    as_json: opt.Json = False,
) -> None:
    """Train in shards; the folder is a model for `expunge audit`."""
    opt.one_of(overwrite, resume)
    flags = {"model.path": model, "model.device": device, "data.train": data, "sisa.shards": shards,
             "sisa.slices": slices, "seed": seed}  # fmt: skip
    settings = opt.settings_of(recipe, flags, sets, needed=("model.path", "data.train"))
    quiet_libraries()
    from expunge.recipe import SisaRecipe

    path = train_apart(
        context, SisaRecipe.build(settings), output_dir, overwrite=overwrite, resume=resume, processes=processes
    )
    _show_check(path, as_json)


def train_apart(
    context: typer.Context, recipe: SisaRecipe, output_dir: Path | None, *, overwrite: bool, resume: bool,
    processes: int | None,
) -> Path:  # fmt: skip
    """Train a resolved recipe in shards, or by tenants; return the run folder."""
    limit_threads(recipe.model.path)
    from expunge.api.sisa import sisa_train

    path = output_dir or Path("runs") / recipe.folder_name
    with interruptible(path), display() as watcher:
        return sisa_train(
            recipe, output_dir=path, overwrite=overwrite, resume=resume, processes=processes,
            commands=(opt.command_line(context),), watcher=watcher,
        )  # fmt: skip


@sisa_app.command(no_args_is_help=True)
@guarded
def forget(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Example that leaves; may be repeated.")] = None,
    subjects: Annotated[
        list[str] | None, typer.Option("--subject", help="Of whom every example leaves; may be repeated.")
    ] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids-file", help="Ids of examples that leave, one a line.")] = None,
    data: Source = None,
    processes: Processes = None,
    again: Annotated[bool, typer.Option("--again", help="Train all again if code or libraries changed.")] = False,
    go_on: Annotated[bool, typer.Option("--resume", help="Go on with a deletion that was cut off.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would take, and do nothing.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Take data out: its checkpoints are dropped, and those stages trained again without it."""
    leave = opt.ids_of(ids, ids_file)
    if not (leave or subjects or go_on or again):
        raise RecipeError("names nothing", field="--id", remedy="Give --id, --subject or --ids-file, or --resume")
    quiet_libraries()
    limit_threads()
    from expunge.api.sisa import sisa_forget

    with interruptible(folder), display() as watcher:
        found = sisa_forget(
            folder, ids=leave, subjects=set(subjects or []), data=data, processes=processes, again=again,
            dry_run=dry_run, watcher=watcher,
        )  # fmt: skip
    if as_json:
        print_json(json.dumps(asdict(found), indent=1))
        return
    words = ", ".join(f"{shard} from stage {first}" for shard, first in found.shards.items()) or "none"
    print_facts(out(), [
        ("Examples", f"{found.examples} leave" if dry_run else f"{found.examples} left"),
        ("Shards trained again", words),
        ("Rows", f"{found.rows_read} of the {found.rows_plain} that training everything again would read"),
        ("Manifest", found.after),
    ])  # fmt: skip


@sisa_app.command(no_args_is_help=True)
@guarded
def audit(
    folder: Folder,
    again: Annotated[
        list[int] | None, typer.Option("--again", help="Shard to train from the start and compare; may be repeated.")
    ] = None,
    data: Source = None,
    as_json: opt.Json = False,
) -> None:
    """Check that every checkpoint follows from what is left; `expunge audit FOLDER` measures the model."""
    quiet_libraries()
    limit_threads()
    _show_check(folder, as_json, again=again or [], data=data)


def _show_check(folder: Path, as_json: bool, *, again: list[int] | None = None, data: str | None = None) -> None:
    from expunge.api.sisa_check import sisa_check

    with display() as watcher:
        found = sisa_check(folder, again=again or [], data=data, watcher=watcher)
    facts = found.facts
    if as_json:
        print_json(json.dumps({**facts, "problems": found.problems}, indent=1))
    else:
        trained = ", ".join(map(str, facts["trained_again"])) or "none; --again SHARD does"
        print_facts(out(), [
            ("Claim", f"{facts['claim']}: {facts['sentence']}"),
            ("Plan", f"{facts['shards']} shards of {facts['slices']} slices, {facts['examples']} examples"),
            ("Left since", f"{facts['left']} examples"),
            ("Checkpoints", f"{len(facts['checkpoints'])}, each under the key of what is left"),
            ("Trained from the start and compared", trained),
            ("Manifest", facts["manifest"]),
            ("Note", facts["note"]),
        ])  # fmt: skip
        print_paths(out(), {"model": folder / "model", "manifest": folder / "manifest.json"})
    if found.problems:
        raise VerificationFailed("; ".join(found.problems), field=str(folder), remedy="Train those shards again")
