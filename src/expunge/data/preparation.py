# SPDX-License-Identifier: Apache-2.0
"""What becomes of a forget set before a method trains on it: noise, then guards, each step counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from expunge.data.digests import data_digest
from expunge.data.examples import Example
from expunge.data.noise import NoiseConfig, add_noise
from expunge.data.robust import RobustConfig, memorised, without_overlap
from expunge.errors import InputDataError


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done: noise, overlap or memorised; its settings; items it touched or left out; items left."""

    what: str
    settings: Mapping[str, Any]
    items: int
    left: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"what": self.what, "settings": dict(self.settings), "items": self.items, "left": self.left}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The forget set a method trains on, how many items were given, and what was done in between."""

    examples: Sequence[Example]
    given: int
    steps: tuple[Step, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return counts, digest and steps as JSON values."""
        return {
            "given": self.given, "n": len(self.examples), "digest": data_digest(self.examples),
            "steps": [step.to_dict() for step in self.steps],
        }  # fmt: skip


def is_wanted(noise: NoiseConfig, robust: RobustConfig) -> bool:
    """Return whether anything is to be done to the forget set."""
    return noise.kind != "none" or robust.overlap is not None or robust.memorised != "none"


def prepare(
    forget: Sequence[Example], retain: Sequence[Example], noise: NoiseConfig, robust: RobustConfig
) -> Prepared:  # fmt: skip
    """Return the forget set with noise, without what overlaps with the retain set.

    Args:
        forget: the forget set as given.
        retain: where mislabelled items come from, and what nothing may resemble.
        noise: kind, rate and seed.
        robust: of its guards the one that needs no model.

    Raises:
        RecipeError, InputDataError: as `add_noise`.
        InputDataError: if no item is left.
    """
    out = Prepared(forget, len(forget))
    if noise.kind != "none":
        noisy = add_noise(forget, noise, retain=retain)
        out = Prepared(noisy, out.given, (Step("noise", noise.model_dump(), _touched(forget, noisy), len(noisy)),))
    if robust.overlap is not None:
        kept, _ = without_overlap(out.examples, retain, threshold=robust.overlap)
        out = _less(out, kept, "overlap", {"threshold": robust.overlap})
    return out


def without_unlearned(
    prepared: Prepared, original_nll: ArrayLike, other_nll: ArrayLike, *, against: str, margin: float
) -> Prepared:
    """Return the set without the items that the original does not know; see `robust.memorised`.

    Args:
        prepared: n items.
        original_nll: of each under the model to change, nats per token, [n].
        other_nll: what it must lie below, [n].
        against: what `other_nll` is of, for the record: `base` or `holdout`.
        margin: by how much, nats per token.

    Raises:
        InputDataError: if no item is left.
    """
    known = memorised(original_nll, other_nll, margin=margin)
    kept = [example for example, is_known in zip(prepared.examples, known, strict=True) if is_known]
    level = round(float(np.median(np.asarray(other_nll, dtype=np.float64))), 4)
    return _less(prepared, kept, "memorised", {"against": against, "margin": margin, "median_nll": level})


def in_words(prepared: Mapping[str, Any]) -> str:
    """Say in one line what `Prepared.to_dict` holds."""
    parts = [f"{prepared['given']} items given"]
    parts += [_SAID[step["what"]].format(left=step["left"], items=step["items"], **step["settings"])
              for step in prepared["steps"]]  # fmt: skip
    return "; ".join([*parts, f"{prepared['n']} trained on"])


_SAID = {
    "noise": "{kind} noise at rate {rate:g} (seed {seed}) touched {items} and left {left}",
    "overlap": "{items} left out for overlap with the retain set (threshold {threshold:g})",
    "memorised": "{items} left out that the model knows no better than the {against} "
    "({median_nll:g} nats per token, margin {margin:g})",
}


def _less(prepared: Prepared, kept: list[Example], what: str, settings: Mapping[str, Any]) -> Prepared:
    if not kept:
        raise InputDataError(
            f"no item is left to train on: all {len(prepared.examples)} were left out", field=f"data.robust.{what}",
            remedy="Loosen it, or check what the forget set holds",
        )  # fmt: skip
    step = Step(what, settings, len(prepared.examples) - len(kept), len(kept))
    return replace(prepared, examples=kept, steps=(*prepared.steps, step))


def _touched(clean: Sequence[Example], noisy: Sequence[Example]) -> int:
    """Count the items that are new or changed, and those that are gone."""
    before = {example.id: example for example in clean}
    changed = sum(before.get(example.id) != example for example in noisy)
    return changed + len(before.keys() - {example.id for example in noisy})
