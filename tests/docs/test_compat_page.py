# SPDX-License-Identifier: Apache-2.0
"""The committed table of a published model is the one that its command prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "../shared/data"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("compat_table", ROOT / "docs" / "compat_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not (LOGS / "tofu_eval_logs").is_dir(), reason="the published logs are not beside the checkout")
@pytest.mark.parametrize("name", ["tofu_table", "muse_table"])
def test_the_committed_table_is_current(maker, name):
    page = (ROOT / "docs" / "compat.md").read_text("utf-8")
    for line in getattr(maker, name)(LOGS).splitlines():
        assert line in page
