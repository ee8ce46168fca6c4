# SPDX-License-Identifier: Apache-2.0
"""Where the parts of a decoder block are, by name, in the model families: a position in a list would differ among them.

Known: Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma, OLMo, Phi, Phi-3, OPT, GPT-2, GPT-NeoX and what names its layers
like one of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

from expunge.errors import RecipeError

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_MLP_OUTPUT = re.compile(
    r"\.(?:mlp\.(?:experts\.(?:\d+\.)?)?(?:down_proj|c_proj|fc2|dense_4h_to_h)|\d+\.fc2)(?:\.base_layer)?(?:\.weight)?$"
)
#: Last parts of the names of what computes queries and keys; the last three also compute the values.
_QUERY_KEY = (("q_proj", "k_proj"), ("query_key_value",), ("qkv_proj",), ("c_attn",))


def block_of(name: str) -> int | None:
    """Return the number of the decoder block a parameter or module belongs to, None if to none."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def parameter_blocks(model: nn.Module) -> dict[str, int]:
    """Return the block of every parameter by name: -1 for what comes before the blocks, their number for what follows.

    Raises:
        RecipeError: if no parameter is in a numbered block.
    """
    named = {name: block_of(name) for name, _ in model.named_parameters()}
    inside = [block for block in named.values() if block is not None]
    if not inside:
        raise RecipeError("this model has no numbered blocks", field="model", value=type(model).__name__)
    out, place = {}, -1
    for name, block in named.items():
        if block is not None:
            place = max(inside) + 1
        out[name] = place if block is None else block
    return out


def mlp_outputs(model: nn.Module, blocks: Collection[int], *, width: int) -> list[str]:
    """Return the names of the weights that write the MLP's result into the residual stream, in the blocks given.

    Args:
        model: one of the known families, without adapters.
        blocks: numbers from 0.
        width: of the residual stream; one side of every weight found.

    Raises:
        RecipeError: if a block has no such weight or it has another shape.
    """
    remedy = "Name the weights yourself: --set training.trainable=[REGEX]"
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if block_of(name) in blocks and _MLP_OUTPUT.search(name)
    }
    if missing := sorted(set(blocks) - {block_of(name) for name in found}):
        problem = "no output projection of an MLP is known by name in this block"
        raise RecipeError(problem, field="training.trainable", value=missing[0], remedy=remedy)
    for name, parameter in found.items():
        if parameter.ndim < 2 or width not in parameter.shape:
            value = f"{name} {tuple(parameter.shape)}"
            problem = f"does not write into a stream of width {width}"
            raise RecipeError(problem, field="training.trainable", value=value, remedy=remedy)
    return list(found)


def query_key_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the last parts of the names of the modules that compute queries and keys.

    Raises:
        RecipeError: if none is known by name.
    """
    ends = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if block_of(name + ".") is not None}
    for names in _QUERY_KEY:
        if set(names) <= ends:
            return names
    raise RecipeError(
        "the modules that compute queries and keys are not known by name", field="training.lora.target_modules",
        value=type(model).__name__, remedy="Name them yourself",
    )  # fmt: skip
