# SPDX-License-Identifier: Apache-2.0
"""Facts as choices: the right answer among the wrong ones that the data give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data.encoding import Encoded, Encoder, Variant
from expunge.data.examples import Example
from expunge.errors import InputDataError


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Where a right and wrong answers part: what comes before, the right next token, and the wrong ones.

    Attributes:
        example: the fact.
        context: prompt and the part of the answer that all share; every id is a label, [T].
        right: the next token of the right answer.
        wrong: the next tokens of wrong answers that differ from it, without repeats; empty where the data give none.
    """

    example: Example
    context: Encoded
    right: int
    wrong: tuple[int, ...]


def token_choices(encoder: Encoder, examples: Sequence[Example]) -> list[TokenChoice]:
    """Return the choice of every question: its first token that tells right from wrong.

    Without wrong answers that is the first token of the answer. Where the answers are option letters, the choices are
    those letters. The paraphrased answer stands for the right one where there is one, since wrong answers are given
    in its wording.

    Raises:
        InputDataError: if there is no question among the examples.
    """
    questions = _questions(examples)
    out = []
    for example in questions:
        right, *wrong = _answers(encoder, example)
        start = right.label_start
        parting = [p for other in wrong if (p := _parting(right.ids, other.ids, start)) is not None]
        at = min(parting, default=start)
        others = {other.ids[at] for other in wrong if other.ids[:at] == right.ids[:at] and len(other.ids) > at}
        ids = right.ids[:at]
        found = tuple(sorted(others - {right.ids[at]}))
        out.append(TokenChoice(example, Encoded(ids, ids, ends_with_eos=False), right.ids[at], found))
    return out


def answer_pairs(encoder: Encoder, examples: Sequence[Example]) -> list[tuple[Example, tuple[Encoded, ...]]]:
    """Return every question that has wrong answers with its answers, the right one first, none ended by a token.

    Raises:
        InputDataError: if there is none.
    """
    out = []
    for example in _questions(examples):
        if example.perturbed_answers:
            out.append((example, tuple(_unended(item) for item in _answers(encoder, example))))
    if not out:
        raise InputDataError(
            "no question has wrong answers", field="data.forget", value="perturbed_answer",
            remedy="Give the column perturbed_answer, or leave the attack linear_probe out",
        )  # fmt: skip
    return out


def _questions(examples: Sequence[Example]) -> list[Example]:
    found = [example for example in examples if example.kind != "text"]
    if not found:
        raise InputDataError(
            "running texts hold no questions", field="data.forget", remedy="Leave the probing attacks out"
        )
    return found


def _answers(encoder: Encoder, example: Example) -> list[Encoded]:
    right = example.answer
    if example.perturbed_answers and example.paraphrased_answer is not None:
        right = example.paraphrased_answer
    variants = [Variant(example, answer=text) for text in (right, *example.perturbed_answers)]
    return [row.encoded for row in encoder.encode_variants(variants, where="forget")]


def _parting(first: Sequence[int], second: Sequence[int], start: int) -> int | None:
    """Return the first place from `start` on where two sequences differ, None if one begins the other."""
    return next((i for i in range(start, min(len(first), len(second))) if first[i] != second[i]), None)


def _unended(item: Encoded) -> Encoded:
    return Encoded(item.ids[:-1], item.labels[:-1], ends_with_eos=False) if item.ends_with_eos else item
