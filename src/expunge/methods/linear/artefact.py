# SPDX-License-Identifier: Apache-2.0
"""Linear models as folders: `linear.npz` with the arrays, `linear.json` with everything else, no pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.claims import SENTENCES, ClaimKind
from expunge.errors import InputDataError
from expunge.methods.linear.convex import Floats
from expunge.methods.linear.removal import CertifiedHead, Guarantee, assumptions
from expunge.methods.linear.ridge import Ridge
from expunge.models.digests import file_digest
from expunge.runs import write_json

VERSION = 1
Fitted = Ridge | CertifiedHead


@dataclass(frozen=True, slots=True)
class Artefact:
    """A fitted model with what its outputs mean.

    Attributes:
        fitted: the model.
        classes: label of every output; of two classes only the second has one.
        features: where the features come from, in words or as the digest of a model.
        requests: how many removals it has been through.
    """

    fitted: Fitted
    classes: tuple[str, ...]
    features: str
    requests: int = 0

    @property
    def claim(self) -> ClaimKind:
        """Exact for ridge, statistical for heads with noise."""
        return ClaimKind.EXACT if isinstance(self.fitted, Ridge) else ClaimKind.STATISTICAL

    def targets(self, labels: Sequence[str]) -> Floats:
        """Return labels as columns of -1 and 1, [N, K].

        Raises:
            InputDataError: for a label that is no class.
        """
        unknown = sorted(set(labels) - set(self.classes))
        if unknown:
            raise InputDataError("is no class of the model", field="label", value=unknown[0],
                                 remedy=f"Classes: {', '.join(self.classes)}")  # fmt: skip
        return targets(labels, self.classes)

    def predict(self, x_ND: Floats) -> list[str]:
        """Return the most likely class of every row."""
        scores = self.fitted.predict(x_ND) if isinstance(self.fitted, Ridge) else self.fitted.scores(x_ND)
        if len(self.classes) == 2:
            return [self.classes[int(score > 0)] for score in scores[:, 0]]
        return [self.classes[k] for k in scores.argmax(axis=1)]

    def statement(self) -> dict[str, Any]:
        """Return what may be said of the model: the certificate of its removals."""
        facts: dict[str, Any] = {
            "claim": str(self.claim), "sentence": SENTENCES[self.claim], "rows": self.fitted.n,
            "requests": self.requests, "classes": list(self.classes), "features": self.features,
        }  # fmt: skip
        if isinstance(self.fitted, Ridge):
            return facts | {"assumptions": [
                "The features do not depend on the rows that leave.",
                "The ridge penalty is a constant and was not chosen on the rows that leave.",
            ]}  # fmt: skip
        head = self.fitted
        return facts | {
            "guarantee": asdict(head.guarantee), "rows_removed": head.removed, "noise_std": head.noise_std,
            "noise_digest": head.noise_digest, "budget": head.budget, "spent": [float(value) for value in head.spent],
            "assumptions": list(assumptions(head)),
        }  # fmt: skip


def targets(labels: Sequence[str], classes: Sequence[str]) -> Floats:
    """Return labels as columns of -1 and 1, [N, K]; two classes make one column, 1 for the second."""
    shown = classes[1:] if len(classes) == 2 else classes
    return np.where(np.array(labels)[:, None] == np.array(shown)[None, :], 1.0, -1.0)


def save_artefact(artefact: Artefact, folder: Path) -> None:
    """Write a model to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = asdict(artefact.fitted)
    arrays = {name: value for name, value in facts.items() if isinstance(value, np.ndarray)}
    with (folder / "linear.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    plain = {name: value for name, value in facts.items() if name not in arrays}
    kind = "ridge" if isinstance(artefact.fitted, Ridge) else "head"
    write_json(folder / "linear.json", {
        "schema_version": VERSION, "kind": kind, "classes": list(artefact.classes), "features": artefact.features,
        "requests": artefact.requests, "settings": plain, "arrays": file_digest(folder / "linear.npz"),
    })  # fmt: skip


def load_artefact(folder: Path) -> Artefact:
    """Return the model of a folder.

    Raises:
        InputDataError: if there is none, or its two files do not belong together.
    """
    try:
        facts = json.loads((folder / "linear.json").read_text("utf-8"))
        digest = file_digest(folder / "linear.npz")
    except (OSError, ValueError) as error:
        raise InputDataError(f"holds no linear model: {error}", field="linear", value=str(folder),
                             remedy="Make one: expunge linear fit") from error  # fmt: skip
    if digest != facts["arrays"]:
        raise InputDataError("linear.npz is not the file that linear.json was written with", field="linear",
                             value=str(folder), remedy="Fit it again")  # fmt: skip
    with np.load(folder / "linear.npz", allow_pickle=False) as arrays:
        values = {**facts["settings"], **{name: arrays[name] for name in arrays.files}}
    if facts["kind"] == "ridge":
        fitted: Fitted = Ridge(**values)
    else:
        fitted = CertifiedHead(**{**values, "guarantee": Guarantee(**values["guarantee"])})
    return Artefact(fitted, tuple(facts["classes"]), facts["features"], facts["requests"])
