# SPDX-License-Identifier: Apache-2.0
"""What a method is: a card, a configuration and a procedure from a model to a changed model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from expunge.claims import MethodCard
from expunge.data.encoding import Encoder
from expunge.data.examples import Example, Splits
from expunge.errors import RecipeError
from expunge.training.callbacks import Callback, Probe
from expunge.training.config import TrainingConfig
from expunge.training.loop import TrainingResult
from expunge.training.rewind import ErrorProbe


class MethodConfig(BaseModel):
    """Base of every method's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodContext:
    """Everything a method may use.

    Attributes:
        model: the model to change, in place.
        encoder: turns examples into token ids.
        splits: the data of the request.
        training: resolved settings of the loop.
        seed: of every random choice.
        pad_id: id used to pad.
        model_digest: digest of the model before it changes; keys the reference cache.
        folder: the run folder; None writes nothing.
        load_base: loads the model that never saw the data, where the recipe names one.
        probe: measures the model while it trains.
        callbacks: watch the run.
        resume: go on from the newest checkpoint in `folder`.
    """

    model: nn.Module
    encoder: Encoder
    splits: Splits
    training: TrainingConfig
    seed: int
    pad_id: int
    model_digest: str = ""
    folder: Path | None = None
    load_base: Callable[[], nn.Module] | None = None
    probe: Probe | None = None
    callbacks: Sequence[Callback] = ()
    resume: bool = False

    def need_retain(self, method: str) -> Sequence[Example]:
        """Return the retain set.

        Raises:
            RecipeError: if there is none.
        """
        if not self.splits.retain:
            raise RecipeError(
                f"method {method!r} needs a retain set",
                field="data.retain",
                remedy="Give --retain FILE, or choose retain: none if the method allows it",
            )
        return self.splits.retain

    def error_probe(self) -> ErrorProbe | None:
        """Return what rewinding measures, or None if the recipe does not rewind.

        Raises:
            RecipeError: if it does and there is no holdout.
        """
        if self.training.stop.rule != "rewind":
            return None
        if not self.splits.holdout:
            raise RecipeError(
                "rewinding needs a holdout: examples like those of the forget set that no model was trained on",
                field="data.holdout", remedy="Give --holdout FILE, or use training.stop.rule: steps",
            )  # fmt: skip
        forget, holdout = (
            [row.encoded for row in self.encoder.encode_many(examples, where=where)]
            for where, examples in (("forget", self.splits.forget), ("holdout", self.splits.holdout))
        )
        return ErrorProbe(forget, holdout, pad_id=self.pad_id)


@dataclass(frozen=True, slots=True)
class MethodOutcome:
    """The changed model, how its training went, and what the procedure wants the report to print."""

    model: nn.Module
    training: TrainingResult
    notes: Mapping[str, Any] = field(default_factory=dict)


class Method(ABC):
    """A way to make a model unlearn.

    Class attributes:
        card: what a reader must know.
        Config: its settings; the field `name` holds the method's name.
        training_defaults: published settings of the loop that replace those of `TrainingConfig`.
    """

    card: ClassVar[MethodCard]
    Config: ClassVar[type[MethodConfig]]
    training_defaults: ClassVar[Mapping[str, Any]] = {}

    def needs(self, config: Any, training: TrainingConfig) -> frozenset[str]:
        """Return the inputs needed under these settings, out of those a card may name; as a rule the card's."""
        del config
        rewinds = training.stop.rule == "rewind"
        return frozenset(self.card.needs) | ({"holdout"} if rewinds else set())

    def check(self, config: Any, training: TrainingConfig) -> None:
        """Raise if settings of the method and of the loop do not fit together.

        Raises:
            RecipeError: naming the field.
        """
        del config, training

    def examples_per_epoch(self, config: Any, *, forget: int, retain: int) -> int:
        """Return how many examples an epoch goes through, given the sizes of the sets; as a rule the forget set's."""
        del config, retain
        return forget

    @abstractmethod
    def run(self, config: Any, context: MethodContext) -> MethodOutcome:
        """Change `context.model` (or return another model) according to `config`, an instance of `Config`.

        Raises:
            RecipeError: if an input the method needs is missing.
        """
