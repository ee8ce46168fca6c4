# SPDX-License-Identifier: Apache-2.0
"""The committed tables of what each way by text finds are those that their command prints."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from expunge.data.fictitious import build_archive

ROOT = Path(__file__).parents[2]
BOOKS = ROOT / "../shared/data/public_domain"
PAGE = (ROOT / "docs/locate.md").read_text("utf-8")


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("locate_table", ROOT / "docs" / "locate_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["locate_table"] = module  # its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_planted_rows_are_what_they_are_said_to_be(maker: ModuleType) -> None:
    from random import Random

    text = " ".join(f"w{place}" for place in range(25))
    assert maker.shouted("a b  c") == "A  B  C"
    changed = maker.changed(text, 12, Random(0)).split()
    assert [word for word in changed if word not in text.split()] == ["something"] * 2
    assert len(changed) == 25
    assert maker.within("x y", "a b c d") == "a b x y c d"
    assert maker.pieces("a b c d e", 2) == ["a b", "c d"]


def test_two_wordings_are_cut_at_the_same_places(maker: ModuleType) -> None:
    """The second text has words of its own between runs that both have in order."""
    runs = [[f"r{k}a", f"r{k}b", f"r{k}c"] for k in range(12)]
    one = " ".join(word for run in runs for word in run)
    other = " ".join(word for run in runs for word in [*run, "own", "own"])
    for own, theirs in maker.aligned(one, other, 6):
        assert [word for word in theirs.split() if word != "own"] == own.split()
        assert len(own.split()) == 6


@pytest.mark.slow
def test_the_committed_table_of_the_archive_is_current(maker: ModuleType) -> None:
    for line in maker.text_lines(maker.archive_world(build_archive(maker.PEOPLE, seed=0))):
        assert line in PAGE


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not BOOKS.is_dir(), reason="the books are not beside the checkout")
def test_the_committed_table_of_the_books_is_current(maker: ModuleType) -> None:
    for line in maker.text_lines(maker.book_world(BOOKS)):
        assert line in PAGE
