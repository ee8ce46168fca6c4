# SPDX-License-Identifier: Apache-2.0
"""How every domain is split: the last of what is drawn are forgotten, some are held out, the others stay."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from expunge.data.examples import Example, Splits
from expunge.errors import RecipeError, nearest

#: Percentage of the groups (people, families) in each forget set, and the set that is left.
FORGET_SETS = {"forget01": (1, "retain99"), "forget05": (5, "retain95"), "forget10": (10, "retain90")}
RETAIN_SETS = tuple(retain for _, retain in FORGET_SETS.values())
#: Groups a domain needs so that a tenth of them can be forgotten and the others stay.
MIN_GROUPS = 10
Group = TypeVar("Group")


class Sets(ABC):
    """A domain by the names of its sets: `full`, `holdout`, `forget01|05|10` and `retain99|95|90`."""

    __slots__ = ()

    @abstractmethod
    def examples(self, which: str = "full") -> list[Example]:
        """Return the evaluated examples of a set."""

    @abstractmethod
    def wordings(self, which: str) -> list[Example]:
        """Return every training wording of a set."""

    @abstractmethod
    def rows(self, which: str = "full") -> list[dict[str, Any]]:
        """Return the JSON-ready rows of a set."""

    @abstractmethod
    def texts(self) -> list[str]:
        """Return what a tokenizer is to be trained on; the holdout is in it."""

    #: Sets beside those of every domain, each known to `examples` and `rows`.
    further: ClassVar[Sequence[str]] = ()

    def splits(self, forget: str = "forget10") -> Splits:
        """Return the evaluated examples for one of the forget sets.

        Raises:
            RecipeError: if there is no forget set of that name.
        """
        forgotten, retained, holdout = (tuple(self.examples(s)) for s in (forget, retain_of(forget), "holdout"))
        return Splits(forgotten, retained, holdout, {name: tuple(self.examples(name)) for name in self.further})

    def training_examples(self, which: str = "full") -> list[Example]:
        """Return every training wording of a set, with what is part of every training set.

        Raises:
            RecipeError: if there is no set of that name, or it is `holdout`, which is never trained on.
        """
        if which == "holdout":
            raise RecipeError("the holdout is never trained on", field="which", value=which, remedy="Take another set.")
        return self.wordings(which)

    def write_jsonl(self, folder: Path) -> list[Path]:
        """Write `{set}.jsonl` for every set and `train_{set}.jsonl` for every training set; return the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        names = ("full", *FORGET_SETS, *RETAIN_SETS, "holdout", *self.further)
        files = {which: self.rows(which) for which in names}
        for which in ("full", *RETAIN_SETS):
            files[f"train_{which}"] = [
                {"id": example.id, "subject": example.subject, "question": example.prompt, "answer": example.answer}
                for example in self.training_examples(which)
            ]
        for name, rows in files.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        return [folder / f"{name}.jsonl" for name in files]


def groups_in(everyone: tuple[Group, ...], holdout: tuple[Group, ...], which: str) -> tuple[Group, ...]:
    """Return the groups of one set; the forget sets are the last of `everyone`.

    Raises:
        RecipeError: if there is no set of that name.
    """
    sets = {"full": everyone, "holdout": holdout}
    for forget, (percent, retain) in FORGET_SETS.items():
        cut = len(everyone) - forget_count(len(everyone), percent)
        sets |= {retain: everyone[:cut], forget: everyone[cut:]}
    if which not in sets:
        raise RecipeError("no such set", field="which", value=which, remedy=nearest(which, sets))
    return sets[which]


def retain_of(forget: str) -> str:
    """Return the name of what is left beside a forget set.

    Raises:
        RecipeError: if there is no forget set of that name.
    """
    if forget not in FORGET_SETS:
        raise RecipeError("no such forget set", field="forget", value=forget, remedy=nearest(forget, FORGET_SETS))
    return FORGET_SETS[forget][1]


def forget_count(groups: int, percent: int) -> int:
    """Return how many groups a forget set of that percentage holds: rounded half up, at least one."""
    return max(1, (groups * percent + 50) // 100)


def held_count(what: str, count: int, holdout: int | None) -> int:
    """Return how many groups are never trained on: by default as many as `forget10` has.

    Args:
        what: what is counted, `people` or `families`; names the fields of errors.
        count: how many are trained on.
        holdout: how many are asked for.

    Raises:
        RecipeError: if too few are trained on, or the holdout is negative.
    """
    if count < MIN_GROUPS:
        raise RecipeError("too few to split", field=what, value=count, remedy=f"Take at least {MIN_GROUPS}.")
    if holdout is not None and holdout < 0:
        raise RecipeError("cannot be negative", field=f"holdout_{what}", value=holdout, remedy="Take 0 or more.")
    return forget_count(count, FORGET_SETS["forget10"][0]) if holdout is None else holdout
