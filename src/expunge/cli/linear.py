# SPDX-License-Identifier: Apache-2.0
"""`expunge linear`: linear models that rows can be taken out of, exactly or with a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import options as opt
from expunge.cli.streams import guarded, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts
from expunge.errors import RecipeError, nearest

if TYPE_CHECKING:
    from expunge.methods.linear.artefact import Artefact

linear_app = typer.Typer(no_args_is_help=True, help="Linear models that rows can be taken out of, with what it proves.")

Rows = Annotated[str, typer.Argument(metavar="DATA", help="Rows {id, label, features}, or {id, label, text}.")]
Output = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of the model that is written.")]
Model = Annotated[str | None, typer.Option("--model", help="Language model whose states of `text` are the features.")]
Layer = Annotated[int, typer.Option("--layer", help="Block of that model; negative ones count from the back.")]
_KINDS = ("logistic", "ridge")


@linear_app.command(no_args_is_help=True)
@guarded
def fit(
    data: Rows,
    output_dir: Output,
    kind: Annotated[str, typer.Option("--kind", help="logistic: certified; ridge: exact.")] = "logistic",
    epsilon: Annotated[float, typer.Option(help="Guarantee over all removals; logistic.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Its delta; logistic.")] = 1e-4,
    noise_std: Annotated[float, typer.Option(help="Noise that pays for removals; logistic.")] = 10.0,
    ridge: Annotated[float, typer.Option(help="Penalty; for logistic a row.")] = 1e-3,
    seed: Annotated[int | None, typer.Option(help="Of the noise; for tests only, it voids the guarantee.")] = None,
    registry: Annotated[Path | None, typer.Option(help="File with the digests of all noise ever used.")] = None,
    model: Model = None,
    layer: Layer = -1,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Fit a linear model."""
    if kind not in _KINDS:
        raise RecipeError("no such kind", field="--kind", value=kind, remedy=nearest(kind, _KINDS))
    quiet_libraries()
    limit_threads(model)
    from expunge.api.linear import fit_linear, read_labelled
    from expunge.methods.linear.removal import Guarantee

    rows = read_labelled(data, model=model, layer=layer)
    artefact = fit_linear(
        rows, output_dir, kind="ridge" if kind == "ridge" else "logistic", ridge=ridge,
        guarantee=Guarantee(epsilon, delta), noise_std=noise_std, seed=seed, registry=registry, overwrite=overwrite,
    )  # fmt: skip
    right = sum(a == b for a, b in zip(artefact.predict(rows.x), rows.labels, strict=True))
    _show(artefact, as_json, {"training accuracy": round(right / len(rows.ids), 4), "folder": str(output_dir)})


@linear_app.command(no_args_is_help=True)
@guarded
def remove(
    linear_model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the linear model.")],
    data: Rows,
    output_dir: Output,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Id of a row that leaves; may be repeated.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids-file", help="Their ids, one a line.")] = None,
    model: Model = None,
    layer: Layer = -1,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Take rows out of a linear model; DATA holds all rows that are in it."""
    leave = opt.ids_of(ids, ids_file)
    if not leave:
        raise RecipeError("names no row", field="--id", remedy="Give --id or --ids-file")
    quiet_libraries()
    limit_threads(model)
    from expunge.api.linear import read_labelled, remove_linear

    rows = read_labelled(data, model=model, layer=layer)
    artefact = remove_linear(linear_model, rows, leave, output_dir, overwrite=overwrite)
    _show(artefact, as_json, {"rows removed now": len(leave), "folder": str(output_dir)})


@linear_app.command(no_args_is_help=True)
@guarded
def certificate(
    linear_model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the linear model.")],
    as_json: opt.Json = False,
) -> None:
    """Say what a linear model's removals prove, and under which assumptions."""
    from expunge.methods.linear.artefact import load_artefact

    _show(load_artefact(linear_model), as_json, {"folder": str(linear_model)})


def _show(artefact: Artefact, as_json: bool, more: dict[str, Any]) -> None:
    statement = {**artefact.statement(), **more}
    if as_json:
        print_json(json.dumps(statement, indent=1))
        return
    facts = [("Claim", f"{statement['claim']}: {statement['sentence']}")]
    if "guarantee" in statement:
        wanted = statement["guarantee"]
        spent = max(statement["spent"])
        facts.append(("Guarantee", f"epsilon {wanted['epsilon']:g}, delta {wanted['delta']:g}, over all removals"))
        facts.append(("Budget", f"{spent:.4g} of {statement['budget']:.4g} spent, {statement['rows_removed']} rows "
                                f"taken out since training"))  # fmt: skip
    facts.append(("Rows", f"{statement['rows']} in the model, after {statement['requests']} requests"))
    facts.append(("Features", statement["features"]))
    facts += [(key.capitalize(), str(value)) for key, value in more.items()]
    facts += [("Assumes", line) for line in statement["assumptions"]]
    print_facts(out(), facts)
