# SPDX-License-Identifier: Apache-2.0
"""Records looked up by set and variant, and the per-item values of one metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from expunge.audit.records import ChoiceItem, GeneratedItem, Records, ScoredItem
from expunge.audit.statistics import Floats, Unavailable, checked

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one metric, one per item.

    Attributes:
        ids: item names, [n].
        clusters: what the bootstrap resamples: the subject, or the item itself where the subject is unknown, [n].
        values: float64 [n], never NaN.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    values: Floats

    def __len__(self) -> int:
        return len(self.ids)


def column(items: Iterable[tuple[ScoredItem | GeneratedItem, float]], what: str) -> Column:
    """Return a column from (item, value) pairs; raises `ValueError` that names the item with a NaN."""
    pairs = list(items)
    ids = tuple(item.id for item, _ in pairs)
    values = checked([value for _, value in pairs], what, [f"{item.set}/{item.id}" for item, _ in pairs])
    return Column(ids, tuple(cluster(item) for item, _ in pairs), values)


def cluster(item: ScoredItem | GeneratedItem) -> str:
    """Return the bootstrap cluster of an item."""
    return f"subject:{item.subject}" if item.subject else f"item:{item.id}"


def pooled(parts: Mapping[str, Column]) -> Column:
    """Return the columns of several sets as one; names are prefixed by the set so that they cannot collide."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    ids = tuple(f"{name}/{item}" for name, part in parts.items() for item in part.ids)
    clusters = tuple(f"{name}/{label}" for name, part in parts.items() for label in part.clusters)
    values = [value for part in parts.values() for value in part.values]
    return Column(ids, clusters, checked(values, "value", ids))


class View:
    """Records indexed by (set, variant); a NaN among the scores raises `ValueError` naming the item."""

    def __init__(self, records: Records) -> None:
        scored: dict[tuple[str, str], list[ScoredItem]] = defaultdict(list)
        generated: dict[tuple[str, str], list[GeneratedItem]] = defaultdict(list)
        for item in records.scored:
            _require_numbers(item)
            scored[item.set, item.variant].append(item)
        for answer in records.generated:
            generated[answer.set, answer.prompt_variant].append(answer)
        choices: dict[str, list[ChoiceItem]] = defaultdict(list)
        for question in records.choices:
            if np.isnan(np.asarray(question.scores, dtype=np.float64)).any():
                raise ValueError(f"a score of question '{question.set}/{question.id}' is not a number")
            choices[question.set].append(question)
        self._scored, self._generated, self._choices = dict(scored), dict(generated), dict(choices)
        self._absent: Mapping[str, str] = records.meta.get("absent", {})
        self.sets = tuple(dict.fromkeys([*(s for s, _ in scored), *(s for s, _ in generated), *choices]))

    def scored(self, name: str, variant: str) -> list[ScoredItem]:
        """Return the scored items of one variant; raises `Unavailable` if there are none."""
        return self._found(self._scored, name, variant, "scored")

    def generated(self, name: str, variant: str) -> list[GeneratedItem]:
        """Return the generations from one prompt variant; raises `Unavailable` if there are none."""
        return self._found(self._generated, name, variant, "generated")

    def choices(self, name: str) -> list[ChoiceItem]:
        """Return the multiple-choice questions of a set; raises `Unavailable` if there are none."""
        if not self._choices.get(name):
            raise Unavailable(self._absent.get(name, f"the records hold no multiple-choice questions of set {name!r}"))
        return self._choices[name]

    def by_id(self, name: str, variant: str) -> dict[str, list[ScoredItem]]:
        """Return the scored items of one variant by example id, each list in the order of `variant_index`."""
        groups: dict[str, list[ScoredItem]] = defaultdict(list)
        for item in sorted(self.scored(name, variant), key=lambda item: item.variant_index):
            groups[item.id].append(item)
        return groups

    def has(self, name: str, variant: str) -> bool:
        """Return whether anything of this variant was scored in a set."""
        return (name, variant) in self._scored

    def _found(self, index: Mapping[tuple[str, str], list[Item]], name: str, variant: str, verb: str) -> list[Item]:
        if items := index.get((name, variant)):
            return items
        for key in (f"{name}/{variant}", name):
            if key in self._absent:
                raise Unavailable(self._absent[key])
        if name not in self.sets:
            raise Unavailable(f"the records hold no set {name!r}")
        raise Unavailable(f"nothing of variant {variant!r} was {verb} for set {name!r}")


def _require_numbers(item: ScoredItem) -> None:
    """Raise here, before ranks and minima can swallow a NaN."""
    kept = item.summary
    means = [] if kept is None or kept.mean_logp is None else [kept.mean_logp]
    fields = (("logp", item.logp), ("mu", item.mu), ("sigma2", item.sigma2), ("mean log-probability", means))
    for field, values in fields:
        if np.isnan(np.asarray(values, dtype=np.float64)).any():
            raise ValueError(f"{field} of item '{item.set}/{item.id}' ({item.variant}) is not a number")
