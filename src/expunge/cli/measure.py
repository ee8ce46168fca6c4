# SPDX-License-Identifier: Apache-2.0
"""`expunge audit`, `expunge compare` and `expunge demo`: measure models, and put them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import options as opt
from expunge.cli import walk
from expunge.cli.progress import display
from expunge.cli.streams import guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_paths, print_results, print_sentences
from expunge.cli.unlearn import finish_policy
from expunge.errors import RecipeError

if TYPE_CHECKING:
    from expunge.audit.document import AuditDocument
    from expunge.report.view import ReportView


@guarded
def audit(
    context: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Models to measure: folders or hub ids.")
    ] = None,
    from_records: Annotated[
        list[Path] | None,
        typer.Option("--from-records", metavar="PATH", help="Records or a published log, not a model; repeatable."),
    ] = None,
    lm_eval: Annotated[
        str, typer.Option("--lm-eval", metavar="A,B", help="Tasks of lm-evaluation-harness to run too (extra `evals`).")
    ] = "",
    compat: Annotated[
        str | None, typer.Option("--compat", help="Compute as this code does: paper, locuslab, openunlearning, muse.")
    ] = None,
    reference: opt.Reference = None,
    forget: opt.Forget = None,
    retain: opt.Retain = None,
    holdout: opt.Holdout = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--extra", metavar="NAME=FILE", help="A further set; repeatable.", rich_help_panel=opt.DATA),
    ] = None,
    device: opt.Device = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML file to take data, audit and policy from.")
    ] = None,
    sets: opt.Sets = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Folder; default runs/audit-HASH.", rich_help_panel=opt.WRITE),
    ] = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    show_examples: opt.ShowExamples = False,
    as_json: opt.Json = False,
    all_metrics: opt.AllMetrics = False,
) -> None:
    """Measure models on the same data, against the same reference."""
    opt.one_of(overwrite, resume)
    flags = {
        "model.reference": reference, "model.device": device, "data.forget": forget, "data.retain": retain,
        "data.holdout": holdout, "data.extra": opt.pairs(extra, "--extra") or None, "audit.compat": compat,
    }  # fmt: skip
    settings = opt.settings_of(recipe, flags, sets)
    quiet_libraries()
    if from_records:
        _audit_records(from_records, models, reference, settings, output_dir, as_json=as_json, all_metrics=all_metrics)
        return
    if not models:
        raise RecipeError("is missing", field="MODEL", remedy="Name a model folder, or give --from-records PATH")
    from expunge.api.audit import audit_folders, name_models
    from expunge.recipe import AuditRecipe

    compared = settings.get("model", {}).get("reference")
    resolved = AuditRecipe.build(name_models(models, reference=compared), settings)
    limit_threads(resolved.model.path)
    path = output_dir or Path("runs") / resolved.folder_name
    with interruptible(path), display() as watcher:
        result = audit_folders(
            resolved, output_dir=path, overwrite=overwrite, resume=resume, commands=(opt.command_line(context),),
            watcher=watcher, show_examples=show_examples, lm_eval=[task for task in lm_eval.split(",") if task],
        )  # fmt: skip
    print_document(result.document, as_json=as_json, all_metrics=all_metrics, runs=dict(result.runs))
    if not as_json:
        print_paths(out(), {"audit": path / "audit.json", "report": path / "report.html"})
    finish_policy(resolved.policy.name, result.verdicts, as_json=as_json)


def _audit_records(
    paths: list[Path], models: list[str] | None, reference: str | None, settings: dict[str, Any],
    output_dir: Path | None, *, as_json: bool, all_metrics: bool,
) -> None:  # fmt: skip
    """Compute metrics from what was measured before."""
    if models:
        raise RecipeError("excludes models", field="--from-records", value=models, remedy="Give one or the other")
    from expunge.api.from_records import audit_records, name_records
    from expunge.audit.document import write_json
    from expunge.recipe import audit_config

    config = audit_config(settings)
    document = audit_records(name_records(paths), reference=Path(reference) if reference else None, config=config)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(document, output_dir / "audit.json")
    print_document(document, as_json=as_json, all_metrics=all_metrics)


def print_document(
    document: AuditDocument, *, as_json: bool, all_metrics: bool, runs: dict[str, Path] | None = None
) -> None:
    """Print an audit: as one JSON document, or as a table and what may be said of it."""
    if as_json:
        from expunge.audit.document import to_json

        print_json(to_json(document))
        return
    view = _view(document, runs or {})
    print_results(out(), view, all_metrics=all_metrics)
    if view.changed:
        out().print()
        print_sentences(out(), view)


def _view(document: AuditDocument, runs: dict[str, Path]) -> ReportView:
    from expunge.report.folder import view_from_audit

    return view_from_audit(document.model_dump(mode="json"), title="", runs=runs)


@guarded
def compare(
    context: typer.Context,
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that `run`, `audit` or `demo` wrote.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.", rich_help_panel=opt.WRITE)] = Path(
        "compare.html"
    ),
    show_examples: opt.ShowExamples = False,
    as_json: opt.Json = False,
    all_metrics: opt.AllMetrics = False,
) -> None:
    """Put runs side by side: one table, and the plane of utility against forgetting with the reference marked."""
    from expunge.runs import disk_error
    from expunge.studies.compare import compare as join
    from expunge.studies.compare import write_comparison

    joined = join(folders)
    if output.is_dir():
        raise RecipeError("is a folder", field="--output", value=str(output), remedy="Name a file: -o compare.html")
    try:
        write_comparison(joined, output, commands=(opt.command_line(context),), show_examples=show_examples)
    except OSError as error:
        raise disk_error(error, output) from error
    print_document(joined.document, as_json=as_json, all_metrics=all_metrics, runs=dict(joined.runs))
    if not as_json:
        print_paths(out(), {"page": output})


@guarded
def demo(
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            help="Where everything goes; default runs/demo, or runs/demo-request.",
            rich_help_panel=opt.WRITE,
        ),
    ] = None,
    request: Annotated[
        bool, typer.Option("--request", help="Instead: one person's request, from intake to a verified certificate.")
    ] = False,
    overwrite: opt.Overwrite = False,
    people: Annotated[int, typer.Option("--people", help="Invented people, at least 10.")] = 40,
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B", help="Methods to run, with commas between; default: all of them.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the archive, the models and the methods.")] = 0,
    as_json: opt.Json = False,
    all_metrics: opt.AllMetrics = False,
) -> None:
    """Invent an archive, train on it, unlearn a tenth of it with several methods, and compare them.

    Needs no model, no data and no network; takes a few minutes on two cores.
    """
    quiet_libraries()
    limit_threads()
    if request:
        walk.demo_request(output_dir or Path("runs/demo-request"), overwrite, people, seed, as_json)
        return
    from expunge.studies.demo import run_demo

    names = [name.strip() for name in methods.split(",") if name.strip()]
    output_dir = output_dir or Path("runs/demo")
    with display() as watcher:
        document = run_demo(
            output_dir, overwrite=overwrite, people=people, seed=seed, methods=names, watcher=watcher
        )  # fmt: skip
    runs = {name: output_dir / name for name, model in document.models.items() if model.role == "method"}
    print_document(document, as_json=as_json, all_metrics=all_metrics, runs=runs)
    if not as_json:
        print_paths(out(), {"audit": output_dir / "audit.json", "report": output_dir / "report.html"})
