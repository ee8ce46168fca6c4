# SPDX-License-Identifier: Apache-2.0
"""`expunge canary plant` and `expunge canary audit`: secrets with a known fate, and what scoring them shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from expunge.cli import options as opt
from expunge.cli.progress import display
from expunge.cli.streams import guarded, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts, print_paths
from expunge.errors import RecipeError

if TYPE_CHECKING:
    from expunge.api.canaries import Planted

canary_app = typer.Typer(no_args_is_help=True, help="Plant canaries in training data, and audit models with them.")


@canary_app.command(no_args_is_help=True)
@guarded
def plant(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Training data: JSONL, Parquet, CSV.")],
    model: Annotated[str, typer.Option("--model", help="Model that will be trained: a folder or a hub id.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder to write; must be new.")],
    n: Annotated[int, typer.Option("--n", help="Canaries; a fair coin inserts about half.")] = 1000,
    design: Annotated[str, typer.Option("--design", help="random, unigram, bigram or new-token.")] = "new-token",
    secret_tokens: Annotated[int, typer.Option("--secret-tokens", help="Tokens of a secret.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", help="Copies of each inserted canary.")] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of secrets and coins; default: drawn, and recorded.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of data: data.template=question.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write training data with canaries in it, and the manifest of their coins apart from it."""
    settings = opt.settings_of(None, {}, sets)
    quiet_libraries()
    limit_threads()
    from secrets import randbits

    from pydantic import ValidationError

    from expunge.api.canaries import plant as plant_canaries
    from expunge.data.canaries import CanaryPlan
    from expunge.methods.registry import recipe_error
    from expunge.recipe import data_config

    try:
        plan = CanaryPlan(
            n=n, design=design, secret_tokens=secret_tokens, repeats=repeats,
            seed=randbits(63) if seed is None else seed,
        )  # fmt: skip
    except ValidationError as error:
        raise recipe_error(error, "canary", CanaryPlan) from None
    found = plant_canaries(data, plan, model=model, folder=output_dir, data=data_config(settings))
    _print_planted(found, as_json)


def _print_planted(found: Planted, as_json: bool) -> None:
    paths = {"train": found.train, "inserted": found.inserted, "manifest": found.secret}
    paths |= {"model": found.model} if found.model else {}
    manifest = found.manifest
    inserted = sum(entry.inserted for entry in manifest.canaries)
    if as_json:
        summary = {"n": manifest.plan.n, "n_inserted": inserted, "design": manifest.plan.design, "seal": manifest.seal}
        print_json(json.dumps(summary | {name: str(path) for name, path in paths.items()}, indent=1))
        return
    print_facts(out(), [
        ("canaries", f"{manifest.plan.n} of the design {manifest.plan.design}, {inserted} inserted"),
        ("seal", manifest.seal),
        ("", "Note the seal elsewhere, and keep the manifest away from whoever trains."),
    ])  # fmt: skip
    print_paths(out(), paths)


@canary_app.command(no_args_is_help=True)
@guarded
def audit(
    manifest: Annotated[str, typer.Option("--manifest", help="manifest.json that `plant` wrote.")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Unlearned models: runs, folders or hub ids.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="Model trained on the planted data.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Model trained without any of the canaries.")
    ] = None,
    seal: Annotated[str | None, typer.Option("--seal", help="The seal noted at planting.")] = None,
    delta: Annotated[float, typer.Option("--delta", help="Delta of the bounds.")] = 1e-6,
    confidence: Annotated[float, typer.Option("--confidence", help="Confidence of bounds and intervals.")] = 0.95,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Score the canaries, and print lower bounds on epsilon for target, unlearned models and reference."""
    if not (models or target):
        raise RecipeError("no model to audit", field="MODEL", remedy="Name a model, or give --target")
    for name, value, low, high in (("--delta", delta, 0.0, 1.0), ("--confidence", confidence, 0.5, 1.0)):
        if not low < value < high:
            raise RecipeError(f"must lie between {low:g} and {high:g}", field=name, value=value)
    quiet_libraries()
    limit_threads([*(models or []), *([target] if target else [])][0])
    from expunge.api.canaries import audit_canaries
    from expunge.audit.canaries.measure import CanarySettings

    with display() as watcher:
        found = audit_canaries(
            models or [], manifest, reference=reference, target=target, seal=seal, watcher=watcher,
            settings=CanarySettings(delta=delta, confidence=confidence), model={"device": device or "auto"},
        )  # fmt: skip
    if as_json:
        print_json(json.dumps(found, indent=1, allow_nan=False))
        return
    _print_audit(found)


def _print_audit(found: dict[str, Any]) -> None:
    from expunge.report.canaries import facts, heads, notes, row

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for title in heads():
        table.add_column(title)
    for name, model in found["models"].items():
        table.add_row(*(Text(text).append(f" {more}" if more else "", style="dim") for text, more in row(name, model)))
    console = out()
    console.print(Text(facts(found)))
    console.print(table)
    for sentence in notes(found):
        console.print(Text(sentence))
