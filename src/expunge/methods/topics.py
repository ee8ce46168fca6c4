# SPDX-License-Identifier: Apache-2.0
"""Topics of a forget set: what is steered into one direction together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from expunge.errors import RecipeError, nearest
from expunge.objectives.representation import Distribution, control_vector

TopicSetting = Literal["single", "subject"] | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Topics:
    """The topic of every forget sequence, in order."""

    of: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Return the topics in the order they first occur."""
        return tuple(dict.fromkeys(self.of))

    def members(self, topic: str) -> list[int]:
        """Return the forget sequences of a topic."""
        return [i for i, name in enumerate(self.of) if name == topic]


def resolve_topics(subjects: Sequence[str], setting: TopicSetting) -> Topics:
    """Return the topics of sequences with these subjects.

    Raises:
        RecipeError: if topics are wanted by subject and one has none, or a mapping leaves one out.
    """
    if setting == "single":
        return Topics(("all",) * len(subjects))
    if isinstance(setting, str):
        if not all(subjects):
            raise RecipeError(
                "some forget examples have no subject", field="method.topics", value=setting,
                remedy="Give every example a subject, or use topics: single",
            )  # fmt: skip
        return Topics(tuple(subjects))
    for subject in subjects:
        if subject not in setting:
            raise RecipeError(
                "this subject has no topic", field="method.topics", value=subject, remedy=nearest(subject, setting)
            )
    return Topics(tuple(setting[subject] for subject in subjects))


def control_vectors(topics: Topics, width: int, *, distribution: Distribution, seed: int) -> dict[str, torch.Tensor]:
    """Return a control vector per topic, [D] float32, that depends on seed and topic only, not on the other topics."""
    out = {}
    for topic in topics.names():
        digest = hashlib.sha256(f"{seed}:control:{topic}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        out[topic] = control_vector(width, distribution=distribution, generator=generator)
    return out
