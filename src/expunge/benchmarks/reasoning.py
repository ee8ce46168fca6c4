# SPDX-License-Identifier: Apache-2.0
r"""Problems with one exact answer: GSM8K (`#### 42`) and MATH (`\boxed{42}`), with worked examples before each.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021; Hendrycks et al., "Measuring
Mathematical Problem Solving With the MATH Dataset", 2021.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expunge.audit.config import Compat
from expunge.audit.exact_answer import GSM8K_PROMPT, MATH_PROMPT, problem_example
from expunge.audit.protocol import Continuation, Protocol
from expunge.benchmarks.base import BenchmarkData, check_split, needed_dir
from expunge.data.examples import Example
from expunge.data.sources import read_rows
from expunge.errors import InputDataError

_SHOTS = "The worked examples are the first of the training file, the same for every problem; the harness draws others."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """A test file of problems, and a training file that gives the worked examples; splits are numbers of those.

    Attributes:
        columns: names of the problem, the solution and the subject.
        pattern: the text of one problem.
        stop: a generation ends before the first of these.
    """

    name: str
    title: str
    columns: tuple[str, str, str]
    pattern: str
    stop: tuple[str, ...]
    max_new_tokens: int
    splits: tuple[str, ...]
    version: str = "1"
    needs_data: bool = True

    def load(self, data_dir: Path | None, *, split: str, compat: Compat = "fixed") -> BenchmarkData:
        """Return the problems behind `split` worked examples; `compat` changes how answers are compared.

        Raises:
            InputDataError: if a file is missing or cannot be used, or the training file is too short.
            RecipeError: for an unknown split.
        """
        check_split(self, split)
        examples = self.problems(needed_dir(self, data_dir), shots=int(split.partition("-")[0]))
        rule = Continuation(max_new_tokens=self.max_new_tokens, stop=self.stop)
        protocol = Protocol(
            f"{self.name}-{split}", self.version, {self.name: "reasoning"}, continuations={self.name: rule}
        )
        return BenchmarkData(sets={self.name: examples}, protocol=protocol, template="raw", notes=(_SHOTS,))

    def problems(self, folder: Path, *, shots: int) -> list[Example]:
        """Return the test problems of a folder, each after the first `shots` problems of the training file."""
        solved = [(problem, solution) for problem, solution, _ in self._rows(folder, "train", shots)] if shots else []
        if len(solved) < shots:
            raise InputDataError(f"the training file has fewer than {shots} problems", field=self.name)
        return [
            problem_example(f"{self.name}-{i}", problem, solution, solved, pattern=self.pattern, subject=subject)
            for i, (problem, solution, subject) in enumerate(self._rows(folder, "test", None), start=1)
        ]

    def _rows(self, folder: Path, part: str, limit: int | None) -> list[tuple[str, str, str]]:
        rows = list(_rows(folder, part, self.name))[:limit]
        problem, solution, subject = self.columns
        for place, row in rows:
            if not all(isinstance(row.get(name), str) and row[name] for name in (problem, solution)):
                remedy = f"Needed: {problem}, {solution}"
                raise InputDataError(f"{part}, {place} lacks a column", field=self.name, remedy=remedy)
        return [(str(row[problem]), str(row[solution]), str(row.get(subject) or "")) for _, row in rows]


def _rows(folder: Path, part: str, field: str) -> list[tuple[str, Mapping[str, object]]]:
    """Return the rows of `PART.jsonl`, or of one JSON object a file in `PART/SUBJECT/`."""
    if (folder / part).is_dir():
        files = sorted((folder / part).rglob("*.json"), key=lambda path: (path.parent.name, len(path.stem), path.stem))
        return [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in files]
    rows = read_rows(folder / f"{part}.jsonl", field=field)
    return [(place, row) for place, row in rows if not isinstance(row, Example)]


GSM8K = Reasoning(
    name="gsm8k", title="GSM8K, exact answers (Cobbe et al., 2021)", columns=("question", "answer", "subject"),
    pattern=GSM8K_PROMPT, stop=("Question:", "</s>", "<|im_end|>"), max_new_tokens=256,
    splits=("5-shot", "8-shot", "1-shot", "0-shot"),
)  # fmt: skip
MATH = Reasoning(
    name="math", title="MATH, exact answers (Hendrycks et al., 2021)", columns=("problem", "solution", "type"),
    pattern=MATH_PROMPT, stop=("Problem:",), max_new_tokens=512, splits=("4-shot", "1-shot", "0-shot"),
)  # fmt: skip
