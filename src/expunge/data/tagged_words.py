# SPDX-License-Identifier: Apache-2.0
"""Which words of a text carry facts, by the part of speech that a trained tagger gives each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expunge.errors import MissingDependency, require

Spans = Callable[[str], list[tuple[int, int]]]

#: Tags of the Penn treebank that carry facts begin with one of these: nouns and names, verbs, adjectives, numbers.
_CONTENT = ("NN", "VB", "JJ", "CD")
_DATA = "averaged_perceptron_tagger_eng"


def nltk_spans() -> Spans:
    """Return a function from an English text to start and end of its content words, in characters, in order.

    Words and tags are those of NLTK's tokenizer and averaged perceptron tagger.

    Raises:
        MissingDependency: if NLTK or the tagger's data is not there; nothing is downloaded.
    """
    require("nltk", "tagger")
    from nltk.tag import PerceptronTagger  # type: ignore[import-untyped,unused-ignore]
    from nltk.tokenize import NLTKWordTokenizer  # type: ignore[import-untyped,unused-ignore]

    try:
        tagger = PerceptronTagger()
    except LookupError as error:
        raise MissingDependency(
            "the data of NLTK's tagger is needed for this", field=_DATA,
            remedy=f"Run: python -m nltk.downloader {_DATA}, or use method.tagger=word_list",
        ) from error  # fmt: skip
    return lambda text: _content(text, NLTKWordTokenizer(), tagger)


def _content(text: str, tokenizer: Any, tagger: Any) -> list[tuple[int, int]]:
    spans = list(tokenizer.span_tokenize(text))
    tagged = tagger.tag([text[start:end] for start, end in spans])
    return [span for span, (word, tag) in zip(spans, tagged, strict=True) if tag.startswith(_CONTENT) and _word(word)]


def _word(text: str) -> bool:
    """Whether there is a letter or digit in it: taggers take stray signs for names."""
    return any(character.isalnum() for character in text)
