# SPDX-License-Identifier: Apache-2.0
"""Hand-made records for the audit tests."""

from __future__ import annotations

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
    return Records(items, [text for _, texts in parts for text in texts], {"made": "by hand"})


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
