# SPDX-License-Identifier: Apache-2.0
"""Rounding weights to few bits and back, as quantised formats do: per-group absmax integers, and NF4.

Shape suffixes: O output features, I input features, G groups, S weights of a group.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from expunge.errors import require

Scheme = Literal["int8", "int4", "nf4", "bnb_int8", "bnb_nf4", "bnb_fp4"]


class Rounded(NamedTuple):
    """Weights after rounding, in their old shape and type, and the code of each, int16."""

    weight: Tensor
    codes: Tensor


def round_weight(weight: Tensor, scheme: Scheme, *, group: int = 64) -> Rounded:
    """Return a weight rounded to a scheme; groups run along the last axis, a last one may be shorter.

    Args:
        weight: [..., I], any float type; computed in float32.
        scheme: `int8` or `int4` (symmetric, scale = absmax / (2^(bits-1) - 1)), `nf4`, or one of bitsandbytes' own
            kernels, which has no codes to compare: those returned are the rounded values' bits.
        group: weights that share a scale.

    Raises:
        MissingDependency: for bitsandbytes' kernels without the package.
    """
    if scheme.startswith("bnb_"):
        back = _through_bitsandbytes(weight, scheme.removeprefix("bnb_"), group)
        return Rounded(back, back.to(torch.bfloat16).view(torch.int16))
    groups_GS, size = _grouped(weight, group)
    scale_G1 = groups_GS.abs().amax(1, keepdim=True)
    scale_G1 = torch.where(scale_G1 > 0, scale_G1, 1.0)
    if scheme == "nf4":
        levels = nf4_levels().to(weight.device)
        codes_GS = torch.bucketize(groups_GS / scale_G1, (levels[1:] + levels[:-1]) / 2)
        back_GS = levels[codes_GS] * scale_G1
    else:
        top = 2 ** (int(scheme.removeprefix("int")) - 1) - 1
        codes_GS = torch.round(groups_GS / scale_G1 * top).clamp(-top, top)
        back_GS = codes_GS * (scale_G1 / top)
    return Rounded(
        _ungrouped(back_GS, size, weight).to(weight.dtype), _ungrouped(codes_GS, size, weight).to(torch.int16)
    )


@cache
def nf4_levels() -> Tensor:
    """Return the 16 levels of NF4 in [-1, 1], rising, float32 [16].

    Quantiles of the normal distribution, eight above zero, seven below, and zero itself, divided by the largest.

    Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, section 3 and appendix E.
    """
    import numpy as np
    from scipy.stats import norm

    edge = (1 - 1 / 32 + 1 - 1 / 30) / 2  # keeps the outermost quantiles finite: the mean of both sides' half steps
    above = norm.ppf(np.linspace(edge, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(edge, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below]))
    return torch.tensor(levels / levels.max(), dtype=torch.float32)


def _grouped(weight: Tensor, group: int) -> tuple[Tensor, int]:
    """Return the weights in groups, [G, S] float32, and the width a row was padded to."""
    rows = weight.detach().float().reshape(-1, weight.shape[-1])
    short = -rows.shape[1] % group
    padded = torch.nn.functional.pad(rows, (0, short))
    return padded.reshape(-1, group), padded.shape[1]


def _ungrouped(groups_GS: Tensor, width: int, like: Tensor) -> Tensor:
    return groups_GS.reshape(-1, width)[:, : like.shape[-1]].reshape(like.shape)


def _through_bitsandbytes(weight: Tensor, kind: str, group: int) -> Tensor:
    """Return a weight after quantising and dequantising it with bitsandbytes' own kernels."""
    require("bitsandbytes", "quant")
    from bitsandbytes import functional as kernels  # type: ignore[import-not-found,unused-ignore]

    flat = weight.detach().reshape(-1, weight.shape[-1]).contiguous()
    if kind == "int8":
        codes, scale, _ = kernels.int8_vectorwise_quant(flat.half())
        back: Tensor = codes.float() * scale[:, None] / 127.0
    else:
        packed, state = kernels.quantize_4bit(flat, blocksize=group, quant_type=kind)
        back = kernels.dequantize_4bit(packed, state)
    return back.reshape(weight.shape).to(weight.dtype)
