# SPDX-License-Identifier: Apache-2.0
"""Request files of every kind come in; what is none is refused without repeating what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.desk.intake import LARGEST, read_requests
from expunge.errors import InputDataError

SECRET = "Wilhelmina Quist, 3 Larch Lane"


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_our_own_columns(tmp_path: Path) -> None:
    file = lines(tmp_path / "r.jsonl", {"id": "r1", "requester": "case-1", "identifiers": ["Wilhelmina Quist"],
                                        "received": "2026-03-01T10:00:00+01:00", "what": "copyright"})  # fmt: skip
    found = read_requests(file)[0]
    assert (found.id, found.what, found.requester, found.identifiers) == ("r1", "copyright", "case-1",
                                                                          ("Wilhelmina Quist",))  # fmt: skip
    assert found.received.isoformat() == "2026-03-01T10:00:00+01:00"


def test_a_file_never_seen_before_goes_in_with_one_mapping(tmp_path: Path) -> None:
    file = lines(tmp_path / "people.jsonl",
                 {"case": "c1", "full_name": "Ada Byte", "biography": "Ada Byte wrote engines.", "shoe_size": 38},
                 {"case": "c2", "full_name": "Bo Chip", "biography": "Bo Chip solders."})  # fmt: skip
    mapping = {"requester": "case", "identifiers": "full_name", "samples": "biography"}
    found = read_requests(file, columns=mapping)
    assert [(f.requester, f.identifiers, f.samples) for f in found] == [
        ("c1", ("Ada Byte",), ("Ada Byte wrote engines.",)), ("c2", ("Bo Chip",), ("Bo Chip solders.",)),
    ]  # fmt: skip


def test_the_subject_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    one = read_requests(lines(tmp_path / "a.jsonl", {"requester": "a", "identifiers": ["Ada  Byte", "ADA@x.org"]}))[0]
    two = read_requests(lines(tmp_path / "b.jsonl", {"requester": "b", "identifiers": ["ada@x.org", "ada byte"]}))[0]
    other = read_requests(lines(tmp_path / "c.jsonl", {"requester": "b", "samples": ["ada@x.org", "ada byte"]}))[0]
    assert one.subject() == two.subject() != other.subject()


@pytest.mark.parametrize(
    "row",
    [
        {"requester": "case-1"}, {"requester": "case-1", "identifiers": ["  "]}, {"identifiers": [SECRET]},
        {"requester": SECRET, "identifiers": ["x"]}, {"requester": "c", "identifiers": ["x"], "what": SECRET},
        {"requester": "c", "identifiers": ["x"], "id": "../../etc/passwd"},
        {"requester": "c", "identifiers": ["x"], "received": "2026-03-01"},
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_without_repeating_it(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(InputDataError) as told:
        read_requests(lines(tmp_path / "r.jsonl", row))
    assert "Quist" not in str(told.value)
    assert "passwd" not in str(told.value)


def test_files_that_cannot_be_meant(tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_text("x" * (LARGEST + 1))
    with pytest.raises(InputDataError, match="larger than"):
        read_requests(big)
    with pytest.raises(InputDataError, match="no such file"):
        read_requests(tmp_path / "none.jsonl")
    with pytest.raises(InputDataError, match="no column of a request"):
        read_requests(big.with_name("r.jsonl"), columns={"name": "full_name"})
