# SPDX-License-Identifier: Apache-2.0
"""Digests of models: which weights and which files a statement is about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from expunge.errors import InputDataError


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 (hex) over name, dtype, shape and bytes of every tensor of the state, sorted by name.

    The digest depends on neither the device nor the files the model was saved in, and changes with any single bit.
    """
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the same over some tensors by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        # Seen as bytes: numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def folder_digest(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file below `folder`, by its path from there, sorted.

    Raises:
        InputDataError: if there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputDataError("no such folder", field="folder", value=str(folder), remedy="Check the path")
    files = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*") if path.is_file())
    return {name: file_digest(path) for name, path in files}


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
