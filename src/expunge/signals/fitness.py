# SPDX-License-Identifier: Apache-2.0
"""Which models the loop of `continuous` decodes exactly as transformers does; all others are left to `generate`."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

#: Classes whose own preparation of inputs matters only to texts longer than `original_max_position_embeddings`.
_SHORT_TEXTS_ALIKE = ("Phi3ForCausalLM", "PhimoeForCausalLM")
#: What a decoder must take for a token to have its position, its view and its keys handed in.
_NEEDED = ("input_ids", "position_ids", "attention_mask", "past_key_values", "use_cache")
#: Settings of a generation that change the logits, or what is made of them, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,), "encoder_repetition_penalty": (1.0,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "min_length": (0,), "min_new_tokens": (0,), "num_beams": (1,),
    "bad_words_ids": (), "sequence_bias": (), "suppress_tokens": (), "begin_suppress_tokens": (),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,), "remove_invalid_values": (False,), "watermarking_config": (), "dola_layers": (),
    "penalty_alpha": (0.0,), "min_p": (0.0,), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "stop_strings": (), "prompt_lookup_num_tokens": (),
}  # fmt: skip


def obstacle(model: PreTrainedModel, longest: int) -> str:
    """Return why a model cannot be decoded by `continuous.decode`, "" if it can.

    Args:
        model: a causal language model, without a wrapper.
        longest: positions of the longest prompt with its continuation.
    """
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        return "it reads from an encoder"
    return (
        _of_settings(model.generation_config)
        or _of_code(model, longest)
        or _of_positions(config, longest)
        or _of_cache(config, longest)
        or ("its weights are on several devices" if len({p.device for p in model.parameters()}) > 1 else "")
    )


def _of_settings(settings: GenerationConfig | None) -> str:
    given = {name: getattr(settings, name, None) for name in _NEUTRAL}
    own = [name for name, value in given.items() if value is not None and value not in _NEUTRAL[name]]
    return f"its generation settings ask for {own[0]}" if own else ""


def _of_code(model: PreTrainedModel, longest: int) -> str:
    kind = type(model)
    if not isinstance(model, GenerationMixin) or not isinstance(model.base_model, nn.Module):
        return "it is no model of transformers that generates"
    for net in (model, model.base_model):
        if missing := [name for name in _NEEDED if name not in inspect.signature(net.forward).parameters]:
            return f"its {type(net).__name__} takes no {missing[0]}"
    if kind.prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        short = longest <= getattr(model.config, "original_max_position_embeddings", longest)
        if kind.__name__ not in _SHORT_TEXTS_ALIKE or not short:
            return "it prepares its inputs in its own way"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is computed by {model.config._attn_implementation}"
    return ""


def _of_positions(config: Any, longest: int) -> str:
    """Rotary angles that depend on the longest text of a batch are the usual ones for short texts only."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    layered = [value for value in rope.values() if isinstance(value, dict)]
    for one in layered or [rope]:
        usual: int = one.get("original_max_position_embeddings") or config.max_position_embeddings
        if one.get("rope_type") in ("dynamic", "longrope") and longest > usual:
            return "its positions depend on the longest text of a batch"
    return ""


def _of_cache(config: Any, longest: int) -> str:
    layers = DynamicCache(config=config).layers
    plain = {type(one) for one in layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    if not plain or len(layers) != config.num_hidden_layers:
        return "it keeps more than keys and values of every layer"
    windows = [one.sliding_window for one in layers if isinstance(one, DynamicSlidingWindowLayer)]
    return "texts are longer than its attention window" if windows and min(windows) < longest else ""
