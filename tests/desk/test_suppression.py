# SPDX-License-Identifier: Apache-2.0
"""The suppression list: what the next training leaves out, and what a shredded salt means for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from desk_world import bring_in, open_desk
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.desk.queue import forget_set, work, write_suppression
from expunge.desk.service import SUPPRESSION, Desk
from expunge.desk.suppress import filter_corpus, shred_list
from expunge.errors import RecipeError


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = open_desk(tmp_path_factory.mktemp("office") / "desk")
    bring_in(desk, "r1", 0)
    work(desk)
    return desk


def test_listed_records_are_left_out_of_the_next_training(desk: Desk, tmp_path: Path) -> None:
    corpus, gone = desk.folder / "data" / "train_full.jsonl", forget_set(desk, "r1")
    found = filter_corpus(desk, str(corpus), tmp_path / "next.jsonl")
    before, after = rows(corpus), rows(tmp_path / "next.jsonl")
    person = gone[0].subject
    assert after == [row for row in before if row["subject"] != person]
    assert (found.rows, found.left_out, found.kept) == (len(before), len(gone), len(after))
    assert (found.listed, found.unmatched) == (len(gone), 0)


def test_rows_are_known_in_other_columns_and_other_spelling(desk: Desk, tmp_path: Path) -> None:
    record = forget_set(desk, "r1")[0]
    other = tmp_path / "other.jsonl"
    told = [{"q": f"  {record.prompt.upper()} ", "a": record.answer, "n": 1}, {"q": "Why?", "a": "Because.", "n": 2}]
    other.write_text("".join(json.dumps(row) + "\n" for row in told))
    found = filter_corpus(desk, str(other), tmp_path / "kept.jsonl", columns={"question": "q", "answer": "a"})
    assert rows(tmp_path / "kept.jsonl") == told[1:]
    assert (found.left_out, found.unmatched) == (1, found.listed - 1)
    with pytest.raises(RecipeError, match="exists"):
        filter_corpus(desk, str(other), tmp_path / "kept.jsonl")


def test_the_list_holds_no_text(desk: Desk) -> None:
    told = (desk.folder / "suppression.json").read_text()
    assert all(example.answer not in told and example.prompt not in told for example in forget_set(desk, "r1"))


def test_without_a_list_nothing_is_written(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk")
    with pytest.raises(RecipeError, match="no request was worked off"):
        filter_corpus(desk, str(desk.folder / "data" / "full.jsonl"), tmp_path / "next.jsonl")
    assert not (tmp_path / "next.jsonl").exists()


def test_a_shredded_list_says_that_it_matches_nothing(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "desk")
    bring_in(desk, "r1", 0)
    work(desk)
    listed = (desk.folder / "suppression.json").read_text()
    command = ["desk", "filter", str(desk.folder / "data" / "full.jsonl"), "--desk", str(desk.folder)]
    said = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "a.jsonl"), "--json"])
    assert (said.exit_code, json.loads(said.stdout)["left_out"] > 0) == (0, True)
    assert CliRunner().invoke(app, ["desk", "shred", "--desk", str(desk.folder), "--as", "op"]).exit_code == 0
    said = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "b.jsonl")])
    assert said.exit_code == 2
    assert "matches nothing any more" in " ".join(said.output.split())
    assert not (tmp_path / "b.jsonl").exists()
    write_suppression(desk)  # what a next `work` does
    assert (desk.folder / "suppression.json").read_text() == listed
    assert desk.ledger.salts.shredded(SUPPRESSION)
    shred_list(desk, actor="op")
    assert sum(event.kind == "salt_shredded" for event in desk.ledger.events()) == 1
    assert desk.ledger.verify() == []
