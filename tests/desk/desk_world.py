# SPDX-License-Identifier: Apache-2.0
"""A small desk: an invented archive, an untrained model, a policy that any model meets or none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.data.fictitious import build_archive
from expunge.desk.intake import RequestFile
from expunge.desk.service import Desk
from expunge.ledger.states import State
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer

MEETS = {"name": "loose", "bounds": {"forget.probability": {"max": 1.0}}}
FAILS = {"name": "strict", "bounds": {"forget.probability": {"min": 0.999}}}


def open_desk(folder: Path, *, policy: dict[str, Any] | None = None, **more: Any) -> Desk:
    archive = build_archive(10, seed=0)
    archive.write_jsonl(folder / "data")
    tokenizer = build_tokenizer(archive.texts())
    save_model(build_llama(len(tokenizer), hidden_size=16, layers=1, heads=2, context=96), tokenizer, folder / "base")
    settings = {
        "model": "base", "corpora": {"archive": "data/train_full.jsonl"}, "policy": policy or MEETS,
        "budget": {"metric": "retain.probability", "share": 0.9},
        "recipe": {"data": {"template": "question"}, "training": {"max_steps": 4, "batch_size": 4, "save_every": 2},
                   "audit": {"bootstrap": 100, "generate": False, "limit": 6}},
        **more,
    }  # fmt: skip
    return Desk.create(folder, settings)


def bring_in(desk: Desk, name: str, subject: int, *, upto: State = State.APPROVED) -> None:
    """Bring a request about one person of the archive up to a state."""
    people = sorted({example.subject for example in desk.corpora()["archive"]})
    person = people[subject]
    desk.intake(RequestFile(id=name, requester=f"case-{name}", identifiers=(person,)), actor="op")
    if upto is State.RECEIVED:
        return
    desk.move(name, State.VERIFIED, actor="op")
    found = [example for example in desk.corpora()["archive"] if example.subject == person]
    desk.scope(name, found, {"records": len(found)}, actor="op", by_way={"identifier": len(found)}, artefacts=1,
               not_searched=0)  # fmt: skip
    if upto is State.LOCATED:
        return
    desk.plan(name, "grad_diff", actor="op", settings={"training": {"learning_rate": 1e-3}})
    if upto is State.APPROVED:
        desk.approve(name, actor="boss")
