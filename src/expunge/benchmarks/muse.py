# SPDX-License-Identifier: Apache-2.0
"""MUSE: what it asks of a model about News and Books, and the forget sets of its two studies.

Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", 2024, section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from expunge.audit.config import Compat
from expunge.audit.protocol import Continuation, Protocol, SetRole
from expunge.benchmarks.base import BenchmarkData, check_split, needed_dir
from expunge.data.examples import Example
from expunge.data.loaders import load_examples
from expunge.data.sources import read_rows
from expunge.errors import InputDataError

logger = logging.getLogger(__name__)

SPLITS = ("news", "books")
#: The part each set plays; `forget` and `holdout` are the chunks whose membership is attacked.
ROLES: dict[str, SetRole] = {
    "verbmem": "forget", "knowmem_f": "forget", "knowmem_r": "retain", "forget": "forget", "holdout": "holdout",
}  # fmt: skip
#: 128 new tokens against as many ids of the truth; 32 new tokens that end before the next question.
VERBATIM = Continuation(max_new_tokens=128, target_tokens=128)
ANSWER = Continuation(max_new_tokens=32, stop=("\n\n", "\nQuestion", "Question:"))
FOLDS = 4


@dataclass(frozen=True, slots=True)
class Muse:
    """The six-way evaluation of one corpus, from a folder with `news/` and `books/` as published."""

    name: str = "muse"
    version: str = "1"
    title: str = "MUSE (Shi et al., 2024)"
    splits: tuple[str, ...] = SPLITS
    needs_data: bool = True

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the evaluated sets of a corpus; the notes name every file that is absent.

        `compat` changes how MUSE is computed, not what is asked. Membership chunks longer than the model's context are
        scored in pieces.

        Raises:
            InputDataError: if none of the files is there, or one cannot be used.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        folder = needed_dir(self, data_dir) / split
        notes: list[str] = []
        sets = {
            "verbmem": _verbatim(folder, notes),
            "knowmem_f": _knowledge(folder, "forget", notes),
            "knowmem_r": _knowledge(folder, "retain", notes),
            "forget": _chunks(folder, "forget", notes),
            "holdout": _chunks(folder, "holdout", notes),
        }
        found = {name: examples for name, examples in sets.items() if examples}
        if not found:
            raise InputDataError(
                "holds no file of the benchmark", field="--data", value=str(folder),
                remedy="Give the folder that holds news/knowmem/forget_qa.json",
            )  # fmt: skip
        continuations = {"verbmem": VERBATIM, "knowmem_f": ANSWER, "knowmem_r": ANSWER}
        protocol = Protocol(
            f"muse-{split}", self.version, {name: ROLES[name] for name in found},
            continuations={name: rule for name, rule in continuations.items() if name in found}, members=("forget",),
        )  # fmt: skip
        # The excerpts and answers stand in the middle of a text: no end-of-sequence token follows them.
        return BenchmarkData(
            sets=found, protocol=protocol, template="raw", audit={"privleak_k": 0.4, "max_new_tokens": 128},
            encoding={"answer_eos": False}, notes=tuple(notes),
        )  # fmt: skip


MUSE = Muse()


def few_shot_prompt(solved: Sequence[Example], question: str) -> str:
    """Return the prompt of KnowMem: solved questions, then the open one; it ends with a space, as published."""
    shown = "".join(f"Question: {example.prompt}\nAnswer: {example.answer}\n\n" for example in solved)
    return f"{shown}Question: {question}\nAnswer: "


def texts(path: Path, *, name: str) -> list[Example]:
    """Return the running texts of a JSON list; rows without text are skipped, and how many is logged.

    Args:
        path: the file.
        name: start of every id; the row's number, from 1, follows.

    Raises:
        InputDataError: if the file cannot be read, is no list of texts, or holds none.
    """
    found, skipped = [], 0
    for number, (place, row) in enumerate(read_rows(path, field=name), start=1):
        text = None if isinstance(row, Example) else row.get("text")
        if not isinstance(text, str):
            raise InputDataError(f"{place} is not a text", field=name, value=str(path), remedy="Write a list of texts")
        if text.strip():
            found.append(Example(id=f"{name}-{number}", prompt="", answer=text, kind="text"))
        else:
            skipped += 1
    if skipped:
        logger.warning("%s: skipped %d of %d rows, which hold no text", path.name, skipped, len(found) + skipped)
    if not found:
        raise InputDataError("holds no text", field=name, value=str(path))
    return found


def forget_folds(data_dir: Path | None, split: str) -> dict[str, list[Example]]:
    """Return the sequential requests of the sustainability study by name; the first is the forget set itself.

    Raises:
        InputDataError: if one of the four folds is absent.
    """
    check_split(MUSE, split)
    folder = needed_dir(MUSE, data_dir) / split
    files = [folder / "raw" / "forget.json", *(folder / "sust" / f"forget_{k}.json" for k in range(2, FOLDS + 1))]
    for file in files:
        if not file.is_file():
            raise InputDataError("absent", field="--data", value=str(file), remedy="The study needs all four folds")
    return {f"fold{k}": texts(file, name=f"fold{k}") for k, file in enumerate(files, start=1)}


def nested_forget_sets(data_dir: Path | None, split: str) -> tuple[dict[str, list[Example]], str]:
    """Return the growing forget sets of the scalability study by name, and a note on where they come from.

    Where the published files (`scal/forget_2.json`...) are absent, the sets are unions of the sustainability folds,
    which have the published sizes: one to four folds.

    Raises:
        InputDataError: if neither is there.
    """
    check_split(MUSE, split)
    folder = needed_dir(MUSE, data_dir) / split
    files = [folder / "raw" / "forget.json", *(folder / "scal" / f"forget_{k}.json" for k in range(2, FOLDS + 1))]
    if all(file.is_file() for file in files):
        return {f"size{k}": texts(file, name=f"size{k}") for k, file in enumerate(files, start=1)}, ""
    folds = list(forget_folds(data_dir, split).values())
    unions = {f"size{k}": [text for fold in folds[:k] for text in fold] for k in range(1, len(folds) + 1)}
    return unions, "The published scal/ files are absent: each size is a union of sustainability folds."


def _verbatim(folder: Path, notes: list[str]) -> list[Example]:
    path = _file(folder, "verbmem/forget.json", "VerbMem", notes)
    return [] if path is None else load_examples(path, name="verbmem", columns={"completion": "gt"})


def _knowledge(folder: Path, part: str, notes: list[str]) -> list[Example]:
    """Return the questions on one part, each behind the solved ones."""
    name = f"knowmem_{part[0]}"
    asked = _file(folder, f"knowmem/{part}_qa.json", name, notes)
    solved = _file(folder, f"knowmem/{part}_qa_icl.json", name, notes)
    if asked is None or solved is None:
        return []
    shown = load_examples(solved, name=f"{name}_icl")
    questions = load_examples(asked, name=name)
    return [replace(q, prompt=few_shot_prompt(shown, q.prompt), kind="completion") for q in questions]


def _chunks(folder: Path, part: str, notes: list[str]) -> list[Example]:
    path = _file(folder, f"privleak/{part}.json", "PrivLeak", notes)
    return [] if path is None else texts(path, name=part)


def _file(folder: Path, name: str, what: str, notes: list[str]) -> Path | None:
    """Return the path of a file, or None after noting what its absence costs."""
    if (folder / name).is_file():
        return folder / name
    notes.append(f"{folder.name}/{name} is absent: {what} is not measured.")
    return None
