# SPDX-License-Identifier: Apache-2.0
"""What a search leaves out, in words: corpora, ways, and artefacts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import get_args

from expunge.desk.lineage import Lineage
from expunge.desk.locate.config import LOOKS_FOR, Corpus, LocateConfig, Subject, Way
from expunge.desk.locate.scope import NotSearched
from expunge.desk.locate.words import words

#: Artefacts that hold texts of their own, which may differ from the corpora they were made from.
_STORES = ("rag_index", "cache", "eval_set", "backup")


def gaps(
    subject: Subject, corpora: Sequence[Corpus], config: LocateConfig, lineage: Lineage | None,
    concerned: Collection[str], unread: Mapping[str, int],
) -> list[NotSearched]:  # fmt: skip
    """Return what was not searched, and why.

    Args:
        subject: what was looked for.
        corpora: where.
        config: by which ways.
        lineage: of the artefacts, if there is a file.
        concerned: names of corpora in which something was found.
        unread: rows that the model did not read, by corpus.
    """
    out = [NotSearched(what=f"corpus {corpus.name}", why=corpus.why_not)
           for corpus in corpora if not corpus.searchable]  # fmt: skip
    out += [NotSearched(what=f"rows of corpus {name} in other words", why=f"the model did not read the last {count}")
            for name, count in unread.items()]  # fmt: skip
    out += _of_ways(subject, config)
    out += _of_artefacts(corpora, lineage, concerned)
    return out


def _of_ways(subject: Subject, config: LocateConfig) -> Iterator[NotSearched]:
    for way in get_args(Way):
        looked_for = LOOKS_FOR[way]
        if not any(text.strip() for text in getattr(subject, looked_for)):
            yield NotSearched(what=f"way {way}", why=f"the request gives no {looked_for}")
        elif way not in config.ways:
            yield NotSearched(what=f"way {way}", why="it was not asked for")
    wordless = sum(not words(text) for text in subject.identifiers if text.strip())
    if wordless and "identifier" in config.ways:
        yield NotSearched(what=f"identifiers: {wordless}", why="they hold no letter and no digit")


def _of_artefacts(
    corpora: Sequence[Corpus], lineage: Lineage | None, concerned: Collection[str]
) -> Iterator[NotSearched]:
    if lineage is None:
        yield NotSearched(what="artefacts", why="there is no lineage file that says what saw the corpora")
        return
    given = {corpus.name for corpus in corpora}
    for name in lineage.corpora():
        if name not in given:
            yield NotSearched(what=f"corpus {name}", why="the lineage file names it, and it was not given")
    for artefact in lineage.unknown():
        yield NotSearched(what=f"artefact {artefact.name}", why="the lineage file does not say all that went into it")
    for artefact in lineage.saw(concerned):
        if not artefact.reachable:
            yield NotSearched(what=f"artefact {artefact.name}", why="it is out of reach")
        elif artefact.kind in _STORES and artefact.path not in {corpus.path for corpus in corpora}:
            yield NotSearched(what=f"texts of {artefact.kind} {artefact.name}",
                              why="only what the lineage file says of it was read")  # fmt: skip
    yield NotSearched(what="copies and derivatives that the lineage file does not name", why="nobody can list them")
