# SPDX-License-Identifier: Apache-2.0
"""Canaries against the account: the lower bound that scoring shows stays below what private training states."""

from __future__ import annotations

import math
from typing import Any

import pytest

from expunge.audit.canaries.measure import CanarySettings, findings, score_canaries
from expunge.data.canaries import THRESHOLDS, CanaryPlan, draw_canaries, new_tokens, planted
from expunge.data.canary_manifest import CanaryManifest, entries, vocabulary_digest
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.fictitious import build_archive
from expunge.models.growth import add_tokens
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.training.accounting import epsilon
from expunge.training.config import TrainingConfig
from expunge.training.loop import Trainer
from expunge.training.private_task import PoissonTask, plan_privacy, units_of

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

TRAINING = {"learning_rate": 4e-3, "epochs": 8, "batch_size": 16, "schedule": "constant"}


def bounds(seed: int, privacy: dict[str, Any]) -> tuple[dict[str, float], float]:
    """The lower bounds of the audit by method, and the epsilon of the account."""
    archive = build_archive(10, seed=seed)
    examples, plan = archive.training_examples("full"), CanaryPlan(n=240, design="new-token", seed=seed)
    tokenizer = build_tokenizer(archive.texts(), vocab_size=512)
    model = build_llama(len(tokenizer), hidden_size=64, layers=2, heads=2, context=128, seed=seed)
    add_tokens(model, tokenizer, new_tokens(plan), seed=seed)
    encoder = Encoder(tokenizer, template="question", max_length=128)
    drawn = draw_canaries(examples, encoder, plan)
    rows = planted(examples, drawn, plan)
    manifest = CanaryManifest(
        plan=plan, template="question", template_id=encoder.template_id, answer_eos=True,
        tokenizer=vocabulary_digest(tokenizer), data=data_digest(examples), planted=data_digest(rows),
        canaries=entries(drawn),
    )  # fmt: skip
    config = TrainingConfig(**TRAINING, privacy={"delta": 1e-5, "clipping": "ghost", **privacy})  # type: ignore[arg-type]
    units = units_of(encoder.encode_many(rows, where="train"), rows, "sequence")
    task = PoissonTask(units, plan_privacy(config, units), seed=seed)
    Trainer(model, task, config, pad_id=encoder.pad_id).run()
    found = findings(score_canaries(model, encoder, manifest), THRESHOLDS, "target", CanarySettings()).to_dict()
    shown = {name: entry["value"] for name, entry in found["epsilon"].items() if entry["kind"] == "bound"}
    return shown, epsilon(task.spent, 1e-5, "pld")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_lower_bound_passes_the_account_in_ten_seeds() -> None:
    open_, _ = bounds(0, {"noise_multiplier": 0.0, "max_grad_norm": None})
    assert max(open_.values()) > 1.0, "the audit can show more than the account below"
    for seed in range(10):
        shown, spent = bounds(seed, {"epsilon": 1.0, "max_grad_norm": 0.5})
        assert math.isclose(spent, 1.0, rel_tol=0.02)
        assert all(value <= spent for value in shown.values()), (seed, shown, spent)
