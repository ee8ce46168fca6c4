# SPDX-License-Identifier: Apache-2.0
"""New tokens in a vocabulary: the tokenizer and the embeddings grow together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.errors import InputDataError


def add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], *, seed: int
) -> list[int]:
    """Add tokens to the tokenizer and rows to the embedding and the head; return their ids.

    A new row is the mean of the rows that were there, with noise of a tenth of their standard deviation, so that no two
    are the same; the global generator of torch is left as it was. White space before a new token belongs to it.

    Args:
        model: changed in place.
        tokenizer: changed in place.
        tokens: texts that are no tokens yet.
        seed: of the noise.

    Raises:
        InputDataError: if a text is a token already.
    """
    known = tokenizer.get_vocab()
    if taken := [token for token in tokens if token in known]:
        raise InputDataError("is a token already", field="tokens", value=taken[0], remedy="Choose another text")
    tokenizer.add_tokens([AddedToken(token, lstrip=True, normalized=False, special=False) for token in tokens])
    old, new = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(max(old, new), mean_resizing=False)
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    generator = torch.Generator().manual_seed(seed)
    tables = {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t is not None}
    # Tied tables share one tensor and are written once.
    weights = {table.weight.data_ptr(): table.weight for table in tables.values()}
    for weight in weights.values():
        _fill(weight, ids, generator)
    return ids


def _fill(weight: torch.Tensor, ids: Sequence[int], generator: torch.Generator) -> None:
    first = min(ids)
    with torch.no_grad():
        known = weight[:first].float().cpu()
        noise = torch.randn((len(ids), weight.shape[1]), generator=generator) * known.std(0) / 10
        weight[list(ids)] = (known.mean(0) + noise).to(weight)
