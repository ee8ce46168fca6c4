# SPDX-License-Identifier: Apache-2.0
"""Read records wherever they are: our own folders, and the logs that TOFU, MUSE and OpenUnlearning write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.audit.published_muse import PARTS, kind_of, muse_records, part_of
from expunge.audit.published_open import is_open_log, open_records
from expunge.audit.published_tofu import is_section, set_of, tofu_records
from expunge.audit.published_values import SOURCE
from expunge.audit.records import Records
from expunge.audit.store import read_records
from expunge.errors import InputDataError

_KNOWN = (
    "Give a records folder, TOFU's eval_log_aggregated.json (or the folder of its eval_log*.json files), "
    "OpenUnlearning's TOFU_EVAL.json, or MUSE's folder with verbmem_f, knowmem_f, knowmem_r and privleak (or one file "
    "in them)"
)
_WHOLE = ("*eval_log_aggregated.json", "*TOFU_EVAL.json")
"""Files that hold the whole log of a model."""


def load_records(path: str | Path) -> Records:
    """Return the records at a path: a records folder, or a published log whose format is detected from its content.

    Args:
        path: a folder or a JSON file.

    Returns:
        Records; `meta` says what was read (`source`, `format`), the protocol, and what the log lacks.

    Raises:
        InputDataError: if nothing is there, the format is unknown, or a value cannot be used; it names what was found.
    """
    path = Path(path)
    if not path.exists():
        raise InputDataError("no such file or folder", field=SOURCE, value=str(path), remedy="Check the path")
    if path.is_file():
        return _from_file(path)
    return read_records(path) if (path / "scored.parquet").exists() else _from_folder(path)


def _from_file(path: Path) -> Records:
    value = _read(path)
    if is_open_log(value):
        return open_records(value, source=str(path))
    sections = _sections(value, path)
    if sections:
        return tofu_records(sections, source=str(path))
    part = part_of(path.parent.name, value) if kind_of(value) else None
    if part is not None:
        return muse_records([(part, path.name, value)], source=str(path))
    if kind_of(value):
        folders = ", ".join(PARTS)
        raise InputDataError(
            "a log of MUSE whose part is not known", field=SOURCE, value=str(path),
            remedy=f"Put it in a folder called after its part: {folders}",
        )  # fmt: skip
    raise _unknown(path, _shape(value))


def _from_folder(path: Path) -> Records:
    """Return the records of a folder: one aggregated log, the files of its sections, or the parts of MUSE."""
    whole = next((found for name in _WHOLE if (found := sorted(path.glob(name)) or sorted(path.rglob(name)))), [])
    if len(whole) == 1:
        return _from_file(whole[0])
    if whole:
        names = ", ".join(str(file.relative_to(path)) for file in whole)
        raise InputDataError("holds several logs", field=SOURCE, value=str(path), remedy=f"Name one of {names}")
    files = _muse_files(path)
    if files:
        return muse_records(files, source=str(path))
    values = {file.name: _read(file) for file in sorted(path.glob("*.json"))}
    sections = {name: value for name, value in values.items() if is_section(value) and set_of(name)}
    if sections:
        return tofu_records(sections, source=str(path))
    inside = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
    raise _unknown(path, f"a folder with {', '.join(inside[:12]) or 'nothing'}{' and more' * (len(inside) > 12)}")


def _sections(value: Any, path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the sections of a TOFU log: all of an aggregated one, or the only one of a file of its own."""
    if is_section(value):
        return {path.name: value}
    if not isinstance(value, Mapping):
        return {}
    # Some codes put the sections one level deeper, beside numbers they computed from them.
    levels = (value, *(inner for inner in value.values() if isinstance(inner, Mapping)))
    return next((found for level in levels if (found := {str(k): v for k, v in level.items() if is_section(v)})), {})


def _muse_files(path: Path) -> list[tuple[str, str, Any]]:
    """Return part, name and content of MUSE's files in a folder of one model, or in the folder of one part."""
    folders = [path / part for part in PARTS if (path / part).is_dir()] or ([path] if path.name in PARTS else [])
    out: list[tuple[str, str, Any]] = []
    for folder in folders:
        taken: set[str | None] = set()
        # `log.json` before the copies that others made of it.
        for file in sorted(folder.glob("*.json"), key=lambda file: (file.name != "log.json", file.name)):
            value = _read(file)
            kind = kind_of(value)
            if kind not in taken and kind is not None:
                out.append((PARTS[folder.name], f"{folder.name}/{file.name}", value))
            taken.add(kind)
    return out


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except UnicodeDecodeError:
        problem = "not text"
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg}, line {error.lineno})"
    raise _unknown(path, problem)


def _unknown(path: Path, found: str) -> InputDataError:
    return InputDataError(f"unknown format: {found}", field=SOURCE, value=str(path), remedy=_KNOWN)


def _shape(value: Any) -> str:
    """Say what a JSON value is, without its texts."""
    if isinstance(value, Mapping):
        keys = ", ".join(str(key)[:40] for key in list(value)[:8])
        return f"an object with the keys {keys or '(none)'}{' and more' * (len(value) > 8)}"
    if isinstance(value, list):
        return f"a list of {len(value)}" + (f", first {_shape(value[0])}" if value else "")
    return f"a value of type {type(value).__name__}"
