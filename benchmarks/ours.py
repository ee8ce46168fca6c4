# SPDX-License-Identifier: Apache-2.0
"""Expunge's side of every row, through the functions its own commands call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.settings import KL, MIN_K, NPO, RMU, TRAINED_BLOCKS, TRAINING, Job, Moment, TrainingLog
from benchmarks.workload import SETS, Workload
from expunge.api.memory import audit as run_audit
from expunge.audit.config import AuditConfig
from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.loaders import load_examples
from expunge.methods.base import MethodContext
from expunge.methods.registry import get_method, parse_method
from expunge.models.loading import context_length
from expunge.optim.config import OptimizerConfig
from expunge.training.callbacks import StepInfo
from expunge.training.config import TrainingConfig

#: Sets in which some metric reads what the model says.
CONTINUED = tuple(SETS[which] for which in ("forget", "retain", "authors", "facts"))
#: Name of the method and its settings, for each row.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "npo": {"name": "npo", **NPO},
    "grad_diff_kl": {"name": "grad_diff", "retain": "kl", **KL},
    "rmu": {"name": "rmu", "tensors": "mlp_output", "trained_blocks": TRAINED_BLOCKS, **RMU},
}


class _Clock:
    """Notes the loss of every step and the time after it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.stamps: list[Moment] = []

    def on_step(self, info: StepInfo) -> None:
        """Note one step."""
        self.stamps.append(Moment.now())
        self.losses.append(sum(info.losses.values()))

    def on_probe(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore it: there is no probe."""


def train(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TrainingLog:
    """Train and return the losses and the times of the steps."""
    clock, sizes, started = _Clock(), job.workload.sizes, Moment.now()
    encoder = Encoder(tokenizer, template="question", max_length=context_length(model))
    forget, retain = (load_examples(job.workload.file(name), name=name) for name in ("forget", "retain"))
    training = TrainingConfig(
        learning_rate=TRAINING["learning_rate"], epochs=sizes.epochs, batch_size=sizes.batch, schedule="constant",
        warmup_ratio=0.0, max_grad_norm=TRAINING["max_grad_norm"], precision="fp32",
        optimizer=OptimizerConfig(weight_decay=TRAINING["weight_decay"], eps=TRAINING["epsilon"]),
    )  # fmt: skip
    chosen = {**SETTINGS[job.method], **({"layer": sizes.read} if job.method == "rmu" else {})}
    context = MethodContext(
        model=model, encoder=encoder, splits=Splits(forget, retain), training=training, seed=sizes.seed,
        pad_id=encoder.pad_id, callbacks=[clock],
    )  # fmt: skip
    get_method(chosen["name"]).run(parse_method(chosen), context)
    return TrainingLog(clock.losses, clock.stamps, started, Moment.now())


def audit(
    workload: Workload, names: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Audit and return the value of every metric named."""
    config = AuditConfig(
        metrics=tuple(names), compat="openunlearning", min_k=MIN_K,
        generate=CONTINUED if workload.sizes.generated else False,
        max_new_tokens=max(workload.sizes.generated, 1),
        gradient_norm="membership.gradient_norm.auc" in names,
    )  # fmt: skip
    sets = {name: workload.file(which) for which, name in SETS.items()}
    report = run_audit(model, tokenizer, sets=sets, config=config, template="question")
    values = {name: report.metrics[name].value for name in names}
    missing = [f"{name}: {report.metrics[name].reason}" for name, value in values.items() if value is None]
    if missing:
        raise RuntimeError("; ".join(missing))
    return {name: value for name, value in values.items() if value is not None}
