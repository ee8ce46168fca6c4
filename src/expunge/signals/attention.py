# SPDX-License-Identifier: Apache-2.0
"""Attention maps at chosen queries, of the model and of the original it started as; and which tokens are important.

Shape suffixes: B batch rows, T tokens, N queries, H heads, L blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.data.content_words import content_spans
from expunge.data.encoding import IGNORE, Encoded
from expunge.data.tagged_words import Spans
from expunge.errors import RecipeError
from expunge.signals.head import unwrap
from expunge.signals.likelihood import Reading, Scorer, TokenRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def materialised_attention(model: nn.Module) -> Iterator[None]:
    """Let the model compute its attention maps as tensors for a while; fused kernels never form them."""
    base: Any = unwrap(model)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def attention_maps(
    model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, queries: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Return the attention of chosen queries in each block, L tensors [N, H, T]; inside `materialised_attention` only.

    Args:
        model: a causal language model, with or without adapters.
        input_ids_BT: token ids.
        attention_mask_BT: 1 for real tokens.
        queries: row and position of each query, two tensors [N].

    Raises:
        RecipeError: if the model does not give out its attention.
    """
    inner: Any = unwrap(model).base_model
    out = inner(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False, output_attentions=True)
    if not out.attentions or out.attentions[0] is None:
        raise RecipeError(
            "this model does not give out its attention maps", field="model.path", value=type(inner).__name__,
            remedy="Use another method",
        )  # fmt: skip
    row_N, time_N = queries
    return [map_BHTT[row_N, :, time_N] for map_BHTT in out.attentions]


@contextmanager
def put_back(original: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Give parameters their earlier values for a while, without copying any."""
    now = {parameter: parameter.data for parameter in original}
    try:
        for parameter, value in original.items():
            parameter.data = value
        yield
    finally:
        for parameter, value in now.items():
            parameter.data = value


@dataclass(frozen=True, slots=True)
class AttentionReading(Reading):
    """The attention of chosen queries, of the original model and then of the model as it is.

    Attributes:
        queries: row and position of each, two tensors [N].
        original: earlier values of the parameters that have moved.
    """

    queries: tuple[Tensor, Tensor]
    original: Mapping[nn.Parameter, Tensor]

    def read(self, model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> list[Tensor]:
        """Return 2 L tensors [N, H, T]: those of the original, without gradients, then those of the model."""
        with torch.no_grad(), put_back(self.original):
            before = attention_maps(model, input_ids_BT, attention_mask_BT, self.queries)
        return [*before, *attention_maps(model, input_ids_BT, attention_mask_BT, self.queries)]


def answer_queries(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and position of the queries that predict a labelled token, two tensors [N]."""
    row_N, time_N = (labels_BT[:, 1:] != IGNORE).nonzero(as_tuple=True)
    return row_N, time_N


def content_tokens(
    tokenizer: PreTrainedTokenizerBase, item: Encoded, *, words_of: Spans = content_spans
) -> tuple[bool, ...]:
    """Return, per token, whether it is part of a content word (noun, name, verb, adjective, number), [T].

    Special tokens never are.

    Args:
        tokenizer: of the sequence.
        item: the sequence.
        words_of: gives start and end of the content words of a text.
    """
    special = set(tokenizer.all_special_ids)
    text, spans = _spans(tokenizer, item.ids)
    words = words_of(text)
    return tuple(
        token not in special and any(start < end and low < end and start < high for low, high in words)
        for token, (start, end) in zip(item.ids, spans, strict=True)
    )


def _spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the decoded text and where in it each token is: what it adds to the text of those before it."""
    special = set(tokenizer.all_special_ids)
    text, spans = "", []
    kept: list[int] = []
    for token in ids:
        start = len(text)
        if token not in special:
            kept.append(token)
            longer = str(tokenizer.decode(kept, clean_up_tokenization_spaces=False))
            # Bytes of one character can be split over tokens; the replacement sign then changes afterwards.
            start = next((i for i, (a, b) in enumerate(zip(text, longer, strict=False)) if a != b), len(text))
            text = longer
        spans.append((start, len(text)))
    return text, spans


def entropy_tokens(
    model: nn.Module, item: Encoded, *, keep: float, special: frozenset[int], batch_tokens: int = 8192
) -> tuple[bool, ...]:
    """Return, per token, whether hiding it makes the answer most uncertain, [T]: the top `keep` of those that can.

    Hiding means that no other position attends to it. Its gain is the mean entropy of the next-token distribution at
    the answer's later positions with it hidden, minus the same without. The first token, special tokens, and tokens
    after which no answer token is predicted are no candidates.

    Args:
        model: the original.
        item: a sequence with labels.
        keep: share of the candidates, above 0 and below 1.
        special: ids of special tokens.
        batch_tokens: positions per forward.

    Source: Tan et al., NeurIPS 2025 (arXiv:2510.17210): importance is H(y | x without t) - H(y | x), top 60 %.
    """
    queries = [t - 1 for t, label in enumerate(item.labels) if t and label != IGNORE]
    places = [t for t, token in enumerate(item.ids) if t and token not in special and queries and t < queries[-1]]
    gains = dict(zip(places, entropy_gains(model, item, places, batch_tokens=batch_tokens), strict=True))
    count = round(keep * len(places))
    chosen = set(sorted(places, key=lambda t: (-gains[t], t))[:count])
    return tuple(t in chosen for t in range(len(item.ids)))


def entropy_gains(model: nn.Module, item: Encoded, places: Sequence[int], *, batch_tokens: int = 8192) -> list[float]:
    """Return the gain of hiding each place, nats per token; see `entropy_tokens`."""
    device, was_training = next(model.parameters()).device, model.training
    scorer, width = Scorer(model), len(item.ids)
    ids_T, labels_T = torch.tensor(item.ids, device=device), torch.tensor(item.labels, device=device)
    _, query_Q = answer_queries(labels_T[None])
    hidden: list[int | None] = [None, *places]
    size, entropies = max(1, batch_tokens // width), []
    model.eval()
    try:
        for start in range(0, len(hidden), size):
            chunk = hidden[start : start + size]
            mask_BT = torch.ones(len(chunk), width, dtype=torch.long, device=device)
            for b, place in enumerate(chunk):
                if place is not None:
                    mask_BT[b, place] = 0
            request = TokenRequest(_entropy, torch.arange(len(chunk), device=device))
            with torch.inference_mode():
                found = scorer(ids_T.expand_as(mask_BT), mask_BT, labels_T.expand_as(mask_BT), [request])[0]
            entropies.append(found.values.view(len(chunk), -1).cpu())
    finally:
        model.train(was_training)
    plain_Q, hidden_PQ = torch.cat(entropies)[0], torch.cat(entropies)[1:]
    later = [(query_Q.cpu() > place) for place in places]
    return [float((row_Q - plain_Q)[after].mean()) for row_Q, after in zip(hidden_PQ, later, strict=True)]


def _entropy(logits_CV: Tensor, _labels_C: Tensor) -> Tensor:
    logp_CV = torch.log_softmax(logits_CV, dim=1)
    return -(logp_CV.exp() * logp_CV).sum(1)
