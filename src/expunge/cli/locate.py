# SPDX-License-Identifier: Apache-2.0
"""`expunge locate`, and `expunge request locate` for a request of a desk."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import options as opt
from expunge.cli.requests import _HERE, Actor, DeskFolder, RequestId, _open, request_app
from expunge.cli.streams import guarded, limit_threads, out, print_json, quiet_libraries
from expunge.cli.tables import print_facts

if TYPE_CHECKING:
    from expunge.desk.locate.config import Corpus, LocateConfig
    from expunge.desk.locate.scope import Located, Scope

_Pairs = list[str] | None
_LOOK, _FOR = "Where to look", "What to look for"


@guarded
def locate(
    subject: Annotated[
        Path, typer.Argument(metavar="SUBJECT", help="JSON, JSON Lines, CSV or Parquet: identifiers, record_ids, "
                                                     "samples. A file, so that no name is in a command line.")
    ],
    train: Annotated[
        _Pairs, typer.Option("--corpus", metavar="NAME=FILE", help="Training data; repeatable.", rich_help_panel=_LOOK)
    ] = None,
    evaluation: Annotated[
        _Pairs, typer.Option("--eval", metavar="NAME=FILE", help="Data to measure with.", rich_help_panel=_LOOK)
    ] = None,
    other: Annotated[
        _Pairs, typer.Option("--other", metavar="NAME=FILE", help="Logs, indices, dumps.", rich_help_panel=_LOOK)
    ] = None,
    absent: Annotated[
        _Pairs,
        typer.Option("--not-searched", metavar="NAME=WHY", help="What exists and cannot be read here.",
                     rich_help_panel=_LOOK),
    ] = None,
    corpus_columns: Annotated[
        _Pairs,
        typer.Option("--corpus-column", metavar="OURS=THEIRS", help="Such as text=story; repeatable.",
                     rich_help_panel=_LOOK),
    ] = None,
    lineage: Annotated[
        Path | None, typer.Option("--lineage", help="YAML: which artefacts saw which corpora.", rich_help_panel=_LOOK)
    ] = None,
    columns: Annotated[
        _Pairs,
        typer.Option("--column", metavar="OURS=THEIRS", help="Of SUBJECT, such as samples=biography; repeatable.",
                     rich_help_panel=_FOR),
    ] = None,
    ways: Annotated[
        list[str] | None,
        typer.Option("--way", help="id, exact, identifier, ngram, near, paraphrase or influence; repeatable. "
                                   "Default: the first five.", rich_help_panel=_FOR),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="For paraphrase and influence.", rich_help_panel=_FOR)
    ] = None,
    sets: Annotated[
        _Pairs, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as near=0.7.", rich_help_panel=_FOR)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Where scope.json and the forget set are written; else nowhere.",
                     rich_help_panel=opt.WRITE),
    ] = None,
    as_json: opt.Json = False,
) -> None:  # fmt: skip
    """Find the records of a subject in the corpora, what saw them, and what was not searched."""
    quiet_libraries()
    config = _config(ways, sets)
    limit_threads(model)
    from expunge.desk.lineage import read_lineage
    from expunge.desk.locate.output import read_subject, write_located
    from expunge.desk.locate.search import locate as search

    salt, mapping = secrets.token_bytes(32), opt.pairs(corpus_columns, "--corpus-column")
    corpora = [
        *_corpora(train, "--corpus", "train", mapping), *_corpora(evaluation, "--eval", "eval", mapping),
        *_corpora(other, "--other", "other", mapping), *_unreadable(absent),
    ]  # fmt: skip
    found = search(
        read_subject(subject, opt.pairs(columns, "--column")), corpora, config=config, salt=salt, model=model,
        lineage=None if lineage is None else read_lineage(lineage),
    )  # fmt: skip
    if folder is not None:
        write_located(found, folder, salt)
    _show(found, as_json, folder)


@request_app.command("locate", no_args_is_help=True)
@guarded
def locate_request(request: RequestId, actor: Actor, desk: DeskFolder = _HERE, as_json: opt.Json = False) -> None:
    """Find the records of a request in the desk's corpora, and write them down."""
    quiet_libraries()
    office = _open(desk)
    limit_threads(office.config.model)
    _show(office.locate(request, actor=actor), as_json, office.path(request))


def _config(ways: list[str] | None, sets: list[str] | None) -> LocateConfig:
    from pydantic import ValidationError

    from expunge.desk.locate.config import LocateConfig
    from expunge.methods.registry import recipe_error

    settings = opt.settings_of(None, {"ways": ways}, sets)
    try:
        return LocateConfig(**settings)
    except ValidationError as error:
        raise recipe_error(error, "locate", LocateConfig) from None


def _corpora(texts: list[str] | None, option: str, role: Any, columns: dict[str, str]) -> list[Corpus]:
    from expunge.desk.locate.config import Corpus

    return [Corpus(name=name, path=path, columns=columns, role=role)
            for name, path in opt.pairs(texts, option).items()]  # fmt: skip


def _unreadable(texts: list[str] | None) -> list[Corpus]:
    from expunge.desk.locate.config import Corpus

    return [Corpus(name=name, path="", searchable=False, why_not=why, role="other")
            for name, why in opt.pairs(texts, "--not-searched").items()]  # fmt: skip


def _show(found: Located, as_json: bool, folder: Path | None) -> None:
    scope = found.scope
    if as_json:
        print_json(json.dumps(scope.to_dict(), indent=1))
        return
    out().print(_table(scope))
    out().print()
    print_facts(out(), [
        ("Found", f"{len(found.found)} rows, {len(found.examples)} of them in training data"),
        *(("Threshold", f"{way}: cosine above {limit.value:.3f}, from {limit.pairs} pairs at random")
          for way, limit in scope.thresholds.items()),
        *(("Saw them", f"{one.name} ({one.kind}{'' if one.reachable else ', out of reach'})")
          for one in scope.artefacts),
        *(("Not searched", f"{gap.what}: {gap.why}") for gap in scope.not_searched),
        ("Written", "" if folder is None else str(folder)),
    ])  # fmt: skip


def _table(scope: Scope) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("corpus", "role", "rows", "found", *scope.settings.ways):
        table.add_column(column, overflow="fold", justify="left" if column in ("corpus", "role") else "right")
    for corpus in scope.corpora:
        rows = f"{corpus.rows:,}" if corpus.searched else "not read"
        counts = [str(corpus.by_way.get(way, 0)) for way in scope.settings.ways]
        table.add_row(corpus.name, corpus.role, rows, str(corpus.found), *counts)
    return table
