# SPDX-License-Identifier: Apache-2.0
"""Load a model with its tokenizer, and save both so that `from_pretrained` loads them again."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from expunge.errors import InputDataError, RecipeError, nearest, require

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
_TOKENIZER_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.*", "tekken.json")
#: Marks a folder that names several models that answer as one.
ENSEMBLE = "ensemble.json"
_WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# What transformers and PEFT raise for folders and hub ids they cannot read.
_READ_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)
_SAVE_REMEDY = "Save it with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)"


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class _Options(NamedTuple):
    dtype: torch.dtype
    revision: str | None
    attn_implementation: str
    trust_remote_code: bool
    quantised: str
    device: str


def load_model(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    revision: str | None = None,
    attn_implementation: str = "sdpa",
    device: str = "cpu",
    trust_remote_code: bool = False,
    quantised: str = "none",
) -> LoadedModel:
    """Return a causal language model and its tokenizer, from a folder or the hub.

    What exists on disk, or is written like a path (`./x`, `/x`, `x/`), is a folder; anything else is a hub id. A
    folder with `adapter_config.json` gives its base model with the PEFT adapter on it.

    Args:
        path_or_id: folder or hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        revision: hub revision; for an adapter, that of the adapter.
        attn_implementation: as in transformers.
        device: where to put the model.
        trust_remote_code: run code that comes with the model.
        quantised: `int8` or `nf4` holds the weights of linear layers, the head left out, in 8 or 4 bits; `none`.

    Raises:
        MissingDependency: if bitsandbytes is wanted and not there.
        InputDataError: if the folder, its config, tokenizer or weights are missing, or the weights do not fill the
            model.
        RecipeError: if the dtype or the device cannot be used.
    """
    if dtype not in DTYPES:
        raise RecipeError("unknown dtype", field="model.dtype", value=dtype, remedy=nearest(dtype, DTYPES))
    _check_device(device)
    name = locate(path_or_id)
    if quantised != "none":
        require("bitsandbytes", "quant")
    options = _Options(DTYPES[dtype], revision, attn_implementation, trust_remote_code, quantised, device)
    adapter = find_adapter_config_file(name, revision=revision)
    loaded = _load_plain(name, options) if adapter is None else _load_adapter(name, Path(adapter), options)
    if quantised == "none":
        loaded.model.to(device)
    loaded.model.eval()
    return loaded


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write weights (safetensors), config, generation config and tokenizer; of a PEFT model the adapter only.

    Everything is written beside `folder` and renamed at the end, so a run that dies leaves no half-written model.

    Args:
        model: what to save.
        tokenizer: its tokenizer.
        folder: where to; must be absent or empty unless `overwrite`.
        overwrite: replace what is there.

    Raises:
        InputDataError: if the folder holds something and `overwrite` is off.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise InputDataError("is not empty", field="output", value=str(folder), remedy="Name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    fresh, old = scratch / "new", scratch / "old"
    try:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(scratch, ignore_errors=True)


def context_length(model: PreTrainedModel) -> int:
    """Return the longest sequence, in tokens, that the config says the model takes.

    Raises:
        InputDataError: if the config names none.
    """
    settings = model.config.get_text_config().to_dict()
    for key in _CONTEXT_KEYS:
        if isinstance(settings.get(key), int):
            return int(settings[key])
    raise InputDataError(
        f"the config names no context length ({', '.join(_CONTEXT_KEYS)})",
        field="data.max_length",
        remedy="Set it: --set data.max_length=512",
    )


def _check_device(device: str) -> None:
    remedy = "Use --set model.device=cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise RecipeError("unknown device", field="model.device", value=device, remedy=remedy) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no GPU is visible", field="model.device", value=device, remedy=remedy)


def load_tokenizer(
    path_or_id: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder or hub id.

    Raises:
        InputDataError: if the folder or its tokenizer files are missing.
    """
    name = locate(path_or_id)
    if Path(name).is_dir():
        _need(Path(name), _TOKENIZER_FILES, "no tokenizer files in this folder")
    return _load_tokenizer(name, _Options(torch.float32, revision, "sdpa", trust_remote_code, "none", "cpu"))


def check_model(path_or_id: str | os.PathLike[str]) -> None:
    """Raise what `load_model` would raise for a folder that is missing or lacks files; no weight is read.

    Raises:
        InputDataError: naming the folder and what it lacks.
    """
    folder = Path(locate(path_or_id))
    if folder.is_dir() and not any((folder / name).exists() for name in ("adapter_config.json", ENSEMBLE)):
        _check_files(folder, tokenizer=True)


def locate(path_or_id: str | os.PathLike[str]) -> str:
    """Return the folder or the hub id as text.

    Raises:
        InputDataError: if it can be neither.
    """
    text = os.fspath(path_or_id)
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InputDataError("is a file, not a model folder", field="model", value=text, remedy="Name its folder")
    path_like = not isinstance(path_or_id, str) or text.startswith((".", "/", "~")) or text.endswith("/")
    if path_like or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text):
        raise InputDataError("no such folder", field="model", value=text, remedy="Check the path")
    return text


def _load_adapter(name: str, config: Path, options: _Options) -> LoadedModel:
    from peft import PeftModel

    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        remedy = "Write base_model_name_or_path into it"
        raise InputDataError("the adapter names no base model", field="model", value=str(config), remedy=remedy)
    folder = Path(name)
    if folder.is_dir():
        _need(folder, _ADAPTER_FILES, "no adapter weights in this folder")
    own_tokenizer = folder.is_dir() and _has(folder, _TOKENIZER_FILES)
    model, tokenizer = _load_plain(locate(base), options._replace(revision=None), tokenizer=not own_tokenizer)
    if own_tokenizer:
        tokenizer = _load_tokenizer(name, options)
    try:
        adapted = PeftModel.from_pretrained(model, name, revision=options.revision)
    except _READ_ERRORS as error:
        raise _unusable(name, error) from error
    return LoadedModel(adapted, tokenizer)


def _load_plain(name: str, options: _Options, *, tokenizer: bool = True) -> LoadedModel:
    """Return model and tokenizer of a folder or hub id; without its own tokenizer that entry is None."""
    folder = Path(name)
    if folder.is_dir():
        _check_files(folder, tokenizer=tokenizer)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=options.dtype,
            revision=options.revision,
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            **_quantisation(options),
        )
    except _READ_ERRORS as error:
        raise _unusable(name, error) from error
    # transformers fills what a checkpoint lacks with random numbers and only logs it.
    if missing := sorted(report["missing_keys"]):
        problem = f"the weights lack {len(missing)} tensors of the model, such as {missing[0]}"
        raise InputDataError(problem, field="model", value=name, remedy="Check that config and weights belong together")
    return LoadedModel(model, _load_tokenizer(name, options) if tokenizer else None)


def _quantisation(options: _Options) -> dict[str, Any]:
    """Return what transformers is told of it; such weights are put where they stay, for they cannot be moved later."""
    if options.quantised == "none":
        return {}
    from transformers import BitsAndBytesConfig

    four = options.quantised == "nf4"
    config = BitsAndBytesConfig(
        load_in_8bit=not four, load_in_4bit=four, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options.dtype
    )
    return {"quantization_config": config, "device_map": {"": options.device}}


def _load_tokenizer(name: str, options: _Options) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    except _READ_ERRORS as error:
        raise _unusable(name, error) from error


def _check_files(folder: Path, *, tokenizer: bool) -> None:
    _need(folder, ("config.json",), "no config.json in this folder")
    _need(folder, _WEIGHT_FILES, "no weights in this folder")
    _check_shards(folder)
    if tokenizer:
        _need(folder, _TOKENIZER_FILES, "no tokenizer files in this folder")


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _need(folder: Path, patterns: tuple[str, ...], problem: str) -> None:
    if not _has(folder, patterns):
        remedy = f"Expected {' or '.join(patterns)}. {_SAVE_REMEDY}"
        raise InputDataError(problem, field="model", value=str(folder), remedy=remedy)


def _check_shards(folder: Path) -> None:
    """Raise if a sharded checkpoint lacks one of the files its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if missing := sorted(shard for shard in named if not (folder / shard).exists()):
        problem = f"{len(missing)} of {len(named)} weight files are missing, such as {missing[0]}"
        raise InputDataError(problem, field="model", value=str(folder), remedy="Copy or download the folder again")


def _unusable(name: str, error: Exception) -> InputDataError:
    if Path(name).is_dir():
        return InputDataError(f"cannot be loaded: {error}", field="model", value=name, remedy=_SAVE_REMEDY)
    remedy = "Check the spelling; HF_HUB_OFFLINE must be unset to download; write ./name for a folder"
    return InputDataError(
        f"neither a folder nor a model the hub gives: {error}", field="model", value=name, remedy=remedy
    )
