# SPDX-License-Identifier: Apache-2.0
"""Plant canaries in training data, and audit models with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.api.audit import REFERENCE, name_models
from expunge.api.workspace import Silent, Watcher, build_encoder, final_dtype, load, release
from expunge.audit.canaries.measure import CanarySettings
from expunge.audit.canaries.session import CanaryAudit
from expunge.audit.document import ModelRole
from expunge.data.canaries import CanaryPlan, draw_canaries, new_tokens, planted
from expunge.data.canary_manifest import CanaryManifest, entries, vocabulary_digest, write_manifest
from expunge.data.config import DataConfig
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.loaders import load_examples
from expunge.data.writing import write_examples
from expunge.errors import RecipeError
from expunge.models.config import ModelConfig
from expunge.models.growth import add_tokens
from expunge.models.loading import context_length, load_model, load_tokenizer, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Longer than any canary: only the model that is trained decides what fits its context.
_NO_LIMIT = 1 << 20
TARGET = "target"


@dataclass(frozen=True, slots=True)
class Planted:
    """What was planted, and where it is.

    Attributes:
        manifest: secrets and coins.
        train: the training data with the inserted canaries.
        inserted: the inserted canaries alone: what an unlearning run is asked to unlearn.
        secret: the manifest's file, in a folder of its own.
        model: the model with the new tokens, None for designs without any.
    """

    manifest: CanaryManifest
    train: Path
    inserted: Path
    secret: Path
    model: Path | None


def plant(
    source: str, plan: CanaryPlan, *, model: str, folder: Path, data: DataConfig | None = None,
    trust_remote_code: bool = False,
) -> Planted:  # fmt: skip
    """Write training data with canaries, the manifest, and for `new-token` the model with the longer vocabulary.

    Args:
        source: the training data.
        plan: how many canaries of which design.
        model: the model that will be trained: its tokenizer decides the secrets.
        folder: where to write; must be absent or empty.
        data: columns, template and end of answers, as the training will use them.
        trust_remote_code: run code that comes with the model.

    Raises:
        ExpungeError: one of its kinds; nothing is written then.
    """
    config = data or DataConfig()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError("exists and is not empty", field="output_dir", value=str(folder), remedy="Name another")
    examples = load_examples(source, name="train", columns=config.columns, limit=config.limit)
    grown: PreTrainedModel | None = None
    if tokens := new_tokens(plan):
        grown, tokenizer = load_model(model, trust_remote_code=trust_remote_code)
        add_tokens(grown, tokenizer, tokens, seed=plan.seed % (1 << 63))
    else:
        tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    longest = _NO_LIMIT if grown is None else context_length(grown)
    encoder = Encoder(tokenizer, template=config.template, max_length=longest, answer_eos=config.answer_eos)
    canaries = draw_canaries(examples, encoder, plan)
    if len({canary.inserted for canary in canaries}) < 2:
        raise RecipeError("the coins fell on one side only", field="n", value=plan.n, remedy="Use more canaries")
    rows = planted(examples, canaries, plan)
    manifest = CanaryManifest(
        plan=plan, template=encoder.template.name, template_id=encoder.template_id, answer_eos=config.answer_eos,
        tokenizer=vocabulary_digest(tokenizer), data=data_digest(examples), planted=data_digest(rows),
        canaries=entries(canaries),
    )  # fmt: skip
    train = write_examples(rows, folder / "train" / "train.jsonl")
    inserted = [canary.example for canary in canaries if canary.inserted]
    held = write_examples(inserted, folder / "train" / "inserted.jsonl")
    secret = write_manifest(manifest, folder / "manifest" / "manifest.json")
    if grown is not None:
        save_model(grown, tokenizer, folder / "model")
    return Planted(manifest, train, held, secret, None if grown is None else folder / "model")


def audit_canaries(
    models: Sequence[str], manifest: str | Path, *, reference: str | None = None, target: str | None = None,
    seal: str | None = None, settings: CanarySettings | None = None, model: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return what the canaries of a manifest show about models, the target first and the reference last.

    Args:
        models: runs, folders or hub ids; those that were unlearned.
        manifest: what `plant` wrote.
        reference: a model trained on the data without any canary.
        target: the model trained on the planted data.
        seal: the seal noted at planting.
        settings: delta, confidence, bootstrap.
        model: further keys of a recipe's `model`, such as `device`.
        watcher: follows the audit.

    Raises:
        ExpungeError: one of its kinds.
    """
    audit, watch = CanaryAudit(manifest, seal=seal, settings=settings), watcher or Silent()
    given = [*([target] if target else []), *models]
    named = name_models(given, reference=reference)
    wanted: list[tuple[str, ModelRole, str]] = []
    for name, path in named.items():
        first = target is not None and not wanted
        wanted.append((TARGET if first else name, "target" if first else "other", path))
    if reference is not None:
        wanted.append((REFERENCE, "reference", next(iter(name_models([reference]).values()))))
    data = DataConfig(template=audit.manifest.template, answer_eos=audit.manifest.answer_eos)
    for name, role, path in wanted:
        watch.stage(f"Scoring canaries on {name}")
        config = ModelConfig(**{**(model or {}), "path": path})
        loaded, tokenizer = load(config, path, dtype=final_dtype(config))
        audit.measure(name, role, loaded, build_encoder(data, tokenizer, loaded))
        del loaded
        release()
    found = audit.document()
    assert found is not None
    return found
