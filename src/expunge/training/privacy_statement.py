# SPDX-License-Identifier: Apache-2.0
"""What a private run may say: its epsilon with everything it rests on, and the answer to a request against it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from expunge.claims import SENTENCES, ClaimKind, MethodCard
from expunge.errors import InputDataError, RecipeError
from expunge.training.accounting import epsilon, group, side_by_side
from expunge.training.private_task import PoissonTask

CARD = MethodCard(
    name="dp_training",
    title="Differentially private training",
    paper="Deep Learning with Differential Privacy (arXiv:1607.00133); Large Language Models Can Be Strong "
    "Differentially Private Learners (arXiv:2110.05679)",
    authors="Abadi et al.; Li et al.",
    year=2016,
    venue="ACM CCS; ICLR 2022",
    family="private training",
    claim=ClaimKind.STATISTICAL,
    needs=("training data",),
    cost="per_sample: 3 F per unit, one unit at a time; ghost: about 6 F per unit, in batches",
    formula="g = (sum_i min(1, C / (|g_i| + 1e-6)) g_i + N(0, sigma^2 C^2)) / B, units drawn by coins of rate B / N",
    provenance="papers",
    differences=(
        "The loss of a sequence is its mean per token, so that no unit's gradient depends on another unit's length.",
        "A head tied to the embedding that trains is refused with ghost clipping.",
    ),
    defaults_source="our own; epsilon or noise, and delta, have no default",
    notes="A route of `expunge train`, not a method that changes a model that is there already.",
)

_UNITS = {
    "sequence": "one training sequence",
    "subject": "all sequences of one subject together",
}
_NOISE = {
    "seeded": "Whoever holds the model does not know the seed: coins and noise follow from it, and recipe.yaml and "
    "run.json hold it. Keep the run folder private, or train with noise: secure.",
    "secure": "Coins and noise come from the operating system's generator and were never written down.",
}


def statement(task: PoissonTask, *, sequences_per_example: int) -> dict[str, Any]:
    """Return what the steps taken so far support, as JSON values.

    Args:
        task: after training.
        sequences_per_example: the most sequences that one example of the training file became.

    Raises:
        MissingDependency: without the extra `dp`.
    """
    plan, spent = task.plan, task.spent
    privacy = plan.privacy
    value = epsilon(spent, privacy.delta, privacy.accountant)
    return {
        "claim": str(CARD.claim), "sentence": SENTENCES[CARD.claim],
        "epsilon": value if math.isfinite(value) else None, "delta": privacy.delta, "accountant": privacy.accountant,
        "epsilon_by_accountant": side_by_side(spent, privacy.delta), "wanted_epsilon": privacy.epsilon,
        "reason": "" if math.isfinite(value) else "without noise no epsilon holds",
        "unit": privacy.unit, "units": plan.units, "sequences_per_example": sequences_per_example,
        "neighbours": f"data sets that differ by {_UNITS[privacy.unit]}, added or removed",
        "sampler": "poisson", "rate": spent.rate, "expected_batch": plan.expected, "steps": spent.steps,
        "noise_multiplier": spent.noise_multiplier, "max_grad_norm": privacy.max_grad_norm,
        "clipping": privacy.clipping, "noise": privacy.noise,
        "assumptions": [
            f"The number of units, {plan.units}, is public, and so are the settings of the run.",
            "The model that training began from never saw these data; what it spent on them before would add up.",
            "Settings were not chosen by runs on these data; runs that were compared on them are not counted.",
            _NOISE[privacy.noise],
            "Sums, norms and noise are rounded to 32 bits; the accountants reckon with real numbers.",
        ],
        "not_covered": [
            "Losses, gradient norms and probes in metrics.jsonl and run.json: the statement is about the weights.",
            f"What several units say: a text or a fact that stands in k units has the protection of k ({privacy.unit} "
            "is the unit).",
            "What the model can answer from the other units, or from the model that training began from.",
        ],
    }  # fmt: skip


def answer_request(privacy: Mapping[str, Any], records: int) -> dict[str, Any]:
    """Return what a private run already guarantees for records whose removal is requested, with nothing done.

    A model that satisfies (epsilon, delta) is within (epsilon, delta) of one trained without a unit; for k units the
    numbers are those of a group.

    Args:
        privacy: what `statement` returned.
        records: examples of the training file or, where the unit is a subject, subjects.

    Raises:
        RecipeError: for fewer than one record, or more than there were units.
        InputDataError: if the run had no noise, so that nothing is guaranteed.
    """
    subject = privacy["unit"] == "subject"
    if not 1 <= records <= privacy["units"]:
        raise RecipeError(
            f"a request is about 1 to {privacy['units']} records", field="--records", value=records,
            remedy="Give the number of subjects" if subject else "Give the number of examples",
        )  # fmt: skip
    if privacy["epsilon"] is None:
        raise InputDataError(
            f"the run guarantees nothing: {privacy['reason']}", field="privacy.epsilon", remedy="Retrain without them"
        )
    size = records if subject else records * int(privacy["sequences_per_example"])
    eps, delta = group(float(privacy["epsilon"]), float(privacy["delta"]), size)
    says = delta < 1
    return {
        "claim": str(CARD.claim), "sentence": SENTENCES[CARD.claim], "records": records, "unit": privacy["unit"],
        "group_size": size, "epsilon": eps, "delta": delta if says else None, "says_something": says,
        "reason": "" if says else "the delta of so large a group is 1 or more, which holds for any model at all",
        "formula": "k epsilon, k e^((k-1) epsilon) delta",
        "of_one": {key: privacy[key] for key in ("epsilon", "delta", "accountant", "sampler", "steps", "neighbours")},
        "meaning": "With these weights any test would tell a model trained with the records from one trained without "
        "them only as well as (epsilon, delta) permits. This held before the request; nothing was done to the weights.",
        "does_not_say": [
            "That the records left no trace in the weights, or that the model cannot repeat them.",
            *privacy["not_covered"],
        ],
        "assumptions": list(privacy["assumptions"]),
    }  # fmt: skip
