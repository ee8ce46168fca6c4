# SPDX-License-Identifier: Apache-2.0
"""What an attack is: a card, settings, a procedure, and findings that cannot exist without their control."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from expunge.attacks.gauge import Columns, Gauge
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.data.encoding import Encoder
from expunge.data.examples import Example, Splits
from expunge.errors import RecipeError
from expunge.training.callbacks import Callback

#: Name of the model that never saw the forget set; attacked alike, it is the control of most attacks.
REFERENCE = "reference"
#: Name of a control: the same model, before the attack.
BEFORE = "before the attack"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackCard:
    """What a reader must know of an attack before believing its numbers.

    `kind` is its name in `claims.ATTACKS`. `needs` lists inputs out of `forget`, `retain`, `reference`, `original`.
    `control` says what the numbers stand beside, `cost` what one model takes.
    """

    name: str
    kind: str
    title: str
    definition: str
    needs: tuple[str, ...]
    control: str
    cost: str
    source: str
    known_failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return asdict(self)


class AttackConfig(BaseModel):
    """Base of every attack's settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Subject:
    """One model to attack. `load` returns a fresh copy without adapters each time, which the attack may change."""

    name: str
    load: Callable[[], PreTrainedModel]


@dataclass(slots=True, kw_only=True)
class AttackContext:
    """Everything an attack may use.

    Attributes:
        subjects: the models attacked, at least one.
        encoder: tokenizer under one template and context length, the same for all models.
        splits: the data of the request; the forget set is what an attack tries to bring back.
        reference: a model that never saw the forget set.
        original: the model before unlearning.
        second_reference: another model that never saw it, such as the reference under another seed.
        unrelated: examples that share nothing with the forget set.
        audit: intervals and batch sizes.
        seed: of every random choice.
        stage: told what begins.
        callbacks: watch training.
    """

    subjects: Sequence[Subject]
    encoder: Encoder
    splits: Splits
    reference: Subject | None = None
    original: Subject | None = None
    second_reference: Subject | None = None
    unrelated: Sequence[Example] = ()
    audit: AuditConfig = field(default_factory=AuditConfig)
    seed: int = 0
    stage: Callable[[str], None] = lambda _text: None
    callbacks: Sequence[Callback] = ()
    _before: dict[tuple[str, str], Columns] = field(default_factory=dict)

    def attacked(self) -> Iterator[Subject]:
        """Yield every model that is attacked: the subjects, then the reference."""
        yield from self.subjects
        if self.reference is not None:
            yield self.reference

    def gauge(self, examples: Sequence[Example] | None = None) -> Gauge:
        """Return what scores models on the forget set, or on other examples."""
        return Gauge(self.encoder, self.splits.forget if examples is None else examples, self.audit)

    def before(self, subject: Subject, which: str = "forget", model: PreTrainedModel | None = None) -> Columns:
        """Return the scores of a model as it is, on the `forget` or the `retain` set; measured once.

        Args:
            subject: the model.
            which: name of the set.
            model: a copy that is in memory and still unchanged; loaded if not given.
        """
        key = (subject.name, which)
        if key not in self._before:
            gauge = self.gauge(self.splits.named()[which])
            self._before[key] = gauge(subject.load() if model is None else model)
        return self._before[key]

    def need(self, what: str, attack: str) -> Subject:
        """Return the `reference` or the `original`.

        Raises:
            RecipeError: if it was not given.
        """
        found = self.reference if what == REFERENCE else self.original
        if found is None:
            raise RecipeError(f"attack {attack!r} needs it", field=what, remedy=f"Give --{what} FOLDER")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One number of one attack on one model, with what it must be read beside.

    Attributes:
        model: name of the attacked model.
        setting: how it was attacked.
        metric: what was measured.
        value: the number.
        controls: by name, the one that counts first; at least one.
        differences: value minus control, by name of the control.
        more: what follows from them, such as a robustness, by name.

    Raises:
        ValueError: if there is a number and no control has one.
    """

    model: str
    setting: str
    metric: str
    value: Estimate
    controls: Mapping[str, Estimate]
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    more: Mapping[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value.value is not None and all(control.value is None for control in self.controls.values()):
            raise ValueError(f"{self.metric} of {self.model!r} ({self.setting}) has no control")

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        parts = {"controls": self.controls, "differences": self.differences, "more": self.more}
        entries = {key: {name: found.to_dict() for name, found in part.items()} for key, part in parts.items()}
        return {"model": self.model, "setting": self.setting, "metric": self.metric, "value": self.value.to_dict(),
                **entries}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """How a metric moves with the budget of an attack.

    Attributes:
        title: which attack, in words.
        metric: dotted name of the metric.
        budget_unit: what the budget counts.
        points: (budget, estimate) in order of budget, by model; the reference must be among them.

    Raises:
        ValueError: if the reference has no points.
    """

    title: str
    metric: str
    budget_unit: str
    points: Mapping[str, Sequence[tuple[float, Estimate]]]

    def __post_init__(self) -> None:
        if not self.points.get(REFERENCE):
            raise ValueError(f"the curve {self.title!r} has no reference as its control")

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as the audit document holds it; budgets without a number are left out."""
        models = {
            name: [
                {"budget": budget, "value": e.value, "ci_low": e.ci_low, "ci_high": e.ci_high}
                for budget, e in points
                if e.value is not None
            ]
            for name, points in self.points.items()
        }
        return {"title": self.title, "metric": self.metric, "budget_unit": self.budget_unit, "models": models}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """What one attack found: numbers with their controls, curves with theirs, and remarks as JSON values."""

    card: AttackCard
    settings: Mapping[str, Any]
    findings: Sequence[Finding]
    curves: Sequence[Curve] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; the first curve stands beside the others where reports look for it."""
        out: dict[str, Any] = {
            "kind": self.card.kind, "card": self.card.to_dict(), "settings": dict(self.settings),
            "findings": [finding.to_dict() for finding in self.findings], "notes": dict(self.notes),
        }  # fmt: skip
        if self.curves:
            first, *others = (curve.to_dict() for curve in self.curves)
            out |= {**first, "others": others}
        return out


class Attack(ABC):
    """A way to bring back what was unlearned.

    Class attributes:
        card: what a reader must know.
        Config: its settings.
    """

    card: ClassVar[AttackCard]
    Config: ClassVar[type[AttackConfig]]

    def check(self, config: Any, context: AttackContext) -> None:
        """Raise what would keep the attack from running, before any work is done.

        Raises:
            RecipeError: if an input that the card names is missing.
        """
        del config
        for what in self.card.needs:
            if what in (REFERENCE, "original"):
                context.need(what, self.card.name)
            elif what not in context.splits.named():
                raise RecipeError(
                    f"attack {self.card.name!r} needs it", field=f"data.{what}", remedy=f"Give --{what} FILE"
                )

    @abstractmethod
    def run(self, config: Any, context: AttackContext) -> AttackResult:
        """Attack every model of `context` according to `config`, an instance of `Config`.

        Raises:
            RecipeError: if an input the attack needs is missing.
        """

    def result(
        self,
        config: AttackConfig,
        findings: Sequence[Finding],
        *,
        curves: Sequence[Curve] = (),
        notes: Mapping[str, Any] | None = None,
    ) -> AttackResult:
        """Return the result with card and settings."""
        settings = config.model_dump(mode="json")
        return AttackResult(card=self.card, settings=settings, findings=findings, curves=curves, notes=notes or {})
