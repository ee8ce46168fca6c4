# SPDX-License-Identifier: Apache-2.0
"""Look inside model folders: what unlearning changed in states, curvature and weights, and whether it comes back."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge.api.workspace import Silent, Watcher, final_dtype, load_data, open_model, release
from expunge.audit.config import AuditConfig
from expunge.audit.diagnostics import published
from expunge.audit.diagnostics.collect import DiagonalStore, Progress
from expunge.audit.diagnostics.compare import (
    States,
    compare_fisher,
    compare_states,
    read_fisher,
    read_states,
    scatter,
    shown_layers,
)
from expunge.audit.diagnostics.config import DiagnoseConfig
from expunge.audit.diagnostics.fisher import EDGES, QUANTILES
from expunge.audit.diagnostics.updates import weight_updates
from expunge.audit.document import environment, write_json
from expunge.audit.measure import Measurer
from expunge.audit.protocol import default_protocol
from expunge.audit.records import Records
from expunge.audit.regimes import Thresholds, regime_of_records
from expunge.data.config import DataConfig
from expunge.data.digests import data_digest
from expunge.data.encoding import Encoded, Encoder
from expunge.data.examples import Example
from expunge.errors import InputDataError, RecipeError
from expunge.models.adapters import is_lora, merge_lora
from expunge.models.config import ModelConfig
from expunge.models.families import parameter_blocks
from expunge.models.loading import check_model
from expunge.report.diagnostics import write_diagnostics_page
from expunge.runs import RunFolder, check_output
from expunge.signals.head import decoder_blocks

DIAGNOSTICS_VERSION = 1
BEFORE, AFTER, RELEARNED, CONTROL = "before", "after", "relearned", "control"
UNRELATED = "unrelated"
_BARE: Mapping[str, Any] = {"paraphrased_prompt": None, "paraphrased_answer": None, "perturbed_answers": ()}


def diagnose_folders(
    before: str,
    after: str,
    *,
    data: DataConfig,
    output_dir: Path,
    relearned: str | None = None,
    control: str | None = None,
    config: DiagnoseConfig | None = None,
    model: ModelConfig | None = None,
    overwrite: bool = False,
    commands: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Compare models on the inside; write `diagnostics.json` and `diagnostics.html`, and return the document.

    Models are loaded one after the other; the weights of the first stay in memory to be compared, Fisher diagonals
    wait on disk.

    Args:
        before: folder or hub id of the model before unlearning.
        after: the unlearned model.
        data: `forget` and `retain` are needed; a set `unrelated` among the extra ones shares nothing with either.
        output_dir: where to write.
        relearned: the unlearned model after a little training, for the verdict on reversibility.
        control: a model that never saw the forget set, after the same training.
        config: settings; the defaults if not given.
        model: dtype, device and attention implementation; its path is not read.
        overwrite: write over an earlier diagnosis.
        commands: how to reproduce it.
        watcher: follows it.

    Raises:
        RecipeError: if a set is missing or the folder cannot be written.
        InputDataError: for data or models that cannot be used, or that are not of the same architecture and tokenizer.
    """
    sources = {BEFORE: before, AFTER: after, RELEARNED: relearned, CONTROL: control}
    given = {role: source for role, source in sources.items() if source is not None}
    if control is not None and relearned is None:
        raise RecipeError("needs a relearned model to stand beside", field="--control", remedy="Give RELEARNED too")
    sets = _sets(data)
    check_output(output_dir, overwrite=overwrite)
    for source in given.values():
        check_model(source)
    folder = RunFolder(output_dir, overwrite=overwrite)
    folder.start({"kind": "diagnose", "models": given, "commands": list(commands), "environment": environment()})
    job = _Diagnosis(
        config or DiagnoseConfig(), model or ModelConfig(path=before), data, sets, folder.path, watcher or Silent()
    )
    with folder.recorded():
        document = job.carry_out(given)
        write_json(document, folder.path / "diagnostics.json")
        write_diagnostics_page(document, folder.path / "diagnostics.html", commands=commands)
    return document


def _sets(data: DataConfig) -> dict[str, Sequence[Example]]:
    """Return the sets that are looked at, in the order of the page, without their paraphrases."""
    if data.retain is None:
        raise RecipeError("a retain set is needed", field="data.retain", remedy="Give --retain FILE")
    audited = load_data(data).audited
    sets = {name: audited[name] for name in ("forget", "retain", UNRELATED) if name in audited}
    return {name: [replace(example, **_BARE) for example in examples] for name, examples in sets.items()}


@dataclass
class _Diagnosis:
    """One run: what the models after are compared with is kept from the model before."""

    config: DiagnoseConfig
    model: ModelConfig
    data: DataConfig
    sets: Mapping[str, Sequence[Example]]
    folder: Path
    watcher: Watcher
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    items: dict[str, list[Encoded]] = field(default_factory=dict)
    states: dict[str, dict[str, States]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    records: dict[str, Records] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def carry_out(self, sources: Mapping[str, str]) -> dict[str, Any]:
        """Measure every model, compare, and return the document."""
        changes: dict[str, Any] = {}
        try:
            for role, source in sources.items():
                found = self._measure(role, source)
                changes |= {} if found is None else {role: found}
                release()
        finally:
            shutil.rmtree(self.folder / ".fisher", ignore_errors=True)
        self.watcher.stage("Comparing")
        layers = len(next(iter(self.states["forget"].values())).arranged_LND)
        details = shown_layers(layers)
        fixed = self.config.compat == "fixed"
        return {
            "schema_version": DIAGNOSTICS_VERSION, "kind": "diagnostics", "layers": layers, "shown_layers": details,
            "models": self.models, "notes": self._notes(),
            "sets": {name: {"n": len(examples), "compared": len(self.items[name]), "digest": data_digest(examples)}
                     for name, examples in self.sets.items()},
            "settings": self.config.model_dump(mode="json"), "compat": self.config.compat,
            "compat_reasons": {} if fixed else dict(published.REASONS), "histogram_edges": list(EDGES),
            "quantiles": list(QUANTILES), "changes": changes, "verdict": self._verdict(),
            "scatter": {name: scatter(found, details, self.config.scatter_texts)
                        for name, found in self.states.items()},
            "environment": environment(), "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }  # fmt: skip

    def _measure(self, role: str, source: str) -> dict[str, Any] | None:
        """Read one model; return what changed if it is one of those that are compared with the first."""
        self.watcher.stage(f"Loading the model {role}: {source}")
        config = self.model.model_copy(update={"path": source})
        opened = open_model(config, self.data, self.sets, dtype=final_dtype(config))
        model: nn.Module = merge_lora(opened.model) if is_lora(opened.model) else opened.model
        self.watcher.stage(f"Measuring the model {role}")
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.models[role] = {"path": source, "digest": opened.digest, "dtype": dtype}
        with self._timed("scoring"):
            self.records[role] = self._score(role, model, opened.encoder, opened.digest)
        if role == CONTROL:
            return None
        self._same_tokens(opened.encoder)
        with self._timed("states"):
            for name, items in self.items.items():
                found = read_states(model, items, self.config, pad_id=opened.encoder.pad_id,
                                    progress=self._counter(f"states of {name}", len(items)))  # fmt: skip
                self.states.setdefault(name, {})[role] = found
        store = self._fisher(role, model, opened.encoder.pad_id)
        if role == BEFORE:
            self.weights = {name: p.detach().cpu() for name, p in model.named_parameters()}
            return None
        return self._changes(role, model, store)

    def _changes(self, role: str, model: nn.Module, store: DiagonalStore | None) -> dict[str, Any]:
        """Return what a model changed against the one before."""
        now = {name: p.detach().cpu() for name, p in model.named_parameters()}
        with self._timed("weights"):
            updates = weight_updates(self.weights, now, parameter_blocks(model))
        layers = len(decoder_blocks(model))
        with self._timed("comparing"):
            states = {
                name: compare_states(found[BEFORE], found[role], self.config) for name, found in self.states.items()
            }
            fisher = {} if store is None else {
                name: compare_fisher(self._store(BEFORE), store, name, layers) for name in self.items
            }  # fmt: skip
        return {"states": states, "fisher": fisher, "updates": [asdict(update) for update in updates]}

    def _score(self, role: str, model: Any, encoder: Encoder, digest: str) -> Records:
        """Return the records that the verdict is computed from."""
        own = {key: getattr(self.config, key) for key in ("bootstrap", "confidence", "seed", "batch_tokens")}
        audit = AuditConfig(generate=False, **own)
        sets = {name: self.sets[name] for name in ("forget", "retain")}
        measurer = Measurer(
            encoder, sets, audit, default_protocol(sets), self.folder / "records", self.watcher.on_audit
        )
        return measurer.measure(model, name=role, model_digest=digest)

    def _same_tokens(self, encoder: Encoder) -> None:
        """Encode the texts for the first model; raise if another model reads other tokens."""
        found = {name: [row.encoded for row in encoder.encode_many(examples[: self.config.texts], where=name)]
                 for name, examples in self.sets.items()}  # fmt: skip
        if not self.items:
            self.items = {name: items[: self.config.texts] for name, items in found.items()}
        elif any(mine != found[name][: len(mine)] for name, mine in self.items.items()):
            raise InputDataError(
                "the models have different tokenizers", field="AFTER", remedy="Compare models of the same family"
            )

    def _fisher(self, role: str, model: nn.Module, pad_id: int) -> DiagonalStore | None:
        if not self.config.fisher_texts:
            return None
        store, layers = self._store(role), len(decoder_blocks(model))
        passes = math.ceil(layers / (self.config.layers_per_pass or layers))
        with self._timed("fisher"):
            for name, items in self.items.items():
                chosen = items[: self.config.fisher_texts]
                read_fisher(model, chosen, self.config, name=name, store=store, pad_id=pad_id,
                            progress=self._counter(f"gradients of {name}", len(chosen) * passes))  # fmt: skip
        return store

    def _store(self, role: str) -> DiagonalStore:
        return DiagonalStore(self.folder / ".fisher" / role)

    def _notes(self) -> list[str]:
        """Say what a reader must know of the models that were compared."""
        types = list(dict.fromkeys(model["dtype"] for model in self.models.values()))
        if len(types) == 1:
            return []
        return [f"The weights are of the types {' and '.join(types)}: part of every difference is rounding."]

    def _verdict(self) -> dict[str, Any]:
        found, own = self.records, self.config
        thresholds = Thresholds(forgotten=own.forgotten, collateral=own.collateral, residue=own.residue)
        audit = AuditConfig(generate=False, bootstrap=own.bootstrap, confidence=own.confidence, seed=own.seed)
        sets = {name: self.sets[name] for name in ("forget", "retain")}
        regime = regime_of_records(
            found[BEFORE], found[AFTER], found.get(RELEARNED), control=found.get(CONTROL), measure=own.measure,
            protocol=default_protocol(sets), config=audit, thresholds=thresholds,
        )  # fmt: skip
        return {"measure": own.measure, **regime.to_dict()}

    def _counter(self, phase: str, total: int) -> Progress:
        seen = 0

        def count(size: int) -> None:
            nonlocal seen
            seen += size
            self.watcher.on_audit(phase, seen, total)

        return count

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
