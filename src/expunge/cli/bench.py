# SPDX-License-Identifier: Apache-2.0
"""`expunge benchmark` and `expunge sweep`: many measurements, many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import options as opt
from expunge.cli.measure import print_document
from expunge.cli.progress import display
from expunge.cli.streams import guarded, interruptible, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_paths
from expunge.errors import RecipeError

Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder with the benchmark's files.", rich_help_panel=opt.DATA),
]


@guarded
def benchmark(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="tofu, muse, wmdp, truthfulqa, gsm8k, fictitious...")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="Models to measure; --criterion takes one.")
    ] = None,
    data: Data = None,
    split: Annotated[str | None, typer.Option("--split", help="Such as forget05, or news; default: the first.")] = None,
    reference: opt.Reference = None,
    compat: Annotated[
        str, typer.Option("--compat", help="Whose reading: fixed, paper, locuslab, openunlearning, muse.")
    ] = "fixed",
    criterion: Annotated[
        str | None,
        typer.Option("--criterion", help="scalability, sustainability or collapse: again and again."),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="With --criterion: the method.")] = None,
    requests: Annotated[int | None, typer.Option("--requests", help="With --criterion: how many steps.")] = None,
    people: Annotated[int, typer.Option("--people", help="With --criterion on fictitious: size of the archive.")] = 20,
    rates: Annotated[
        str, typer.Option("--rates", metavar="A,B", help="With --criterion collapse: the learning rates.")
    ] = "",
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="A,B", help="With --criterion: repeat the study with these seeds.")
    ] = "",
    device: opt.Device = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="YAML file with settings.")] = None,
    sets: opt.Sets = None,
    output_dir: opt.OutputDir = None,
    overwrite: opt.Overwrite = False,
    resume: opt.Resume = False,
    as_json: opt.Json = False,
    all_metrics: opt.AllMetrics = False,
) -> None:
    """Measure models as a benchmark does, or unlearn request after request and see how long a model stands it."""
    opt.one_of(overwrite, resume)
    flags = {"model.reference": reference, "model.device": device, "audit.compat": compat, "method.name": method}
    settings = opt.settings_of(recipe, flags, sets)
    quiet_libraries()
    from expunge.benchmarks.base import get_benchmark

    known = get_benchmark(name)
    if criterion is not None:
        sizes = {"requests": requests, "people": people, "seeds": _numbers(seeds, "--seeds", int)}
        if rates:
            sizes["rates"] = _numbers(rates, "--rates", float)
        _study(context, name, criterion, settings, models, data, split, sizes, output_dir, overwrite, as_json)
        return
    if not models:
        raise RecipeError("is missing", field="MODEL", remedy="Name at least one model folder or hub id")
    from expunge.api.audit import audit_folders, name_models
    from expunge.recipe import AuditRecipe

    settings.pop("method", None)
    loaded = known.load(data, split=split or known.splits[0], compat=compat)  # type: ignore[arg-type]
    settings.setdefault("name", f"{name}-{split or known.splits[0]}".replace("/", "-"))
    compared = settings.get("model", {}).get("reference")
    resolved = AuditRecipe.build(name_models(models, reference=compared), settings)
    limit_threads(resolved.model.path)
    path = output_dir or Path("runs") / resolved.folder_name
    with interruptible(path), display() as watcher:
        for note in loaded.notes:
            watcher.stage(note)
        result = audit_folders(
            resolved, output_dir=path, overwrite=overwrite, resume=resume, commands=(opt.command_line(context),),
            watcher=watcher, benchmark=loaded,
        )  # fmt: skip
    print_document(result.document, as_json=as_json, all_metrics=all_metrics, runs=dict(result.runs))
    if not as_json:
        print_paths(out(), {"audit": path / "audit.json", "report": path / "report.html"})


def _study(
    context: typer.Context, name: str, criterion: str, settings: dict[str, Any], models: list[str] | None,
    data: Path | None, split: str | None, sizes: dict[str, Any],
    output_dir: Path | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run one of the studies over growing or successive requests; `sizes` goes to it as it is."""
    from expunge.recipe import merge
    from expunge.studies.criteria import run_criterion

    if models and len(models) > 1:
        raise RecipeError("takes one model", field="--criterion", value=models, remedy="Name one model")
    if models:
        settings = merge(settings, {"model": {"path": models[0]}})
    if "method" not in settings:
        raise RecipeError("is missing", field="method.name", remedy="Give --method NAME")
    path = output_dir or Path("runs") / f"{name}-{criterion}-{settings['method']['name']}"
    with interruptible(path), display() as watcher:
        study = run_criterion(
            name, criterion, settings, folder=path, data_dir=data, split=split or "news", **sizes,
            overwrite=overwrite, commands=(opt.command_line(context),), watcher=watcher,
        )  # fmt: skip
    if as_json:
        print_json(study.file.read_text("utf-8"))
    else:
        print_paths(out(), {"study": study.file, "report": study.report})


def _numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """Return the numbers of a list such as `1,2`.

    Raises:
        RecipeError: for anything else.
    """
    try:
        return [kind(part) for part in text.split(",") if part]
    except ValueError:
        raise RecipeError("is no list of numbers", field=option, value=text, remedy="Write them as 1,2,3") from None


@guarded
def sweep(
    recipe: opt.RecipeFile = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=A,B,...", help="Values of one key; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Runs at a time.", min=1)] = 1,
    maximise: Annotated[
        str, typer.Option("--maximise", help="Metric whose largest value wins; -NAME: smallest.")
    ] = "forget_quality",
    keep: Annotated[str, typer.Option("--keep", help="Metric that must not fall too far.")] = "model_utility",
    keep_share: Annotated[float, typer.Option("--keep-share", help="Share of the target's value to keep.")] = 0.85,
    sets: opt.Sets = None,
    output_dir: opt.OutputDir = None,
    as_json: opt.Json = False,
) -> None:
    """Run a grid, choose by a rule fixed beforehand on half of the subjects, and report on the other half."""
    settings = opt.settings_of(recipe, {}, sets, needed=("model.path", "data.forget", "method.name"))
    values = {key: _values(text) for key, text in opt.pairs(grid, "--grid").items()}
    quiet_libraries()
    from expunge.studies.sweep import SelectionRule
    from expunge.studies.sweep import sweep as run_sweep

    rule = SelectionRule(maximise=maximise, keep=keep, keep_share=keep_share)
    path = output_dir or Path("runs") / f"sweep-{settings.get('name', settings['method']['name'])}"
    limit_threads(settings["model"]["path"])
    with interruptible(path), display() as watcher:
        result = run_sweep(settings, values, path, rule=rule, workers=workers, watcher=watcher)
    if as_json:
        print_json((path / "sweep.json").read_text("utf-8"))
        return
    for number, trial in enumerate(result.trials, start=1):
        chosen = ", ".join(f"{key}={value}" for key, value in trial.overrides.items())
        score = (
            trial.error if trial.score is None else f"{maximise} {abs(trial.score):.4g}, keeps {trial.kept_share:.0%}"
        )
        out().print(f"{number:3d}  {chosen}  {score}", highlight=False)
    if not result.kept_enough:
        out().print(f"No run keeps {keep_share:.0%} of {keep}; the first keeps most.", highlight=False)
    print_paths(out(), {"chosen": result.final, "sweep": path / "sweep.json", "report": result.final / "report.html"})


def _values(text: str) -> list[Any]:
    """Return the values of a grid, read as YAML."""
    import yaml

    return [yaml.safe_load(part) for part in text.split(",") if part]
