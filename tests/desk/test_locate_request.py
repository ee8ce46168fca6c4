# SPDX-License-Identifier: Apache-2.0
"""Requests of a desk are located; files of a kind never seen here go through with one mapping option."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from desk_world import open_desk
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.desk.intake import RequestFile
from expunge.desk.locate.output import read_subject
from expunge.desk.service import Desk
from expunge.errors import InputDataError, RecipeError
from expunge.ledger.canonical import digest
from expunge.ledger.states import State


def call(*words: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*map(str, words)])
    return found.exit_code, " ".join(found.output.split())


def asked(desk: Desk, **about: tuple[str, ...]) -> Desk:
    desk.intake(RequestFile(id="r1", requester="case-1", **about), actor="op")
    desk.move("r1", State.VERIFIED, actor="op")
    return desk


def test_a_located_request_is_in_the_ledger_and_its_records_are_not(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk", holdout="data/holdout.jsonl")
    name = desk.corpora()["archive"][0].prompt.removeprefix("Where was ").removesuffix(" born?")
    found = asked(desk, identifiers=(name,)).locate("r1", actor="op")
    own = [e for e in desk.corpora()["archive"] if name in e.answer or name in e.prompt]
    assert [e.answer for e in found.examples] == [e.answer for e in own]
    assert [(c.name, c.role) for c in found.scope.corpora] == [("archive", "train"), ("holdout", "eval")]
    event = desk.ledger.request("r1").last("scope")
    assert event is not None
    assert desk.ledger.request("r1").state is State.LOCATED
    scope = json.loads(desk.path("r1", "scope.json").read_text())
    assert event.body["scope_digest"] == digest(scope)
    assert (event.body["records"], event.body["by_way"]) == (len(own), {"identifier": len(own)})
    assert (event.body["artefacts"], event.body["not_searched"]) == (1, len(scope["not_searched"]))
    assert scope["artefacts"] == [{"name": "model in use", "kind": "checkpoint", "reachable": True}]
    for text in (name, own[0].answer):
        assert text not in desk.path("r1", "scope.json").read_text()
    wanted = {desk.ledger.salts.digest("r1", f"{e.prompt}\n{e.answer}") for e in own}
    assert {record["digest"] for record in scope["records"]} == wanted
    assert len(desk.path("r1", "found.jsonl").read_text().splitlines()) == len(own)
    desk.plan("r1", "grad_diff", actor="op", settings={"training": {"learning_rate": 1e-3}})


def test_the_settings_choose_ways_and_lineage(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    desk = open_desk(folder, lineage="lineage.yaml", locate={"ways": ["exact", "paraphrase"], "calibration": 64})
    (folder / "lineage.yaml").write_text("artefacts: [{name: m, kind: finetune, trained_on: [archive], path: base}, "
                                         "{name: q, kind: quantised, parents: [m]}]")  # fmt: skip
    row = desk.corpora()["archive"][3]
    scope = asked(desk, samples=(f"{row.prompt} {row.answer}",)).locate("r1", actor="op").scope
    assert [artefact.name for artefact in scope.artefacts] == ["m", "q"]
    assert set(scope.by_way) == {"exact", "paraphrase"}
    assert set(scope.thresholds) == {"paraphrase"}


def test_what_was_searched_in_vain_is_kept_for_the_refusal(tmp_path: Path) -> None:
    desk = asked(open_desk(tmp_path / "desk"), identifiers=("Nobody Here",))
    with pytest.raises(RecipeError, match="nothing was found"):
        desk.locate("r1", actor="op")
    kept = json.loads(desk.path("r1", "nothing-found.json").read_text())
    assert kept["corpora"][0]["rows"] == len(desk.corpora()["archive"])
    assert not desk.path("r1", "scope.json").exists()
    assert desk.ledger.request("r1").state is State.VERIFIED


def test_a_request_that_was_not_verified_is_not_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = open_desk(tmp_path / "desk")
    desk.intake(RequestFile(id="r1", requester="case-1", identifiers=("x",)), actor="op")
    monkeypatch.setattr(Desk, "request_file", lambda *_: pytest.fail("it was looked into"))
    with pytest.raises(RecipeError, match="received cannot become located"):
        desk.locate("r1", actor="op")


def test_a_lineage_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    desk = asked(open_desk(tmp_path / "desk", lineage="nowhere.yaml"), identifiers=("x",))
    with pytest.raises(RecipeError, match="lineage: cannot be read"):
        desk.locate("r1", actor="op")


NAMES = ("Ada Byte", "Bo Chip", "Cy Disk", "Di Edge", "Ed Fuse", "Flo Gate", "Gus Hash", "Ida Jack")


def record(name: str, rng: Random) -> dict[str, object]:
    """A personal record: many columns, one of which tells all of it in words."""
    phone, street = f"+49 30 {rng.randrange(10**6, 10**7)}", f"{rng.randrange(99)} Larch Lane"
    return {"requester": f"case-{name[:2].lower()}", "name": name, "phone": phone, "shoe_size": 40,
            "details": f"{name} can be called at {phone} and lives at {street} in Oxbow."}  # fmt: skip


def biography(name: str, rng: Random) -> dict[str, object]:
    year = rng.randrange(1900, 2000)
    text = (f"{name} was born in {year} in Oxbow, learned to mend clocks from an aunt, and opened a workshop in "
            f"{year + rng.randrange(20, 40)} by the canal.")  # fmt: skip
    return {"requester": f"case-{name[:2].lower()}", "biography": text}


def story(name: str, rng: Random) -> dict[str, object]:
    beast = rng.choice(("heron", "badger", "otter", "hare"))
    return {"requester": f"case-{name[:2].lower()}", "tale": f"Once a {beast} met {name} at the mill. They talked "
            f"until dusk, and {rng.randrange(2, 90)} days later the {beast} came back with a key."}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "column"), [(record, "details"), (biography, "biography"), (story, "tale")], ids=["record", "life", "tale"]
)
def test_a_request_file_of_a_kind_never_seen_goes_through_with_one_mapping_option(
    tmp_path: Path, make: object, column: str
) -> None:
    """From the file that came in to an approved plan; the corpus, in the same columns, needs one line of settings."""
    rng, folder = Random(5), tmp_path / "desk"
    rows = [make(name, rng) for name in NAMES]  # type: ignore[operator]
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    desk = open_desk(folder, corpora={"corpus": "corpus.jsonl"}, columns={"text": column}, four_eyes=False)
    (tmp_path / "asked.jsonl").write_text(json.dumps(rows[2] | {"id": "r1"}) + "\n")
    words = ("--desk", folder, "--as", "op")
    for line in (
        ("add", tmp_path / "asked.jsonl", *words, "--column", f"samples={column}"),
        ("move", "r1", "verified", *words), ("locate", "r1", *words),
        ("plan", "r1", "--method", "grad_diff", *words), ("approve", "r1", *words),
    ):  # fmt: skip
        code, said = call("request", *line)
        assert code == 0, said
        if line[0] == "locate":
            assert "1 rows, 1 of them in training data" in said
    assert [json.loads(line)["text"] for line in desk.path("r1", "forget.jsonl").read_text().splitlines()] == [
        rows[2][column]
    ]
    assert desk.ledger.request("r1").state is State.APPROVED
    code, said = call("work", "--desk", folder)
    assert code == 0, said
    assert desk.ledger.request("r1").state is State.CERTIFIED


def test_locate_from_the_command_line(tmp_path: Path) -> None:
    open_desk(tmp_path)
    corpus = tmp_path / "data/train_full.jsonl"
    row = json.loads(corpus.read_text().splitlines()[0])
    subject = tmp_path / "subject.jsonl"
    subject.write_text(json.dumps({"quote": f"{row['question']} {row['answer']}"}))
    base = ("locate", subject, "--column", "samples=quote", "--corpus", f"archive={corpus}")
    code, said = call(*base, "--not-searched", "logs=kept by the host", "-o", tmp_path / "out")
    assert code == 0, said
    assert "1 rows, 1 of them in training data" in said
    assert "corpus logs: kept by the host" in said
    assert json.loads((tmp_path / "out/forget.jsonl").read_text())["answer"] == row["answer"]
    code, said = call(*base, "--way", "exact", "--way", "paraphrase", "--model", tmp_path / "base", "--json")
    scope = json.loads(said[said.index("{") :])
    assert code == 0
    assert scope["corpora"][0]["by_way"]["exact"] == 1
    assert 0 < scope["thresholds"]["paraphrase"]["value"] < 1
    assert row["answer"] not in said
    for words, code, told in (
        (("--way", "exakt"), 2, "Did you mean 'exact'"), (("--set", "near=2"), 2, "locate.near"),
        (("--way", "paraphrase"), 2, "needs a model"), (("--other", f"x={tmp_path / 'no.jsonl'}"), 6, "no such file"),
        (("--lineage", tmp_path / "no.yaml"), 2, "lineage"), (("--eval", "x"), 2, "NAME=FILE"),
    ):  # fmt: skip
        found = call(*base, *words)
        assert (found[0], told in found[1]) == (code, True), found


def test_the_file_of_a_subject_is_refused_without_repeating_it(tmp_path: Path) -> None:
    subject = tmp_path / "subject.jsonl"
    subject.write_text('{"name": "Wilhelmina Quist"}')
    with pytest.raises(InputDataError, match="names nobody") as told:
        read_subject(subject)
    assert "Quist" not in str(told.value)
