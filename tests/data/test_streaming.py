# SPDX-License-Identifier: Apache-2.0
"""Rows are read one at a time: what is wrong far down is not met before it is reached, and places stay right."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from expunge.data.loaders import load_examples, stream_examples
from expunge.data.sources import read_rows
from expunge.errors import InputDataError, RecipeError


def test_a_bad_line_is_met_when_it_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n{\n')
    rows = read_rows(str(path), field="x")
    assert [row.place for row in islice(rows, 2)] == ["line 1", "line 3"]
    with pytest.raises(InputDataError, match="line 4 is not valid JSON"):
        next(rows)


def test_line_separators_inside_strings_part_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = "one\u2028two\x85three\x0cfour"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps({"text": text}, ensure_ascii=False) + "\r\n").encode() * 2)
    assert [row.value for row in read_rows(str(path), field="x")] == [{"text": text}] * 2


def test_arrays_over_several_lines_and_after_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n \n" + json.dumps([{"text": "one"}, {"text": "two"}], indent=2))
    assert [(row.place, row.value["text"]) for row in read_rows(str(path), field="x")] == [  # type: ignore[index]
        ("row 1", "one"), ("row 2", "two"),
    ]  # fmt: skip
    path.write_text('\n[{"text": "one"},\n{]')
    with pytest.raises(InputDataError, match="line 3 is not valid JSON"):
        list(read_rows(str(path), field="x"))
    path.write_text("\n \n")
    assert list(read_rows(str(path), field="x")) == []


def test_a_byte_that_is_no_text_is_told_by_its_offset_however_far_down(tmp_path: Path) -> None:
    good = (
        b'{"text": "caf\xc3\xa9 \xf0\x9f\x90\x88"}\n' * 40_000
    )  # the decoder reads in blocks; the offset is in the file
    for name, head in (("a.jsonl", good), ("a.csv", b"text\n" + b"caf\xc3\xa9\n" * 100_000)):
        (tmp_path / name).write_bytes(head + b"\xff\n")
        with pytest.raises(InputDataError, match=f"not UTF-8 at byte offset {len(head)}") as told:
            list(read_rows(str(tmp_path / name), field="x"))
        assert told.value.__context__ is None  # a decoding error would carry bytes of the file with it


def test_cells_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\r\n"one\r\ntwo",a\r\nthree,b\r\n')
    assert [row.value for row in read_rows(str(path), field="x")] == [
        {"text": "one\r\ntwo", "id": "a"}, {"text": "three", "id": "b"},
    ]  # fmt: skip


def test_streamed_examples_are_those_that_are_loaded_but_for_repeated_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two", "id": "x"}\n')
    assert list(stream_examples(str(path), name="a")) == load_examples(str(path), name="a")
    path.write_text('{"text": "one", "id": "x"}\n{"text": "two", "id": "x"}\n')
    assert [example.answer for example in stream_examples(str(path), name="a")] == ["one", "two"]
    with pytest.raises(InputDataError, match="have the same id"):
        load_examples(str(path), name="a")
    with pytest.raises(RecipeError, match="not a column"):
        next(stream_examples(str(path), name="a", columns={"txt": "text"}))
