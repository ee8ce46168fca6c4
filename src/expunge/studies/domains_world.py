# SPDX-License-Identifier: Apache-2.0
"""Three domains on disk: the files of a request in each, one model that learned all, a reference for each request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from expunge.api.train import train
from expunge.data.fictitious import DOMAINS, Fact, Problem, ThreeDomains, build_domains
from expunge.data.writing import write_examples
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer
from expunge.recipe import TrainRecipe, merge
from expunge.runs import read_run
from expunge.studies.demo import SHAPE, TRAINING

#: Invented people, and families of problems with so many problems each: a tenth is sixteen items in every domain.
PEOPLE, FAMILIES, PER_FAMILY = 20, 40, 4


@dataclass(frozen=True, slots=True)
class World:
    """The files and models of one draw; nothing is made before it is asked for."""

    root: Path
    seed: int

    @property
    def base(self) -> Path:
        """The model before any training."""
        return self.root / "base"

    def file(self, domain: str, name: str) -> str:
        """Return one set of the request in a domain."""
        return str(self.root / domain / f"{name}.jsonl")

    def model(self, name: str) -> str:
        """Return the folder of `target` or `reference-{domain}`."""
        return str(self.root / name / "model")

    def others(self, domain: str) -> list[str]:
        """Return the sets beside forget, retain and holdout, which utility counts."""
        return [*(["world_facts"] if domain == "text" else []), *(name for name in DOMAINS if name != domain)]

    def write(self) -> None:
        """Write the files of the request in every domain, and the untrained model, if they are not there yet."""
        if self.base.exists():
            return
        drawn = draw(self.seed)
        for domain in DOMAINS:
            drawn.write_jsonl(self.root / domain, domain)
            others = [e for name in DOMAINS if name != domain for e in drawn.splits(name).retain]
            write_examples(others, self.root / domain / "unrelated.jsonl")
        tokenizer = build_tokenizer(drawn.texts())
        save_model(build_llama(len(tokenizer), seed=self.seed, **SHAPE), tokenizer, self.base)

    def learn(self, name: str) -> None:
        """Train `target` or `reference-{domain}` if it is not there yet."""
        if read_run(self.root / name).get("status") == "finished":
            return
        domain = name.partition("-")[2]
        source = self.file(domain, "train_retain") if domain else self.file("text", "train_full")
        settings: dict[str, Any] = {
            "name": name, "seed": self.seed, "model": {"path": str(self.base)}, "training": dict(TRAINING),
            "data": {"train": source, "template": "question"},
        }  # fmt: skip
        train(TrainRecipe.build(settings), output_dir=self.root / name, overwrite=True)

    def recipe(self, domain: str, method: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recipe of one method on the request in a domain, with more settings on top.

        Utility is measured on the rest of the domain and on the other two.
        """
        shared = {
            "name": f"{domain}-{method}", "seed": self.seed,
            "model": {"path": self.model("target"), "reference": self.model(f"reference-{domain}"),
                      "base": str(self.base)},
            "data": {
                "forget": self.file(domain, "forget"), "retain": self.file(domain, "train_retain"),
                "holdout": self.file(domain, "holdout"), "template": "question",
                "extra": {name: self.file(domain, name) for name in self.others(domain)},
                "evaluate": {"retain": self.file(domain, "retain")},
            },
            "method": {"name": method},
        }  # fmt: skip
        return merge(shared, more)


MODELS = ("target", *(f"reference-{domain}" for domain in DOMAINS))


@cache
def draw(seed: int) -> ThreeDomains:
    """Return the three domains of one draw."""
    return build_domains(PEOPLE, families=FAMILIES, per_family=PER_FAMILY, seed=seed)


@cache
def asked(seed: int) -> dict[str, Fact | Problem]:
    """Return every fact and problem of one draw by the id of its example, the holdout among them."""
    drawn = draw(seed)
    facts = [*drawn.text.facts("full"), *drawn.text.facts("holdout"), *drawn.text.world]
    problems = [p for domain in (drawn.math, drawn.code) for which in ("full", "holdout")
                for p in domain.problems(which)]  # fmt: skip
    items: list[Fact | Problem] = [*facts, *problems]
    return {item.id: item for item in items}
