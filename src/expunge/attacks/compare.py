# SPDX-License-Identifier: Apache-2.0
"""From per-item values of an attacked model and of its controls to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from expunge.attacks.base import BEFORE, REFERENCE, AttackContext, Finding
from expunge.attacks.gauge import Columns, difference, mean
from expunge.audit.columns import Column
from expunge.audit.config import AuditConfig
from expunge.audit.estimate import Estimate
from expunge.models.families import block_of

#: By setting, the scores of one attacked model.
Attacked = Mapping[str, Columns]


def finding(
    model: str,
    setting: str,
    metric: str,
    value: Column,
    controls: Mapping[str, Column],
    config: AuditConfig,
    *,
    rate: bool = False,
    more: Mapping[str, Estimate] | None = None,
) -> Finding:
    """Return one number beside its controls, with the paired difference to each.

    Args:
        model: name of the attacked model.
        setting: how it was attacked.
        metric: what the values are.
        value: per-item values after the attack.
        controls: per-item values of the controls by name, the one that counts first.
        config: intervals.
        rate: values are 0 or 1.
        more: numbers that follow from them.
    """
    return Finding(
        model=model, setting=setting, metric=metric,
        value=mean(value, config, rate=rate, control=next(iter(controls))),
        controls={name: mean(column, config, rate=rate) for name, column in controls.items()},
        differences={name: difference(value, column, config) for name, column in controls.items()}, more=more or {},
    )  # fmt: skip


def sweep(
    context: AttackContext, settings: Sequence[str], edit: Callable[[str, PreTrainedModel, str], EditContext]
) -> dict[str, Attacked]:
    """Return, by model and setting, the scores on the forget set while the model is edited.

    Args:
        context: models and data; the scores before are taken from it, or measured into it.
        settings: names of the edits.
        edit: from the name of a model, the model and a setting, a context manager inside which the edit holds.
    """
    gauge, out = context.gauge(), dict[str, Attacked]()
    for subject in context.attacked():
        model = subject.load()
        context.before(subject, model=model)
        found = {}
        for setting in settings:
            with edit(subject.name, model, setting):
                found[setting] = gauge(model)
        out[subject.name] = found
        del model
    return out


EditContext = AbstractContextManager[None]


def edited_findings(
    context: AttackContext,
    attacked: Mapping[str, Attacked],
    *,
    more: Callable[[str, str, str], Mapping[str, Estimate]] | None = None,
) -> list[Finding]:
    """Return the findings of an attack that edits weights: beside the reference edited alike, and the model before.

    Args:
        context: models and intervals.
        attacked: from `sweep`.
        more: numbers that follow, from (model, setting, metric).
    """
    out = []
    for subject in context.subjects:
        for setting, columns in attacked[subject.name].items():
            for metric, values in columns.items():
                controls = {BEFORE: context.before(subject)[metric]}
                if context.reference is not None:
                    controls = {REFERENCE: attacked[REFERENCE][setting][metric], **controls}
                extra = more(subject.name, setting, metric) if more else {}
                name = f"forget.{metric}"
                out.append(finding(subject.name, setting, name, values, controls, context.audit, more=extra))
    return out


def block_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight matrices of the decoder blocks by name: neither embeddings nor head, norms nor biases."""
    return {name: p for name, p in model.named_parameters() if p.ndim >= 2 and block_of(name) is not None}


@contextmanager
def restored(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the weight matrices of the blocks, and put back on leaving what they were."""
    weights = block_weights(model)
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield weights
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])
