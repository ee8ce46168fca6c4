# SPDX-License-Identifier: Apache-2.0
"""Hand-made records for the audit tests."""

from __future__ import annotations

import numpy as np

from expunge.audit.records import GeneratedItem, Records, ScoredItem


def scored(set_name, item_id, logp, *, variant="answer", index=0, subject="", correct=None, eos=False, mu=None, sigma2=None):
    logp = np.asarray(logp, dtype=np.float64)
    return ScoredItem(
        set=set_name, id=item_id, subject=subject, variant=variant, variant_index=index, ids_hash=f"{item_id}{variant}{index}",
        logp=logp, correct=np.ones(len(logp), bool) if correct is None else np.asarray(correct, bool),
        mu=np.full(len(logp), -2.0) if mu is None else mu, sigma2=np.ones(len(logp)) if sigma2 is None else sigma2,
        ends_with_eos=eos, zlib_bytes=20,
    )  # fmt: skip


def generated(set_name, item_id, prediction, target, *, prompt="question", subject=""):
    return GeneratedItem(
        set=set_name, id=item_id, subject=subject, prompt_variant=prompt, prediction=prediction, target=target,
        n_tokens=len(prediction.split()), finished=True,
    )  # fmt: skip


def full_records(seed=0, n=40, shift=0.0):
    """Records with every variant of every role; `shift` makes the forget set less likely."""
    rng = np.random.default_rng(seed)
    items, texts = [], []
    for name in ("forget", "retain", "holdout", "facts"):
        for i in range(n):
            subject = f"s{i // 4}"
            base = rng.uniform(0.2, 1.5) + (shift if name == "forget" else 0.0)
            def tokens(level):
                return (-rng.exponential(level, size=6)).astype(np.float32)
            def add(variant, level, index=0):
                items.append(
                    scored(name, f"q{i}", tokens(level), variant=variant, index=index, subject=subject, eos=True,
                           correct=rng.random(6) < np.exp(-level), mu=tokens(2.0), sigma2=rng.random(6).astype(np.float32))
                )  # fmt: skip
            add("answer", base)
            add("lowercase", base + 0.5)
            if name != "facts":
                add("paraphrase", base + 0.2)
                add("paraphrased_question", base + 0.1)
            for j in range(3):
                add("perturbed", base + 1.0, j)
            said = rng.choice(["I do not know who that is.", "Anna wrote the red book in Paris", "Bob sells shoes", ""])
            texts.append(generated(name, f"q{i}", str(said), "Anna wrote the red book", subject=subject))
            if name == "forget":
                texts.append(generated(name, f"q{i}", str(said), "Anna wrote the red book", prompt="paraphrase", subject=subject))
    return Records(items, texts, {"made": "by hand"})
