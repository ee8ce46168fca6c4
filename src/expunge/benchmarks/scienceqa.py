# SPDX-License-Identifier: Apache-2.0
"""ScienceQA as multiple choice: the questions that need no image.

Source: Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering", 2022.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.audit.config import Compat
from expunge.audit.protocol import Protocol
from expunge.benchmarks.base import BenchmarkData, check_split, needed_dir
from expunge.data.questions import Question, QuestionSet, load_questions
from expunge.errors import InputDataError


@dataclass(frozen=True, slots=True)
class ScienceQA:
    """One split of the published files `problems.json` and `pid_splits.json`."""

    name: str = "scienceqa"
    version: str = "1"
    title: str = "ScienceQA without images (Lu et al., 2022)"
    splits: tuple[str, ...] = ("test", "val", "train", "minitest", "minival")
    needs_data: bool = True

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the text-only questions of a split; `compat` changes how ties are counted.

        Raises:
            InputDataError: if a file is not there or cannot be used.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        questions, left_out = load_scienceqa(needed_dir(self, data_dir), split=split)
        return BenchmarkData(
            sets={}, questions={"scienceqa": questions}, template="raw", audit={"generate": False},
            protocol=Protocol(f"scienceqa-{split}", self.version, {"scienceqa": "questions"}),
            notes=(f"scienceqa: {left_out} questions of the split need an image and are left out",),
        )  # fmt: skip


def load_scienceqa(folder: Path, *, split: str) -> tuple[QuestionSet, int]:
    """Return the questions of a split without an image, and how many of it have one.

    The hint stands before its question; questions with the same hint share a cluster. The topic is the subject.

    Raises:
        InputDataError: if a file, the split or a field is missing, or no question is left.
    """
    problems, splits = _json(folder / "problems.json"), _json(folder / "pid_splits.json")
    if split not in splits:
        raise InputDataError("no such split", field="pid_splits.json", value=split, remedy=f"Has: {', '.join(splits)}")
    chosen = [(str(own), problems[str(own)]) for own in splits[split] if str(own) in problems]
    rows = [_row(own, problem) for own, problem in chosen if not problem.get("image")]
    if not rows:
        raise InputDataError("holds no question without an image", field="scienceqa", value=split)
    questions: list[Question] = load_questions(rows, name="scienceqa")
    return QuestionSet(questions=questions, too_long="cut"), len(chosen) - len(rows)


def _row(own: str, problem: Mapping[str, Any]) -> dict[str, Any]:
    hint = str(problem.get("hint") or "").strip()
    text = str(problem.get("question") or "")
    return {
        "id": own, "question": f"{hint}\n{text}" if hint else text, "choices": problem.get("choices"),
        "answer": problem.get("answer"), "subject": problem.get("topic") or problem.get("subject"), "cluster": hint,
    }  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputDataError("cannot be read as JSON", field="--data", value=str(path)) from error
    return found


SCIENCEQA = ScienceQA()
