# SPDX-License-Identifier: Apache-2.0
"""The committed tables of the page on advice are those of the file of rules."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from expunge.desk.advise.rules import rules

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("advise_table", ROOT / "docs" / "advise_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", range(4))
def test_a_committed_table_is_current(maker, number):
    page = (ROOT / "docs" / "advise.md").read_text("utf-8")
    assert f"\n\n{maker.TABLES[number]()}\n" in page, "run python docs/advise_table.py and paste"


def test_no_table_is_left_out(maker):
    assert len(maker.TABLES) == 4
    assert maker.routes().count("\n") == len(rules().routes) + 1
