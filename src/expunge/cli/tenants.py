# SPDX-License-Identifier: Apache-2.0
"""`expunge tenants`: weights of their own for every tenant."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.measure import print_document
from expunge.cli.progress import display
from expunge.cli.sisa import Processes, train_apart
from expunge.cli.streams import guarded, limit_threads, out, print_json, quiet_libraries
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
    from expunge.api.tenants import tenants_recipe

    resolved = tenants_recipe(settings, reserve=reserve)
    path = train_apart(context, resolved, output_dir, overwrite=overwrite, resume=resume, processes=processes)
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


@tenants_app.command(no_args_is_help=True)
@guarded
def answer(
    folder: Folder,
    data: Annotated[
        str, typer.Option("--data", help="Examples, each with its tenant as `subject`; their answers are not read.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSONL to write; default: print them.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 64,
    device: opt.Device = None,
) -> None:
    """Answer every prompt by its own tenant's weights; those of nobody go to the model without any.

    Who asks is not checked: a prompt is answered for the tenant that its row names.
    """
    quiet_libraries()
    limit_threads()
    from expunge.api.routing import answer_file
    from expunge.runs import write_text

    with display() as watcher:
        answers = answer_file(folder, data, max_new_tokens=max_new_tokens, device=device or "auto", watcher=watcher)
    text = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in answers)
    if output is None:
        print_json(text.removesuffix("\n"))
        return
    write_text(output, text)
    print_paths(out(), {"answers": output})


@tenants_app.command(no_args_is_help=True)
@guarded
def audit(
    folder: Folder,
    forget: opt.Forget = None,
    retain: opt.Retain = None,
    holdout: opt.Holdout = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--extra", metavar="NAME=FILE", help="A further set; repeatable.", rich_help_panel=opt.DATA),
    ] = None,
    sets: opt.Sets = None,
    device: opt.Device = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the JSON document too.")] = None,
    as_json: opt.Json = False,
    all_metrics: opt.AllMetrics = False,
) -> None:
    """Measure tenants as they answer: every example by its own tenant's weights."""
    flags = {"data.forget": forget, "data.retain": retain, "data.holdout": holdout,
             "data.extra": opt.pairs(extra, "--extra") or None}  # fmt: skip
    settings = opt.settings_of(None, flags, sets)
    quiet_libraries()
    limit_threads()
    from expunge.api.routing import audit_tenants
    from expunge.audit.document import write_json

    with display() as watcher:
        document = audit_tenants(folder, settings, device=device or "auto", watcher=watcher)
    if output is not None:
        write_json(document, output)
    print_document(document, as_json=as_json, all_metrics=all_metrics)


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
