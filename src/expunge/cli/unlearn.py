# SPDX-License-Identifier: Apache-2.0
"""`expunge run` and `expunge train`: change a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from expunge.cli import options as opt
from expunge.cli.private import privacy_facts
from expunge.cli.progress import display
from expunge.cli.streams import err, guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts, print_paths, print_results, print_sentences, print_verdicts
from expunge.errors import PolicyNotMet

if TYPE_CHECKING:
    from expunge.api.job import RunResult
    from expunge.recipe import Recipe


@guarded
def run(
    context: typer.Context,
    recipe: opt.RecipeFile = None,
    model: opt.Model = None,
    base: opt.Base = None,
    reference: opt.Reference = None,
    forget: opt.Forget = None,
    retain: opt.Retain = None,
    holdout: opt.Holdout = None,
    device: opt.Device = None,
    method: Annotated[str | None, typer.Option("--method", help="Name of a method, see `expunge methods`.")] = None,
    seed: opt.Seed = None,
    sets: opt.Sets = None,
    output_dir: opt.OutputDir = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    show_examples: opt.ShowExamples = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.", rich_help_panel=opt.SHOW)
    ] = False,
    as_json: opt.Json = False,
    all_metrics: opt.AllMetrics = False,
) -> None:
    """Unlearn, measure before and after, and write the report.

    Takes a recipe, or options alone:

    expunge run --model DIR --forget forget.jsonl --retain retain.jsonl --method npo -o runs/npo
    """
    opt.one_of(overwrite, resume)
    flags = {
        "model.path": model, "model.base": base, "model.reference": reference, "model.device": device,
        "data.forget": forget, "data.retain": retain, "data.holdout": holdout, "method.name": method, "seed": seed,
    }  # fmt: skip
    needed = ("model.path", "data.forget", "method.name")
    settings = opt.settings_of(recipe, flags, sets, needed=needed)
    quiet_libraries()
    from expunge.recipe import build_recipe

    resolved = build_recipe(settings)
    limit_threads(resolved.model.path)
    if dry_run:
        _print_plan(resolved, output_dir, as_json)
        return
    from expunge.api.job import run as run_job

    path = output_dir or Path("runs") / resolved.folder_name
    with interruptible(path), display() as watcher:
        result = run_job(
            resolved, output_dir=path, overwrite=overwrite, resume=resume, commands=(opt.command_line(context),),
            watcher=watcher, show_examples=show_examples,
        )  # fmt: skip
    _print_run(result, as_json=as_json, all_metrics=all_metrics)


def _print_run(result: RunResult, *, as_json: bool, all_metrics: bool) -> None:
    """Print what a run found; raise if its policy is not met."""
    from expunge.audit.document import to_json
    from expunge.data.preparation import in_words
    from expunge.report.folder import view_from_run

    policy = str((result.document.policy or {}).get("name", ""))
    if as_json:
        print_json(to_json(result.document))
    else:
        view = view_from_run(result.folder)
        if view.run.get("prepared"):
            print_facts(out(), [("forget set in training", in_words(view.run["prepared"]))])
        print_results(out(), view, all_metrics=all_metrics)
        out().print()
        print_sentences(out(), view)
        if result.stopped:
            out().print(Text(f"stopped early: {result.stopped}"))
        folder = result.folder
        paths = {"model": folder / "model", "audit": folder / "audit.json", "report": folder / "report.html"}
        print_paths(out(), paths)
    finish_policy(policy, result.verdicts, as_json=as_json)


def finish_policy(name: str, verdicts: list[Any], *, as_json: bool) -> None:
    """Print the verdicts of a policy; raise if one of its limits is not met."""
    print_verdicts(err() if as_json else out(), name, verdicts)
    missed = [verdict.rule for verdict in verdicts if not verdict.met]
    if missed:
        raise PolicyNotMet(
            f"{len(missed)} of {len(verdicts)} limits are not met", field=f"policy {name}",
            remedy="The run itself is complete; its folder holds the report",
        )  # fmt: skip


def _print_plan(recipe: Recipe, output_dir: Path | None, as_json: bool) -> None:
    """Print what a run would do."""
    from expunge.api.plan import plan
    from expunge.data.preparation import in_words
    from expunge.report.words import duration

    found = plan(recipe)
    if as_json:
        print_json(json.dumps(found, indent=1, default=str))
        return
    console = out()
    console.print(Text(recipe.to_yaml().rstrip()), soft_wrap=True)
    console.print()
    sizes = found["parameters"]
    rows = [("method", f"{found['method']['title']} ({found['method']['claim']})")]
    rows += [(name, f"{counts['examples']} examples, {counts['sequences']} sequences, {counts['tokens']} tokens")
             for name, counts in found["data"].items()]  # fmt: skip
    if found["prepared"] is not None:
        asks = recipe.data.robust.memorised != "none"
        text = in_words(found["prepared"]) + (" (the model is not yet asked what it knows)" if asks else "")
        rows.append(("forget set", text))
    rows += [
        ("parameters", f"{sizes['all']:,}, of which {sizes['moving']:,} move"),
        ("steps", str(found["steps"])),
        ("memory", f"about {found['memory_mb']} MiB"),
        ("time", f"roughly {duration(found['seconds'])} on this machine"),
        ("retraining", _retraining_words(found["retraining"])),
        ("would write", f"{output_dir or Path('runs') / recipe.folder_name}/: {', '.join(found['writes'])}"),
    ]
    print_facts(console, rows)


def _retraining_words(route: dict[str, Any] | None) -> str:
    """Say what the exact route would take."""
    from expunge.report.words import duration

    if route is None:
        return "no run folder tells how the model came about: from scratch, at a cost that is not known here"
    if not route["runs"]:
        return "the model is not known to have seen any of the forget set"
    work = f"{len(route['runs'])} runs, {route['rows']} rows read, roughly {duration(route['seconds'])}"
    return f"from {route['start']}: {work}; assumes that {route['assumes']} never saw the forget set"


@guarded
def train(
    context: typer.Context,
    recipe: opt.RecipeFile = None,
    model: opt.Model = None,
    data: Annotated[
        str | None, typer.Option("--data", help="What to train on: JSONL, Parquet, CSV.", rich_help_panel=opt.DATA)
    ] = None,
    forget: opt.Forget = None,
    retain: opt.Retain = None,
    device: opt.Device = None,
    seed: opt.Seed = None,
    sets: opt.Sets = None,
    output_dir: opt.OutputDir = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    as_json: opt.Json = False,
) -> None:
    """Fine-tune with the same loop: makes targets and retain-only references.

    The forget and retain sets, if given, are only probed while training.
    """
    opt.one_of(overwrite, resume)
    flags = {
        "model.path": model, "model.device": device, "data.train": data, "data.forget": forget, "data.retain": retain,
        "seed": seed,
    }  # fmt: skip
    settings = {"name": "train"} | opt.settings_of(recipe, flags, sets, needed=("model.path", "data.train"))
    quiet_libraries()
    from expunge.recipe import TrainRecipe

    resolved = TrainRecipe.build(settings)
    limit_threads(resolved.model.path)
    from expunge.api.train import train as train_job

    path = output_dir or Path("runs") / resolved.folder_name
    with interruptible(path), display() as watcher:
        train_job(
            resolved, output_dir=path, overwrite=overwrite, resume=resume, commands=(opt.command_line(context),),
            watcher=watcher,
        )  # fmt: skip
    _print_training(path, as_json)


def _print_training(path: Path, as_json: bool) -> None:
    """Print how a training ended: its `run.json`, or a few lines of it."""
    from expunge.report.words import duration
    from expunge.runs import read_run

    info = read_run(path)
    if as_json:
        print_json(json.dumps(info, indent=1))
        return
    losses = ", ".join(f"{name} {value:.4f}" for name, value in info["losses"].items())
    rows = [("steps", str(info["steps"])), ("last loss", losses), ("took", duration(info["seconds"]))]
    print_facts(out(), rows + (privacy_facts(info["privacy"]) if "privacy" in info else []))
    print_paths(out(), {"model": path / "model", "log": path / "metrics.jsonl"})
