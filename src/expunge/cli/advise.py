# SPDX-License-Identifier: Apache-2.0
"""`expunge advise` and `expunge request advise`: routes for a request, the best first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from expunge.cli import options as opt
from expunge.cli.requests import _HERE, DeskFolder, RequestId, _open, request_app
from expunge.cli.streams import guarded, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts
from expunge.errors import RecipeError

if TYPE_CHECKING:
    from expunge.desk.advise.routes import Route

_FACTS, _LINEAGE, _MEANS = "The request", "How the model came about", "Means"
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))

SituationFile = Annotated[Path | None, typer.Option("--situation", help="YAML with facts; options go on top of it.")]
Everything = Annotated[bool, typer.Option("--all", help="Reasons of every route, not of the first alone.")]


def _flag(name: str, text: str, panel: str) -> Any:
    return typer.Option(f"--{name}/--no-{name}", help=text, rich_help_panel=panel, show_default=False)


def _fact(name: str, text: str, panel: str) -> Any:
    return typer.Option(f"--{name}", help=text, rich_help_panel=panel, show_default=False)


@guarded
def advise(
    situation: SituationFile = None,
    need: Annotated[str | None, _fact("need", "What has to go: verbatim, knowledge, capability, all.", _FACTS)] = None,
    wanted: Annotated[str | None, _fact("wanted", "Least claim: exact, statistical, approximate...", _FACTS)] = None,
    order: Annotated[bool | None, _flag("order", "An authority ordered the models destroyed.", _FACTS)] = None,
    forget: Annotated[int | None, _fact("forget", "Records that are meant.", _FACTS)] = None,
    subjects: Annotated[int | None, _fact("subjects", "People or tenants that are meant.", _FACTS)] = None,
    deadline: Annotated[str | None, _fact("deadline", "Time that is left, such as 30d or 12h.", _FACTS)] = None,
    epsilon: Annotated[float | None, _fact("epsilon", "Largest epsilon accepted, for all records.", _FACTS)] = None,
    adapter: Annotated[str | None, _fact("adapter", "Folder of `expunge tenants` with its own.", _LINEAGE)] = None,
    shards: Annotated[str | None, _fact("shards", "Folder of `expunge sisa`.", _LINEAGE)] = None,
    shard_share: Annotated[float | None, _fact("shard-share", "Share of rows that it would read.", _LINEAGE)] = None,
    private: Annotated[str | None, _fact("private", "Private run, or EPSILON,DELTA,UNIT.", _LINEAGE)] = None,
    below_saw: Annotated[bool | None, _flag("below-saw", "What they stand on saw the data.", _LINEAGE)] = None,
    ensemble: Annotated[bool | None, _flag("ensemble", "It is several that answer together.", _LINEAGE)] = None,
    base: Annotated[str | None, _fact("base", "Checkpoint that never saw the data.", _LINEAGE)] = None,
    dataset: Annotated[int | None, _fact("dataset", "Records it was trained on.", _LINEAGE)] = None,
    parameters: Annotated[int | None, _fact("parameters", "Weights of the model.", _LINEAGE)] = None,
    memory: Annotated[str | None, _fact("memory", "Memory of the machine, such as 24GiB.", _MEANS)] = None,
    data_kept: Annotated[bool | None, _flag("data-kept", "The training data is still there.", _MEANS)] = None,
    reference: Annotated[bool | None, _flag("reference", "A model without the data is there.", _MEANS)] = None,
    served: Annotated[bool | None, _flag("served", "All answers pass a server of ours.", _MEANS)] = None,
    weights_leave: Annotated[bool | None, _flag("weights-leave", "Others get the weights.", _MEANS)] = None,
    recipe: Annotated[Path | None, _fact("recipe", "Recipe that time and memory are estimated from.", _MEANS)] = None,
    everything: Everything = False,
    as_json: opt.Json = False,
) -> None:
    """Rank the routes for a request: what each may claim, needs and takes, and what may be said afterwards."""
    given = {
        "need": need, "wanted": wanted, "order": order, "forget": forget, "subjects": subjects, "epsilon": epsilon,
        "deadline_seconds": deadline, "adapter": adapter, "shards": shards, "shard_share": shard_share,
        "private": private, "below_saw": below_saw, "base": base, "dataset": dataset, "parameters": parameters,
        "memory_bytes": memory, "data_kept": data_kept, "reference": reference, "served": served,
        "weights_leave": weights_leave, "ensemble": ensemble,
    }  # fmt: skip
    quiet_libraries()
    from expunge.desk.advise.routes import advise as routes_for
    from expunge.desk.advise.situation import situation_from
    from expunge.recipe import read_settings

    facts = _facts_of(situation) | {name: value for name, value in given.items() if value is not None}
    if recipe is not None:
        facts["recipe"] = read_settings(recipe)
    _show(routes_for(situation_from(facts)), everything, as_json)


@request_app.command("advise", no_args_is_help=True)
@guarded
def advise_request(
    request: RequestId,
    desk: DeskFolder = _HERE,
    situation: SituationFile = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FACT=VALUE", help="What the desk cannot know, such as served=true; it is kept."),
    ] = None,
    everything: Everything = False,
    as_json: opt.Json = False,
) -> None:
    """Rank the routes for a request that was taken in."""
    quiet_libraries()
    from expunge.recipe import apply_overrides

    asked = apply_overrides(_facts_of(situation), sets or ()) if situation or sets else None
    _show(_open(desk).advise(request, asked), everything, as_json)


def _facts_of(path: Path | None) -> dict[str, Any]:
    from expunge.desk.advise.situation import read_facts

    if path is None:
        return {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {error}", field="--situation", value=str(path),
                          remedy="Give a YAML file") from error  # fmt: skip
    return read_facts(text, str(path))


def _show(routes: Sequence[Route], everything: bool, as_json: bool) -> None:
    if as_json:
        print_json(json.dumps([route.to_dict() for route in routes], indent=1))
        return
    console = out()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    for column in ("route", "what it is", "claim", "time", "memory"):
        table.add_column(column, no_wrap=column in ("route", "claim", "time", "memory"))
    possible = [route for route in routes if route.possible]
    for number, route in enumerate(possible, 1):
        table.add_row(str(number), Text(route.name, style="bold"), route.title, _claim(route),
                      _duration(route.predicted_seconds), _size(route.predicted_bytes))  # fmt: skip
    console.print(table if possible else Text("No route is possible.", style="bold red"))
    for route in possible if everything else possible[:1]:
        console.print(Text(f"\n{route.name}", style="bold cyan"))
        print_facts(console, [
            *(("Why", reason) for reason in route.reasons), ("Settings", json.dumps(route.settings) if route.settings
              else ""), ("How", route.how), *(("Besides", line) for line in route.besides),
            ("May be said", route.sentence),
        ])  # fmt: skip
    _show_impossible([route for route in routes if not route.possible])


def _show_impossible(routes: Sequence[Route]) -> None:
    if routes:
        console = out()
        console.print(Text("\nNot possible", style="bold"))
        print_facts(console, [(route.name, route.why_not) for route in routes])


def _claim(route: Route) -> str:
    return "none" if route.claim is None else str(route.claim)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(size: int | None) -> str:
    if size is None:
        return "–"
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
