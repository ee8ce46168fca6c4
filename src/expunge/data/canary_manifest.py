# SPDX-License-Identifier: Apache-2.0
"""The manifest of planted canaries: secrets, coins and seeds, kept apart from the training data and sealed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.data.canaries import THRESHOLDS, Canary, CanaryPlan
from expunge.data.encoding import Encoder
from expunge.data.loaders import load_examples
from expunge.data.writing import example_row
from expunge.errors import InputDataError, VerificationFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CanaryEntry(BaseModel):
    """One canary as the manifest keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: dict[str, Any] = Field(description="the example under our column names")
    secret_ids: tuple[int, ...] = Field(min_length=1, description="token ids of the secret")
    inserted: bool = Field(description="what the coin said")


class CanaryManifest(BaseModel):
    """Everything an audit of planted canaries needs; whoever sees it knows the coins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    plan: CanaryPlan
    template: str = Field(description="prompt template that the canaries were encoded with")
    template_id: str = Field(description="its name and digest")
    answer_eos: bool = Field(description="whether answers end with an end-of-sequence token")
    tokenizer: str = Field(description="SHA-256 over the vocabulary")
    data: str = Field(description="digest of the training data before planting")
    planted: str = Field(description="digest of the training data with the inserted canaries")
    thresholds: tuple[float, ...] = Field(THRESHOLDS, description="scores that the bounds try, in nats per token")
    canaries: tuple[CanaryEntry, ...]

    @property
    def seal(self) -> str:
        """SHA-256 (hex) over everything the manifest says."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def opened(self) -> list[Canary]:
        """Return the canaries."""
        examples = load_examples([entry.row for entry in self.canaries], name="canaries")
        return [
            Canary(example, entry.secret_ids, entry.inserted)
            for example, entry in zip(examples, self.canaries, strict=True)
        ]

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise unless the encoder turns texts into the token ids that were planted.

        Raises:
            InputDataError: for another vocabulary or another template.
        """
        if vocabulary_digest(encoder.tokenizer) != self.tokenizer:
            raise InputDataError(
                "the canaries were planted with another vocabulary", field="manifest", value=self.tokenizer[:12],
                remedy="Audit models that keep the tokenizer they were planted with",
            )  # fmt: skip
        if encoder.template_id != self.template_id:
            raise InputDataError(
                f"the canaries were planted under the template {self.template_id}", field="data.template",
                value=encoder.template_id, remedy=f"Use --set data.template={self.template}",
            )  # fmt: skip


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 (hex) over the vocabulary: every token with its id."""
    pairs = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode("ascii")).hexdigest()


def entries(canaries: list[Canary]) -> tuple[CanaryEntry, ...]:
    """Return canaries in the manifest's form."""
    return tuple(
        CanaryEntry(row=example_row(canary.example), secret_ids=canary.secret_ids, inserted=canary.inserted)
        for canary in canaries
    )


def write_manifest(manifest: CanaryManifest, path: Path) -> Path:
    """Write a manifest with its seal, readable by its owner only, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    text = json.dumps(manifest.model_dump(mode="json") | {"seal": manifest.seal}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_manifest(path: str | Path, *, seal: str | None = None) -> CanaryManifest:
    """Return a manifest whose seal holds.

    Args:
        path: the file.
        seal: what was noted when it was written; a seal inside the file shows accidents, this one changes on purpose.

    Raises:
        InputDataError: if the file is missing or no manifest.
        VerificationFailed: if its content does not give its seal, or not the one noted.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        remedy = "Give the manifest.json that `expunge canary plant` wrote"
        raise InputDataError(f"cannot be read: {error}", field="manifest", value=str(path), remedy=remedy) from None
    written = document.pop("seal", None) if isinstance(document, dict) else None
    try:
        manifest = CanaryManifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputDataError(f"is no manifest of canaries: {where}: {first['msg']}", field="manifest",
                             value=str(path)) from None  # fmt: skip
    for expected, name in ((written, "its own"), (seal, "the noted")):
        if (expected is not None or name == "its own") and manifest.seal != expected:
            raise VerificationFailed(
                f"the seal is broken: {name} is {str(expected)[:12]}, the content gives {manifest.seal[:12]}",
                field="manifest", value=str(path), remedy="Use an unchanged copy: bounds from this one mean nothing",
            )  # fmt: skip
    return manifest
