# SPDX-License-Identifier: Apache-2.0
"""Preference losses on sequence log-probabilities, in float32.

Shape suffixes: R sequences.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo(
    chosen_logp_R: Tensor,
    rejected_logp_R: Tensor,
    reference_chosen_logp_R: Tensor,
    reference_rejected_logp_R: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Return the preference loss with a refusal chosen and the true answer rejected, [R].

    -(2/beta) log sigma( beta [ (chosen - reference chosen) - (rejected - reference rejected) ] ). The factor 2/beta
    keeps the gradient at the start independent of beta, as in NPO; a plain DPO has factor 1.

    Args:
        chosen_logp_R: summed log-probability of each refusal under the model, nats.
        rejected_logp_R: the same of each true answer.
        reference_chosen_logp_R: summed log-probability of each refusal under the frozen original.
        reference_rejected_logp_R: the same of each true answer.
        beta: inverse temperature, usually 0.1.

    Source: Rafailov et al., NeurIPS 2023, eq. 7; factor as in Zhang et al., COLM 2024 (their released code).
    """
    margin = (chosen_logp_R - reference_chosen_logp_R) - (rejected_logp_R - reference_rejected_logp_R)
    return -(2.0 / beta) * logsigmoid(beta * margin.float())


def npo(logp_R: Tensor, reference_logp_R: Tensor, *, beta: float) -> Tensor:
    """Return the negative-preference loss, [R]: DPO without the chosen answer.

    (2/beta) log(1 + (p / p_ref)^beta). Its gradient is gradient ascent's times W = 2 p^beta / (p^beta + p_ref^beta),
    which is 1 at the start for every beta and fades as the answer becomes unlikely.

    Args:
        logp_R: log-probability of each sequence under the model, nats (a sum, or a mean for the normalised form).
        reference_logp_R: the same under the frozen original.
        beta: inverse temperature, usually 0.1; towards 0 the loss becomes gradient ascent.

    Source: Zhang, Lin, Bai, Mei, COLM 2024, "Negative Preference Optimization", eq. 3 (arXiv:2404.05868).
    """
    return -(2.0 / beta) * logsigmoid(-beta * (logp_R - reference_logp_R).float())


def simnpo(mean_logp_R: Tensor, *, beta: float, gamma: float = 0.0) -> Tensor:
    """Return the reference-free, length-normalised negative-preference loss, [R].

    -(2/beta) log sigma( -beta * mean log p - gamma ).

    Args:
        mean_logp_R: mean token log-probability of each sequence, nats per token.
        beta: inverse temperature; the published settings for TOFU are 2.5 and 4.5.
        gamma: margin, outside beta as in the paper (the released code puts it inside: gamma = beta * its value).

    Source: Fan et al., NeurIPS 2025, "Simplicity Prevails", eq. 4 (arXiv:2410.07163).
    """
    return -(2.0 / beta) * logsigmoid(-beta * mean_logp_R.float() - gamma)


def kto(logp_R: Tensor, reference_logp_R: Tensor, reference_point: Tensor, *, beta: float) -> Tensor:
    """Return the prospect loss of undesired answers, [R]: -(2/beta) log sigma( beta [z0 - (logp - reference)] ).

    At z0 = 0 this is `npo`; a refusal that already gained (z0 > 0) makes the push on the answer weaker.

    Args:
        logp_R: summed log-probability of each forget answer under the model, nats.
        reference_logp_R: the same under the frozen original.
        reference_point: z0, the log-ratio of a refusal between model and original, nats, [R] or a scalar (the papers
            take its mean over a batch); no gradient flows through it.
        beta: inverse temperature, usually 0.1.

    Source: Ethayarajh et al., ICML 2024, "KTO" (arXiv:2402.01306), adapted to unlearning with log sigma and factor
        2/beta by Zhang et al., COLM 2024 (arXiv:2404.05868); their code leaves z0 without beta and adds 1.
    """
    gain_R = logp_R - reference_logp_R
    return -(2.0 / beta) * logsigmoid(beta * (reference_point.detach() - gain_R).float())
