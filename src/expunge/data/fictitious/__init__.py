# SPDX-License-Identifier: Apache-2.0
"""The embedded archive of invented people, for demonstrations and tests that need no download."""

from __future__ import annotations

from expunge.data.fictitious.archive import FORGET_SETS, Archive, build_archive
from expunge.data.fictitious.facts import Fact, Person

__all__ = ["FORGET_SETS", "Archive", "Fact", "Person", "build_archive"]
