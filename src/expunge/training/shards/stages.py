# SPDX-License-Identifier: Apache-2.0
"""Train the stages of a shard, each from the checkpoint of the one before, with a fresh optimiser."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.data.encoding import Encoded
from expunge.optim.masks import WeightMasks
from expunge.runs import write_json
from expunge.training.config import TrainingConfig
from expunge.training.finetune import FineTuneTask
from expunge.training.loop import Trainer
from expunge.training.shards.reserve import Reserve

WEIGHTS, STAGE = "weights.safetensors", "stage.json"
#: Rooms whose code decides what training gives.
_ROOMS = ("data", "models", "objectives", "optim", "signals", "training")


@cache
def code_identity() -> dict[str, str]:
    """Return what else than data and settings decides the bits of a stage: our code and the libraries that compute."""
    from expunge import __version__

    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    return {"expunge": __version__, "code": digest.hexdigest(), **libraries}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its key, epochs, seed, and its sequences in order, None where one was taken out."""

    key: str
    epochs: int
    seed: int
    items: tuple[Encoded | None, ...]


@dataclass(frozen=True, slots=True)
class ShardWork:
    """What a worker needs to train a shard; everything in it can be sent to another process.

    Attributes:
        shard: from 0.
        folder: where its stages go, one folder each.
        open: gives the start, with exactly the parameters that may move requiring gradients.
        training: settings of the loop.
        pad_id: id used to pad.
        stages: all stages of the shard.
        first: the first that is trained; those before it are there.
        reserve: the weights that the shard may move; None for all that require gradients.
    """

    shard: int
    folder: Path
    open: Callable[[], nn.Module]
    training: TrainingConfig
    pad_id: int
    stages: tuple[Stage, ...]
    first: int
    reserve: Reserve | None = None


def stage_folder(folder: Path, stage: int) -> Path:
    """Return where a stage of a shard is kept."""
    return folder / f"stage-{stage:03d}"


def valid_stages(folder: Path, keys: Sequence[str]) -> int:
    """Return how many stages from the first on are there, under these keys and with the bytes once written."""
    for stage, key in enumerate(keys):
        path = stage_folder(folder, stage)
        if not (path / STAGE).exists():
            return stage
        info = json.loads((path / STAGE).read_text("utf-8"))
        if info["key"] != key or info["sha256"] != file_digest(path / WEIGHTS):
            return stage
    return len(keys)


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, "" if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def drop_from(folder: Path, first: int) -> None:
    """Delete every stage from `first` on, since they saw what leaves, and every one that was cut off in writing."""
    late = [path for path in folder.glob("stage-*") if int(path.name.removeprefix("stage-")) >= first]
    for path in (*late, *folder.glob(".partial-*")):
        shutil.rmtree(path)


def train_shard(work: ShardWork) -> int:
    """Train the stages of one shard from `first` on; return how many rows were read."""
    if work.first >= len(work.stages):
        return 0
    read = 0
    with reproducible():
        model = work.open()
        if work.first:
            load_moving(model, stage_folder(work.folder, work.first - 1) / WEIGHTS, work.reserve)
        for number in range(work.first, len(work.stages)):
            stage = work.stages[number]
            steps = _train_stage(model, work, stage)
            rows = sum(item is not None for item in stage.items)
            read += rows * stage.epochs
            info = {"key": stage.key, "epochs": stage.epochs, "seed": stage.seed, "rows": rows,
                    "places": len(stage.items), "steps": steps}  # fmt: skip
            _save(moving_weights(model, work.reserve), stage_folder(work.folder, number), info)
    return read


def _train_stage(model: nn.Module, work: ShardWork, stage: Stage) -> int:
    """Train on what is left; a stage without anything leaves the weights as they are."""
    if not any(item is not None for item in stage.items):
        return 0
    config = work.training.model_copy(update={"epochs": stage.epochs})
    task = FineTuneTask(stage.items, batch_size=config.batch_size, seed=stage.seed)
    torch.manual_seed(stage.seed)
    masks = None if work.reserve is None else WeightMasks(model, work.reserve.masks(model))
    return Trainer(model, task, config, pad_id=work.pad_id, masks=masks, seed=stage.seed).run().steps


@contextmanager
def reproducible() -> Iterator[None]:
    """One thread, algorithms that give the same bits again, and torch's generators as they were afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA needs to give the same bits again
    devices = list(range(torch.cuda.device_count()))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


def moving_weights(model: nn.Module, reserve: Reserve | None = None) -> dict[str, torch.Tensor]:
    """Return a copy on the CPU of every parameter that may move, by name; of reserved weights those alone, [n]."""
    moving = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
    if reserve is None:
        return moving
    return {name: value[reserve.mask(name, value.shape)] for name, value in moving.items()}


def load_moving(model: nn.Module, path: Path, reserve: Reserve | None = None) -> None:
    """Put a stage's weights into a model; of reserved weights those alone, and the others stay.

    Raises:
        ValueError: if other parameters moved in it.
    """
    from safetensors.torch import load_file

    weights = load_file(path)
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(weights) != set(moving):
        raise ValueError(f"{path} was written by a training in which other parameters moved")
    with torch.no_grad():
        for name, parameter in moving.items():
            if reserve is None:
                parameter.copy_(weights[name])
            else:
                own = reserve.mask(name, parameter.shape).to(parameter.device)
                parameter.masked_scatter_(own, weights[name].to(parameter))


def _save(weights: dict[str, torch.Tensor], folder: Path, info: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / WEIGHTS)
    write_json(partial / STAGE, {**info, "sha256": file_digest(partial / WEIGHTS)})
    partial.rename(folder)


def train_shards(
    works: Sequence[ShardWork], *, processes: int, done: Callable[[int], None] = lambda shard: None
) -> dict[int, int]:
    """Train shards, several at a time; return the rows each has read.

    Args:
        works: one per shard; those with nothing to do cost nothing.
        processes: 1 works here; more start fresh processes of one thread each.
        done: called with the number of each shard that is ready.
    """
    todo = [work for work in works if work.first < len(work.stages)]
    found = {work.shard: 0 for work in works}
    if processes <= 1 or len(todo) <= 1:
        for work in todo:
            found[work.shard] = train_shard(work)
            done(work.shard)
        return found
    with ProcessPoolExecutor(min(processes, len(todo)), mp_context=get_context("spawn")) as pool:
        for work, read in zip(todo, pool.map(train_shard, todo), strict=True):
            found[work.shard] = read
            done(work.shard)
    return found
