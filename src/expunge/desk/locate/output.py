# SPDX-License-Identifier: Apache-2.0
"""From a request file to what is looked for, and from what was found to files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.data.writing import write_examples
from expunge.desk.config import located
from expunge.desk.intake import RequestFile, read_requests
from expunge.desk.lineage import Artefact, Lineage, read_lineage
from expunge.desk.locate.config import BY_MODEL, Corpus, Subject
from expunge.desk.locate.scope import Located
from expunge.desk.locate.search import locate
from expunge.runs import write_json, write_text

if TYPE_CHECKING:
    from expunge.desk.service import Desk

#: The artefact that a desk without a lineage file knows of.
IN_USE = "model in use"
_HOLDOUT = "holdout"


def subject_of(files: Sequence[RequestFile]) -> Subject:
    """Return what some requests are about, together."""
    names = Subject.model_fields
    parts = {name: tuple(dict.fromkeys(text for file in files for text in getattr(file, name))) for name in names}
    return Subject(**parts)


def read_subject(path: Path, columns: Mapping[str, str] | None = None) -> Subject:
    """Return what a file of requests is about; a requester need not be in it. See `read_requests` for the rest."""
    return subject_of(read_requests(path, columns=columns, defaults={"requester": "unnamed"}))


def locate_request(desk: Desk, request: str) -> Located:
    """Search the corpora of a desk for a request; write down nothing.

    Raises:
        InputDataError: if the request's file or a corpus cannot be read.
        RecipeError: as `locate`.
    """
    config = desk.config
    corpora = [Corpus(name=name, path=located(desk.folder, source), columns=config.columns)
               for name, source in config.corpora.items()]  # fmt: skip
    if config.holdout is not None and _HOLDOUT not in config.corpora:
        path = located(desk.folder, config.holdout)
        corpora.append(Corpus(name=_HOLDOUT, path=path, columns=config.columns, role="eval"))
    # The model of the settings: of all models of the desk it is the one that saw most.
    model = located(desk.folder, config.model)
    return locate(
        subject_of([desk.request_file(request)]), corpora, config=config.locate, salt=desk.ledger.salts.of(request),
        model=model if set(config.locate.ways) & set(BY_MODEL) else None, lineage=lineage_of(desk),
    )  # fmt: skip


def lineage_of(desk: Desk) -> Lineage:
    """Return the lineage of a desk; without a file, that of the model in use, which the settings tell."""
    config = desk.config
    if config.lineage is not None:
        return read_lineage(Path(located(desk.folder, config.lineage)))
    own = Artefact(name=IN_USE, kind="checkpoint", path=located(desk.folder, config.model),
                   trained_on=tuple(config.corpora))  # fmt: skip
    return Lineage(artefacts=(own,))


def write_found(found: Located, folder: Path) -> None:
    """Write which rows were found, by which ways and how alike, one a line; ids and numbers, no text."""
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in found.found)
    write_text(folder / "found.jsonl", "".join(lines))


def write_located(found: Located, folder: Path, salt: bytes) -> None:
    """Write a search of its own into a folder that its owner alone can read.

    `scope.json` may be handed on; `salt`, `found.jsonl` and the forget set stay. Where corpora are of several kinds,
    which one file cannot hold, the forget set is one file a kind, such as `forget-question.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    write_json(folder / "scope.json", found.scope.to_dict())
    write_text(folder / "salt", salt.hex() + "\n")
    write_found(found, folder)
    for earlier in folder.glob("forget*.jsonl"):
        earlier.unlink()
    kinds = sorted({example.kind for example in found.examples})
    for kind in kinds:
        name = "forget.jsonl" if len(kinds) == 1 else f"forget-{kind}.jsonl"
        write_examples([example for example in found.examples if example.kind == kind], folder / name)
