# SPDX-License-Identifier: Apache-2.0
"""The ways that read texts alone: ids, equal texts, identifiers, n-grams, near-duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from datasketch import MinHash, MinHashLSH

from expunge.data.examples import Example
from expunge.desk.locate.config import LocateConfig, Subject, Way
from expunge.desk.locate.words import Gram, Phrases, grams, words
from expunge.errors import RecipeError
from expunge.ledger.salts import normalised

#: Bytes that one n-gram takes in an index, and one kept row beside its text: estimates from above.
_GRAM, _ROW = 400, 3000
#: Rows that may share an n-gram before it can be boilerplate, however few rows there are.
_FEW = 4


class Budget:
    """Counts the memory of a search.

    Args:
        mib: how much it may take.
    """

    def __init__(self, mib: int) -> None:
        self._mib, self._left = mib, mib << 20

    def take(self, size: int, what: str) -> None:
        """Account for `size` bytes.

        Raises:
            RecipeError: if there is no room for them.
        """
        self._left -= size
        if self._left < 0:
            raise RecipeError(f"is too little for {what}", field="locate.memory_mb", value=self._mib,
                              remedy="Raise it, or look for less at a time")  # fmt: skip

    def keep(self, example: Example) -> None:
        """Account for a row that is kept."""
        text = len(searched_text(example)) + len(example.paraphrased_answer or "") + sum(
            map(len, example.perturbed_answers))  # fmt: skip
        self.take(4 * text + _ROW, "the rows that were found; a very common identifier finds very many")


def searched_text(example: Example) -> str:
    """Return what of a row a model is trained on, as one text: all turns or the prompt, then the answer."""
    before = [turn.content for turn in example.turns] or [example.prompt]
    return "\n".join([*(text for text in before if text), example.answer])


class Boilerplate:
    """Counts in how many rows the n-grams of samples stand: what every row says tells nothing about one.

    Args:
        samples: words of each.
        sizes: words of an n-gram, several.
    """

    def __init__(self, samples: Sequence[Sequence[str]], sizes: Collection[int], budget: Budget) -> None:
        self._sizes, self._rows = sorted(set(sizes)), 0
        wanted = [set(grams(sample, n)) for n in self._sizes for sample in samples]
        budget.take(_GRAM * sum(map(len, wanted)), "the n-grams of the samples")
        self._wanted = frozenset[Gram]().union(*wanted)
        self._counts = Counter[Gram]()

    def count(self, example: Example) -> None:
        """Count one row."""
        self._rows += 1
        found = words(searched_text(example))
        for n in self._sizes:
            self._counts.update(self._wanted.intersection(grams(found, n)))

    def common(self, share: float) -> frozenset[Gram]:
        """Return the n-grams that stand in more than this share of the rows, and in more than a few."""
        least = max(_FEW, share * self._rows)
        return frozenset(gram for gram, count in self._counts.items() if count > least)


class Matcher:
    """Finds rows that are, hold or resemble what is looked for.

    Args:
        subject: what is looked for.
        config: by which ways.
        budget: of memory.
        common: n-grams that do not count.
    """

    def __init__(self, subject: Subject, config: LocateConfig, budget: Budget, common: Collection[Gram] = ()) -> None:
        wanted = {way: way in config.ways for way in ("id", "exact", "identifier", "ngram", "near")}
        samples = [words(text) for text in subject.samples]
        self._ids = frozenset(subject.record_ids if wanted["id"] else ())
        texts = [normalised(text) for text in subject.samples if text.strip()] if wanted["exact"] else []
        budget.take(sum(100 + 4 * len(text) for text in texts), "the samples")
        self._exact = frozenset(texts)
        self._phrases = Phrases(subject.identifiers if wanted["identifier"] else ())
        self._passages = Passages(samples if wanted["ngram"] else [], config, budget, common)
        self._near = NearDuplicates(samples if wanted["near"] else [], config, budget, common)

    def ways(self, example: Example) -> dict[Way, float]:
        """Return the ways by which a row is found, each with its similarity in 0..1."""
        found: dict[Way, float] = {}
        text = searched_text(example)
        if example.id in self._ids:
            found["id"] = 1.0
        if self._exact and not self._exact.isdisjoint(map(normalised, {text, example.prompt, example.answer})):
            found["exact"] = 1.0
        own = words(text)
        if self._phrases and (self._phrases.among(own) or self._phrases.among(words(example.subject))):
            found["identifier"] = 1.0
        if similarity := self._passages.overlap(own):
            found["ngram"] = similarity
        if similarity := self._near.jaccard(own):
            found["near"] = similarity
        return found


class Passages:
    """Finds texts that share n-grams with samples: a part of one, a text around one, or a passage of it.

    Args:
        samples: words of each.
        config: n, and how much must be shared.
        budget: of memory.
        common: n-grams that count on neither side.
    """

    def __init__(
        self, samples: Sequence[Sequence[str]], config: LocateConfig, budget: Budget, common: Collection[Gram] = ()
    ) -> None:
        self._n, self._least, self._passage = config.ngram, config.overlap, config.passage
        self._common = frozenset(common)
        self._holders: dict[Gram, list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        for number, sample in enumerate(samples):
            own = set(grams(sample, self._n)) - self._common
            budget.take(_GRAM * len(own), "the n-grams of the samples")
            self._sizes.append(len(own))
            for gram in own:
                self._holders[gram].append(number)

    def overlap(self, found: Sequence[str]) -> float:
        """Return the largest overlap with a sample that counts, |A and B| / min(|A|, |B|) in 0..1, or 0."""
        if self._holders.keys().isdisjoint(grams(found, self._n)):
            return 0.0
        own = set(grams(found, self._n)) - self._common
        shared = Counter(number for gram in own for number in self._holders.get(gram, ()))
        best = 0.0
        for number, count in shared.items():
            share = count / min(len(own), self._sizes[number])
            if share >= self._least or count >= self._passage:
                best = max(best, share)
        return best


class Alike:
    """Tells whether two texts are alike by their n-grams, as `Passages` counts them.

    Args:
        texts: what is random among them is what most of them say.
        config: n, and how much must be shared.
    """

    def __init__(self, texts: Sequence[str], config: LocateConfig) -> None:
        counts = Counter(gram for text in texts for gram in set(grams(words(text), config.ngram)))
        self._common = frozenset(
            gram for gram, count in counts.items() if count > max(_FEW, config.common * len(texts))
        )
        self._config = config

    def __call__(self, one: str, other: str) -> bool:
        """Return whether they are."""
        samples, budget = [words(one)], Budget(self._config.memory_mb)
        return Passages(samples, self._config, budget, self._common).overlap(words(other)) > 0


class NearDuplicates:
    """Finds texts whose shingles are nearly those of a sample.

    A row whose shingles are too rarely those of any sample cannot reach the threshold and is passed over, which loses
    nothing; MinHash then names the samples to compare with, and the Jaccard similarity itself decides.

    Args:
        samples: words of each.
        config: words of a shingle, permutations, threshold.
        budget: of memory.
        common: shingles that count on neither side.

    Source: Broder, On the resemblance and containment of documents, 1997.
    """

    def __init__(
        self, samples: Sequence[Sequence[str]], config: LocateConfig, budget: Budget, common: Collection[Gram] = ()
    ) -> None:
        self._n, self._least, self._common = config.shingle, config.near, frozenset(common)
        self._samples = [frozenset(grams(sample, self._n)) - self._common for sample in samples]
        budget.take(_GRAM * sum(map(len, self._samples)), "the shingles of the samples")
        budget.take(32 * config.permutations * len(self._samples), "the MinHash signatures of the samples")
        self._any = frozenset[Gram]().union(*self._samples)
        self._empty = MinHash(num_perm=config.permutations, seed=1)
        # A sample that is not named is not found, and one too many costs a comparison: so more are named.
        self._index = MinHashLSH(threshold=0.7 * self._least, num_perm=config.permutations, weights=(0.1, 0.9))
        for number, sample in enumerate(self._samples):
            if sample:
                self._index.insert(number, self._signature(sample))

    def jaccard(self, found: Sequence[str]) -> float:
        """Return the largest Jaccard similarity to a sample that counts, in 0..1, or 0."""
        if self._any.isdisjoint(grams(found, self._n)):
            return 0.0
        own = frozenset(grams(found, self._n)) - self._common
        if len(own & self._any) < self._least * len(own):
            return 0.0
        best = 0.0
        for number in self._index.query(self._signature(own)):
            sample = self._samples[number]
            shared = len(own & sample)
            best = max(best, shared / (len(own) + len(sample) - shared))
        return best if best >= self._least else 0.0

    def _signature(self, own: frozenset[Gram]) -> MinHash:
        signature = self._empty.copy()
        signature.update_batch(" ".join(gram).encode() for gram in own)
        return signature
