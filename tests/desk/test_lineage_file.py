# SPDX-License-Identifier: Apache-2.0
"""The lineage file: what saw a corpus, in order, and files that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.desk.lineage import Lineage, read_lineage
from expunge.errors import RecipeError

# base(web) -> chat(letters) -> chat4bit, chat+other(merge of chat, sibling) ; sibling(forum); index(letters); gift()
FILE = """
artefacts:
  - {name: merged, kind: merge, parents: [sibling, chat]}
  - {name: chat4bit, kind: quantised, parents: [chat], path: q, reachable: false}
  - {name: base, kind: base, trained_on: [web]}
  - {name: chat, kind: finetune, parents: [base], trained_on: [letters], sisa: shards}
  - {name: sibling, kind: adapter, parents: [base], trained_on: [forum],
     privacy: {epsilon: 3.5, delta: 1.0e-6, unit: subject, run: private}}
  - {name: index, kind: rag_index, trained_on: [letters, forum]}
  - {name: gift, kind: base}
  - {name: gift-tuned, kind: finetune, parents: [gift], trained_on: [forum]}
"""


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    (tmp_path / "lineage.yaml").write_text(FILE)
    for name in ("q", "shards", "private"):
        (tmp_path / name).mkdir()
    return read_lineage(tmp_path / "lineage.yaml")


def names(artefacts: list[object]) -> list[str]:
    return [artefact.name for artefact in artefacts]  # type: ignore[attr-defined]


def test_what_saw_a_corpus_includes_what_was_made_from_it_parents_first(lineage: Lineage) -> None:
    assert names(lineage.saw(["letters"])) == ["chat", "chat4bit", "merged", "index"]
    assert names(lineage.saw(["forum"])) == ["sibling", "merged", "index", "gift-tuned"]
    assert names(lineage.saw(["web"])) == ["base", "chat", "chat4bit", "sibling", "merged"]
    assert lineage.saw([]) == lineage.saw(["never trained on"]) == []
    assert lineage.corpora() == ["forum", "letters", "web"]


def test_what_the_file_is_silent_about_may_have_seen_anything(lineage: Lineage) -> None:
    assert names(lineage.unknown()) == ["gift", "gift-tuned"]


def test_where_training_without_a_corpus_can_start(lineage: Lineage) -> None:
    assert names(lineage.starts("merged", ["letters"])) == ["sibling", "base"]
    assert names(lineage.starts("merged", ["letters", "forum"])) == ["base"]
    assert names(lineage.starts("merged", ["web"])) == []
    assert names(lineage.starts("gift-tuned", ["web"])) == []  # gift is not known to be free of it


def test_facts_come_with_paths_as_seen_from_here(lineage: Lineage, tmp_path: Path) -> None:
    chat, sibling = lineage.artefact("chat"), lineage.artefact("sibling")
    assert chat.sisa == str(tmp_path / "shards")
    assert sibling.privacy is not None
    assert (sibling.privacy.epsilon, sibling.privacy.run) == (3.5, str(tmp_path / "private"))
    assert lineage.artefact("chat4bit").path == str(tmp_path / "q")
    assert not lineage.artefact("chat4bit").reachable


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("artefacts: [{name: a, kind: base, parents: [b]}]", r"a is made from an artefact that is not here .got 'b'"),
        ("artefacts: [{name: a, kind: base}, {name: a, kind: cache}]", "two artefacts have this name"),
        ("artefacts: [{name: o, kind: base, parents: [c]}, {name: a, kind: base, parents: [c]}, "
         "{name: b, kind: base, parents: [a]}, {name: c, kind: base, parents: [b]}]",
         r"made from each other .got 'c from b from a from c'"),
        ("artefacts: [{name: a, kind: base, parents: [a]}]", "'a from a'"),
        ("artefacts: [{name: a, kind: copy}]", r"kind: no such value .got 'copy'"),
        ("artefacts: [{name: a, kind: base, parnets: []}]", "parnets: no such key"),
        ("artefacts: []", "lineage.artefacts"), ("- a", "lineage"), ("{", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "lineage.yaml").write_text(text)
    with pytest.raises(RecipeError, match=told):
        read_lineage(tmp_path / "lineage.yaml")


def test_an_unknown_name_is_told_with_the_nearest(lineage: Lineage) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'chat'"):
        lineage.artefact("chta")
