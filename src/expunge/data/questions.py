# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice questions: the unit, how a set of them is put to a model, and reading them from files or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from expunge.data.examples import Example
from expunge.data.sources import Source, read_rows
from expunge.errors import InputDataError, RecipeError

Style = Literal["letters", "texts"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

#: Prompt of WMDP and MMLU. Source: the tasks `wmdp` and `mmlu` of the lm-evaluation-harness, 0-shot.
LETTER_TEMPLATE = (
    "The following are multiple choice questions (with answers) about {subject}.\n\n{question}\n{options}\nAnswer:"
)
#: Prompt of TruthfulQA without its preamble of worked examples; the answers themselves are scored.
TEXT_TEMPLATE = "Q: {question}\nA:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with its answers to choose from.

    Attributes:
        id: unique within its set.
        text: the question.
        choices: the answers, at least two.
        best: index of the answer that counts as the right one.
        also_right: indices of further right answers; they do not compete with `best` for accuracy.
        subject: its topic, such as `high school physics`; numbers are given per subject.
        cluster: what it shares with others, such as a passage; intervals resample clusters. "" if it stands alone.
    """

    id: str
    text: str
    choices: tuple[str, ...]
    best: int
    also_right: tuple[int, ...] = ()
    subject: str = ""
    cluster: str = ""

    @property
    def correct(self) -> tuple[int, ...]:
        """One entry per choice, 1 where it is right."""
        right = {self.best, *self.also_right}
        return tuple(int(index in right) for index in range(len(self.choices)))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """Questions, and how they are put to a model.

    Attributes:
        questions: in order; ids are unique.
        style: `letters` lists the answers in the prompt and scores " A", " B"...; `texts` scores every answer's text.
        template: prompt with `{subject}`, `{question}` and, for letters, `{options}`.
        too_long: `cut` drops the start of a prompt beyond the context, as the lm-evaluation-harness does (counted in
            the records); `error` refuses it.
    """

    questions: Sequence[Question]
    style: Style = "letters"
    template: str = LETTER_TEMPLATE
    too_long: Literal["cut", "error"] = "error"

    def prompt(self, question: Question) -> str:
        """Return the text before the answer."""
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
        return self.template.format(subject=question.subject, question=question.text.strip(), options=options)

    def continuations(self, question: Question) -> tuple[str, ...]:
        """Return what is scored after the prompt, one text per choice, each with its leading space."""
        texts = LETTERS[: len(question.choices)] if self.style == "letters" else question.choices
        return tuple(f" {text}" for text in texts)

    def first(self, limit: int | None) -> QuestionSet:
        """Return the set with the first `limit` questions of every subject; None keeps all."""
        if limit is None:
            return self
        seen: dict[str, int] = {}
        kept = []
        for question in self.questions:
            seen[question.subject] = seen.get(question.subject, 0) + 1
            if seen[question.subject] <= limit:
                kept.append(question)
        return replace(self, questions=kept)

    def digest(self) -> str:
        """Return the SHA-256 (hex) over the questions and the way they are put; order counts."""
        parts = [self.style, self.template, self.too_long, [asdict(question) for question in self.questions]]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode("ascii")).hexdigest()


def load_questions(
    source: Source, *, name: str, subject: str = "", columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Question]:
    """Return multiple-choice questions from rows {question, choices, answer} with optional subject, cluster and id.

    `choices` is a list of texts or numbers, `answer` the index of the right one from 0, or its letter. Questions with
    the same text share a cluster: they are not independent.

    Args:
        source: path, hub id with `:config` and `[split]`, or rows in memory; see `expunge.data.sources.read_rows`.
        name: name of the set, used in ids and errors.
        subject: topic of rows without the column `subject`; underscores become spaces in both.
        columns: our column name to the name in the source, where they differ.
        limit: take only the first rows.

    Raises:
        InputDataError: if the source is missing, empty, or a row has not these columns.
        RecipeError: if `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise RecipeError("must be at least 1", field=f"{name}.limit", value=limit, remedy="Leave it out to take all")
    names = dict(columns or {})
    found: list[Question] = []
    by_text: dict[str, list[int]] = {}
    for number, (place, row) in enumerate(read_rows(source, field=name), start=1):
        if limit is not None and number > limit:
            break
        if isinstance(row, Example):
            raise _bad(name, place, "is an example, not a question with choices")
        question = _question(row, names, name, place, f"{name}-{number}", subject)
        by_text.setdefault(question.text, []).append(len(found))
        found.append(question)
    if not found:
        raise InputDataError("holds no questions", field=name, remedy="Give at least one row")
    unique_ids(found, name)
    shared = {i: f"same as {found[group[0]].id}" for group in by_text.values() if len(group) > 1 for i in group}
    return [_clustered(question, shared.get(i, "")) for i, question in enumerate(found)]


def unique_ids(questions: Sequence[Question], name: str) -> None:
    """Raise `InputDataError` if two questions of a set have the same id."""
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(own for own in ids if ids.count(own) > 1)
        raise InputDataError("two questions have the same id", field=name, value=twice, remedy="Make ids unique")


def _question(
    row: Mapping[str, Any], names: Mapping[str, str], name: str, place: str, own: str, subject: str
) -> Question:
    def cell(column: str) -> Any:
        return row.get(names.get(column, column))

    for column in ("question", "choices", "answer"):
        if cell(column) is None:
            remedy = f"Columns: {', '.join(map(str, row))}; needed: question, choices, answer"
            raise _bad(name, place, f"lacks the column {names.get(column, column)!r}", remedy)
    text, choices = str(cell("question")), cell("choices")
    if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) < 2 or not text.strip():
        raise _bad(name, place, "needs a question and a list of at least two choices")
    if len(choices) > len(LETTERS) or not all(isinstance(choice, str | int | float) for choice in choices):
        raise _bad(name, place, f"needs choices that are texts or numbers, at most {len(LETTERS)}")
    return Question(
        id=str(cell("id") if cell("id") is not None else own),
        text=text,
        choices=tuple(str(choice) for choice in choices),
        best=_index(cell("answer"), len(choices), name, place),
        subject=str(cell("subject") or subject).replace("_", " "),
        cluster=str(cell("cluster") or ""),
    )


def _index(answer: Any, n: int, name: str, place: str) -> int:
    """Return the index that an answer column means: a number from 0, or a letter."""
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in LETTERS:
        answer = LETTERS.index(answer.strip().upper())
    elif isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < n:
        raise _bad(name, place, f"needs an answer from 0 to {n - 1}, or its letter")
    return answer


def _clustered(question: Question, shared: str) -> Question:
    if question.cluster or not shared:
        return question
    return replace(question, cluster=shared)


def _bad(name: str, place: str, problem: str, remedy: str = "") -> InputDataError:
    return InputDataError(f"{place} {problem}", field=name, remedy=remedy)
