# SPDX-License-Identifier: Apache-2.0
"""Two fixed halves of an evaluated set: settings are chosen on one and judged on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from expunge.data.examples import Example
from expunge.errors import InputDataError

Part = Literal["all", "validation", "test"]


def part_of(examples: Sequence[Example], part: Part, *, name: str) -> list[Example]:
    """Return one half of a set, by subject, so that no subject is in both; by example where subjects are unknown.

    Subjects are ordered by a digest of their name: the halves do not depend on the order of the file.

    Raises:
        InputDataError: if there are not two subjects (or examples) to divide.
    """
    if part == "all":
        return list(examples)
    subjects = {example.subject for example in examples}
    divided = {example.id for example in examples} if subjects == {""} or len(subjects) == 1 else subjects
    by_subject = divided is subjects
    if len(divided) < 2:
        raise InputDataError(
            "one example cannot be divided into validation and test", field=f"data.{name}", value=len(examples),
            remedy="Give more examples, or leave data.audit_part at all",
        )  # fmt: skip
    order = sorted(divided, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    half = set(order[: (len(order) + 1) // 2])
    wanted = part == "validation"
    return [example for example in examples if ((example.subject if by_subject else example.id) in half) == wanted]
