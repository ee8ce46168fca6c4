# SPDX-License-Identifier: Apache-2.0
"""Score canaries on their secrets, and say what the scores show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from expunge.audit.canaries.bounds import (
    EpsilonBound,
    EpsilonEstimate,
    clopper_pearson_epsilon,
    fdp_one_run_epsilon,
    gdp_epsilon,
    one_run_epsilon,
)
from expunge.audit.canaries.cards import CANARY_PREFIX
from expunge.audit.canaries.counts import CanaryScores, convex_auc, convex_tpr_at_fpr
from expunge.audit.canaries.strategies import BonferroniGrid
from expunge.audit.document import ModelRole
from expunge.audit.estimate import Estimate
from expunge.audit.statistics import (
    Sample,
    Unavailable,
    auc,
    auc_replicates,
    interval,
    resample,
    tpr_at_fpr,
)
from expunge.data.canaries import secret_labels
from expunge.data.canary_manifest import CanaryManifest
from expunge.data.encoding import Encoder
from expunge.signals.likelihood import score

FPR = 0.01
DELTA = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings:
    """How scores become numbers: delta, confidence, bootstrap replicates and their seed."""

    delta: float = DELTA
    confidence: float = 0.95
    bootstrap: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryFindings:
    """What the canaries show about one model.

    Attributes:
        role: target, method (the unlearned model), reference or other.
        rates: `tpr_at_1_fpr` (single thresholds), `tpr_at_1_fpr_convexified` (mixed thresholds), `auc` (ties one half),
            `auc_convexified`.
        epsilon: bounds and estimates by method.
    """

    role: ModelRole
    rates: Mapping[str, Estimate]
    epsilon: Mapping[str, EpsilonBound | EpsilonEstimate]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        rates = {name: found.to_dict() for name, found in self.rates.items()}
        return {"role": self.role, **rates, "epsilon": {name: found.to_dict() for name, found in self.epsilon.items()}}

    def estimates(self) -> dict[str, Estimate]:
        """Return every number under the name of its metric."""
        named = {**self.rates, **{name: _estimate_of(found) for name, found in self.epsilon.items()}}
        return {f"{CANARY_PREFIX}{name}": found for name, found in named.items()}


def _estimate_of(found: EpsilonBound | EpsilonEstimate) -> Estimate:
    """Return an epsilon as a metric: a bound with what it could have been, an estimate with what it assumes."""
    assumed = isinstance(found, EpsilonEstimate)
    return Estimate(
        value=found.value, n=found.inserted + found.held_out, direction="reference", most=found.power,
        reason=f"a lower bound of {found.confidence:.0%} confidence; nothing bounds epsilon from above here",
        caveat=f"an estimate, not a bound: assumes that {'; '.join(found.assumptions)}" if assumed else "",
    )  # fmt: skip


def score_canaries(
    model: PreTrainedModel, encoder: Encoder, manifest: CanaryManifest, *, batch_tokens: int = 8192
) -> CanaryScores:
    """Return the mean log-probability of every secret, nats per token, given all that stands before it.

    Raises:
        InputDataError: if the encoder does not give the token ids that were planted.
        Unavailable: if the coins inserted all canaries or none.
    """
    manifest.check_encoder(encoder)
    canaries = manifest.opened()
    items = [secret_labels(encoder.encode(one.example), one.secret_ids, one.example.id) for one in canaries]
    found = score(model, items, pad_id=encoder.pad_id, batch_tokens=batch_tokens, stats=False)
    sides: tuple[list[float], list[float]] = ([], [])
    for canary, tokens in zip(canaries, found, strict=True):
        sides[0 if canary.inserted else 1].append(float(tokens.logp.mean()))
    return CanaryScores.of(*sides)


def findings(
    scores: CanaryScores, thresholds: tuple[float, ...], role: ModelRole, settings: CanarySettings
) -> CanaryFindings:
    """Return every number of one model; the thresholds are those the manifest fixed."""
    grid, given = BonferroniGrid(thresholds), {"delta": settings.delta, "confidence": settings.confidence}
    found = [method(scores, grid, **given) for method in
             (clopper_pearson_epsilon, one_run_epsilon, fdp_one_run_epsilon, gdp_epsilon)]  # fmt: skip
    rates = {
        "tpr_at_1_fpr": _tpr(scores, settings),
        "tpr_at_1_fpr_convexified": _convexified(convex_tpr_at_fpr(scores, FPR), scores),
        "auc": _auc(scores, settings),
        "auc_convexified": _convexified(convex_auc(scores), scores),
    }  # fmt: skip
    return CanaryFindings(role=role, rates=rates, epsilon={one.method: one for one in found})


def _tpr(scores: CanaryScores, settings: CanarySettings) -> Estimate:
    n = scores.inserted.size
    try:
        value, low, high = tpr_at_fpr(scores.inserted, scores.held_out, FPR, confidence=settings.confidence)
    except Unavailable as error:
        reason = str(error).replace("non-members", "held-out canaries")
        return Estimate.missing(reason, direction="reference", n=n)
    return Estimate(value=value, ci_low=low, ci_high=high, n=n, direction="reference")


def _convexified(value: float, scores: CanaryScores) -> Estimate:
    n, reason = scores.inserted.size + scores.held_out.size, "a mixture of thresholds has no exact interval"
    return Estimate(value=value, n=n, direction="reference", compat="convexified", reason=reason)


def _auc(scores: CanaryScores, settings: CanarySettings) -> Estimate:
    def sample(values: Any, first: str, number: int) -> Sample:
        names = [f"{first}{i}" for i in range(len(values))]
        return Sample(values, names, resample(names, replicates=settings.bootstrap, seed=[settings.seed, number]))

    value, n = auc(scores.inserted, scores.held_out), scores.inserted.size + scores.held_out.size
    replicates = auc_replicates(sample(scores.inserted, "i", 0), sample(scores.held_out, "o", 1))
    found = interval(replicates, settings.confidence)
    return Estimate(value=value, ci_low=found.low, ci_high=found.high, n=n, direction="reference", reason=found.reason)
