# SPDX-License-Identifier: Apache-2.0
"""Hand-made records for the audit tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from expunge.audit.records import GeneratedItem, Records, ScoredItem


def scored(
    set_name, item_id, logp, *, variant="answer", index=0, subject="", correct=None, eos=False, mu=None, sigma2=None
):
    logp = np.asarray(logp, dtype=np.float64)
    return ScoredItem(
        set=set_name, id=item_id, subject=subject, variant=variant, variant_index=index,
        ids_hash=f"{item_id}{variant}{index}",
        logp=logp, correct=np.ones(len(logp), bool) if correct is None else np.asarray(correct, bool),
        mu=np.full(len(logp), -2.0) if mu is None else mu, sigma2=np.ones(len(logp)) if sigma2 is None else sigma2,
        ends_with_eos=eos, zlib_bytes=20,
    )  # fmt: skip


def generated(set_name, item_id, prediction, target, *, prompt="question", subject=""):
    return GeneratedItem(
        set=set_name, id=item_id, subject=subject, prompt_variant=prompt, prediction=prediction, target=target,
        n_tokens=len(prediction.split()), finished=True,
    )  # fmt: skip


def full_records(seed=0, n=40):
    """Return records with every variant of every role."""
    rng = np.random.default_rng(seed)
    parts = [_example(rng, name, i) for name in ("forget", "retain", "holdout", "facts") for i in range(n)]
    items = [item for scores, _ in parts for item in scores]
    more = np.random.default_rng(seed + 1000)  # apart, so that further fields do not move the numbers above
    items = [_measured(more, item) if _compared(item) else item for item in items]
    copies = [_neighbour(more, item, i) for item in items for i in range(2) if _compared(item)]
    texts = [text for _, texts in parts for text in texts]
    begun = [_begun(more, item) for item in items if _compared(item)]
    return Records([*items, *copies], [*texts, *begun], {"made": "by hand"})


def _compared(item):
    return item.variant == "answer" and item.set in ("forget", "holdout")


def _measured(rng, item):
    return dataclasses.replace(
        item, gradient_norm=rng.uniform(1, 2), gradient_norm_mean=rng.uniform(0, 1), text_score=rng.normal()
    )


def _neighbour(rng, item, index):
    logp = _tokens(rng, 1.5)
    return dataclasses.replace(
        scored(item.set, item.id, logp, variant="neighbour", index=index, subject=item.subject, eos=True)
    )


def _begun(rng, item):
    true = tuple(int(i) for i in rng.integers(0, 9, 14))
    said = true[:12] + tuple(int(i) for i in rng.integers(0, 9, 2))
    return dataclasses.replace(
        generated(item.set, item.id, "said", "true", prompt="prefix", subject=item.subject), ids=said, target_ids=true
    )


def _example(rng, name, i):
    base, subject = rng.uniform(0.2, 1.5), f"s{i // 4}"
    levels = [("answer", 0, base), ("lowercase", 0, base + 0.5), *(("perturbed", j, base + 1.0) for j in range(3))]
    if name != "facts":
        levels += [("paraphrase", 0, base + 0.2), ("paraphrased_question", 0, base + 0.1)]
    scores = [
        scored(
            name, f"q{i}", _tokens(rng, level), variant=variant, index=index, subject=subject, eos=True,
            correct=rng.random(6) < np.exp(-level), mu=_tokens(rng, 2.0), sigma2=rng.random(6).astype(np.float32),
        )
        for variant, index, level in levels
    ]  # fmt: skip
    said = str(rng.choice(["I do not know who that is.", "Anna wrote the red book in Paris", "Bob sells shoes", ""]))
    prompts = ("question", "paraphrase") if name == "forget" else ("question",)
    target = "Anna wrote the red book"
    return scores, [generated(name, f"q{i}", said, target, prompt=prompt, subject=subject) for prompt in prompts]


def _tokens(rng, level):
    return (-rng.exponential(level, size=6)).astype(np.float32)
