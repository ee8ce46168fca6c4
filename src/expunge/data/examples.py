# SPDX-License-Identifier: Apache-2.0
"""The unit of data: one example, and the named sets of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Turn:
    """One chat turn; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One prompt with its answer, or one running text (then `turns` is empty and `prompt` is "").

    Attributes:
        id: unique within its set.
        prompt: the question or prefix as the user wrote it; "" for running text.
        answer: what the loss and the scores are taken on.
        kind: `question` (a template is put around the prompt), `completion` (prompt and answer are joined as they
            are), `chat` (rendered from `turns`), or `text`.
        turns: the chat before the answer, for kind `chat`.
        subject: the person, tenant or work the example belongs to; intervals are clustered by it. "" if unknown.
        paraphrased_prompt, paraphrased_answer: the same fact in other words, if given.
        perturbed_answers: plausible wrong answers, if given.
    """

    id: str
    prompt: str
    answer: str
    kind: str = "question"
    turns: tuple[Turn, ...] = ()
    subject: str = ""
    paraphrased_prompt: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Splits:
    """The sets of one request. `extra` holds further sets by name, such as `world_facts`."""

    forget: Sequence[Example]
    retain: Sequence[Example] = ()
    holdout: Sequence[Example] = ()
    extra: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    def named(self) -> dict[str, Sequence[Example]]:
        """Return every non-empty set by name, in the order forget, retain, holdout, extra."""
        sets = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, **self.extra}
        return {name: examples for name, examples in sets.items() if len(examples)}
