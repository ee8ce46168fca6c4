# SPDX-License-Identifier: Apache-2.0
"""The run folder: what a run leaves behind, valid at every moment, even if the run dies."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError, Interrupted, RecipeError

RUN_VERSION = 1


def write_text(path: Path, text: str) -> None:
    """Write a file in one rename, so that no reader ever sees half of it.

    Raises:
        ExpungeError: if the disk is full or the folder cannot be written, naming it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one rename; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


#: What the system answers when there is no room (the last one: for a file of this size), and when writing is forbidden.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def disk_error(error: OSError, path: Path) -> ExpungeError:
    """Turn a failed write into an error that says what to do."""
    if error.errno in _FULL:
        return ExpungeError(
            f"the disk is full: {error.strerror}", field="output_dir", value=str(path),
            remedy="Free space, then go on with --resume",
        )  # fmt: skip
    return RecipeError(
        f"cannot be written: {error.strerror}", field="output_dir", value=str(path),
        remedy="Choose a folder you may write to",
    )  # fmt: skip


def _failed_write(error: BaseException) -> OSError | None:
    """Return the failed write behind an error, also where a library says it in its own way; None if there is none."""
    if isinstance(error, OSError) and error.errno in (*_FULL, *_FORBIDDEN):
        return error
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return seen
        said = re.search(r"\(os error (\d+)\)", str(seen))  # how libraries written in Rust say it
        if said and int(said[1]) in _FULL:
            return OSError(int(said[1]), os.strerror(int(said[1])))
        seen = seen.__cause__ or seen.__context__
    return None


def read_run(path: Path) -> dict[str, Any]:
    """Return the `run.json` of a run folder, or {} if there is none."""
    file = path / "run.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}


def earlier_run(path: Path, recipe_hash: str) -> dict[str, Any]:
    """Return the `run.json` of the run to go on with, or {} if there is none.

    Raises:
        RecipeError: if it was made with another recipe.
    """
    found = read_run(path)
    if found and found.get("recipe_hash") != recipe_hash:
        raise RecipeError(
            "the run was made with another recipe", field="--resume", value=str(path),
            remedy="Use the same recipe and options, or --overwrite",
        )  # fmt: skip
    return found


def check_output(path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise what would keep a run from being written to `path`; nothing is written or deleted.

    Raises:
        RecipeError: if the folder exists and neither was asked for, if it is not a run and would be overwritten, or
            if it cannot be written.
    """
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        _check_existing(path, overwrite=overwrite, resume=resume)
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise disk_error(NotADirectoryError(errno.ENOTDIR, f"{nearest} is a file"), path)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise disk_error(PermissionError(errno.EACCES, f"{nearest} is read-only"), path)


def _check_existing(path: Path, *, overwrite: bool, resume: bool) -> None:
    is_run = (path / "run.json").exists()
    if is_run and (resume or overwrite):
        return
    if is_run:
        raise RecipeError(
            "already holds a run", field="output_dir", value=str(path),
            remedy="Use --overwrite to start again or --resume to go on",
        )  # fmt: skip
    raise RecipeError(
        "exists, is not empty and holds no run", field="output_dir", value=str(path),
        remedy="Choose another folder; a folder that is not a run is never overwritten",
    )  # fmt: skip


def _sweep(path: Path) -> None:
    """Delete what a killed process left half-written: everything that is renamed at its end begins with a dot."""
    for leftover in [*path.glob(".model-*"), *path.rglob(".*partial*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


class RunFolder:
    """One run's folder and its `run.json`.

    Args:
        path: the folder.
        overwrite: delete an existing run first.
        resume: go on with an existing run; what its process left half-written is deleted.

    Raises:
        RecipeError: if the folder exists and neither was asked for, if it is not a run and would be overwritten, or
            if it cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.path = path
        check_output(path, overwrite=overwrite, resume=resume)
        try:
            if overwrite and not resume and (path / "run.json").exists():
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
            if resume:
                _sweep(path)
        except OSError as error:
            raise disk_error(error, path) from error
        os.chmod(path, 0o700)
        self._started = time.perf_counter()
        self.info: dict[str, Any] = read_run(path) if resume else {}

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge `values` into `run.json` and write it."""
        self.info |= {"schema_version": RUN_VERSION, **values}
        write_json(self.path / "run.json", self.info)

    def start(self, values: Mapping[str, Any]) -> None:
        """Write the first state of a run."""
        self.update({"status": "running", "started": datetime.now(UTC).isoformat(timespec="seconds"), **values})

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep `run.json` true whatever happens inside: it ends as finished, interrupted or failed.

        Raises:
            ExpungeError: if a write inside failed for want of room or permission; anything else as it was raised.
        """
        try:
            yield
        except (Interrupted, KeyboardInterrupt) as error:
            self.finish("interrupted", error)
            raise
        except BaseException as error:
            cause = None if isinstance(error, ExpungeError) else _failed_write(error)
            failure = error if cause is None else disk_error(cause, self.path)
            with suppress(
                ExpungeError
            ):  # on a full disk this write fails too, and the first failure is the one to show
                self.finish("failed", failure)
            if failure is error:
                raise
            raise failure from error
        self.finish("finished")

    def finish(self, status: str, error: BaseException | None = None) -> None:
        """Write the last state: `finished`, `failed` or `interrupted`, with the error if there was one."""
        seconds = self.info.get("seconds", 0.0) + time.perf_counter() - self._started
        self._started = time.perf_counter()
        message = None if error is None else f"{type(error).__name__}: {error}"
        self.update({"status": status, "seconds": round(seconds, 3), "error": message})
