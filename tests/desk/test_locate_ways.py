# SPDX-License-Identifier: Apache-2.0
"""What each way by text finds: folded words, n-gram overlap and Jaccard by hand and against a naive oracle."""

from __future__ import annotations

from random import Random

import pytest

from expunge.data.examples import Example, Turn
from expunge.desk.locate.config import LEXICAL, Corpus, LocateConfig, Subject, Way
from expunge.desk.locate.lexical import Boilerplate, Budget, Matcher, NearDuplicates, Passages
from expunge.desk.locate.words import Phrases, folded, grams, words
from expunge.errors import RecipeError


def test_words_are_folded_and_parted_alike_however_they_are_written() -> None:
    assert words("José  O'Brien_Smith, +49-30/1234 <JOSE@x.org>") == [
        "jose", "o", "brien", "smith", "49", "30", "1234", "jose", "x", "org",
    ]  # fmt: skip
    assert words("ＡＤＡ ﬁle straße İzmir so\u00adft Ze\u200bro") == ["ada", "file", "strasse", "izmir", "soft", "zero"]
    assert words("Ёлкин Σίσυφος") == ["елкин", "σισυφοσ"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs stay
    assert words("王小明住在京") == list("王小明住在京")  # no spaces: each character is a word
    assert words("각하") == ["각하"]
    assert words("...") == []
    assert folded("É") == folded("e\u0301") == "e"


def test_identifiers_are_found_as_whole_words_only() -> None:
    phrases = Phrases(["Ann Lee", "+49 (30) 1234", "王小明", "!"])
    for text in ("ann  LEE went", "by Ann-Lee.", "Änn Lée", "call 49 30 1234", "姓名王小明住"):
        assert phrases.among(words(text)), text
    for text in ("Joann Lee", "Ann Leeds", "Ann B. Lee", "Lee Ann", "49 30 12345", "王小", "Ann"):
        assert not phrases.among(words(text)), text
    assert not Phrases(["!"])


def test_ngrams_of_short_texts_are_the_whole_text() -> None:
    assert list(grams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")]
    assert list(grams(["a", "b"], 5)) == [("a", "b")]
    assert list(grams(["a", "b"], 2)) == [("a", "b")]
    assert list(grams([], 2)) == []


def test_overlap_by_hand() -> None:
    config = LocateConfig(ngram=2, overlap=0.5, passage=4)
    passages = Passages([list("abcdef"), list("xyz")], config, Budget(16))
    assert passages.overlap(list("abq")) == 0.5  # ab of ab, bq
    assert passages.overlap(list("qabr")) == 0.0  # ab of qa, ab, br
    assert passages.overlap(list("qqqqxyzqqqq")) == 1.0  # the sample whole, in other text
    long = [*"abcde", *(f"q{k}" for k in range(20))]
    assert passages.overlap(long) == 0.8  # 4 of 5 of the sample
    config = LocateConfig(ngram=2, overlap=1.0, passage=4)
    assert Passages([list("abcdef")], config, Budget(16)).overlap(long) == 0.8  # by the passage of 4
    assert Passages([list("abcdef")], config, Budget(16)).overlap(list("abcd")) == 1.0
    assert Passages([list("abcdef")], config, Budget(16)).overlap([*"abcdz", *"qr"]) == 0.0


def jaccard(one: list[str], other: list[str], n: int) -> float:
    a, b = set(grams(one, n)), set(grams(other, n))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_of_a_naive_search() -> None:
    """MinHash only names candidates: no similarity differs, and at most a few rows close to the threshold are lost."""
    rng, config = Random(0), LocateConfig(near=0.5)
    samples = [[f"w{rng.randrange(300)}" for _ in range(60)] for _ in range(15)]
    search = NearDuplicates(samples, config, Budget(64))
    found = wanted = 0
    for _ in range(600):
        row = [word if rng.random() > 0.08 else "other" for word in rng.choice(samples)]
        best = max(jaccard(row, sample, 3) for sample in samples)
        value = search.jaccard(row)
        assert value in (0.0, pytest.approx(best))
        assert value == 0.0 or best >= 0.5
        wanted += best >= 0.5
        found += value > 0
    assert 200 < wanted < 550
    assert found >= 0.99 * wanted


def matched(example: Example, **looked_for: tuple[str, ...]) -> set[Way]:
    return set(Matcher(Subject(**looked_for), LocateConfig(), Budget(16)).ways(example))


def test_what_every_row_says_does_not_count() -> None:
    """Of 100 rows, `a b` stands in 6 and `b c` in 5: above 5% is the first alone; few rows are never many."""
    budget = Budget(16)
    rows = [Example(id="", prompt="", answer=text, kind="text") for text in ["a b c"] * 5 + ["a b"] + ["x y"] * 94]
    boilerplate = Boilerplate([list("abc"), list("bcd")], [2], budget)
    for row in rows:
        boilerplate.count(row)
    assert boilerplate.common(0.05) == {("a", "b")}
    assert boilerplate.common(0.04) == {("a", "b"), ("b", "c")}
    few = Boilerplate([list("abc")], [2, 3], budget)
    for row in rows[:4]:
        few.count(row)
    assert few.common(0.01) == frozenset()
    few.count(rows[4])
    assert few.common(0.01) == {("a", "b"), ("b", "c"), ("a", "b", "c")}


def test_common_ngrams_count_on_neither_side() -> None:
    config = LocateConfig(ngram=2, overlap=0.5, shingle=2, near=0.3)
    common = {("a", "b"), ("b", "c")}
    passages = Passages([list("abcde")], config, Budget(16), common)
    assert passages.overlap(list("abcxy")) == 0.0
    assert passages.overlap(list("abcdx")) == 0.5  # cd of cd, dx
    near = NearDuplicates([list("abcde")], config, Budget(16), common)
    assert near.jaccard(list("abcxy")) == 0.0
    assert near.jaccard(list("abcdx")) == pytest.approx(1 / 3)  # cd of cd, de, dx


def test_each_way_sees_what_it_is_for() -> None:
    row = Example(id="r7", prompt="Where does Ann Lee live?", answer="Ann Lee lives at 3 Larch Lane in Oxbow.",
                  subject="tenant-9")  # fmt: skip
    assert matched(row, record_ids=("r7",)) == {"id"}
    assert matched(row, record_ids=("R7", "r")) == set()
    assert matched(row, identifiers=("ann lee",)) == matched(row, identifiers=("Tenant 9",)) == {"identifier"}
    assert matched(row, samples=("ann lee  lives at 3 larch lane in OXBOW.",)) == {"exact", "ngram", "near"}
    assert matched(row, samples=("Where does Ann Lee live?",)) == {"exact", "ngram"}
    whole = "Where does Ann Lee live? Ann Lee lives at 3 Larch Lane in Oxbow."
    assert matched(row, samples=(whole,)) == {"exact", "ngram", "near"}
    assert matched(row, samples=("In May, Ann Lee lives at 3 Larch Lane in Oxbow",)) == {"ngram", "near"}
    assert matched(row, samples=("We heard that 3 Larch Lane in Oxbow is where Ann Lee lives at",)) == set()
    assert matched(row, samples=("Bo Chip solders all day and all night in Oxbow.",)) == set()
    turns = (Turn("user", "I am Ann Lee."), Turn("assistant", "Hello."), Turn("user", "Thanks"))
    chat = Example(id="c", kind="chat", prompt="Thanks", answer="You are welcome.", turns=turns)
    assert matched(chat, identifiers=("Ann Lee",)) == {"identifier"}


def test_only_the_ways_asked_for_are_gone() -> None:
    row = Example(id="r", prompt="", answer="Ann Lee lives at 3 Larch Lane in Oxbow.", kind="text")
    subject = Subject(identifiers=("Ann Lee",), record_ids=("r",), samples=(row.answer,))
    for way in LEXICAL:
        assert set(Matcher(subject, LocateConfig(ways=(way,)), Budget(16)).ways(row)) == {way}
    assert set(Matcher(subject, LocateConfig(), Budget(16)).ways(row)) == set(LEXICAL)


def test_a_search_that_takes_more_memory_than_it_may_says_so() -> None:
    sample = " ".join(f"w{k}" for k in range(60_000))
    with pytest.raises(RecipeError, match=r"locate.memory_mb: is too little for the n-grams of the samples .got 16"):
        Matcher(Subject(samples=(sample,)), LocateConfig(memory_mb=16), Budget(16))
    budget = Budget(16)
    row = Example(id="r", prompt="", answer="x" * 1000, kind="text")
    for _ in range(16 * 2**20 // 7000):
        budget.keep(row)
    with pytest.raises(RecipeError, match="rows that were found"):
        budget.keep(row)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="names nobody"):
        Subject(identifiers=(" ",))
    with pytest.raises(ValueError, match="why_not"):
        Corpus(name="logs", path="", searchable=False)
