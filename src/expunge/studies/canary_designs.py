# SPDX-License-Identifier: Apache-2.0
"""Which canaries are found: every design planted in the embedded archive, before and after unlearning, and a reference.

The target learns the archive with the canaries that the coins inserted. The reference learns the same archive without
any. The unlearned model is the target after NPO on the inserted canaries with the archive as retain set. All settings
are those below, the same for every design and seed. Run as `python -m expunge.studies.canary_designs FILE`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from expunge.api.memory import unlearn
from expunge.audit.canaries.counts import CanaryScores
from expunge.audit.canaries.measure import FPR, CanarySettings, findings, score_canaries
from expunge.audit.document import ModelRole, environment, write_json
from expunge.audit.statistics import clopper_pearson, true_positives
from expunge.data.canaries import THRESHOLDS, CanaryPlan, Design, draw_canaries, new_tokens, planted
from expunge.data.canary_manifest import CanaryManifest, entries, vocabulary_digest
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.fictitious import build_archive
from expunge.models.growth import add_tokens
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer

DESIGNS: tuple[Design, ...] = get_args(Design)
PEOPLE, CANARIES, CONTEXT = 10, 240, 128
#: How target and reference learn.
TRAINING: Mapping[str, Any] = {"learning_rate": 4e-3, "epochs": 8, "batch_size": 16}
#: How the inserted canaries are unlearned.
UNLEARNING: Mapping[str, Any] = {"learning_rate": 5e-4, "epochs": 4, "batch_size": 8}
#: The three models, and what each is to the comparison.
ROLES: Mapping[str, ModelRole] = {"target": "target", "npo": "method", "reference": "reference"}
Scored = dict[str, CanaryScores]


def canary_designs(
    *, seeds: Sequence[int] = (0, 1, 2), designs: Sequence[Design] = DESIGNS, canaries: int = CANARIES,
    training: Mapping[str, Any] = TRAINING,
) -> dict[str, Any]:  # fmt: skip
    """Return, by design, what the canaries show about target, unlearned model and reference, by seed and together.

    Args:
        seeds: one archive, one set of coins and one training each.
        designs: those to plant.
        canaries: how many of each design and seed.
        training: settings of target and reference.
    """
    found: dict[str, list[Scored]] = {
        design: [_one(design, seed, canaries, training) for seed in seeds] for design in designs
    }
    return {
        "kind": "canary designs", "seeds": list(seeds), "people": PEOPLE, "canaries": canaries,
        "training": dict(training), "unlearning": {"method": "npo", **UNLEARNING},
        "designs": {design: _summary(rows, seeds) for design, rows in found.items()},
    }  # fmt: skip


def _one(design: Design, seed: int, canaries: int, training: Mapping[str, Any]) -> Scored:
    """Plant one design, train, unlearn, and score the canaries on the three models."""
    archive = build_archive(PEOPLE, seed=seed)
    examples, plan = archive.training_examples("full"), CanaryPlan(n=canaries, design=design, seed=seed)
    tokenizer = build_tokenizer(archive.texts(), vocab_size=512)
    first = build_llama(len(tokenizer), hidden_size=64, layers=2, heads=2, context=CONTEXT, seed=seed)
    if tokens := new_tokens(plan):
        add_tokens(first, tokenizer, tokens, seed=seed)
    encoder = Encoder(tokenizer, template="question", max_length=CONTEXT)
    drawn = draw_canaries(examples, encoder, plan)
    rows = planted(examples, drawn, plan)
    manifest = CanaryManifest(
        plan=plan, template="question", template_id=encoder.template_id, answer_eos=True,
        tokenizer=vocabulary_digest(tokenizer), data=data_digest(examples), planted=data_digest(rows),
        canaries=entries(drawn),
    )  # fmt: skip
    out: Scored = {}
    for name, learned in (("reference", examples), ("target", rows)):
        model = copy.deepcopy(first)
        items = [row.encoded for row in encoder.encode_many(learned, where="train")]
        task = FineTuneTask(items, batch_size=training["batch_size"], seed=seed)
        Trainer(model, task, TrainingConfig(**training), pad_id=encoder.pad_id).run()
        out[name] = score_canaries(model, encoder, manifest)
    inserted = [canary.example for canary in drawn if canary.inserted]
    changed = unlearn(
        model, tokenizer, forget=inserted, retain=examples, method="npo", training=UNLEARNING, template="question",
        seed=seed,
    )  # fmt: skip
    return out | {"npo": score_canaries(changed.model, encoder, manifest)}


def _summary(rows: Sequence[Scored], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the findings of every seed, and the rates over all seeds: each model has a threshold of its own."""
    out: dict[str, Any] = {}
    for name, role in ROLES.items():
        scores = [row[name] for row in rows]
        hits = sum(true_positives(one.inserted, one.held_out, FPR) for one in scores)
        n = sum(one.inserted.size for one in scores)
        low, high = clopper_pearson(hits, n)
        out[name] = {
            "tpr_at_1_fpr": {"value": hits / n, "ci_low": low, "ci_high": high, "n": n},
            "by_seed": {
                str(seed): findings(one, THRESHOLDS, role, CanarySettings()).to_dict()
                for seed, one in zip(seeds, scores, strict=True)
            },
        }
    return out


if __name__ == "__main__":
    write_json({**canary_designs(), "environment": environment()}, Path(sys.argv[1]))
