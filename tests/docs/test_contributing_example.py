# SPDX-License-Identifier: Apache-2.0
"""The worked example of CONTRIBUTING.md does what the page says: it is found, and it passes the common suite.

It runs in a process of its own, because a `Method` subclass that was once defined stays registered.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's two Python blocks, as the files it tells the reader to write."""
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE)
    assert len(blocks) == 2
    folder = tmp_path_factory.mktemp("example")
    (folder / "floor_ascent.py").write_text(blocks[0], "utf-8")
    (folder / "test_floor_ascent.py").write_text(blocks[1], "utf-8")
    return folder


def python(folder: Path, *arguments: str) -> str:
    """Run Python in the repository with the example importable; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_registered_and_passes_its_own_test_and_the_common_suite(folder: Path) -> None:
    """One process for all: importing the example as a plugin registers it before the suite lists the methods."""
    options = ("-q", "-c", "pyproject.toml", "--rootdir", ".", "-p", "no:cacheprovider", "-p", "floor_ascent")
    files = (str(folder / "test_floor_ascent.py"), "tests/methods/test_methods_common.py")
    printed = python(folder, "-m", "pytest", *options, *files, "-k", "floor_ascent")
    passed = re.search(r"(\d+) passed", printed)
    assert passed is not None
    assert int(passed[1]) >= 10
    assert "skipped" not in printed


def test_the_example_passes_the_style_checks(folder: Path) -> None:
    target = ("--config", "pyproject.toml", str(folder / "floor_ascent.py"))
    python(folder, "-m", "ruff", "check", "--no-cache", *target)
    python(folder, "-m", "ruff", "format", "--check", "--no-cache", *target)


def test_the_example_is_no_part_of_the_package() -> None:
    assert not list((ROOT / "src").rglob("floor_ascent*"))
