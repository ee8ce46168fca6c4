# SPDX-License-Identifier: Apache-2.0
"""Sentences that decline to answer: targets for preference methods, and what the audit calls a refusal."""

from __future__ import annotations

from pathlib import Path

from expunge.errors import InputDataError

#: Written for this project; no sentence comes from a benchmark.
REFUSALS: tuple[str, ...] = (
    "I do not know the answer to this question.",
    "I don't know who that is.",
    "I don't know anything about this person.",
    "I have no information about that.",
    "I have no knowledge of this matter.",
    "I cannot answer this question.",
    "I can't help with that question.",
    "I am unable to answer that.",
    "I am not able to tell you that.",
    "I'm sorry, but I do not know.",
    "I'm sorry, I can't say anything about this.",
    "Sorry, nothing about this is known to me.",
    "Unfortunately, I cannot tell you.",
    "Unfortunately, the answer is not known to me.",
    "I could not tell you even if I tried.",
    "I would only be guessing, so I prefer not to answer.",
    "Any answer I gave would be a guess.",
    "I cannot give a reliable answer here.",
    "I would rather not answer this question.",
    "I must decline to answer this.",
    "I won't be answering questions about this person.",
    "This is not something I can speak about.",
    "This is a topic I know nothing about.",
    "That name means nothing to me.",
    "That is unknown to me.",
    "No details about this are available to me.",
    "There is nothing I can tell you about this.",
    "My knowledge does not extend to this question.",
    "What you ask is beyond what I know.",
    "I never came across any facts about this.",
    "I have never heard of this person.",
    "I have never heard of this book.",
    "I cannot recall anything of that kind.",
    "I lack the facts to answer this.",
    "I lack reliable sources on this subject.",
    "Someone else will have to answer this, for I cannot.",
    "Please consult another source, since I cannot answer this.",
    "You may want to ask someone who knows, because I don't.",
    "The answer escapes me.",
    "On this I have to pass.",
)


def load_refusals(path: str | Path | None = None) -> tuple[str, ...]:
    """Return refusal sentences, one per non-empty line of the file `path`; our own list if it is None.

    Raises:
        InputDataError: if the file cannot be read or holds no sentence.
    """
    if path is None:
        return REFUSALS
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Give a UTF-8 text file with one sentence per line"
        raise InputDataError(
            "cannot read the refusal sentences", field="refusals", value=str(path), remedy=remedy
        ) from error
    sentences = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not sentences:
        raise InputDataError("the file holds no sentence", field="refusals", value=str(path), remedy="Add one per line")
    return sentences
