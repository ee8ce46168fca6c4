# SPDX-License-Identifier: Apache-2.0
"""Folders that name several models which answer as one, written and loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from expunge.errors import VerificationFailed
from expunge.methods.weights import choose_parameters
from expunge.models.config import ModelConfig
from expunge.models.digests import model_digest
from expunge.models.loading import DTYPES, ENSEMBLE, LoadedModel, load_model, load_tokenizer
from expunge.models.selection import freeze_except
from expunge.optim.scores import linear_weights
from expunge.runs import write_json
from expunge.signals.ensemble import Aggregation, Ensemble
from expunge.signals.head import output_head
from expunge.training.config import TrainingConfig
from expunge.training.shards.reserve import Reserve
from expunge.training.shards.stages import file_digest, load_moving

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Start:
    """What every member was trained from, enough to make it again.

    Attributes:
        path, revision, attn_implementation, trust_remote_code, device: of the model.
        digest: of its weights.
        training: which parameters moved is in it.
        reserve: only the weights of linear layers move, without the head, shared out among the members.
    """

    path: str
    revision: str | None
    attn_implementation: str
    trust_remote_code: bool
    device: str
    digest: str
    training: dict[str, Any]
    reserve: bool = False

    @classmethod
    def of(cls, config: ModelConfig, digest: str, training: TrainingConfig, device: str, *, reserve: bool) -> Start:
        """Return the start that a recipe names."""
        path = str(Path(config.path).absolute()) if Path(config.path).is_dir() else config.path
        return cls(
            path, config.revision, config.attn_implementation, config.trust_remote_code, device, digest,
            training.model_dump(mode="json"), reserve,
        )  # fmt: skip

    def open(self, seed: int) -> nn.Module:
        """Return the model in float32 with exactly the parameters that may move requiring gradients.

        Args:
            seed: of a fresh adapter.

        Raises:
            VerificationFailed: if its weights are no longer those that were trained from.
        """
        model: nn.Module = load_model(
            self.path, revision=self.revision, attn_implementation=self.attn_implementation, device=self.device,
            trust_remote_code=self.trust_remote_code,
        ).model  # fmt: skip
        if model_digest(model) != self.digest:
            raise VerificationFailed(
                "its weights are not those that the shards were trained from", field="model.path", value=self.path,
                remedy="Restore them",
            )  # fmt: skip
        if self.reserve:
            freeze_except(model, list(linear_weights(model, without=[output_head(model)])))
            return model
        return choose_parameters(model, TrainingConfig(**self.training), seed)


@dataclass(frozen=True, slots=True)
class MemberFile:
    """The weights of one member: a file beside the ensemble's folder, its SHA-256, and what it takes to load it.

    Attributes:
        weights: path from the ensemble's folder.
        sha256: of that file.
        seed: of its adapter.
        slot: which share of the weights is its own, where they are reserved.
        slots: how many shares there are; 0 where nothing is reserved.
    """

    weights: str
    sha256: str
    seed: int
    slot: int = 0
    slots: int = 0

    @property
    def reserve(self) -> Reserve | None:
        """The weights of its own, None if it may have moved all."""
        return Reserve(self.slot, self.slots) if self.slots else None


def write_ensemble(
    folder: Path, start: Start, members: Mapping[int, tuple[Path, int]], aggregation: Aggregation, *, slots: int = 0
) -> None:
    """Write a folder that `expunge audit` takes as a model: config, tokenizer, and the names of the members' weights.

    Args:
        folder: where it goes; replaced if there.
        start: what the members were trained from.
        members: weights file and seed of each, by number.
        aggregation: how they answer together.
        slots: how many shares of the weights are reserved; 0 for none.
    """
    from transformers import AutoConfig

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    revision, trust = start.revision, start.trust_remote_code
    AutoConfig.from_pretrained(start.path, revision=revision, trust_remote_code=trust).save_pretrained(folder)
    load_tokenizer(start.path, revision=revision, trust_remote_code=trust).save_pretrained(folder)
    files = [
        MemberFile(_beside(path, folder), file_digest(path), seed, shard, slots)
        for shard, (path, seed) in sorted(members.items())
    ]
    write_json(folder / ENSEMBLE, {
        "schema_version": 1, "aggregation": aggregation, "start": asdict(start),
        "members": [asdict(file) for file in files],
    })  # fmt: skip


def _beside(path: Path, folder: Path) -> str:
    return Path("..", path.absolute().relative_to(folder.absolute().parent)).as_posix()


def load_ensemble(folder: Path, config: ModelConfig, *, dtype: str, device: str) -> LoadedModel:
    """Return the members of a folder as one model.

    Args:
        folder: with `ensemble.json`.
        config: attention implementation and whether to trust code.
        dtype: of the members' weights.
        device: where to put them.

    Raises:
        VerificationFailed: if a member's file, or the model they were trained from, is not what was written.
    """
    values = json.loads((folder / ENSEMBLE).read_text("utf-8"))
    start = Start(**{**values["start"], "attn_implementation": config.attn_implementation, "device": device})
    files = [MemberFile(**file) for file in values["members"]]
    for file in files:
        if file_digest(folder / file.weights) != file.sha256:
            raise VerificationFailed(
                "a member's weights are not what was written", field="model", value=str(folder / file.weights),
                remedy="Check the folder with expunge sisa audit",
            )  # fmt: skip
    model = _joined(start, folder, files, values["aggregation"])
    model.to(DTYPES[dtype])
    model.eval()
    return LoadedModel(cast("PreTrainedModel", model), load_tokenizer(folder))


def _joined(start: Start, folder: Path, files: Sequence[MemberFile], kind: Aggregation) -> nn.Module:
    model: Any = start.open(files[0].seed)
    if kind == "union":
        for file in files:
            load_moving(model, folder / file.weights, file.reserve)
        return cast(nn.Module, model)
    if kind == "average":
        return averaged(model, [folder / file.weights for file in files])
    load_moving(model, folder / files[0].weights, files[0].reserve)
    if start.training["lora"] is None:
        models = [model, *(start.open(file.seed) for file in files[1:])]
        for other, file in zip(models[1:], files[1:], strict=True):
            load_moving(other, folder / file.weights, file.reserve)
        return Ensemble(models, kind)
    names = ["default", *(f"member{k}" for k in range(1, len(files)))]
    for name, file in list(zip(names, files, strict=True))[1:]:
        add_adapter(model, name, folder / file.weights)
    return Ensemble([model], kind, adapters=names)


def add_adapter(model: Any, name: str, path: Path) -> None:
    """Put a further adapter, of the shape of the first, on a PEFT model.

    Args:
        model: with an adapter called `default`.
        name: of the further one.
        path: weights as a stage keeps them.
    """
    from safetensors.torch import load_file

    model.add_adapter(name, model.peft_config["default"])
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, tensor in load_file(path).items():
            own[key.replace(".default.", f".{name}.")].copy_(tensor)


def averaged(model: Any, paths: Sequence[Path]) -> nn.Module:
    """Return the plain model with the mean of the adapters' updates added to its weights, summed in float32.

    Args:
        model: with an adapter called `default`, whose values do not matter.
        paths: weights of each adapter as a stage keeps them.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    total: dict[str, Tensor] = {}
    with torch.no_grad():
        for path in paths:
            load_moving(model, path)
            for name, layer in layers.items():
                update = layer.get_delta_weight("default") / len(paths)
                total[name] = total[name] + update if name in total else update
        for name, layer in layers.items():
            layer.get_base_layer().weight.add_(total[name])
    return cast(nn.Module, model.unload())
