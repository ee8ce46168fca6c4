# SPDX-License-Identifier: Apache-2.0
"""Where rows come from: files, the hub, or memory. Errors name lines and columns, never the text of an example."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from expunge.data.examples import Example
from expunge.errors import InputDataError

Source = str | os.PathLike[str] | Iterable[Mapping[str, Any] | Example]

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:\[(?P<split>.+)\])?")


class Row(NamedTuple):
    """One row and where it stands (`line 3` of a text file, `row 3` elsewhere; both count from 1)."""

    place: str
    value: Mapping[str, Any] | Example


def read_rows(source: Source, *, field: str) -> Iterator[Row]:
    """Return the rows of a file, a hub dataset or a sequence, one after the other and one in memory at a time.

    A Parquet file is held by row groups, and a JSON array as a whole.

    Args:
        source: path, hub id (`owner/name`, optional `:config` and `[split]`), or mappings / examples in memory.
        field: how errors call this source.

    Raises:
        InputDataError: if the source is missing, unreadable or not of a known form.
    """
    if not isinstance(source, str | os.PathLike):
        return _memory_rows(source, field)
    path = Path(source).expanduser()
    if path.exists():
        return _reader_for(path, field)(path, field)
    hub = _HUB_ID.fullmatch(source) if isinstance(source, str) else None
    # `data/forget.jsonl` has the form of a hub id too, but whoever writes a suffix means a file.
    if hub is None or path.suffix.lower() in _READERS:
        raise InputDataError("no such file", field=field, value=str(source), remedy="Check the path")
    return _hub_rows(hub, field)


def not_a_row(field: str, place: str, value: object) -> InputDataError:
    """Return the error for a row that is not an object with columns."""
    kind = type(value).__name__
    remedy = 'Write it as {"text": ...} or with columns'
    return InputDataError(f"{place} is of type {kind}, not an object with columns", field=field, remedy=remedy)


def _memory_rows(source: Iterable[Mapping[str, Any] | Example], field: str) -> Iterator[Row]:
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InputDataError(
            f"a {type(source).__name__} is not a sequence of examples",
            field=field,
            remedy="Give a path, a hub id, one split of a dataset, or a list of mappings",
        )
    for number, value in enumerate(source, start=1):
        if not isinstance(value, Mapping | Example):
            raise not_a_row(field, f"row {number}", value)
        yield Row(f"row {number}", value)


def _reader_for(path: Path, field: str) -> Callable[[Path, str], Iterator[Row]]:
    known = ", ".join(_READERS)
    if path.is_dir():
        raise InputDataError("this is a folder", field=field, value=str(path), remedy=f"Name one file in it: {known}")
    if path.suffix.lower() not in _READERS:
        raise InputDataError(
            "unknown kind of file", field=field, value=str(path), remedy=f"Name it by what it holds: {known}"
        )
    return _READERS[path.suffix.lower()]


def _lines(path: Path, field: str, newline: str) -> Iterator[str]:
    """Yield the lines of a file with their ends, one in memory at a time; `newline` as in `open`."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield from file
        return
    except OSError as error:
        raise InputDataError(f"cannot be read: {error.strerror}", field=field, value=str(path)) from error
    except UnicodeDecodeError:
        pass
    # Raised outside the handler: the decoding error carries bytes of the file with it.
    raise InputDataError(
        f"not UTF-8 at byte offset {_first_bad_byte(path)}", field=field, value=str(path),
        remedy="Convert it, for example with iconv",
    )  # fmt: skip


def _first_bad_byte(path: Path) -> int:
    """Return the offset of the first byte that is not UTF-8; a line end is never part of another character."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return offset + error.start
            offset += len(line)
    return offset


def _parse(text: str, path: Path, field: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, problem = first_line + error.lineno - 1, error.msg
    raise InputDataError(
        f"line {line} is not valid JSON: {problem}",
        field=field,
        value=str(path),
        remedy="Write one JSON object a line, or one array of objects",
    )


def _json_rows(path: Path, field: str) -> Iterator[Row]:
    # Cut at line feeds alone: other separators may stand inside a JSON string.
    lines = enumerate(_lines(path, field, "\n"), start=1)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip()[:1] == "[":  # an array is read as a whole
        text = first[1] + "".join(line for _, line in lines)
        for number, value in enumerate(_parse(text, path, field, first[0]), start=1):
            yield _json_row(value, f"row {number}", field)
        return
    for number, line in chain((first,), lines):
        if line.strip():
            yield _json_row(_parse(line.rstrip("\n"), path, field, number), f"line {number}", field)


def _json_row(value: object, place: str, field: str) -> Row:
    if isinstance(value, str):  # a bare string is a running text
        return Row(place, {"text": value})
    if not isinstance(value, Mapping):
        raise not_a_row(field, place, value)
    return Row(place, value)


def _csv_rows(path: Path, field: str) -> Iterator[Row]:
    reader = csv.DictReader(_lines(path, field, ""), strict=True)
    try:
        for value in reader:
            if None in value or None in value.values():
                raise InputDataError(
                    f"line {reader.line_num} has another number of cells than the header",
                    field=field,
                    value=str(path),
                    remedy="Quote cells that hold commas or line breaks",
                )
            yield Row(f"line {reader.line_num}", {k: v for k, v in value.items() if v != ""})
    except csv.Error as error:
        raise InputDataError(
            f"line {reader.line_num} is not valid CSV: {error}", field=field, value=str(path), remedy="Or use JSONL"
        ) from error


def _parquet_rows(path: Path, field: str) -> Iterator[Row]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise InputDataError("not a readable Parquet file", field=field, value=str(path)) from error
    values = (value for batch in file.iter_batches() for value in batch.to_pylist())
    yield from (Row(f"row {number}", value) for number, value in enumerate(values, start=1))


def _hub_rows(hub: re.Match[str], field: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_dataset

    try:
        found = load_dataset(hub["id"], name=hub["config"], split=hub["split"])
    except (OSError, ValueError) as error:
        raise InputDataError(
            f"neither a file nor a dataset the hub gives: {error}",
            field=field,
            value=hub.string,
            remedy="Check the path, or write owner/name:config[split]; HF_HUB_OFFLINE must be unset to download",
        ) from error
    if isinstance(found, DatasetDict):
        if len(found) > 1:
            raise InputDataError(
                f"the dataset has the splits {', '.join(found)}",
                field=field,
                value=hub.string,
                remedy=f"Choose one: {hub.string}[{next(iter(found))}]",
            )
        found = next(iter(found.values()))
    return _memory_rows(found, field)


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".ndjson": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
}
