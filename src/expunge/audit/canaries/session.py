# SPDX-License-Identifier: Apache-2.0
"""One manifest, several models: the canaries are scored on each while it is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from expunge.audit.canaries.document import canary_document
from expunge.audit.canaries.measure import CanaryFindings, CanarySettings, findings, score_canaries
from expunge.audit.config import AuditConfig
from expunge.audit.document import ModelRole
from expunge.audit.estimate import Estimate
from expunge.audit.statistics import Unavailable
from expunge.data.canary_manifest import read_manifest
from expunge.data.encoding import Encoder
from expunge.errors import InputDataError


class CanaryAudit:
    """Scores the canaries of one manifest on models, one after the other.

    Args:
        path: the manifest.
        seal: what was noted when it was written, None to trust the file's own.
        settings: delta, confidence, bootstrap.

    Raises:
        InputDataError: if there is no manifest.
        VerificationFailed: if its seal is broken.
    """

    def __init__(self, path: str | Path, *, seal: str | None = None, settings: CanarySettings | None = None) -> None:
        self.manifest, self._path = read_manifest(path, seal=seal), path
        self._settings = settings or CanarySettings()
        self._found: dict[str, CanaryFindings] = {}

    def measure(self, name: str, role: ModelRole, model: PreTrainedModel, encoder: Encoder) -> None:
        """Score one model.

        Raises:
            InputDataError: if the encoder is not the one that the canaries were planted with.
        """
        try:
            scores = score_canaries(model, encoder, self.manifest)
        except Unavailable as error:
            raise InputDataError(str(error), field="manifest", value=str(self._path)) from None
        self._found[name] = findings(scores, self.manifest.thresholds, role, self._settings)

    def estimates(self, name: str) -> dict[str, Estimate]:
        """Return what the canaries show about a model as metrics; none if it was not scored."""
        return self._found[name].estimates() if name in self._found else {}

    def document(self) -> dict[str, Any] | None:
        """Return what was found, None if no model was measured."""
        return canary_document(self.manifest, self._path, self._found, self._settings) if self._found else None


def canary_audit_of(config: AuditConfig, encoder: Encoder) -> CanaryAudit | None:
    """Return the audit of the manifest that a recipe names, None if it names none.

    Raises:
        InputDataError: if there is no manifest, or it was planted with another vocabulary or template.
        VerificationFailed: if its seal is broken.
    """
    if config.canaries is None:
        return None
    settings = CanarySettings(confidence=config.confidence, bootstrap=config.bootstrap, seed=config.seed)
    audit = CanaryAudit(config.canaries, settings=settings)
    audit.manifest.check_encoder(encoder)
    return audit
