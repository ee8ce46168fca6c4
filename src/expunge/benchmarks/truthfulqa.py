# SPDX-License-Identifier: Apache-2.0
"""TruthfulQA as multiple choice: MC1 is the set's `accuracy`, MC2 its `answer_probability`.

Source: Lin, Hilton and Evans, "TruthfulQA: Measuring How Models Mimic Human Falsehoods", 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.audit.config import Compat
from expunge.audit.protocol import Protocol
from expunge.benchmarks.base import BenchmarkData, check_split, needed_dir
from expunge.data.examples import Example
from expunge.data.questions import TEXT_TEMPLATE, Question, QuestionSet
from expunge.data.sources import read_rows
from expunge.errors import InputDataError

_COLUMNS = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
_NOTE = (
    "The prompt is the question alone; published numbers stand after a preamble of six worked questions. Choices come "
    "from the published CSV, whose answers differ a little from the multiple-choice files derived from it."
)


@dataclass(frozen=True, slots=True)
class TruthfulQA:
    """Every answer's text is scored after the question; `preamble` goes before it."""

    name: str = "truthfulqa"
    version: str = "1"
    title: str = "TruthfulQA, multiple choice (Lin et al., 2022)"
    splits: tuple[str, ...] = ("all",)
    needs_data: bool = True
    preamble: str = ""

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the questions of `TruthfulQA.csv` in a folder; `compat` changes how ties are counted.

        Raises:
            InputDataError: if the file is not there or cannot be used.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        questions = load_truthfulqa(needed_dir(self, data_dir) / "TruthfulQA.csv", preamble=self.preamble)
        return BenchmarkData(
            sets={}, questions={"truthfulqa": questions}, template="raw", audit={"generate": False},
            protocol=Protocol("truthfulqa", self.version, {"truthfulqa": "questions"}),
            notes=() if self.preamble else (_NOTE,),
        )  # fmt: skip


def load_truthfulqa(path: Path, *, preamble: str = "") -> QuestionSet:
    """Return the questions of the published CSV, one answer's text per choice.

    The best answer comes first, then the other right ones, then the wrong ones; a text that stands in both lists
    counts as right. The category is the subject.

    Args:
        path: CSV with the columns Question, Best Answer, Correct Answers and Incorrect Answers (parted by `;`).
        preamble: text before every question, such as worked questions in the form `Q: ...` and `A: ...`.

    Raises:
        InputDataError: if the file or a column is missing, or a question has no wrong answer.
    """
    template = f"{preamble.replace('{', '{{').replace('}', '}}')}\n\n{TEXT_TEMPLATE}" if preamble else TEXT_TEMPLATE
    questions = []
    for number, (place, row) in enumerate(read_rows(path, field="truthfulqa"), start=1):
        if isinstance(row, Example) or any(not row.get(column) for column in _COLUMNS):
            remedy = f"Needed: {', '.join(_COLUMNS)}"
            raise InputDataError(f"{place} lacks a column", field="truthfulqa", value=str(path), remedy=remedy)
        questions.append(_question(row, f"truthfulqa-{number}", place))
    if not questions:
        raise InputDataError("holds no questions", field="truthfulqa", value=str(path))
    return QuestionSet(questions=questions, style="texts", template=template, too_long="cut")


def _question(row: Mapping[str, Any], own: str, place: str) -> Question:
    best = _sentence(row["Best Answer"])
    right = list(dict.fromkeys([best, *_answers(row["Correct Answers"])]))
    wrong = [answer for answer in dict.fromkeys(_answers(row["Incorrect Answers"])) if answer not in right]
    if not wrong:
        raise InputDataError(f"{place} has no wrong answer", field="truthfulqa")
    return Question(
        id=own, text=row["Question"], choices=(*right, *wrong), best=0, also_right=tuple(range(1, len(right))),
        subject=str(row.get("Category") or ""),
    )  # fmt: skip


def _answers(cell: str) -> list[str]:
    return [_sentence(answer) for answer in cell.split(";") if answer.strip()]


def _sentence(answer: str) -> str:
    """Return an answer with the full stop that the multiple-choice files give it."""
    text = answer.strip()
    return text if text.endswith(".") else f"{text}."


TRUTHFULQA = TruthfulQA()
