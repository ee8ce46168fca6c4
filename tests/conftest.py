# SPDX-License-Identifier: Apache-2.0
"""What many tests share: a small archive, its tokenizer, and a tiny model that learned it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive, build_archive
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real weights and benchmark data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the `shared` folder with real weights and data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def archive() -> Archive:
    """Ten invented people: large enough to train on, small enough to be quick."""
    return build_archive(10, seed=1)


@pytest.fixture(scope="session")
def encoder(archive: Archive) -> Encoder:
    """The archive's tokenizer behind the question template."""
    return Encoder(build_tokenizer(archive.texts(), vocab_size=512), template="question", max_length=128)


def small_llama(encoder: Encoder, seed: int = 0) -> nn.Module:
    """A Llama of about a hundred thousand parameters."""
    return build_llama(len(encoder.tokenizer), hidden_size=64, layers=2, heads=2, context=128, seed=seed)


@pytest.fixture(scope="session")
def fresh(encoder: Encoder) -> Callable[[], nn.Module]:
    """Makes the model that never saw anything, always the same."""
    return lambda: small_llama(encoder)


@pytest.fixture(scope="session")
def trained_model(archive: Archive, encoder: Encoder) -> nn.Module:
    model = small_llama(encoder)
    items = [row.encoded for row in encoder.encode_many(archive.training_examples("full"), where="train")]
    config = TrainingConfig(learning_rate=4e-3, epochs=16, batch_size=16)
    Trainer(model, FineTuneTask(items, batch_size=16, seed=0), config, pad_id=encoder.pad_id).run()
    return model


@pytest.fixture
def target(trained_model: nn.Module) -> nn.Module:
    """A private copy of the model that learned the whole archive."""
    return copy.deepcopy(trained_model)
