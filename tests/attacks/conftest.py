# SPDX-License-Identifier: Apache-2.0
"""A target that learned the archive, a reference that never saw two of its people, and a model that hid them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from expunge.api.memory import unlearn
from expunge.attacks.base import AttackContext, Subject
from expunge.audit.config import AuditConfig
from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.models.tiny import build_llama
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer

torch.set_num_threads(1)
FORGOTTEN = 2


@dataclass(frozen=True)
class Lab:
    """Models and data of one request: forget the last two people."""

    encoder: Encoder
    splits: Splits
    target: nn.Module
    reference: nn.Module
    unlearned: nn.Module

    def context(self, *names: str, **changes) -> AttackContext:
        """Attack some models by name, beside the reference; settings may be changed."""
        given = {
            "encoder": self.encoder, "splits": self.splits, "reference": subject("reference", self.reference),
            "original": subject("original", self.target), "audit": AuditConfig(bootstrap=200, max_new_tokens=12),
            "unrelated": list(self.splits.extra["world_facts"]),
        }  # fmt: skip
        models = {"target": self.target, "unlearned": self.unlearned}
        subjects = [subject(name, models[name]) for name in names or ("unlearned",)]
        return AttackContext(**(given | {"subjects": subjects} | changes))


def subject(name: str, model: nn.Module) -> Subject:
    return Subject(name, lambda: copy.deepcopy(model))


@pytest.fixture(scope="session")
def lab(archive: Archive, encoder: Encoder, trained_model: nn.Module) -> Lab:
    people, world = archive.people, [fact.example() for fact in archive.world]
    forget, retain = (
        [f.example() for p in part for f in p.facts] for part in (people[-FORGOTTEN:], people[:-FORGOTTEN])
    )
    splits = Splits(forget, retain, (), {"world_facts": world})
    shown = [e for p in people[:-FORGOTTEN] for f in p.facts for e in f.training_examples()]
    shown += [e for fact in archive.world for e in fact.training_examples()]
    reference = build_llama(len(encoder.tokenizer), hidden_size=64, layers=2, heads=2, context=128, seed=0)
    items = [row.encoded for row in encoder.encode_many(shown, where="train")]
    config = TrainingConfig(learning_rate=4e-3, epochs=10, batch_size=16)
    Trainer(reference, FineTuneTask(items, batch_size=16, seed=0), config, pad_id=encoder.pad_id).run()
    hidden = unlearn(
        copy.deepcopy(trained_model), encoder.tokenizer, forget=forget, retain=retain, method="rmu",
        template="question", training={"learning_rate": 1e-3, "epochs": 6, "batch_size": 8},
    ).model  # fmt: skip
    return Lab(encoder, splits, trained_model, reference, hidden)


@pytest.fixture
def tiny(encoder: Encoder) -> Callable[[int], nn.Module]:
    """Make a fresh small model from a seed."""
    return lambda seed: build_llama(len(encoder.tokenizer), hidden_size=32, layers=2, heads=2, context=128, seed=seed)
