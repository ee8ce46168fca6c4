# SPDX-License-Identifier: Apache-2.0
"""TOFU: which files make up an evaluation, the part each plays, and what the two published codes do differently.

Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", 2024. Files are those of the data set's page
(JSON lines): `forget10_perturbed.json`, `retain_perturbed.json`, `real_authors_perturbed.json`,
`world_facts_perturbed.json`, and `holdout10.json` where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.audit.config import Compat
from expunge.audit.protocol import Continuation, Protocol, SetRole
from expunge.audit.published_tofu import author
from expunge.benchmarks.base import BenchmarkData, check_split, needed_dir
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.errors import InputDataError

#: Forget request, and the percentage that its retained model was trained on.
RETAIN_OF: Mapping[str, str] = {"forget10": "retain90", "forget05": "retain95", "forget01": "retain99"}
ROLES: Mapping[str, SetRole] = {
    "forget": "forget", "retain": "retain", "real_authors": "options", "world_facts": "options", "holdout": "holdout",
}  # fmt: skip
#: The authors' code looks at the first so many examples of each file, and cuts prompt and generation at so many tokens.
LOCUSLAB_SIZE, LOCUSLAB_TOKENS = 300, 200
MAX_NEW_TOKENS = 200

_SUFFIXES = (".json", ".jsonl", ".parquet")
_INSIDE = ("", "data", "tofu", "TOFU", "TOFU_data")
_RETAIN = "retain_perturbed"


@dataclass(frozen=True, slots=True)
class Tofu:
    """The nine-way utility and the forget set of one request, from a folder with the published files."""

    name: str = "tofu"
    version: str = "1"
    title: str = "TOFU (Maini et al., 2024)"
    splits: tuple[str, ...] = tuple(RETAIN_OF)
    needs_data: bool = True

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the evaluated sets of one request.

        Under `locuslab` each set is its first 300 examples, sequences are cut at 200 tokens and so are prompt and
        generation together. Otherwise every example is taken, whole, and a generation has up to 200 tokens.

        Args:
            data_dir: folder with the published files, or a folder around it.
            split: `forget10`, `forget05` or `forget01`.
            compat: whose reading of the protocol.

        Raises:
            InputDataError: naming a file that is missing or cannot be used.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        folder = _folder(needed_dir(self, data_dir), split)
        files = {"forget": f"{split}_perturbed", "retain": _RETAIN,
                 "real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}  # fmt: skip
        notes: list[str] = []
        sets = {name: _examples(_needed(folder, stem), name) for name, stem in files.items()}
        holdout = _holdout(folder, split)
        if holdout is None:
            notes.append(f"{split.replace('forget', 'holdout')} is absent: membership has no non-members, so no number")
        else:
            sets["holdout"] = _examples(holdout, "holdout")
        if compat == "locuslab":
            notes += [_cut_note(name, examples) for name, examples in sets.items() if len(examples) > LOCUSLAB_SIZE]
            sets = {name: examples[:LOCUSLAB_SIZE] for name, examples in sets.items()}
            notes.append("their prompts: --template tofu_llama2 for Llama-2-chat, tofu_phi for the other models")
        protocol = Protocol(
            self.name, self.version, {name: ROLES[name] for name in sets},
            continuations=_continuations(tuple(sets), compat),
        )  # fmt: skip
        return BenchmarkData(
            sets=sets, protocol=protocol, audit=_settings(compat), encoding=_encoding(compat), notes=tuple(notes)
        )

    def training_file(self, data_dir: Path | None, which: str) -> Path:
        """Return the file of a training set: `full`, `forget10`, `retain90`..., as published.

        Raises:
            InputDataError: if it is not there.
        """
        return _needed(_folder(needed_dir(self, data_dir), self.splits[0]), which)


TOFU = Tofu()


def _settings(compat: Compat) -> dict[str, Any]:
    """Return what the protocol fixes of `AuditConfig`."""
    # OpenUnlearning's Min-K% takes the lowest 40 %.
    return {"max_new_tokens": MAX_NEW_TOKENS, "compat": compat} | ({"min_k": 0.4} if compat == "openunlearning" else {})


def _encoding(compat: Compat) -> dict[str, Any]:
    """Return what the protocol fixes of `DataConfig`."""
    return {"max_length": LOCUSLAB_TOKENS, "too_long": "truncate"} if compat == "locuslab" else {}


def _continuations(names: tuple[str, ...], compat: Compat) -> dict[str, Continuation]:
    return dict.fromkeys(names, Continuation(max_total_tokens=LOCUSLAB_TOKENS)) if compat == "locuslab" else {}


def _folder(around: Path, split: str) -> Path:
    """Return the folder with the files: the one given, or one of the usual names in it."""
    for name in _INSIDE:
        if _found(around / name, f"{split}_perturbed") is not None:
            return around / name
    raise InputDataError(
        f"holds no {split}_perturbed.json", field="--data", value=str(around),
        remedy="Give the folder with the files of the TOFU data set",
    )  # fmt: skip


def _found(folder: Path, stem: str) -> Path | None:
    return next((file for suffix in _SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()), None)


def _needed(folder: Path, stem: str) -> Path:
    found = _found(folder, stem)
    if found is None:
        raise InputDataError(f"holds no {stem}.json", field="--data", value=str(folder), remedy="Add the file")
    return found


def _holdout(folder: Path, split: str) -> Path | None:
    stem = split.replace("forget", "holdout")
    return _found(folder, f"{stem}_perturbed") or _found(folder, stem)


def _examples(file: Path, name: str) -> list[Example]:
    """Return the examples of a file; questions about one author form one cluster."""
    examples = load_examples(file, name=name)
    if ROLES[name] == "options":
        return examples
    return [replace(one, subject=one.subject or author(i)) for i, one in enumerate(examples)]


def _cut_note(name: str, examples: list[Example]) -> str:
    return f"{name}: the first {LOCUSLAB_SIZE} of {len(examples)} examples"
