# SPDX-License-Identifier: Apache-2.0
"""What a desk knows of a request, as a situation, and the routes for it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from expunge.api.lineage import retraining_route
from expunge.api.sisa import sisa_forget
from expunge.api.workspace import device_of
from expunge.data.examples import Example
from expunge.data.writing import write_examples
from expunge.desk.advise.routes import Route, advise
from expunge.desk.advise.rules import rules
from expunge.desk.advise.situation import situation_from
from expunge.desk.config import located
from expunge.desk.lineage import Artefact, Lineage
from expunge.desk.locate.output import lineage_of
from expunge.desk.queue import current_model, forget_set
from expunge.errors import InputDataError, RecipeError, nearest
from expunge.models.config import ModelConfig
from expunge.models.loading import ENSEMBLE
from expunge.models.shape import model_shape
from expunge.recipe import merge
from expunge.runs import write_json

if TYPE_CHECKING:
    from expunge.desk.service import Desk

#: Facts of a request that somebody gave by hand.
ASKED = "asked.json"


def routes_of(desk: Desk, request: str, asked: Mapping[str, Any] | None = None) -> list[Route]:
    """Return the routes for a request, the best first, under the facts that were given by hand last.

    Args:
        desk: whose.
        request: its id.
        asked: facts that the desk cannot know, or that it has wrong, over those of its settings; kept for the next
            time. None: those kept.

    Raises:
        RecipeError: for an unknown fact or value.
        InputDataError: if data or run folders are not what they were.
    """
    path = desk.path(request, ASKED)
    given = dict(asked) if asked is not None else json.loads(path.read_text("utf-8")) if path.exists() else {}
    with TemporaryDirectory(prefix=".advice-", dir=desk.folder) as folder:
        known = situation_from({**situation_of(desk, request, Path(folder)), **given})
        if asked is not None:
            write_json(path, given)
        return advise(known)


def named_route(routes: Sequence[Route], name: str) -> Route:
    """Return the route of a name that `expunge work` can carry out.

    Raises:
        RecipeError: if there is none, it is not possible, or a person carries it out.
    """
    found = {route.name: route for route in routes}
    if name not in found:
        raise RecipeError("no such route here", field="--route", value=name, remedy=nearest(name, found))
    route = found[name]
    if not route.possible:
        raise RecipeError(f"is not possible: {route.why_not}", field="--route", value=name, remedy="Choose another")
    if route.method is None:
        raise RecipeError("is carried out by hand, not by `expunge work`", field="--route", value=name,
                          remedy=route.how)  # fmt: skip
    return route


def situation_of(desk: Desk, request: str, folder: Path) -> dict[str, Any]:
    """Return the facts that a desk knows of a request; those that depend on its records only once it is located.

    Args:
        desk: whose.
        request: its id.
        folder: for the data of the recipe that time and memory are estimated from.
    """
    view, model = desk.ledger.request(request), current_model(desk)
    config = ModelConfig(**{**dict(desk.config.recipe.get("model") or {}), "path": model})
    facts: dict[str, Any] = {
        "need": rules().needs_of[view.what], "deadline_seconds": view.days_left(desk.now()) * 86_400,
        "reference": desk.config.reference is not None, "parameters": model_shape(config).parameters,
        "memory_bytes": memory_of(device_of(config)), "ensemble": (Path(model) / ENSEMBLE).exists(),
    }  # fmt: skip
    found = forget_set(desk, request) if desk.path(request, "forget.jsonl").exists() else []
    if found:
        corpora = desk.corpora()
        subjects = {example.subject for example in found}
        facts |= {"forget": len(found), "dataset": sum(map(len, corpora.values())),
                  "subjects": len(subjects) if all(subjects) else None}  # fmt: skip
        facts["recipe"] = _recipe(desk, model, found, corpora, folder)
    lineage = lineage_of(desk)
    facts |= lineage_facts(lineage, _searched(desk, request), _name_of(desk, lineage), found,
                           changed=model != located(desk.folder, desk.config.model))  # fmt: skip
    if facts.get("base") is None and not facts.get("below_saw") and found:
        route = retraining_route(model, found)
        facts["base"] = _place(route.start) if route is not None and route.runs else None
    return facts | desk.config.facts


def lineage_facts(
    lineage: Lineage, corpora: Collection[str], name: str | None, found: Sequence[Example], *, changed: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Return what a lineage says about the data and the model in use.

    Args:
        lineage: of the desk.
        corpora: names of those in which something was found.
        name: of the model in use; None if the lineage does not know it.
        found: the records.
        changed: whether it was unlearned since; adapters, shards and bounds of training are no longer its own then.
    """
    saw = lineage.saw(corpora)
    facts: dict[str, Any] = {
        "artefacts": [{"name": one.name, "kind": one.kind, "reachable": one.reachable} for one in saw], "model": name,
    }  # fmt: skip
    if name is None:
        return facts
    own, barred = lineage.artefact(name), {one.name for one in (*saw, *lineage.unknown())}
    # Where the file names nothing that it was made from, nobody knows what that saw.
    facts["below_saw"] = bool(set(_above(lineage, own)) & barred) if own.parents else None
    starts = [one for one in lineage.starts(name, corpora) if one.path is not None and one.reachable]
    facts["base"] = _place(str(starts[0].path)) if starts else None
    if changed or own not in saw:
        return facts
    facts |= {"adapter": own.tenants, "shards": own.sisa}
    if own.sisa is not None and found:
        facts["shard_share"] = _shard_share(Path(own.sisa), found)
    if own.privacy is not None:
        facts["private"] = own.privacy.model_dump()
    return facts


def memory_of(device: str) -> int | None:
    """Return the bytes of memory of a device; None where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _name_of(desk: Desk, lineage: Lineage) -> str | None:
    """Return which artefact the desk's model is; a model that was unlearned since is still of that line."""
    model = Path(located(desk.folder, desk.config.model)).absolute()
    places = {one.name: Path(one.path).absolute() for one in lineage.artefacts if one.path is not None}
    return next((name for name, place in places.items() if model in (place, place / "model")), None)


def _searched(desk: Desk, request: str) -> list[str]:
    """Return the corpora in which something was found; all of them where the scope does not say."""
    path = desk.path(request, "scope.json")
    scope = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if "corpora" not in scope:
        return list(desk.config.corpora)
    return [str(corpus["name"]) for corpus in scope["corpora"] if corpus["found"]]


def _above(lineage: Lineage, artefact: Artefact) -> list[str]:
    found, todo = list[str](), list(artefact.parents)
    while todo:
        found.append(todo.pop())
        todo += lineage.artefact(found[-1]).parents
    return found


def _place(path: str) -> str:
    """Return a folder as seen from anywhere; a hub id as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _shard_share(folder: Path, found: Sequence[Example]) -> float | None:
    """Return which share of the rows training again would read; None where the folder cannot tell."""
    try:
        takes = sisa_forget(folder, ids={example.id for example in found}, dry_run=True)
    except (RecipeError, InputDataError):
        return None
    return takes.rows_read / takes.rows_plain if takes.rows_plain else None


def _recipe(
    desk: Desk, model: str, found: Sequence[Example], corpora: Mapping[str, Sequence[Example]], folder: Path
) -> dict[str, Any]:  # fmt: skip
    """Return the recipe that `expunge work` would run, but for the method."""
    gone = {(example.prompt, example.answer) for example in found}
    kept = {(example.prompt, example.answer): example for examples in corpora.values() for example in examples}
    retain = [example for key, example in kept.items() if key not in gone]
    data: dict[str, Any] = {"forget": str(folder / "forget.jsonl")}
    write_examples(found, folder / "forget.jsonl")
    if retain:
        write_examples(retain, folder / "retain.jsonl")
        data["retain"] = str(folder / "retain.jsonl")
    if desk.config.holdout:
        data["holdout"] = located(desk.folder, desk.config.holdout)
    place: dict[str, Any] = {"path": model}
    if desk.config.reference:
        place["reference"] = located(desk.folder, desk.config.reference)
    return merge(desk.config.recipe, {"model": place, "data": data})
