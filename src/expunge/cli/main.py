# SPDX-License-Identifier: Apache-2.0
"""The command `expunge`. What is imported here is imported by `expunge --help`: nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from expunge import __version__
from expunge.cli import (
    advise,
    attack,
    bench,
    canary,
    dashboard,
    diagnose,
    evidence,
    linear,
    locate,
    lookup,
    measure,
    private,
    requests,
    sisa,
    suppress,
    tenants,
    unlearn,
)
from expunge.errors import nearest

_CHANGE, _MEASURE, _LOOK = "Change a model", "Measure and compare", "Look up"
_REQUESTS = "Requests and evidence"
#: In the order in which the help names them.
_ORDER = (
    "demo",
    "run",
    "train",
    "sweep",
    "sisa",
    "tenants",
    "linear",
    "dp",
    "audit",
    "benchmark",
    "compare",
    "attack",
    "diagnose",
    "canary",
    "desk",
    "request",
    "locate",
    "advise",
    "work",
    "dashboard",
    "key",
    "certify",
    "verify",
    "ledger",
    "methods",
    "metrics",
    "validate",
    "schema",
    "env",
)


class Commands(TyperGroup):
    """Keeps the arguments for the report, and names the nearest command where there is none of that name."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        del ctx
        return list(_ORDER)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the command line as it was given."""
        ctx.meta["expunge.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first argument names."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. {nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"expunge {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 done, 1 unexpected, 2 usage or recipe, 3 policy not met, 4 verification failed, "
                     "5 missing package, 6 bad input data, 130 interrupted.")  # fmt: skip
def expunge(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make language models unlearn, measure what changed, and say what was and was not shown."""
    del version


app.command(rich_help_panel=_CHANGE)(unlearn.run)
app.command(rich_help_panel=_CHANGE)(unlearn.train)
app.command(rich_help_panel=_CHANGE)(bench.sweep)
app.command(rich_help_panel=_CHANGE)(measure.demo)
app.add_typer(sisa.sisa_app, name="sisa", rich_help_panel=_CHANGE)
app.add_typer(tenants.tenants_app, name="tenants", rich_help_panel=_CHANGE)
app.add_typer(linear.linear_app, name="linear", rich_help_panel=_CHANGE)
app.add_typer(private.dp_app, name="dp", rich_help_panel=_MEASURE)
app.command(rich_help_panel=_MEASURE, no_args_is_help=True)(measure.audit)
app.command(rich_help_panel=_MEASURE, no_args_is_help=True)(bench.benchmark)
app.command(rich_help_panel=_MEASURE, no_args_is_help=True)(measure.compare)
app.command(rich_help_panel=_MEASURE, no_args_is_help=True)(attack.attack)
app.command(rich_help_panel=_MEASURE, no_args_is_help=True)(diagnose.diagnose)
app.add_typer(canary.canary_app, name="canary", rich_help_panel=_MEASURE)
app.add_typer(requests.desk_app, name="desk", rich_help_panel=_REQUESTS)
requests.desk_app.command("filter", no_args_is_help=True)(suppress.filter_corpus)
requests.desk_app.command("shred", no_args_is_help=True)(suppress.shred)
app.add_typer(requests.request_app, name="request", rich_help_panel=_REQUESTS)
app.command(rich_help_panel=_REQUESTS, no_args_is_help=True)(locate.locate)
app.command(rich_help_panel=_REQUESTS, no_args_is_help=True)(advise.advise)
app.command(rich_help_panel=_REQUESTS)(requests.work)
app.add_typer(dashboard.dashboard_app, name="dashboard", rich_help_panel=_REQUESTS)
app.add_typer(evidence.key_app, name="key", rich_help_panel=_REQUESTS)
app.command(rich_help_panel=_REQUESTS, no_args_is_help=True)(evidence.certify)
app.command(rich_help_panel=_REQUESTS, no_args_is_help=True)(evidence.verify)
app.add_typer(evidence.ledger_app, name="ledger", rich_help_panel=_REQUESTS)
app.add_typer(lookup.methods_app, name="methods", rich_help_panel=_LOOK)
app.add_typer(lookup.metrics_app, name="metrics", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(lookup.validate)
app.command(rich_help_panel=_LOOK)(lookup.schema)
app.command(rich_help_panel=_LOOK)(lookup.env)


def main() -> None:
    """Run the command line."""
    app(prog_name="expunge")
