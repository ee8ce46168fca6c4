# SPDX-License-Identifier: Apache-2.0
"""The embedded model: a small Llama and a byte-level BPE tokenizer, both made in memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.errors import RecipeError

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
PAD_ID, EOS_ID, BOS_ID = 0, 1, 2
#: The bytes and the special tokens: below this no text could be written.
MIN_VOCABULARY = 256 + 3


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1280) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts.

    Every text survives `decode(encode(text))`; no special token is added on its own. Ids 0, 1 and 2 are `<pad>`,
    `<eos>` and `<bos>`.

    Args:
        texts: what the merges are learned from; the same texts in the same order give the same tokenizer.
        vocab_size: upper bound on the number of tokens, at least 259.

    Raises:
        RecipeError: if `vocab_size` has no room for the 256 bytes.
    """
    if vocab_size < MIN_VOCABULARY:
        raise RecipeError("no room for the bytes", field="vocab_size", value=vocab_size, remedy="Take 259 or more.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a word seen once stays in pieces, so no token stands for one name
        special_tokens=[AddedToken(token, special=True) for token in (PAD, EOS, BOS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, bos_token=BOS, clean_up_tokenization_spaces=False
    )


def build_llama(
    vocab_size: int,
    *,
    hidden_size: int = 64,
    layers: int = 2,
    heads: int = 4,
    intermediate_size: int | None = None,
    context: int = 256,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Return a fresh float32 Llama with an untied head; the global generator of torch is left as it was.

    Args:
        vocab_size: rows of the embedding and of the head.
        hidden_size: width D, a multiple of `heads`.
        layers: decoder blocks.
        heads: attention heads, each with its own keys and values.
        intermediate_size: width of the gated MLP; None for 2 D.
        context: longest sequence, in tokens.
        seed: decides every initial weight.

    Raises:
        RecipeError: if the heads do not divide the width into even parts, which rotary positions need.
    """
    if hidden_size % (2 * heads):
        raise RecipeError(
            "must be a multiple of twice the heads", field="hidden_size", value=hidden_size, remedy=f"heads is {heads}."
        )
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size if intermediate_size is None else intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=BOS_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.to(torch.float32).eval()
