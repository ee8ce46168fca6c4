# SPDX-License-Identifier: Apache-2.0
"""`expunge dp`: what private training guarantees, and what it answers to a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli import options as opt
from expunge.cli.streams import guarded, out, print_json
from expunge.cli.tables import print_facts

dp_app = typer.Typer(no_args_is_help=True, help="What differentially private training guarantees.")


@dp_app.callback()
def _commands() -> None:
    """Keep `statement` a command of its own."""


@dp_app.command(no_args_is_help=True)
@guarded
def statement(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a private `expunge train`.")],
    records: Annotated[
        int, typer.Option("--records", help="Records of the request; where the unit is a subject, subjects.")
    ] = 1,
    as_json: opt.Json = False,
) -> None:
    """Answer a request against a private model: the bound it has already, for a group of that size."""
    from expunge.api.privacy import dp_statement

    found = dp_statement(run, records)
    if as_json:
        print_json(json.dumps(found, indent=1))
        return
    one = found["of_one"]
    facts = [
        ("Claim", f"{found['claim']}: {found['sentence']}"),
        ("Request", f"{found['records']} records, a group of {found['group_size']} units ({found['unit']})"),
        ("Guarantee", _pair(found["epsilon"], found["delta"]) if found["says_something"] else found["reason"]),
        ("Formula", found["formula"]),
        ("One unit", f"{_pair(one['epsilon'], one['delta'])}, {one['accountant']}, {one['sampler']} sampling, "
                     f"{one['steps']} steps"),
        ("Neighbours", one["neighbours"]),
        ("Means", found["meaning"]),
    ]  # fmt: skip
    facts += [("Says not", line) for line in found["does_not_say"]]
    facts += [("Assumes", line) for line in found["assumptions"]]
    print_facts(out(), facts)


def privacy_facts(privacy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines that a private run prints at its end."""
    others = ", ".join(
        f"{name} {'none' if value is None else format(value, '.4g')}"
        for name, value in privacy["epsilon_by_accountant"].items()
    )
    headline = privacy["reason"] if privacy["epsilon"] is None else _pair(privacy["epsilon"], privacy["delta"])
    rows = [
        ("privacy", f"{headline} ({privacy['accountant']}); {privacy['neighbours']}"),
        ("accountants", f"epsilon {others}"),
        ("sampler", f"{privacy['sampler']}, rate {privacy['rate']:.4g} of {privacy['units']} units, "
                    f"{privacy['steps']} steps, noise multiplier {privacy['noise_multiplier']:.4g}, "
                    f"{privacy['noise']} noise"),
    ]  # fmt: skip
    rows += [("assumes", line) for line in privacy["assumptions"]]
    return rows + [("not covered", line) for line in privacy["not_covered"]]


def _pair(epsilon: float, delta: float) -> str:
    return f"epsilon {epsilon:.4g}, delta {delta:.3g}"
