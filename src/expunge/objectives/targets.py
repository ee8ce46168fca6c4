# SPDX-License-Identifier: Apache-2.0
"""Losses that pull each token's distribution towards a target distribution, or towards a label drawn from it.

Functions of (logits, labels, ...) serve directly as what is taken from the logits of one chunk of positions; their
other keyword arguments are bound with `functools.partial`. Everything is computed in float32 or wider and does not
change when a constant is added to the logits.

Shape suffixes: N labelled tokens, R sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def undial(logits_NV: Tensor, labels_N: Tensor, teacher_logits_NV: Tensor, *, beta: float) -> Tensor:
    """Return the cross-entropy with the teacher's distribution after its label logit was lowered by beta, [N], nats.

    The target is fixed, so the loss has a minimum (the target's entropy) where gradient ascent has none.

    Args:
        logits_NV: the model's logits.
        labels_N: true tokens.
        teacher_logits_NV: logits of the frozen original at the same positions.
        beta: how much the true token's logit is lowered; published settings are 3 to 10.

    Source: Dong et al., NAACL 2025, "UNDIAL" (arXiv:2402.10052).
    """
    lowered_NV = _at_least_float32(teacher_logits_NV.detach()).scatter_add(
        1, labels_N[:, None], torch.full_like(labels_N[:, None], -beta, dtype=_wide(teacher_logits_NV))
    )
    return _cross_entropy(torch.softmax(lowered_NV, dim=1), logits_NV)


def ceu(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Return the cross-entropy with the model's own distribution without the true token, [N], nats.

    The target is held constant; the gradient on the logits is p on the true token and -p_v p / (1 - p) on the others.

    Args:
        logits_NV: the model's logits.
        labels_N: true tokens.

    Source: Yang, 2025, "CE-U: Cross Entropy Unlearning" (arXiv:2503.01224).
    """
    own_NV = _at_least_float32(logits_NV.detach()).scatter(1, labels_N[:, None], -torch.inf)
    return _cross_entropy(torch.softmax(own_NV, dim=1), logits_NV)


def pdu(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Return the squared gap between the largest and the mean logit, [N]: zero where all tokens are equally likely.

    Args:
        logits_NV: the model's logits.
        labels_N: not used; which token is true does not matter here.

    Source: Entesari et al., 2025, "Constrained Entropic Unlearning" (arXiv:2506.05314), logit-margin flattening.
    """
    del labels_N
    wide_NV = _at_least_float32(logits_NV)
    return (wide_NV.amax(1) - wide_NV.mean(1)).square()


def pdu_multiplier(multiplier: float, retain_loss: float, *, rate: float, tolerance: float) -> float:
    """Return the next weight of the retain term: it grows while the retain loss exceeds its tolerance, down to 0.

    Args:
        multiplier: the present weight.
        retain_loss: retain loss of the step, nats per token.
        rate: step of the dual ascent.
        tolerance: retain loss that is allowed, nats per token.

    Source: Entesari et al., 2025 (arXiv:2506.05314), dual update.
    """
    return max(0.0, multiplier + rate * (retain_loss - tolerance))


def distillation_kl(logits_NV: Tensor, teacher_logits_NV: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || model) of the distributions at temperature T, summed over the vocabulary, [N], nats.

    The gradient on the logits is T (p_model - p_teacher), zero where the two agree: a run that begins by raising this
    at the teacher's own weights does not move until something else breaks the tie.

    Args:
        logits_NV: the model's logits.
        teacher_logits_NV: logits of the frozen teacher.
        temperature: T; 1 compares the distributions themselves.

    Source: Kurmanji et al., NeurIPS 2023, "Towards Unbounded Machine Unlearning" (arXiv:2302.09880), SCRUB.
    """
    target_NV = torch.softmax(_at_least_float32(teacher_logits_NV.detach()) / temperature, dim=1)
    return temperature**2 * _kl(target_NV, logits_NV / temperature)


def bounded_ascent(loss_N: Tensor, *, cap: float) -> Tensor:
    """Return the loss with its sign turned, [N], no lower than -cap: past the cap a token has no gradient.

    Args:
        loss_N: a divergence or a negative log-likelihood per token, nats.
        cap: where to stop raising it, nats; log V is what a uniform guess costs.
    """
    return -loss_N.clamp(max=cap)


def bad_teacher(logits_NV: Tensor, good_logits_NV: Tensor, bad_logits_NV: Tensor, unlearn_N: Tensor) -> Tensor:
    """Return KL(l bad + (1 - l) good || model), [N], nats: forget tokens follow one teacher, the others the original.

    Args:
        logits_NV: the model's logits.
        good_logits_NV: logits of the frozen original, [N, V].
        bad_logits_NV: logits of the teacher that does not know the data, [N, V]; zeros [1, V] are the uniform one.
        unlearn_N: l, 1 for tokens to unlearn, 0 for tokens to keep, float.

    Source: Chundawat et al., AAAI 2023, "Can Bad Teaching Induce Forgetting?" (arXiv:2205.08096). Their code
        divides by the number of classes as well; here the sum over the vocabulary is kept.
    """
    share_N1 = unlearn_N[:, None]
    bad_NV = torch.softmax(_at_least_float32(bad_logits_NV.detach()), dim=1)
    good_NV = torch.softmax(_at_least_float32(good_logits_NV.detach()), dim=1)
    return _kl(share_N1 * bad_NV + (1.0 - share_N1) * good_NV, logits_NV)


def sampled_label_nll(logits_NV: Tensor, labels_N: Tensor, uniform_N: Tensor) -> Tensor:
    """Return -log p of a label drawn from the model's own distribution, [N], nats.

    The gradient of its mean over B tokens, squared and times B, estimates the diagonal of the Gauss-Newton matrix.
    The draw is a function of `uniform_N`, so a recomputation in the backward pass draws the same label.

    Args:
        logits_NV: the model's logits.
        labels_N: not used; the true token plays no part.
        uniform_N: numbers drawn uniformly from [0, 1).

    Source: Liu et al., ICLR 2024, "Sophia" (arXiv:2305.14342), Gauss-Newton-Bartlett estimator.
    """
    del labels_N
    logp_NV = torch.log_softmax(_at_least_float32(logits_NV), dim=1)
    cumulative_NV = logp_NV.detach().exp().cumsum(1)
    wanted_N1 = uniform_N[:, None].to(cumulative_NV.dtype) * cumulative_NV[:, -1:]
    drawn_N1 = torch.searchsorted(cumulative_NV, wanted_N1, right=True).clamp(max=logits_NV.shape[1] - 1)
    return -logp_NV.gather(1, drawn_N1).squeeze(1)


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(_wide(values))


def _cross_entropy(target_NV: Tensor, logits_NV: Tensor) -> Tensor:
    return -(target_NV * torch.log_softmax(_at_least_float32(logits_NV), dim=1)).sum(1)


def _kl(target_NV: Tensor, logits_NV: Tensor) -> Tensor:
    # xlogy is 0 where the target is 0.
    negentropy_N: Tensor = torch.special.xlogy(target_NV, target_NV).sum(1)
    return negentropy_N + _cross_entropy(target_NV, logits_NV)
