# SPDX-License-Identifier: Apache-2.0
"""Attacks on weights and states: pruning, ablating the direction that unlearning added, walking back.

Shape suffixes: B batch rows, T tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.attacks.base import Attack, AttackCard, AttackConfig, AttackContext, AttackResult
from expunge.attacks.compare import edited_findings, restored, sweep
from expunge.attacks.quantisation import check_same
from expunge.attacks.states import last_states
from expunge.data.encoding import Encoded
from expunge.errors import InputDataError, RecipeError
from expunge.signals.head import decoder_blocks


class PruningConfig(AttackConfig):
    """How much is cut."""

    shares: tuple[float, ...] = Field((0.1, 0.2, 0.3, 0.5), min_length=1, description="share of each matrix set to 0")

    @model_validator(mode="after")
    def _shares(self) -> PruningConfig:
        if not all(0 < share < 1 for share in self.shares):
            raise ValueError("shares lie above 0 and below 1")
        return self


class Pruning(Attack):
    """Set the smallest weights to zero."""

    card = AttackCard(
        name="pruning",
        kind="pruning",
        title="Magnitude pruning",
        definition="In every weight matrix of the decoder blocks, set the given share of smallest magnitude to zero.",
        needs=("forget",),
        control="the retain-only reference pruned alike; without one the same model before",
        cost="one scoring pass per share and model",
        source="our own; Łucki et al., An Adversarial Perspective on Machine Unlearning for AI Safety, 2024, prune "
        "chosen neurons instead",
    )
    Config = PruningConfig

    def run(self, config: PruningConfig, context: AttackContext) -> AttackResult:
        """Prune every model at every share."""
        shares = {f"{share:g} of each matrix": share for share in config.shares}

        @contextmanager
        def pruned(_name: str, model: PreTrainedModel, setting: str) -> Iterator[None]:
            with restored(model) as weights, torch.no_grad():
                for weight in weights.values():
                    prune(weight, shares[setting])
                yield

        return self.result(config, edited_findings(context, sweep(context, list(shares), pruned)))


def prune(weight: Tensor, share: float) -> None:
    """Set floor(share x n) weights of smallest magnitude to zero, in place; ties go by position."""
    count = int(share * weight.numel())
    lowest = weight.detach().abs().flatten().argsort(stable=True)[:count]
    flat = weight.detach().view(-1)
    flat[lowest] = 0.0


class InterpolationConfig(AttackConfig):
    """How far the weights go back."""

    fractions: tuple[float, ...] = Field(
        (0.1, 0.25, 0.5), min_length=1, description="t in theta_u + t (theta_0 - theta_u); 1 is the original"
    )


class Interpolation(Attack):
    """Walk from the unlearned weights towards the original ones."""

    card = AttackCard(
        name="interpolation",
        kind="interpolation",
        title="Interpolation towards the original",
        definition="theta_u + t (theta_0 - theta_u) over all floating-point weights, in float64, rounded once. The "
        "attacker is given the original: this maps the distance, it is no attack on a released model alone.",
        needs=("forget", "original"),
        control="the retain-only reference moved alike; without one the same model before",
        cost="one scoring pass per fraction and model",
        source="our own",
    )
    Config = InterpolationConfig

    def run(self, config: InterpolationConfig, context: AttackContext) -> AttackResult:
        """Move every model by every fraction."""
        original = dict(context.need("original", self.card.name).load().named_parameters())
        fractions = {f"t = {fraction:g}": fraction for fraction in config.fractions}

        @contextmanager
        def moved(_name: str, model: PreTrainedModel, setting: str) -> Iterator[None]:
            own = dict(model.named_parameters())
            check_same(original, own)
            kept = {name: weight.detach().clone() for name, weight in own.items()}
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(between(weight, original[name], fractions[setting]))
                try:
                    yield
                finally:
                    for name, weight in own.items():
                        weight.copy_(kept[name])

        return self.result(config, edited_findings(context, sweep(context, list(fractions), moved)))


def between(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """Return start + fraction (end - start) in float64; exactly `start` at 0 and `end` at 1."""
    return torch.lerp(start.detach().double(), end.detach().double().to(start.device), fraction)


class AblationConfig(AttackConfig):
    """Where the direction is read."""

    layers: tuple[int, ...] = Field(
        (), description="blocks to read it at, each by itself; empty: up to four, spread over the depth"
    )


class DirectionAblation(Attack):
    """Project the direction that unlearning added out of every block's output."""

    card = AttackCard(
        name="direction_ablation",
        kind="direction ablation",
        title="Direction ablation",
        definition="d = mean over forget prompts of the state of the last prompt token in the unlearned model minus "
        "that in the original, at one block; then h <- h - (h d) d / |d|^2 after every block.",
        needs=("forget", "original"),
        control="the retain-only reference, ablated by its own difference to the original; without one the same "
        "model before",
        cost="one pass over the prompts, and one scoring pass per block read and model",
        source="Łucki et al., An Adversarial Perspective on Machine Unlearning for AI Safety, 2024, after Arditi et "
        "al., Refusal in Language Models Is Mediated by a Single Direction, 2024",
    )
    Config = AblationConfig

    def run(self, config: AblationConfig, context: AttackContext) -> AttackResult:
        """Ablate every model by the direction of every block."""
        original = context.need("original", self.card.name).load()
        depth = len(decoder_blocks(original))
        layers = config.layers or tuple(spread_layers(depth, 4))
        if bad := [layer for layer in layers if not 0 <= layer < depth]:
            remedy = f"Use 0 to {depth - 1}"
            raise RecipeError("no such block", field="direction_ablation.layers", value=bad[0], remedy=remedy)
        prompts = _prompts(context)
        home = _mean_states(context, original, prompts, layers)
        del original
        settings = {f"direction of block {layer}": layer for layer in layers}
        known: dict[str, Mapping[int, Tensor]] = {}

        @contextmanager
        def ablated(name: str, model: PreTrainedModel, setting: str) -> Iterator[None]:
            if name not in known:
                here = _mean_states(context, model, prompts, layers)
                known[name] = {layer: here[layer] - home[layer] for layer in layers}
            with without_direction(model, known[name][settings[setting]]):
                yield

        findings = edited_findings(context, sweep(context, list(settings), ablated))
        lengths = {name: {str(k): float(d.norm()) for k, d in found.items()} for name, found in known.items()}
        return self.result(config, findings, notes={"lengths": lengths})


def _prompts(context: AttackContext) -> list[Encoded]:
    out = []
    for example in context.splits.forget:
        if example.kind != "text":
            ids = context.encoder.prompt_ids(example)
            out.append(Encoded(ids, ids, ends_with_eos=False))
    if not out:
        raise InputDataError(
            "running texts have no prompts", field="data.forget", remedy="Leave the attack direction_ablation out"
        )
    return out


def _mean_states(
    context: AttackContext, model: PreTrainedModel, prompts: Sequence[Encoded], layers: Sequence[int]
) -> dict[int, Tensor]:
    states = last_states(
        model, prompts, layers=layers, pad_id=context.encoder.pad_id, batch_tokens=context.audit.batch_tokens
    )
    return {layer: torch.from_numpy(found).double().mean(0) for layer, found in states.items()}


def spread_layers(depth: int, most: int) -> list[int]:
    """Return up to `most` block numbers, evenly spread, the last among them."""
    count = min(depth, most)
    return [depth - 1 - i * depth // count for i in reversed(range(count))]


@contextmanager
def without_direction(model: nn.Module, direction_D: Tensor) -> Iterator[None]:
    """Project a direction out of the output of every decoder block; one of length zero changes nothing.

    Args:
        model: a causal language model.
        direction_D: of any length.
    """
    length = direction_D.norm()
    unit_D = direction_D / length if length > 0 else torch.zeros_like(direction_D)

    def project(_block: nn.Module, _args: Any, output: Any) -> Any:
        hidden_BTD = output[0] if isinstance(output, tuple) else output
        unit = unit_D.to(hidden_BTD)
        changed = hidden_BTD - (hidden_BTD @ unit)[..., None] * unit
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with ExitStack() as stack:
        for block in decoder_blocks(model):
            stack.callback(block.register_forward_hook(project).remove)
        yield
