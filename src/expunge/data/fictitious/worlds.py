# SPDX-License-Identifier: Apache-2.0
"""The three domains drawn together: people, word problems, small functions."""

from __future__ import annotations

from expunge.data.fictitious.archive import build_archive
from expunge.data.fictitious.domains import FAMILIES, PER_FAMILY, ThreeDomains
from expunge.data.fictitious.maths import build_math
from expunge.data.fictitious.programs import build_code


def build_domains(
    people: int = 40, *, families: int = FAMILIES, per_family: int = PER_FAMILY, seed: int = 0
) -> ThreeDomains:
    """Draw the archive of people and the two domains of problems.

    Args:
        people: of the archive, at least 10.
        families: of each domain of problems, at least 10.
        per_family: problems of each family.
        seed: everything follows from it.

    Raises:
        RecipeError: if one of the sizes is not possible.
    """
    return ThreeDomains(
        build_archive(people, seed=seed),
        build_math(families, seed=seed, per_family=per_family),
        build_code(families, seed=seed, per_family=per_family),
    )
