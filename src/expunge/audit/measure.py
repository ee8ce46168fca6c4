# SPDX-License-Identifier: Apache-2.0
"""Measure a model once: the records of an audit are kept and found again by what was measured, on what, and how."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from expunge.audit.choices import with_choices
from expunge.audit.collect import Progress, collect
from expunge.audit.config import AuditConfig
from expunge.audit.protocol import Protocol
from expunge.audit.records import Records
from expunge.audit.store import read_records, write_records
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.questions import QuestionSet

#: Settings that change what the model is asked; the others only change what is computed from the answers.
_ASKED = (
    "generate", "max_new_tokens", "lowercase", "limit", "gradient_norm", "neighbours", "extraction_prefixes",
    "extraction_length",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurer:
    """One audit's data and settings, ready to measure any number of models.

    Attributes:
        encoder: the tokenizer under one template and context length.
        sets: evaluated sets by name.
        config: settings of the audit.
        protocol: the part each set plays.
        folder: where records are kept, one folder a model; None keeps nothing.
        progress: told after every forward.
        questions: multiple-choice questions by the name of their set.
    """

    encoder: Encoder
    sets: Mapping[str, Sequence[Example]]
    config: AuditConfig
    protocol: Protocol
    folder: Path | None = None
    progress: Progress | None = None
    questions: Mapping[str, QuestionSet] = field(default_factory=dict)

    def key(self, model_digest: str, dtype: str) -> str:
        """Return the digest of model, data and settings under which records are kept."""
        asked = {name: self.config.model_dump(mode="json")[name] for name in _ASKED}
        if self.config.engine is not None:
            asked["engine"] = self.config.engine.model_dump(mode="json")
        asked["seed"] = self.config.seed if self.config.neighbours else 0  # nothing else that is asked depends on it
        data = {name: data_digest(examples) for name, examples in self.sets.items()}
        data |= {name: questions.digest() for name, questions in self.questions.items()}
        asks = ("roles", "continuations", "members")
        read = {key: value for key, value in self.protocol.to_dict().items() if key in asks}
        parts = [model_digest, dtype, self.encoder.template_id, self.encoder.max_length, asked, data, read]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def measure(self, model: PreTrainedModel, *, name: str, model_digest: str) -> Records:
        """Return the records of a model, from the folder if the same measurement is already there."""
        key = self.key(model_digest, str(model.dtype))
        if self.folder is not None:
            for found in sorted(self.folder.glob(f"*-{key[:16]}")):
                return read_records(found)
        records = collect(
            model, self.encoder, self.sets, config=self.config, protocol=self.protocol, name=name,
            progress=self.progress,
        )  # fmt: skip
        if self.questions:
            records = with_choices(
                records, model, self.encoder, self.questions, limit=self.config.limit,
                batch_tokens=self.config.batch_tokens, progress=self.progress,
            )  # fmt: skip
        records.meta.update(name=name, model_digest=model_digest, key=key)
        if self.folder is not None:
            self._keep(records, self.folder, f"{name}-{key[:16]}")
        return records

    def _keep(self, records: Records, folder: Path, name: str) -> None:
        """Write records in one rename; where another process was first, theirs stay, which are the same."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            write_records(records, partial)
            if not (folder / name).exists():
                partial.rename(folder / name)
        except OSError:
            if not (folder / name).exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
