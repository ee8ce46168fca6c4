# SPDX-License-Identifier: Apache-2.0
"""Answers by tenant: every example goes to the weights of its own tenant, all others to the model without any."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.api.ensembles import MemberFile, Start
from expunge.api.memory import check_metrics, entry
from expunge.api.workspace import Silent, Watcher, build_encoder, device_of, load_data
from expunge.audit.answers import Wanted, answers_to
from expunge.audit.collect import collect
from expunge.audit.config import AuditConfig
from expunge.audit.document import AuditDocument, environment
from expunge.audit.metrics import compute_metrics
from expunge.audit.protocol import Protocol, default_protocol
from expunge.audit.records import GeneratedItem, Records, ScoredItem
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.errors import InputDataError, RecipeError, VerificationFailed
from expunge.models.config import ModelConfig
from expunge.models.loading import ENSEMBLE, load_tokenizer
from expunge.recipe import SisaRecipe, audit_config, data_config, merge, read_settings
from expunge.training.shards.manifest import read_manifest
from expunge.training.shards.stages import file_digest, load_moving, moving_weights


class Router:
    """One model in memory that becomes that of any tenant in turn.

    Args:
        folder: a run of `expunge tenants train`.
        device: where to put the model; `auto` is the first GPU if there is one.

    Raises:
        InputDataError: if no tenant is left.
        RecipeError: if the run keeps no tenants apart.
        VerificationFailed: if the manifest, a tenant's weights or the model they were trained from changed.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        recipe = SisaRecipe.build(read_settings(folder / "recipe.yaml"))
        if recipe.sisa.split != "subject":
            raise RecipeError("its shards hold several subjects", field="folder", value=str(folder),
                              remedy="Use expunge audit")  # fmt: skip
        manifest = read_manifest(folder)
        self._folder, path = folder / "model", folder / "model" / ENSEMBLE
        if not path.exists():
            raise InputDataError("every tenant was removed", field="FOLDER", value=str(folder),
                                 remedy=f"Ask {recipe.model.path} itself")  # fmt: skip
        values = json.loads(path.read_text("utf-8"))
        files = {int(member["slot"]): MemberFile(**member) for member in values["members"]}
        self._files = {p.subject: files[p.shard] for p in manifest.places if not p.deleted}
        start = Start(**{**values["start"], "device": device_of(ModelConfig(path=recipe.model.path, device=device))})
        self._model = start.open(next(iter(files.values())).seed)
        # A fresh adapter changes no answer: this is the model that learned no tenant.
        self._before = {name: tensor.clone() for name, tensor in moving_weights(self._model).items()}
        self.data = recipe.data
        self._model.eval()

    @property
    def tenants(self) -> tuple[str, ...]:
        """Names of those who have weights, in order."""
        return tuple(self._files)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all of them."""
        return load_tokenizer(str(self._folder))

    def encoder(self) -> Encoder:
        """Return the encoder that the tenants were trained with."""
        return build_encoder(self.data, self.tokenizer, self.at(None))

    def route_of(self, example: Example) -> str | None:
        """Return the tenant whose weights answer an example, None for the model without any."""
        return example.subject if example.subject in self._files else None

    def at(self, tenant: str | None) -> PreTrainedModel:
        """Return the one model with a tenant's weights, or without any; the next call changes it.

        Raises:
            InputDataError: if there is no such tenant.
            VerificationFailed: if its weights are not those that were written.
        """
        if tenant is not None and tenant not in self._files:
            raise InputDataError("there is no such tenant", field="TENANT", value=tenant,
                                 remedy="Check the manifest")  # fmt: skip
        own = dict(self._model.named_parameters())
        for name, tensor in self._before.items():
            own[name].data.copy_(tensor)
        if tenant is not None:
            file = self._files[tenant]
            if file_digest(self._folder / file.weights) != file.sha256:
                raise VerificationFailed("a tenant's weights are not what was written", field="FOLDER", value=tenant,
                                         remedy="Check the folder with expunge tenants verify")  # fmt: skip
            load_moving(self._model, self._folder / file.weights, file.reserve)
        return cast(PreTrainedModel, self._model)

    def groups(self, sets: Mapping[str, Sequence[Example]]) -> dict[str | None, dict[str, list[Example]]]:
        """Return the examples of every set by who answers them; nobody who answers nothing is in it."""
        found: dict[str | None, dict[str, list[Example]]] = {}
        for name, examples in sets.items():
            for example in examples:
                found.setdefault(self.route_of(example), {}).setdefault(name, []).append(example)
        return found


def routed_records(
    router: Router, sets: Mapping[str, Sequence[Example]], config: AuditConfig, *, encoder: Encoder,
    protocol: Protocol | None = None, name: str = "routed",
) -> Records:  # fmt: skip
    """Measure tenants as they answer: every example by its own tenant's weights.

    Args:
        router: of the tenants.
        sets: evaluated sets by name; `subject` is the tenant.
        config: settings of the audit; membership and extraction need one model and have no sense here.
        encoder: as the tenants were trained.
        protocol: the part each set plays.
        name: of the whole.

    Returns:
        Records as of one model; `meta["routes"]` says how many examples each part answered, None being "".
    """
    sets = {set_name: list(examples)[: config.limit] for set_name, examples in sets.items()}
    protocol = protocol or default_protocol(sets)
    parts = [
        collect(router.at(tenant), encoder, group, config=config, protocol=protocol, name=name)
        for tenant, group in router.groups(sets).items()
    ]
    if not parts:
        raise InputDataError("nothing to measure on", field="data", remedy="Give --forget, --retain or --extra")
    place = {(s, e.id): (i, j) for i, (s, examples) in enumerate(sets.items()) for j, e in enumerate(examples)}

    def order(item: ScoredItem | GeneratedItem) -> tuple[int, int]:
        whole = (item.set, item.id.rpartition("#")[0])  # the text that a chunk `id#0` comes from
        return place[item.set, item.id] if (item.set, item.id) in place else place[whole]

    seconds: Counter[str] = Counter()
    for part in parts:
        seconds.update(part.meta["seconds"])
    data = {s: {"n": len(examples), "digest": data_digest(examples)} for s, examples in sets.items()}
    routes = Counter(router.route_of(e) or "" for examples in sets.values() for e in examples)
    meta = {**parts[0].meta, "data": data, "seconds": dict(seconds), "counts": {}, "routes": dict(routes), "name": name}
    return Records(
        scored=sorted((item for part in parts for item in part.scored), key=order),
        generated=sorted((item for part in parts for item in part.generated), key=order), meta=meta,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt was answered, and by whom: a tenant, or "" for the model without any."""

    id: str
    tenant: str
    text: str


def routed_answers(
    router: Router, examples: Sequence[Example], *, encoder: Encoder, max_new_tokens: int = 64
) -> list[Answer]:
    """Return a greedy answer to every prompt from the weights of its own tenant, in the order given.

    Args:
        router: of the tenants.
        examples: prompts; `subject` is the tenant, and running texts are not continued.
        encoder: as the tenants were trained.
        max_new_tokens: longest answer.
    """
    config, found = AuditConfig(max_new_tokens=max_new_tokens), dict[str, Answer]()
    for tenant, group in router.groups({"prompts": examples}).items():
        wanted = [Wanted(encoder.prompt_ids(e), max_new_tokens) for e in group["prompts"]]
        answers = answers_to(router.at(tenant), encoder, wanted, config, name="tenant", counter=lambda total: None)
        for example, one in zip(group["prompts"], wanted, strict=True):
            found[example.id] = Answer(example.id, tenant or "", answers.of(one).text)
    return [found[example.id] for example in examples]


def answer_file(
    folder: Path, source: str, *, max_new_tokens: int = 64, device: str = "auto", watcher: Watcher | None = None
) -> list[Answer]:
    """Answer the prompts of a file, each by the tenant that its row names.

    Args:
        folder: a run of `expunge tenants train`.
        source: examples, whose own answers are not looked at.
        max_new_tokens: longest answer.
        device: where to compute.
        watcher: follows the work.

    Raises:
        InputDataError: for data that cannot be used, or a folder without tenants.
    """
    watch = watcher or Silent()
    watch.stage("Loading the model")
    router = Router(folder, device=device)
    examples = load_examples(source, name="prompts", columns=router.data.columns)
    watch.stage(f"Answering {len(examples)} prompts")
    return routed_answers(router, examples, encoder=router.encoder(), max_new_tokens=max_new_tokens)


def audit_tenants(
    folder: Path, settings: Mapping[str, Any], *, device: str = "auto", watcher: Watcher | None = None
) -> AuditDocument:
    """Measure tenants as they answer and return the document; the routes are in the model's `meta`.

    Args:
        folder: a run of `expunge tenants train`.
        settings: nested: `data` with the sets to measure, and `audit`; how texts are encoded follows the training.
        device: where to compute.
        watcher: follows the audit.

    Raises:
        ExpungeError: one of its kinds.
    """
    config, watch = audit_config(settings), watcher or Silent()
    watch.stage("Loading the model")
    router = Router(folder, device=device)
    known = router.data.model_dump(include={"template", "columns", "answer_eos", "max_length", "too_long"})
    sets = load_data(data_config(merge({"data": known}, settings)), need_forget=False).audited
    protocol = default_protocol(sets)
    check_metrics(config, protocol)
    watch.stage("Auditing the tenants")
    records = routed_records(router, sets, config, encoder=router.encoder(), protocol=protocol)
    made = entry(records, compute_metrics(records, protocol=protocol, config=config))
    made = made.model_copy(update={"meta": {**made.meta, "routes": records.meta["routes"]}, "path": str(folder)})
    return AuditDocument(environment=environment(), protocol=protocol.to_dict(), models={"tenants": made})
