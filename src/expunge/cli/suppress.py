# SPDX-License-Identifier: Apache-2.0
"""`expunge desk filter` and `desk shred`: the suppression list, used and ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from expunge.cli import options as opt
from expunge.cli.requests import Actor, DeskFolder
from expunge.cli.streams import guarded, out, print_json
from expunge.cli.tables import print_facts


@guarded
def filter_corpus(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="Examples: JSONL, JSON, Parquet or CSV.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new .jsonl file: the rows that stay.")],
    desk: DeskFolder = Path("desk"),
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Default: the columns of the desk; may be repeated."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Leave out of a corpus, for the next training, the records that requests were about."""
    from expunge.desk.service import Desk
    from expunge.desk.suppress import filter_corpus

    found = filter_corpus(Desk(desk), corpus, output, columns=opt.pairs(columns, "--column") if columns else None)
    if as_json:
        print_json(json.dumps(asdict(found) | {"kept": found.kept, "output": str(output)}, indent=1))
        return
    print_facts(out(), [
        ("Rows", f"{found.rows:,} read, {found.left_out:,} left out, {found.kept:,} written"),
        ("List", f"{found.listed:,} records, {found.unmatched:,} of them not in this corpus"),
        ("File", str(output)), ("Not left out", "the same facts in other words: see `expunge locate`"),
    ])  # fmt: skip


@guarded
def shred(actor: Actor, desk: DeskFolder = Path("desk")) -> None:
    """Destroy the salt of the suppression list: it matches nothing any more."""
    from expunge.desk.service import Desk
    from expunge.desk.suppress import shred_list

    shred_list(Desk(desk), actor=actor)
    print_facts(out(), [("Suppression list", "its salt is shredded: it matches nothing any more; "
                         "back-ups of the ledger may still hold it")])  # fmt: skip
