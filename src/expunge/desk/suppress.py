# SPDX-License-Identifier: Apache-2.0
"""The suppression list at work: a corpus for the next training, without the records of requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expunge.data.loaders import stream_examples
from expunge.data.sources import read_rows
from expunge.desk.locate.scope import text_of
from expunge.desk.service import SUPPRESSION, Desk
from expunge.errors import InputDataError, RecipeError
from expunge.ledger.bodies import Shredded
from expunge.ledger.salts import salted_digest
from expunge.runs import disk_error

LIST = "suppression.json"


@dataclass(frozen=True, slots=True)
class Filtered:
    """What came of a corpus: rows read and left out, digests on the list, and those of them that no row had."""

    rows: int
    left_out: int
    listed: int
    unmatched: int

    @property
    def kept(self) -> int:
        """Rows that were written."""
        return self.rows - self.left_out


def filter_corpus(desk: Desk, corpus: str, output: Path, *, columns: Mapping[str, str] | None = None) -> Filtered:
    """Write a corpus without the records whose digests are on the list, one row in memory at a time.

    A record is known by its prompt and answer, up to case, spacing and Unicode form; the same fact in other words is
    not.

    Args:
        desk: whose list.
        corpus: file of examples.
        output: JSON Lines; the rows that stay, with all of their columns.
        columns: our column names to those of the corpus; default: those of the desk.

    Raises:
        RecipeError: if there is no list, its salt was shredded so that it matches nothing, or the file exists.
        InputDataError: for a corpus that cannot be read.
    """
    if output.exists():
        raise RecipeError("exists", field="--output", value=str(output), remedy="Choose another file")
    listed, salt = _digests(desk), desk.ledger.salts.of(SUPPRESSION)
    partial, matched, rows, left_out = output.with_name(f".{output.name}.partial"), set[str](), 0, 0
    names = dict(columns) if columns is not None else desk.config.columns
    examples = stream_examples(corpus, name="corpus", columns=names or None)
    try:
        with partial.open("w", encoding="utf-8") as file:
            for (_, row), example in zip(read_rows(corpus, field="corpus"), examples, strict=True):
                found, rows = salted_digest(salt, text_of(example)), rows + 1
                if found in listed:
                    matched.add(found)
                    left_out += 1
                else:
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        partial.replace(output)
    except OSError as error:
        raise disk_error(error, output) from error
    finally:
        partial.unlink(missing_ok=True)
    return Filtered(rows, left_out, len(listed), len(listed - matched))


def shred_list(desk: Desk, *, actor: str) -> None:
    """Destroy the salt of the list: its digests match nothing any more, and no record is put on it again."""
    desk.ledger.salts.shred(SUPPRESSION)
    desk.ledger.append(Shredded(), actor=actor, once=f"{SUPPRESSION}:shredded")


def _digests(desk: Desk) -> set[str]:
    if desk.ledger.salts.shredded(SUPPRESSION):
        raise RecipeError("its salt was shredded: it matches nothing any more", field="suppression list",
                          remedy="Take the records out by their ids, if you still know them")  # fmt: skip
    try:
        return set(json.loads((desk.folder / LIST).read_text("utf-8"))["digests"])
    except FileNotFoundError as error:
        raise RecipeError("there is none: no request was worked off", field="suppression list",
                          remedy="expunge work writes it") from error  # fmt: skip
    except (ValueError, KeyError) as error:
        raise InputDataError(f"cannot be read: {error}", field="suppression list", value=str(desk.folder / LIST),
                             remedy="The next expunge work writes it again") from error  # fmt: skip
