# SPDX-License-Identifier: Apache-2.0
"""What can be known of a model without reading its weights: its size, its context, its tokenizer, its stored type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from expunge.models.config import ModelConfig
from expunge.models.loading import DTYPES, check_model, context_length, load_tokenizer, locate


class ModelShape(NamedTuple):
    """Sizes read from the configuration: numbers of parameters, blocks, vocabulary rows, widths, and the context."""

    parameters: int
    layers: int
    vocabulary: int
    width: int
    inner: int
    context: int


def model_shape(config: ModelConfig) -> ModelShape:
    """Return the sizes of the model a recipe changes; no weight is read and no memory is taken for one."""
    model = weightless_model(config)
    text = model.config.get_text_config()
    width = int(text.hidden_size)
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        width=width,
        # Some families, such as GPT-2, leave the inner width out and mean four times the width.
        inner=int(text.to_dict().get("intermediate_size") or text.to_dict().get("n_inner") or 4 * width),
        context=context_length(model),
    )


def weightless_model(config: ModelConfig) -> PreTrainedModel:
    """Return the model a recipe changes with all its names and shapes and without any weight."""
    settings = _config(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)


def stored_dtype(config: ModelConfig) -> str:
    """Return the type the model's weights are stored in: a key of `DTYPES`, float32 if its config does not say."""
    dtype = _config(config).dtype
    return next((key for key, known in DTYPES.items() if known == dtype), "float32")


def tokenizer_of(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model a recipe changes."""
    return load_tokenizer(config.path, revision=config.revision, trust_remote_code=config.trust_remote_code)


def _config(config: ModelConfig) -> PretrainedConfig:
    """Return the configuration of the model itself, behind an adapter if there is one."""
    check_model(config.path)
    name, revision = locate(config.path), config.revision
    adapter = find_adapter_config_file(name, revision=revision)
    if adapter is not None:
        name = str(json.loads(Path(adapter).read_text("utf-8"))["base_model_name_or_path"])
        revision = None
    return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=config.trust_remote_code)
