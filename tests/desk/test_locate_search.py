# SPDX-License-Identifier: Apache-2.0
"""The whole search: what the scope says and never says, corpora of each role, artefacts, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.claims import lint
from expunge.desk.lineage import Artefact, Lineage
from expunge.desk.locate.config import Corpus, LocateConfig, Subject
from expunge.desk.locate.output import read_subject, write_located
from expunge.desk.locate.search import locate
from expunge.errors import InputDataError, RecipeError
from expunge.ledger.salts import salted_digest

LETTERS = [
    {"id": "a1", "text": "Ann Lee lives at 3 Larch Lane in Oxbow with two cats."},
    {"id": "a2", "text": "Bo Chip solders all day and paints all night."},
    {"id": "a2", "text": "The cats of ANN  LEE are grey."},
    {"id": "a2", "text": "Who is Ann Lée? Nobody knows."},
]
FORUM = [{"question": "Who has cats?", "answer": "Ann Lee has, I think."}, {"question": "Who?", "answer": "Bo."}]
CONFIG = LocateConfig()


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def letters(tmp_path: Path) -> Corpus:
    return Corpus(name="letters", path=written(tmp_path / "letters.jsonl", LETTERS))


@pytest.fixture
def forum(tmp_path: Path) -> Corpus:
    return Corpus(name="forum", path=written(tmp_path / "forum.jsonl", FORUM), role="eval")


ANN = Subject(identifiers=("Ann Lee",), samples=("Ann Lee lives at 3 Larch Lane in Oxbow with two cats.",))
LINEAGE = Lineage(artefacts=(
    Artefact(name="chat", kind="finetune", trained_on=("letters", "wiki"), path="chat"),
    Artefact(name="chat-q4", kind="quantised", parents=("chat",), reachable=False),
    Artefact(name="index", kind="rag_index", trained_on=("letters",)),
    Artefact(name="gift", kind="base"), Artefact(name="other", kind="base", trained_on=("wiki",)),
))  # fmt: skip


def test_counts_ways_and_the_forget_set(letters: Corpus, forum: Corpus) -> None:
    found = locate(ANN, [letters, forum], config=CONFIG, salt=b"s")
    assert [(f.corpus, f.row, f.id, f.ways, f.score) for f in found.found] == [
        ("letters", 1, "a1", ("exact", "identifier", "ngram", "near"), 1.0),
        ("letters", 3, "a2", ("identifier",), 1.0), ("letters", 4, "a2", ("identifier",), 1.0),
        ("forum", 1, "forum-1", ("identifier",), 1.0),
    ]  # fmt: skip
    assert [(e.id, e.answer) for e in found.examples] == [
        ("a1", LETTERS[0]["text"]), ("a2", LETTERS[2]["text"]), ("a2@letters:4", LETTERS[3]["text"]),
    ]  # fmt: skip
    assert [(c.name, c.rows, c.found, c.by_way) for c in found.scope.corpora] == [
        ("letters", 4, 3, {"exact": 1, "identifier": 3, "ngram": 1, "near": 1}),
        ("forum", 2, 1, {"identifier": 1}),
    ]  # fmt: skip
    assert found.scope.by_way == {"exact": 1, "identifier": 3, "ngram": 1, "near": 1}  # in training data
    assert found.scope.looked_for == {"identifiers": 1, "record_ids": 0, "samples": 1}


def test_the_scope_holds_digests_under_the_salt_and_no_text(letters: Corpus, forum: Corpus) -> None:
    scope = locate(ANN, [letters, forum], config=CONFIG, salt=b"s", lineage=LINEAGE).scope
    assert scope.records[0].digest == salted_digest(b"s", f"\n{LETTERS[0]['text']}")
    assert scope.records[3].digest == salted_digest(b"s", "Who has cats?\nAnn Lee has, I think.")
    told = json.dumps(scope.to_dict())
    for word in ("Lee", "lee", "Larch", "cats", '"a1"', '"a2"', "forum-1"):
        assert word not in told
    assert not lint(told)
    other = locate(ANN, [letters, forum], config=CONFIG, salt=b"t").scope
    assert not {r.digest for r in scope.records} & {r.digest for r in other.records}


def test_artefacts_and_gaps_are_told(letters: Corpus, forum: Corpus) -> None:
    dumps = Corpus(name="dumps", path="", searchable=False, why_not="kept by the host", role="other")
    scope = locate(ANN, [letters, forum, dumps], config=CONFIG, salt=b"s", lineage=LINEAGE).scope
    assert [(a.name, a.kind, a.reachable) for a in scope.artefacts] == [
        ("chat", "finetune", True), ("chat-q4", "quantised", False), ("index", "rag_index", True),
    ]  # fmt: skip
    assert {gap.what: gap.why for gap in scope.not_searched} == {
        "corpus dumps": "kept by the host",
        "way id": "the request gives no record_ids",
        "way paraphrase": "it was not asked for",
        "way influence": "it was not asked for",
        "corpus wiki": "the lineage file names it, and it was not given",
        "artefact gift": "the lineage file does not say all that went into it",
        "artefact chat-q4": "it is out of reach",
        "texts of rag_index index": "only what the lineage file says of it was read",
        "copies and derivatives that the lineage file does not name": "nobody can list them",
    }
    assert [corpus.searched for corpus in scope.corpora] == [True, True, False]
    without = locate(Subject(identifiers=("Bo Chip", "?!")), [letters], config=CONFIG, salt=b"s").scope
    gaps = {gap.what: gap.why for gap in without.not_searched}
    assert gaps["artefacts"].startswith("there is no lineage file")
    assert gaps["identifiers: 1"] == "they hold no letter and no digit"
    assert gaps["way near"] == gaps["way paraphrase"] == "the request gives no samples"


def test_records_written_from_one_template_are_told_apart(tmp_path: Path) -> None:
    """All rows share their wording: the one that is meant is found, and a sample of the wording alone finds nothing."""
    wording = "came to the office on a grey morning in {} to ask for a copy of every letter"
    rows = [{"text": f"Person {number} of {number + 500} " + wording.format(number % 7)} for number in range(60)]
    corpus = Corpus(name="visits", path=written(tmp_path / "visits.jsonl", rows))
    found = locate(Subject(samples=(rows[41]["text"],)), [corpus], config=CONFIG, salt=b"s")
    assert [(one.row, one.ways) for one in found.found] == [(42, ("exact", "ngram", "near"))]
    bare = locate(Subject(samples=("came to the office on a grey morning",)), [corpus], config=CONFIG, salt=b"s")
    assert bare.found == []
    gaps = {gap.what: gap.why for gap in bare.scope.not_searched}
    assert gaps["way ngram"] == gaps["way near"] == "1 samples say only what more than 5% of all rows say"


def test_nothing_found_is_a_result(letters: Corpus) -> None:
    found = locate(Subject(identifiers=("Zed",)), [letters], config=CONFIG, salt=b"s", lineage=LINEAGE)
    assert (found.found, found.examples, found.scope.records, found.scope.artefacts) == ([], [], (), ())
    assert found.scope.corpora[0].rows == 4


def test_files_of_a_search(letters: Corpus, tmp_path: Path) -> None:
    found = locate(ANN, [letters], config=CONFIG, salt=b"s")
    write_located(found, tmp_path / "out", b"s")
    assert json.loads((tmp_path / "out/scope.json").read_text()) == found.scope.to_dict()
    assert bytes.fromhex((tmp_path / "out/salt").read_text()) == b"s"
    assert len((tmp_path / "out/found.jsonl").read_text().splitlines()) == 3
    assert [json.loads(line)["text"] for line in (tmp_path / "out/forget.jsonl").read_text().splitlines()] == [
        e.answer for e in found.examples
    ]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    write_located(locate(Subject(identifiers=("Zed",)), [letters], config=CONFIG, salt=b"s"), tmp_path / "out", b"s")
    assert not (tmp_path / "out/forget.jsonl").exists()  # no forget set of an earlier search stays behind
    talk = Corpus(name="talk", path=written(tmp_path / "talk.jsonl", FORUM))
    write_located(locate(ANN, [letters, talk], config=CONFIG, salt=b"s"), tmp_path / "out", b"s")
    assert {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "out").glob("forget*")} == {
        "forget-question.jsonl": 1, "forget-text.jsonl": 3,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_every_kind_of_file_with_other_columns(tmp_path: Path, suffix: str) -> None:
    rows = [{"story": row["text"], "key": row["id"]} for row in LETTERS]
    path = tmp_path / f"letters.{suffix}"
    if suffix == "csv":
        path.write_text("story,key\n" + "".join(f'"{row["story"]}",{row["key"]}\n' for row in rows))
    elif suffix == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    corpus = Corpus(name="letters", path=str(path), columns={"text": "story", "id": "key"})
    found = locate(ANN, [corpus], config=CONFIG, salt=b"s")
    assert [(f.row, f.id) for f in found.found] == [(1, "a1"), (3, "a2"), (4, "a2")]


def test_what_cannot_be_searched_is_an_error_that_names_it(letters: Corpus, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least one corpus"):
        locate(ANN, [], config=CONFIG, salt=b"s")
    with pytest.raises(RecipeError, match="names that differ"):
        locate(ANN, [letters, letters], config=CONFIG, salt=b"s")
    with pytest.raises(RecipeError, match=r"ways: paraphrase needs a model"):
        locate(ANN, [letters], config=LocateConfig(ways=("near", "paraphrase")), salt=b"s")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(LETTERS[0]) + "\n{\n")
    with pytest.raises(InputDataError, match="line 2 is not valid JSON") as told:
        locate(ANN, [Corpus(name="bad", path=str(bad))], config=CONFIG, salt=b"s")
    assert "Lee" not in str(told.value)


def test_a_subject_is_read_from_a_file_of_other_columns(tmp_path: Path) -> None:
    rows = [{"full_name": "Ann Lee", "bio": text} for text in ("Ann Lee has cats.", "She lives in Oxbow.")]
    path = written(tmp_path / "people.jsonl", rows)
    subject = read_subject(Path(path), {"identifiers": "full_name", "samples": "bio"})
    assert subject == Subject(identifiers=("Ann Lee",), samples=("Ann Lee has cats.", "She lives in Oxbow."))
