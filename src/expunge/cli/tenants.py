# SPDX-License-Identifier: Apache-2.0
"""`expunge tenants`: weights of their own for every tenant."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.progress import display
from expunge.cli.sisa import Processes
from expunge.cli.streams import guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts, print_paths
from expunge.errors import VerificationFailed

tenants_app = typer.Typer(no_args_is_help=True, help="Weights of its own for every tenant, removed with their file.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Run folder of `expunge tenants train`.")]


@tenants_app.command(no_args_is_help=True)
@guarded
def train(
    context: typer.Context,
    recipe: opt.RecipeFile = None,
    model: opt.Model = None,
    data: Annotated[str | None, typer.Option("--data", help="Examples, each with its tenant as `subject`.")] = None,
    reserve: Annotated[
        bool, typer.Option("--reserve-weights", help="A share of the model's weights each, instead of an adapter.")
    ] = False,
    device: opt.Device = None,
    seed: opt.Seed = None,
    sets: opt.Sets = None,
    processes: Processes = None,
    output_dir: opt.OutputDir = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    as_json: opt.Json = False,
) -> None:
    """Train every tenant alone, on one frozen model; the folder is a model for `expunge audit`."""
    opt.one_of(overwrite, resume)
    flags = {"model.path": model, "model.device": device, "data.train": data, "seed": seed}
    settings = opt.settings_of(recipe, flags, sets, needed=("model.path", "data.train"))
    quiet_libraries()
    from expunge.api.sisa import sisa_train
    from expunge.api.tenants import tenants_recipe

    resolved = tenants_recipe(settings, reserve=reserve)
    limit_threads(resolved.model.path)
    path = output_dir or Path("runs") / resolved.folder_name
    with interruptible(path), display() as watcher:
        sisa_train(
            resolved, output_dir=path, overwrite=overwrite, resume=resume, processes=processes,
            commands=(opt.command_line(context),), watcher=watcher,
        )  # fmt: skip
    _show(path, as_json)


@tenants_app.command(no_args_is_help=True)
@guarded
def remove(
    folder: Folder,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Name: the `subject` of its examples.")],
    as_json: opt.Json = False,
) -> None:
    """Delete a tenant's weights; nothing is trained."""
    quiet_libraries()
    from expunge.api.tenants import tenant_remove

    done = tenant_remove(folder, tenant)
    if as_json:
        print_json(json.dumps(asdict(done), indent=1))
        return
    print_facts(out(), [
        ("Tenant", f"number {done.shard}, {done.examples} examples"),
        ("Deleted weights", ", ".join(done.files)),
        ("Manifest before", done.before),
        ("Manifest after", done.after),
    ])  # fmt: skip


@tenants_app.command(no_args_is_help=True)
@guarded
def verify(folder: Folder, as_json: opt.Json = False) -> None:
    """Check that the weights of removed tenants are not there, and those of the others are as trained."""
    quiet_libraries()
    _show(folder, as_json)


def _show(folder: Path, as_json: bool) -> None:
    from expunge.api.tenants import tenants_verify

    found = tenants_verify(folder)
    facts = found.facts
    if as_json:
        print_json(json.dumps({**facts, "problems": found.problems}, indent=1))
    else:
        there = facts["shards"] - len(facts["removals"])
        print_facts(out(), [
            ("Claim", f"{facts['claim']}: {facts['sentence']}"),
            ("Tenants", f"{there} of {facts['shards']}, {facts['examples'] - facts['left']} examples"),
            ("Removals", "; ".join(f"number {r['shard']}, {r['time']}" for r in facts["removals"]) or "none"),
            ("Manifest", facts["manifest"]),
        ])  # fmt: skip
        print_paths(out(), {"model": folder / "model", "manifest": folder / "manifest.json"})
    if found.problems:
        raise VerificationFailed("; ".join(found.problems), field=str(folder), remedy="Delete or restore what is named")
