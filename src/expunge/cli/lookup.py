# SPDX-License-Identifier: Apache-2.0
"""`expunge methods`, `metrics`, `validate`, `schema` and `env`: look things up; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from expunge.cli import options as opt
from expunge.cli.streams import guarded, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts
from expunge.errors import RecipeError, nearest

if TYPE_CHECKING:
    from expunge.claims import MethodCard, MetricCard

#: What `expunge schema` knows.
SCHEMAS = ("recipe", "train", "audit", "records", "methods", "metrics")
_ARROWS = {"higher": "↑", "lower": "↓", "reference": "◎"}

methods_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
metrics_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@methods_app.callback()
@guarded
def methods(context: typer.Context, as_json: opt.Json = False) -> None:
    """List the methods: what each needs, costs, and what may be claimed of it."""
    if context.invoked_subcommand is not None:
        return
    from expunge.methods.registry import method_cards

    cards = method_cards()
    if as_json:
        print_json(json.dumps([card.to_dict() for card in cards], indent=1))
        return
    table = _list("method", "claim", "needs", "title")
    for family in sorted({card.family for card in cards}):
        table.add_row(Text(family, style="bold cyan"))
        for card in (card for card in cards if card.family == family):
            title = f"{card.title} ({card.year})"
            table.add_row(Text(f"  {card.name}", style="bold"), card.claim.value, ", ".join(card.needs), title)
    out().print(table)
    out().print(Text("Settings, formula and source of one: expunge methods show NAME", style="dim"))


@methods_app.command("show")
@guarded
def show_method(name: Annotated[str, typer.Argument(help="Name of a method.")], as_json: opt.Json = False) -> None:
    """Show one method: formula, source, differences from the paper, settings."""
    from expunge.methods.registry import get_method

    method = get_method(name)
    schema = method.Config.model_json_schema()
    if as_json:
        print_json(json.dumps(method.card.to_dict() | {"settings": schema}, indent=1, default=str))
        return
    _print_method(method.card)
    console = out()
    console.print(Text("\nSettings", style="bold"), Text("  --set method.KEY=VALUE", style="dim"))
    settings = {key: found for key, found in schema["properties"].items() if key != "name"}
    console.print(_settings_table(settings) if settings else Text("none", style="dim"))
    if method.training_defaults:
        console.print(Text("\nTraining defaults", style="bold"), Text("  --set training.KEY=VALUE", style="dim"))
        print_facts(console, [(key, _value(value)) for key, value in method.training_defaults.items()])


def _print_method(card: MethodCard) -> None:
    from expunge.claims import SENTENCES

    console = out()
    console.print(Text.assemble((card.name, "bold cyan"), "  ", (card.title, "bold")))
    rows = [
        ("formula", card.formula), ("claim", f"{card.claim.value}: {SENTENCES[card.claim]}"),
        ("needs", ", ".join(card.needs)), ("cost", card.cost), ("family", card.family),
        ("paper", f"{card.paper}. {card.authors}, {card.venue} {card.year}"), ("formula from", card.provenance),
        ("defaults from", card.defaults_source), ("note", card.notes),
    ]  # fmt: skip
    rows += [("differs", text) for text in card.differences]
    print_facts(out(), rows)


def _settings_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _list("key", "default", "what it does")
    for key, found in settings.items():
        options = found.get("enum") or next((kind["enum"] for kind in found.get("anyOf", ()) if "enum" in kind), None)
        about = str(found.get("description", ""))
        # Descriptions that name the options already do not need them twice.
        if options and not all(str(option) in about for option in options):
            about += f" ({' | '.join(str(option) for option in options)})"
        table.add_row(Text(key, style="bold"), _value(found.get("default")), about)
    return table


@metrics_app.callback()
@guarded
def metrics(context: typer.Context, as_json: opt.Json = False) -> None:
    """List the metrics: what each means, and what it needs."""
    if context.invoked_subcommand is not None:
        return
    from expunge.audit.metrics import metric_cards

    cards = metric_cards()
    if as_json:
        print_json(json.dumps([card.to_dict() for card in cards], indent=1))
        return
    table = _list("metric", "of the sets", "unit", "needs")
    for name, found in _by_metric(cards).items():
        sets = "  ".join(f"{where} {_ARROWS.get(card.direction, '')}".strip() for where, card in found)
        card = found[0][1]
        table.add_row(Text(name, style="bold"), sets, card.unit, ", ".join(card.needs))
    out().print(table)
    legend = "↑ higher, ↓ lower, ◎ closer to the reference is better; {set} is any utility set.\n"
    out().print(Text(legend + "One in full: expunge metrics show NAME", style="dim"))


def _by_metric(cards: Sequence[MetricCard]) -> dict[str, list[tuple[str, MetricCard]]]:
    """Gather the cards of one metric on several sets, as (set, card)."""
    found: dict[str, list[tuple[str, MetricCard]]] = {}
    for card in cards:
        where, dot, rest = card.name.partition(".")
        per_set = bool(dot) and where != "membership"
        found.setdefault(rest if per_set else card.name, []).append((where if per_set else "", card))
    return found


@metrics_app.command("show")
@guarded
def show_metric(
    name: Annotated[str, typer.Argument(help="Name of a metric, such as forget.probability.")],
    as_json: opt.Json = False,
) -> None:
    """Show one metric: definition, direction, known failures, source."""
    from expunge.audit.metrics import card_for

    card: MetricCard = card_for(name)
    if as_json:
        print_json(json.dumps(card.to_dict(), indent=1))
        return
    out().print(Text.assemble((card.name, "bold cyan"), "  ", (card.title, "bold")))
    rows = [
        ("definition", card.definition), ("unit", card.unit), ("direction", f"{card.direction}: {card.target}"),
        ("needs", ", ".join(card.needs) or "only the model and the set"), ("variants", ", ".join(card.compat)),
        ("source", card.source),
    ]  # fmt: skip
    print_facts(out(), [*rows, *(("known failure", text) for text in card.known_failures)])


def _list(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=number == 0)
    return table


def _value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, dict, bool)) or value is None else str(value)


@guarded
def validate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file.")],
    sets: opt.Sets = None,
    as_json: opt.Json = False,
) -> None:
    """Check a recipe and print it with every default written out."""
    settings = opt.settings_of(recipe, {}, sets)
    quiet_libraries()
    from expunge.recipe import TrainRecipe, build_recipe

    is_training = "method" not in settings and (settings.get("data") or {}).get("train") is not None
    found = TrainRecipe.build(settings) if is_training else build_recipe(settings)
    if as_json:
        print_json(json.dumps(found.to_dict(), indent=1))
    else:
        out().print(Text(found.to_yaml().rstrip()), soft_wrap=True)


@guarded
def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help=f"One of {', '.join(SCHEMAS)}.")] = None,
) -> None:
    """Print the JSON schema of a file or an output; without a name, all of them by name."""
    if name is not None and name not in SCHEMAS:
        raise RecipeError("no such schema", field="NAME", value=name, remedy=nearest(name, SCHEMAS))
    quiet_libraries()
    found = {key: _schema(key) for key in SCHEMAS} if name is None else _schema(name)
    print_json(json.dumps(found, indent=1, default=str))


def _schema(name: str) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from expunge.audit.document import json_schema
    from expunge.claims import MethodCard, MetricCard
    from expunge.recipe import TrainRecipe, recipe_schema

    if name == "recipe":
        return recipe_schema()
    if name == "train":
        return TrainRecipe.model_json_schema()
    if name == "audit":
        return json_schema()
    if name == "records":
        return _records_schema()
    return TypeAdapter(list[MethodCard] if name == "methods" else list[MetricCard]).json_schema()


def _records_schema() -> dict[str, Any]:
    """Return the schema of one row of `scored.parquet` and one of `generated.parquet`."""
    from dataclasses import MISSING, fields
    from typing import get_type_hints

    from pydantic import create_model

    from expunge.audit.records import RECORDS_VERSION, Flags, Floats, GeneratedItem, ScoredItem

    rows: dict[str, Any] = {}
    for file, item in (("scored.parquet", ScoredItem), ("generated.parquet", GeneratedItem)):
        hints = get_type_hints(item)
        columns: dict[str, Any] = {}
        for column in fields(item):
            # What is an array in memory is a list column on disk.
            kind = {Floats: list[float], Flags: list[int]}.get(hints[column.name], hints[column.name])
            columns[column.name] = (kind, ... if column.default is MISSING else column.default)
        rows[file] = create_model(item.__name__, **columns).model_json_schema()
    return {"title": "Records", "records_version": RECORDS_VERSION, "type": "object", "properties": rows}


@guarded
def env(as_json: opt.Json = False) -> None:
    """Print versions, platform and devices."""
    import torch

    from expunge.audit.document import environment

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = environment("cuda" if gpus else "cpu") | {"gpus": gpus, "torch_threads": torch.get_num_threads()}
    if as_json:
        print_json(json.dumps(found, indent=1))
        return
    packages = found.pop("packages")
    rows = [(name, version or "not installed") for name, version in packages.items()]
    rows += [(name.replace("_", " "), ", ".join(value) or "none" if isinstance(value, list) else str(value))
             for name, value in found.items()]  # fmt: skip
    print_facts(out(), rows)
