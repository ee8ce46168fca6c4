# SPDX-License-Identifier: Apache-2.0
"""Stems equal those of NLTK, letter by letter."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from expunge.audit.stemming import stem
from expunge.data.fictitious import Archive

SUFFIXES = (
    "", "s", "es", "ies", "sses", "ied", "eed", "ed", "ing", "y", "ational", "tional", "enci", "anci", "izer", "bli",
    "abli", "alli", "entli", "eli", "ousli", "ization", "ation", "ator", "alism", "iveness", "fulness", "ousness",
    "aliti", "iviti", "biliti", "fulli", "logi", "icate", "ative", "alize", "iciti", "ical", "ful", "ness", "al",
    "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "sion", "tion", "ion", "ou", "ism",
    "ate", "iti", "ous", "ive", "ize", "e", "ll", "lle", "ly", "ologies", "ically",
)  # fmt: skip


def assert_equal(words: set[str]) -> None:
    from nltk.stem.porter import PorterStemmer

    theirs = PorterStemmer()
    wrong = {word: (stem(word), theirs.stem(word)) for word in words if stem(word) != theirs.stem(word)}
    assert not wrong


def test_worked_examples() -> None:
    pairs = {"caresses": "caress", "ties": "tie", "flies": "fli", "agreed": "agre", "hopping": "hop", "filing": "file",
             "happy": "happi", "enjoy": "enjoy", "relational": "relat", "adoption": "adopt", "controll": "control",
             "dying": "die", "archaeology": "archaeolog"}  # fmt: skip
    assert {word: stem(word) for word in pairs} == pairs


def test_every_suffix_after_many_stems(archive: Archive) -> None:
    draw = random.Random(0)
    stems = ["".join(draw.choice("aeiouybcdlst") for _ in range(draw.randrange(6))) for _ in range(150)]
    made = {a + b for a, b in itertools.product(stems, SUFFIXES)}
    doubles = {a + letter * 2 + b for a in stems[:20] for letter in "bdlstyz" for b in ("ed", "ing", "e")}
    real = {word for text in archive.texts() for word in re.findall("[a-z0-9]+", text.lower())}
    assert_equal(made | doubles | real | {"news", "sky", "howe", "cannings", "1991s", "a1ing", ""})


@pytest.mark.real
def test_the_words_of_a_benchmark(shared: Path) -> None:
    lines = (shared / "data/tofu/full.json").read_text(encoding="utf-8").splitlines()
    assert_equal({w for line in lines for w in re.findall("[a-z0-9]+", json.loads(line)["answer"].lower())})
