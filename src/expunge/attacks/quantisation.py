# SPDX-License-Identifier: Apache-2.0
"""Quantisation: small changes of the weights vanish when they are rounded, and what they hid may return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from expunge.attacks.base import Attack, AttackCard, AttackConfig, AttackContext, AttackResult
from expunge.attacks.compare import block_weights, edited_findings, restored, sweep
from expunge.attacks.gauge import of_means
from expunge.attacks.meta import quantisation_robustness
from expunge.attacks.rounding import Scheme, round_weight
from expunge.audit.estimate import Estimate
from expunge.errors import RecipeError, require


class QuantisationConfig(AttackConfig):
    """Which formats the weights are rounded to."""

    schemes: tuple[Scheme, ...] = Field(
        ("int8", "int4", "nf4"), min_length=1, description="simulated formats, or bitsandbytes' own (bnb_*)"
    )
    group: int = Field(64, ge=2, description="weights that share a scale")


class Quantisation(Attack):
    """Round the weight matrices of the blocks, and measure again."""

    card = AttackCard(
        name="quantisation",
        kind="quantisation",
        title="Quantisation",
        definition="Round the weight matrices of the decoder blocks to nearest, with one absmax scale per group; the "
        "arithmetic stays in floating point. Embeddings, head, norms and biases stay as they are.",
        needs=("forget",),
        control="the retain-only reference rounded alike; without one the same model before",
        cost="one scoring pass per format and model",
        source="Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, ICLR 2025; Dorna et al., "
        "OpenUnlearning, 2025 (robustness)",
        known_failures=("Simulated rounding stands in for the kernels of one library; activations are not rounded.",),
    )
    Config = QuantisationConfig

    def check(self, config: QuantisationConfig, context: AttackContext) -> None:
        """Raise if a format needs a package that is not there."""
        super().check(config, context)
        if any(scheme.startswith("bnb_") for scheme in config.schemes):
            require("bitsandbytes", "quant")

    def run(self, config: QuantisationConfig, context: AttackContext) -> AttackResult:
        """Round every model in every format."""

        @contextmanager
        def rounded(_name: str, model: PreTrainedModel, setting: str) -> Iterator[None]:
            with restored(model) as weights, torch.no_grad():
                for weight in weights.values():
                    weight.copy_(round_weight(weight, cast(Scheme, setting), group=config.group).weight)
                yield

        attacked = sweep(context, config.schemes, rounded)
        names = {subject.name: subject for subject in context.subjects}

        def more(name: str, setting: str, metric: str) -> Mapping[str, Estimate]:
            pair = [context.before(names[name])[metric], attacked[name][setting][metric]]
            found = of_means(pair, lambda m: quantisation_robustness(m[:, 0], m[:, 1]), context.audit)
            return {"quantisation_robustness": found}

        findings = edited_findings(context, attacked, more=more)
        return self.result(config, findings, notes={"codes": _codes(config, context)})


def _codes(config: QuantisationConfig, context: AttackContext) -> dict[str, Any]:
    """Return, by model and format, how far unlearning moved the codes; needs the original model."""
    if context.original is None:
        return {"reason": "comparing codes needs the original model"}
    original, out = context.original.load(), dict[str, Any]()
    for subject in context.attacked():
        out[subject.name] = changed_codes(original, subject.load(), config)
    return out


def changed_codes(original: nn.Module, changed: nn.Module, config: QuantisationConfig) -> dict[str, dict[str, float]]:
    """Return, by format, the share of block weights whose code differs, and the share that differs before rounding.

    Args:
        original: the model before unlearning.
        changed: another of the same shape.
        config: formats and group.

    Raises:
        RecipeError: if the two have other weights.
    """
    first, second = block_weights(original), block_weights(changed)
    check_same(first, second)
    total = sum(weight.numel() for weight in first.values())
    moved = sum(int((first[name] != second[name]).sum()) for name in first) / total
    out: dict[str, dict[str, float]] = {}
    for scheme in config.schemes:
        differ = sum(
            int((_code(first[name], scheme, config.group) != _code(second[name], scheme, config.group)).sum())
            for name in first
        )
        out[scheme] = {"changed_codes": differ / total, "changed_weights": moved}
    return out


def _code(weight: nn.Parameter, scheme: Scheme, group: int) -> torch.Tensor:
    return round_weight(weight, scheme, group=group).codes


def check_same(first: Mapping[str, nn.Parameter], second: Mapping[str, nn.Parameter]) -> None:
    """Raise `RecipeError` unless two models have weights of the same names and shapes."""
    shapes = [{name: tuple(weight.shape) for name, weight in side.items()} for side in (first, second)]
    if shapes[0] != shapes[1]:
        name = min(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key))
        raise RecipeError("the original has another architecture", field="original", value=name,
                          remedy="Give the model that unlearning started from")  # fmt: skip
