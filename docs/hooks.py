# SPDX-License-Identifier: Apache-2.0
"""Fills the marked places of the pages from the package itself, so that no table can fall behind the code.

A place is marked by a line `<!-- generated: NAME -->`; an unknown name stops the build.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from expunge.attacks.base import Attack
from expunge.attacks.registry import attacks
from expunge.audit.diagnostics.config import DiagnoseConfig
from expunge.audit.diagnostics.published import REASONS
from expunge.audit.metrics import metric_cards
from expunge.claims import ATTACKS, MISMATCHES, SENTENCES, ClaimKind, MethodCard, MetricCard
from expunge.methods.base import Method
from expunge.methods.registry import methods
from expunge.models.adapters import LoraSettings
from expunge.optim.config import MaskConfig, OptimizerConfig, ProximalConfig
from expunge.training.config import StopConfig, TrainingConfig
from expunge.training.privacy_config import PrivacyConfig

MARKER = re.compile(r"^<!-- generated: ([\w ]+) -->$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker of a page (called by MkDocs)."""
    return MARKER.sub(lambda found: GENERATED[found[1]](), markdown)


def cell(text: object) -> str:
    """Return text that stays within one cell of a Markdown table; code spans stay, all else is shown as it is."""
    pieces = re.split(r"(`[^`]+`)", " ".join(str(text).split()))
    plain = [re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", piece) for piece in pieces]
    return "".join(code(piece[1:-1]) if i % 2 else plain[i] for i, piece in enumerate(pieces))


def code(text: object) -> str:
    """Return text as code within a table cell."""
    return f"`{text}`".replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def bullets(items: Iterable[str]) -> str:
    """Return a Markdown list."""
    return "\n".join(f"- {item}" for item in items) + "\n"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return labelled facts as a list; a label without a fact is left out."""
    return bullets(f"*{label}*: {fact}" for label, fact in pairs if fact)


def fields(model: type[BaseModel], skip: Iterable[str] = ()) -> str:
    """Return the settings of a configuration class: name, default, meaning."""
    rows = [
        (code(name), "needed" if field.is_required() else code(_default(field.get_default(call_default_factory=True))),
         cell(field.description or ""))
        for name, field in model.model_fields.items()
        if name not in set(skip)
    ]  # fmt: skip
    return table(("setting", "default", "meaning"), rows) if rows else "No settings of its own.\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "…"  # its own settings are documented with its own class
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def source_file(method: Method) -> str:
    """Return the file a method lives in, relative to the repository."""
    return f"src/{type(method).__module__.replace('.', '/')}.py"


def methods_overview() -> str:
    """Return one row per method."""
    rows = [
        (
            f"[{code(name)}](#{name})", cell(method.card.title), cell(method.card.family), method.card.claim.value,
            cell(", ".join(method.card.needs)), cell(method.card.cost),
        )
        for name, method in methods().items()
    ]  # fmt: skip
    return table(("name", "method", "family", "kind of claim", "needs", "cost per step"), rows)


def methods_in_full() -> str:
    """Return a section per method: its card, its settings, the loop settings it brings."""
    return "\n".join(_method(name, method) for name, method in methods().items())


def _method(name: str, method: Method) -> str:
    card = method.card
    brought = ", ".join(f"{key} {value}" for key, value in method.training_defaults.items())
    parts = [
        f"## {cell(card.title)} {{ #{name} }}\n",
        f"```text\n{card.formula}\n```\n",
        f"{cell(paper(card))}\n",
        facts([
            ("name", code(name)), ("kind of claim", f"{card.claim.value}. {cell(SENTENCES[card.claim])}"),
            ("needs", cell(", ".join(card.needs))), ("cost per step", cell(card.cost)),
            ("formula from", cell(card.provenance)), ("training defaults", cell(brought or "those of the loop")),
            ("source of the defaults", cell(card.defaults_source)), ("file", code(source_file(method))),
        ]),
        f"{cell(card.notes)}\n" if card.notes else "",
        "Differences from the source:\n\n" + bullets(map(cell, card.differences)) if card.differences else "",
        fields(method.Config, skip=("name",)),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def paper(card: MethodCard) -> str:
    """Return where a method comes from as one line."""
    return f"{card.authors}: {card.paper}. {card.venue}, {card.year}."


def paper_index() -> str:
    """Return paper, method and file, one row per method."""
    rows = [
        (str(m.card.year), cell(m.card.authors), cell(m.card.paper), cell(m.card.venue),
         f"[{code(name)}](methods.md#{name})", code(source_file(m)))
        for name, m in sorted(methods().items(), key=lambda entry: (entry[1].card.year, entry[0]))
    ]  # fmt: skip
    return table(("year", "authors", "paper", "venue", "method", "file"), rows)


def metric_sources() -> str:
    """Return the papers that metrics come from, with the metrics of each."""
    found: dict[str, list[str]] = {}
    for card in metric_cards():
        names = found.setdefault(card.source or "our own definition", [])
        name = card.name.partition(".")[2] if _per_set(card) else card.name
        if name not in names:
            names.append(name)
    return table(("source", "metrics"), ((cell(s), ", ".join(map(code, names))) for s, names in found.items()))


def _per_set(card: MetricCard) -> bool:
    return card.name.partition(".")[0] in ("forget", "{set}", "holdout")


def metrics_per_set() -> str:
    """Return one section per metric that exists for every set; its cards differ in direction and target only."""
    groups: dict[str, list[MetricCard]] = {}
    for card in filter(_per_set, metric_cards()):
        groups.setdefault(card.name.partition(".")[2], []).append(card)
    return "\n".join(_metric(name, cards) for name, cards in groups.items())


def metrics_of_the_audit() -> str:
    """Return one section per metric of the whole audit."""
    return "\n".join(_metric(card.name, [card]) for card in metric_cards() if not _per_set(card))


def _metric(name: str, cards: Sequence[MetricCard]) -> str:
    card = cards[0]
    return "\n".join([
        f"### {cell(card.title)} {{ #{name} }}\n", f"{cell(card.definition)}\n",
        table(("name", "better", "target"), ((code(c.name), cell(c.direction), cell(c.target)) for c in cards)),
        facts([
            ("unit", cell(card.unit)), ("needs beside the model", cell(", ".join(card.needs))),
            ("variants", ", ".join(map(code, card.compat)) if len(card.compat) > 1 else ""),
            ("source", cell(card.source)), ("known failures", cell(" ".join(card.known_failures))),
        ]),
    ])  # fmt: skip


def attacks_overview() -> str:
    """Return one row per attack."""
    rows = [
        (f"[{code(name)}](#{name})", cell(card.title), cell(card.kind), cell(", ".join(card.needs)), cell(card.control),
         cell(card.cost))
        for name, card in ((name, attack.card) for name, attack in attacks().items())
    ]  # fmt: skip
    return table(("name", "attack", "kind", "needs", "control", "cost"), rows)


def attacks_in_full() -> str:
    """Return a section per attack: its card and its settings."""
    return "\n".join(_attack(name, attack) for name, attack in attacks().items())


def _attack(name: str, attack: Attack) -> str:
    card = attack.card
    return "\n".join([
        f"### {cell(card.title)} {{ #{name} }}\n", f"{cell(card.definition)}\n",
        facts([
            ("name", code(name)), ("kind", cell(card.kind)), ("needs", cell(", ".join(card.needs))),
            ("control", cell(card.control)), ("cost", cell(card.cost)), ("source", cell(card.source)),
            ("known failures", cell(" ".join(card.known_failures))),
        ]),
        fields(attack.Config),
    ])  # fmt: skip


def claim_kinds() -> str:
    """Return what may be said, by kind of claim, with the methods of each kind."""
    names = {kind: [code(name) for name, m in methods().items() if m.card.claim == kind] for kind in ClaimKind}
    rows = [(code(kind.value), cell(SENTENCES[kind]), ", ".join(names[kind]) or "none yet") for kind in ClaimKind]
    return table(("kind", "what a report may say", "methods"), rows)


@cache
def command(*arguments: str) -> str:
    """Return what a command of ours prints, as a code block."""
    run = f"import sys; from expunge.cli.main import main; sys.argv = {['expunge', *arguments]!r}; main()"
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", run], env=plain, capture_output=True, text=True, check=True, timeout=60
    )
    return f"```text\n{done.stdout.strip()}\n```\n"


GENERATED: dict[str, Callable[[], str]] = {
    "methods": methods_overview,
    "methods in full": methods_in_full,
    "metrics per set": metrics_per_set,
    "metrics of the audit": metrics_of_the_audit,
    "papers": paper_index,
    "metric sources": metric_sources,
    "claim kinds": claim_kinds,
    "mismatches": lambda: bullets(MISMATCHES),
    "attacks": lambda: bullets(ATTACKS),
    "attack cards": attacks_overview,
    "attacks in full": attacks_in_full,
    "diagnose settings": lambda: fields(DiagnoseConfig),
    "published diagnostics": lambda: facts((name, cell(why)) for name, why in REASONS.items()),
    "training settings": lambda: fields(TrainingConfig),
    "optimiser settings": lambda: fields(OptimizerConfig),
    "mask settings": lambda: fields(MaskConfig),
    "proximal settings": lambda: fields(ProximalConfig),
    "stop settings": lambda: fields(StopConfig),
    "privacy settings": lambda: fields(PrivacyConfig),
    "lora settings": lambda: fields(LoraSettings),
    "help": lambda: command("--help"),
}
