# SPDX-License-Identifier: Apache-2.0
"""Number formats of a run, and dropout, which would make the model differ from its own reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type of a run, or None for none: `auto` means bfloat16 on a GPU that has it."""
    if precision == "bf16":
        return torch.bfloat16
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return None


@contextmanager
def quiet_dropout(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Train mode with the model's own dropout at 0, unless `keep`; an adapter's dropout stays as configured."""
    was_training = model.training
    model.train()
    saved: list[tuple[nn.Module, str, float]] = []
    for name, module in model.named_modules():
        if keep or "lora_dropout" in name:
            continue
        for attribute in ("p", "attention_dropout") if isinstance(module, nn.Dropout) else ("attention_dropout",):
            value = module.__dict__.get(attribute)
            if isinstance(value, float) and value > 0:
                saved.append((module, attribute, value))
                setattr(module, attribute, 0.0)
    try:
        yield
    finally:
        for module, attribute, value in saved:
            setattr(module, attribute, value)
        model.train(was_training)
