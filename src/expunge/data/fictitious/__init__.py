# SPDX-License-Identifier: Apache-2.0
"""The embedded archive of invented people, word problems and functions, for demonstrations without a download."""

from __future__ import annotations

from expunge.data.fictitious.archive import Archive, build_archive
from expunge.data.fictitious.domains import DOMAINS, Domain, Problem
from expunge.data.fictitious.facts import Fact, Person
from expunge.data.fictitious.maths import build_math
from expunge.data.fictitious.programs import build_code
from expunge.data.fictitious.splits import FORGET_SETS
from expunge.data.fictitious.worlds import ThreeDomains, build_domains

__all__ = [
    "DOMAINS", "FORGET_SETS", "Archive", "Domain", "Fact", "Person", "Problem", "ThreeDomains", "build_archive",
    "build_code", "build_domains", "build_math",
]  # fmt: skip
