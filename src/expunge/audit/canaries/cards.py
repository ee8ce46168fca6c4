# SPDX-License-Identifier: Apache-2.0
"""The cards of what canaries show."""

from __future__ import annotations

from expunge.claims import MetricCard

CANARY_PREFIX = "canary."
#: Why a canary metric has no number.
NO_CANARIES = "no canaries were scored on this model: audit.canaries names the manifest of those planted in its data"
_TARGET = "the value of a model trained without any of the canaries"
_NEEDS = ("manifest of planted canaries",)
_FAILURES = (
    "Canaries show what the training does to records like them; rare secrets are learned more easily than common text.",
    "A weak attack gives a small number; it says nothing from above.",
)
_ONE_RUN = "Steinke, Nasr and Jagielski, 2023, arXiv:2305.08846, theorem 5.2"


def _card(name: str, title: str, definition: str, unit: str, source: str, *failures: str) -> MetricCard:
    return MetricCard(
        name=f"{CANARY_PREFIX}{name}", title=title, definition=definition, unit=unit, direction="reference",
        target=_TARGET, needs=_NEEDS, known_failures=(*failures, *_FAILURES), source=source,
    )  # fmt: skip


CANARY_CARDS = (
    _card(
        "tpr_at_1_fpr", "Inserted canaries found at 1 % false alarms",
        "Largest share of inserted canaries at or above a threshold that at most 1 % of the held-out reach; score: "
        "mean log-probability of the tokens of the secret. Clopper-Pearson interval.",
        "share in 0..1", "Panda et al., ICLR 2025, arXiv:2503.06808",
        "Needs 100 held-out canaries; there is no number with fewer.",
    ),
    _card(
        "tpr_at_1_fpr_convexified", "Inserted canaries found at 1 % false alarms, thresholds mixed",
        "The same on the concave hull of the ROC, where the guesser may mix two thresholds at random.",
        "share in 0..1", "google-deepmind/jax_privacy, auditing.py",
    ),
    _card(
        "auc", "Inserted against held-out canaries",
        "Chance that an inserted canary scores above a held-out one, ties counting one half; bootstrap interval.",
        "probability", "Panda et al., ICLR 2025, arXiv:2503.06808",
    ),
    _card(
        "auc_convexified", "Inserted against held-out canaries, thresholds mixed",
        "Area under the concave hull of the ROC; one half only where no threshold separates anything.",
        "probability", "google-deepmind/jax_privacy, auditing.py",
        "Above one half by chance alone: the hull never runs below the curve.",
    ),
    _card(
        "clopper_pearson", "Lower bound on epsilon from error rates",
        "ln((1 - FNR - delta) / FPR) with exact upper bounds of both error rates; thresholds fixed at planting, "
        "Bonferroni.",
        "epsilon", "Jagielski, Ullman and Oprea, 2020, arXiv:2006.07709",
        "Canaries of one run are not quite independent, which it assumes.",
    ),
    _card(
        "one_run", "Lower bound on epsilon from one run",
        "Largest epsilon that the number of right guesses among all canaries at or above a threshold rejects; "
        "thresholds fixed at planting, Bonferroni.",
        "epsilon", _ONE_RUN, "The term 2 m delta makes many canaries worse: keep m delta below 1e-3.",
    ),
    _card(
        "fdp_one_run", "Epsilon estimate from one run, Gaussian trade-off",
        "The strongest Gaussian mechanism that the guesses of one run reject, turned into epsilon at delta.",
        "epsilon", "Mahloujifar, Melis and Chaudhuri, 2024, arXiv:2410.22235",
        "No bound on epsilon: it assumes a Gaussian trade-off curve.",
    ),
    _card(
        "gdp", "Epsilon estimate from error rates, Gaussian trade-off",
        "The Gaussian mechanism whose trade-off curve passes through the bounded error rates, turned into epsilon.",
        "epsilon", "Nasr et al., 2023, arXiv:2302.07956",
        "No bound on epsilon: it assumes a Gaussian trade-off curve.",
    ),
)  # fmt: skip
