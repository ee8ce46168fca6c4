# SPDX-License-Identifier: Apache-2.0
"""Wrappers that make the forget loss flat around the weights, so that a little relearning does not undo it.

All of them leave the retain term as it is and act on the forget term alone. In a step without a forget term they
are plain.

Source: Fan et al., ICML 2025, "Towards LLM Unlearning Resilient to Relearning Attacks" (arXiv:2502.05374), which
    names sam, randomised smoothing, gradient penalty, curvature regularisation and weight averaging. In its released
    code the two penalties carry no gradient and are inert; here they have one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge.optim.rules import (
    FORGET,
    RETAIN,
    Backward,
    GradientRule,
    Gradients,
    combine,
    has,
    moved_weights,
    norm,
    put,
    take,
)


class _ForgetRule(GradientRule):
    """A rule on the forget term's own gradient; what the step's other terms add is added afterwards."""

    def gradients(self, backward: Backward, parameters: Sequence[nn.Parameter], *, step: int) -> dict[str, float]:
        """See `GradientRule.gradients`."""
        del step
        losses = backward(FORGET)
        if has(losses, FORGET):
            put(parameters, self.forget_gradient(take(parameters), backward, parameters))
        if has(losses, RETAIN):
            backward(RETAIN)
        return losses

    def forget_gradient(self, plain: Gradients, backward: Backward, parameters: Sequence[nn.Parameter]) -> Gradients:
        """Return the forget term's gradient as the rule wants it, given the plain one."""
        raise NotImplementedError


class Sam(_ForgetRule):
    """Takes the forget gradient at theta + rho g / |g|, where the forget loss is largest nearby.

    Args:
        rho: distance, in weight space.

    Source: Foret et al., ICLR 2021, "Sharpness-Aware Minimization" (arXiv:2010.01412), eq. 2 and 3.
    """

    def __init__(self, *, rho: float) -> None:
        self._rho = rho

    def forget_gradient(self, plain: Gradients, backward: Backward, parameters: Sequence[nn.Parameter]) -> Gradients:
        """Return the gradient at the worst point nearby."""
        length = norm(plain)
        if length == 0.0:
            return plain
        with moved_weights(parameters) as move:
            move(plain, self._rho / length)
            backward(FORGET)
        return take(parameters)


class RandomisedSmoothing(GradientRule):
    """Takes the mean forget gradient over weights with Gaussian noise.

    Args:
        sigma: standard deviation of the noise.
        samples: noisy points per step.
        seed: the noise is a function of it, the step and the sample, and touches no global generator.
    """

    def __init__(self, *, sigma: float, samples: int, seed: int) -> None:
        self._sigma, self._samples, self._seed = sigma, samples, seed

    def gradients(self, backward: Backward, parameters: Sequence[nn.Parameter], *, step: int) -> dict[str, float]:
        """See `GradientRule.gradients`; the forget loss reported is the mean over the noisy points."""
        mean: dict[str, float] = {}
        with moved_weights(parameters) as move:
            for sample in range(self._samples):
                move(self._noise(parameters, step, sample), self._sigma)
                for name, value in backward(FORGET).items():
                    mean[name] = mean.get(name, 0.0) + value / self._samples
        for p in parameters:
            if p.grad is not None:
                p.grad.div_(self._samples)
        if has(mean, RETAIN):
            mean |= {name: value for name, value in backward(RETAIN).items() if name in RETAIN}
        return mean

    def _noise(self, parameters: Sequence[nn.Parameter], step: int, sample: int) -> Gradients:
        digest = hashlib.sha256(f"{self._seed}:{step}:{sample}".encode()).digest()
        # Drawn on the CPU, so that every device sees the same noise.
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return [torch.randn(p.shape, generator=generator).to(p) for p in parameters]


class GradientPenalty(_ForgetRule):
    """Adds rho |g| to the forget loss; its gradient rho H g / |g| is a central difference of gradients.

    Args:
        rho: weight of the penalty.
        difference: half the distance between the two gradients, in weight space.
    """

    def __init__(self, *, rho: float, difference: float) -> None:
        self._rho, self._difference = rho, difference

    def forget_gradient(self, plain: Gradients, backward: Backward, parameters: Sequence[nn.Parameter]) -> Gradients:
        """Return g + rho H g / |g|."""
        length = norm(plain)
        if length == 0.0:
            return plain
        h = self._difference
        with moved_weights(parameters) as move:
            move(plain, h / length)
            backward(FORGET)
            out = combine(plain, take(parameters), alpha=self._rho / (2 * h))
            move(plain, -h / length)
            backward(FORGET)
        return combine(out, take(parameters), alpha=-self._rho / (2 * h))


class Curvature(_ForgetRule):
    """Adds rho |g(theta + radius v) - g(theta)| to the forget loss, with v = g / |g| held constant.

    With d that change of the gradient and u = d / |d|, the penalty's gradient is rho times (H(theta + radius v) -
    H(theta)) u; both products are central differences of gradients.

    Args:
        rho: weight of the penalty.
        radius: how far away the gradient is compared, in weight space.
        difference: half the distance of each finite difference.

    Source: Moosavi-Dezfooli et al., CVPR 2019, "Robustness via Curvature Regularization" (arXiv:1811.09716), for the
        penalty, there on inputs.
    """

    def __init__(self, *, rho: float, radius: float, difference: float) -> None:
        self._rho, self._radius, self._difference = rho, radius, difference

    def forget_gradient(self, plain: Gradients, backward: Backward, parameters: Sequence[nn.Parameter]) -> Gradients:
        """Return g plus the penalty's gradient."""
        length = norm(plain)
        if length == 0.0:
            return plain
        far = self._radius / length
        with moved_weights(parameters) as move:
            move(plain, far)
            backward(FORGET)
            change = combine(take(parameters), plain, alpha=-1.0)
            size = norm(change)
            if size == 0.0:
                return plain
            out, h = plain, self._difference
            weight = self._rho / (2 * h)
            for base, side in ((far, 1.0), (far, -1.0), (0.0, 1.0), (0.0, -1.0)):
                offset: Gradients = [None if g is None else base * g for g in plain]
                move(combine(offset, change, alpha=side * h / size), 1.0)
                backward(FORGET)
                out = combine(out, take(parameters), alpha=side * weight * (1.0 if base else -1.0))
        return out


class WeightAveraging(GradientRule):
    """Ends with the mean of the weights at steps start, start + every, ... instead of the last ones.

    Args:
        start: steps before the first.
        every: steps between.

    Source: Izmailov et al., UAI 2018, "Averaging Weights Leads to Wider Optima" (arXiv:1803.05407), algorithm 1.
    """

    def __init__(self, *, start: int, every: int) -> None:
        self._start, self._every = start, every
        self._count = 0
        self._mean: list[Tensor] = []

    def after_step(self, parameters: Sequence[nn.Parameter], *, step: int) -> None:
        """Take the weights into the mean when it is their turn."""
        if step < max(1, self._start) or (step - self._start) % self._every:
            return
        self._count += 1
        if not self._mean:
            self._mean = [p.detach().clone() for p in parameters]
            return
        # A mean read from a checkpoint is on the CPU.
        self._mean = [mean.to(p.device) for mean, p in zip(self._mean, parameters, strict=True)]
        for mean, p in zip(self._mean, parameters, strict=True):
            # In this form a weight that never moves stays as it is, bit for bit.
            mean.add_((p.detach() - mean) / self._count)

    def finish(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the mean into the weights; if the run ended before its first turn, they stay."""
        with torch.no_grad():
            for mean, p in zip(self._mean, parameters, strict=bool(self._mean)):
                p.copy_(mean)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean and how many weights are in it."""
        means = {f"mean.{i}": mean for i, mean in enumerate(self._mean)}
        return {"count": torch.tensor(self._count), **means}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the mean."""
        self._count = int(state["count"])
        self._mean = [state[f"mean.{i}"].clone() for i in range(len(state) - 1)]
