# SPDX-License-Identifier: Apache-2.0
"""The command line called in this process, and the folders and files it is given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from expunge.cli.main import app

#: Settings under which a run takes about a second.
QUICK = (
    "training.epochs=2", "training.batch_size=4", "training.learning_rate=1e-3", "data.template=question",
    "audit.max_new_tokens=3", "audit.bootstrap=100",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Called:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """What stderr says, line breaks as spaces."""
        return " ".join(self.stderr.split())

    @property
    def document(self) -> Any:
        """Stdout, which must be one JSON document and nothing beside it."""
        return json.loads(self.stdout)


def expunge(*arguments: str) -> Called:
    """Call `expunge` with the arguments given."""
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Called(done.exit_code, done.stdout, done.stderr)


def quick(*more: str) -> list[str]:
    """The quick settings, and more after them, as `--set` options."""
    return [part for setting in (*QUICK, *more) for part in ("--set", setting)]


def tree(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Lab:
    """A model that never learned anything, and eight facts in each set."""

    root: Path

    @property
    def base(self) -> str:
        """The model folder."""
        return str(self.root / "base")

    def file(self, name: str) -> str:
        """The file of a set: forget, retain or holdout."""
        return str(self.root / "data" / f"{name}.jsonl")

    def run(self, out: Path, *more: str, method: str = "grad_diff", **files: str) -> list[str]:
        """Everything `expunge run` needs, without a recipe; `files` replaces model or sets."""
        given = {"model": self.base, "forget": self.file("forget"), "retain": self.file("retain"), **files}
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        return ["run", *options, "--method", method, "-o", str(out), *quick(), *more]
