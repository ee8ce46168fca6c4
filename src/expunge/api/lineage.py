# SPDX-License-Identifier: Apache-2.0
"""Which examples a checkpoint has seen, and from which one retraining without some of them can start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expunge.data.examples import Example
from expunge.errors import InputDataError
from expunge.runs import read_run, write_json

SEEN = "seen.json"
#: What of an example reaches the weights; its id, subject and variants do not.
_CONTENT = ("kind", "prompt", "answer", "turns")


def content_digest(example: Example) -> str:
    """Return the SHA-256 (hex) over what of an example a model is trained on."""
    values = asdict(example)
    text = json.dumps([values[name] for name in _CONTENT], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write_seen(folder: Path, examples: Iterable[Example]) -> None:
    """Write the digests of what a run trains on beside its `run.json`, sorted; no text."""
    write_json(folder / SEEN, {"schema_version": 1, "examples": sorted({content_digest(e) for e in examples})})


@dataclass(frozen=True, slots=True)
class Link:
    """One run between two checkpoints.

    Attributes:
        folder: of the run.
        start: the model it changed.
        kind: `train` or the name of a method.
        seen: digests of what it trained on; None if the run does not say.
        epochs: over its training set.
    """

    folder: Path
    start: str
    kind: str
    seen: frozenset[str] | None
    epochs: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where retraining starts and what it reads.

    Attributes:
        start: the checkpoint.
        assumes: the earliest model of the lineage: no run folder says what it was trained on, and that it never saw
            the examples is an assumption.
        scratch: there is no later start: everything that is known to have been trained is trained again.
        runs: folders of the runs to do again, in order, with how many examples are left of each and its epochs.
    """

    start: str
    assumes: str
    scratch: bool
    runs: tuple[tuple[str, int, int], ...]

    @property
    def rows(self) -> int:
        """Examples read, epochs counted."""
        return sum(left * epochs for _, left, epochs in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "rows": self.rows}


def lineage(model: str) -> list[Link]:
    """Return the runs that led to a checkpoint, the latest first, as far back as run folders tell.

    Raises:
        InputDataError: if a run started from other weights than those that are in that place now.
    """
    links: list[Link] = []
    wanted = None
    while True:
        folder = Path(model).absolute().parent
        info = read_run(folder) if Path(model).name == "model" else {}
        if info.get("kind") not in ("train", "run") or "model" not in info:
            return links
        made = info["model"].get("result_digest")
        if wanted and made and wanted != made:
            raise InputDataError("is not the model that the next run started from", field="model.path", value=model,
                                 remedy="Keep run folders that others start from")  # fmt: skip
        wanted = info["model"].get("digest")
        seen = _seen(folder)
        kind = "train" if info["kind"] == "train" else str(info["method"]["name"])
        links.append(Link(folder, info["model"]["path"], kind, seen, int(info["recipe"]["training"]["epochs"])))
        if any(link.folder == folder for link in links[:-1]):
            raise InputDataError("leads back to itself", field="model.path", value=model, remedy="Check run.json")
        model = _resolved(info["model"]["path"])


def _seen(folder: Path) -> frozenset[str] | None:
    path = folder / SEEN
    return frozenset(json.loads(path.read_text("utf-8"))["examples"]) if path.exists() else None


def _resolved(model: str) -> str:
    """Return the model folder inside a run folder; anything else as it is."""
    return str(Path(model) / "model") if (Path(model) / "run.json").exists() else model


def retraining_route(model: str, forget: Sequence[Example]) -> Route | None:
    """Return the cheapest exact route: from the last checkpoint that is known not to have seen any of the examples.

    A run that does not say what it read counts as having read them.

    Args:
        model: the checkpoint that shall lose them.
        forget: the examples.

    Returns:
        None if no run folder tells how the checkpoint came about.

    Raises:
        InputDataError: see `lineage`.
    """
    gone = {content_digest(example) for example in forget}
    links = lineage(_resolved(model))
    if not links:
        return None
    saw = [i for i, link in enumerate(links) if link.seen is None or link.seen & gone]
    again = links[: saw[-1] + 1] if saw else []
    start = links[len(again) - 1].start if again else _resolved(model)
    runs = tuple(
        (str(link.folder), len(link.seen - gone) if link.seen is not None else _examples(link), link.epochs)
        for link in reversed(again)
    )
    return Route(start, links[-1].start, len(again) == len(links), runs)


def _examples(link: Link) -> int:
    data: Mapping[str, Mapping[str, Any]] = read_run(link.folder).get("data", {})
    return sum(int(found["n"]) for name, found in data.items() if name in ("train", "forget", "retain"))
