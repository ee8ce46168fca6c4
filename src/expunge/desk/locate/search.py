# SPDX-License-Identifier: Apache-2.0
"""The search: a pass that counts what every row says, a pass by text, one more where a model is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from expunge.data.examples import Example
from expunge.data.loaders import stream_examples
from expunge.desk.lineage import Lineage
from expunge.desk.locate.config import BY_MODEL, Corpus, LocateConfig, Subject, Way
from expunge.desk.locate.gaps import gaps
from expunge.desk.locate.lexical import Alike, Boilerplate, Budget, Matcher, searched_text
from expunge.desk.locate.scope import (
    CorpusScope,
    Found,
    Located,
    NotSearched,
    RecordDigest,
    Scope,
    Threshold,
    ordered,
    seen,
    text_of,
)
from expunge.desk.locate.words import Gram, grams, words
from expunge.errors import RecipeError
from expunge.ledger.salts import salted_digest

if TYPE_CHECKING:
    from expunge.desk.locate.meaning import Reader

#: Rows that a model reads at a time.
_BLOCK = 256
#: Fewest random rows that a threshold can be taken from.
_FEW = 32


@dataclass(slots=True)
class Hit:
    """A row that was found."""

    example: Example
    scores: dict[Way, float] = field(default_factory=dict)
    influence: float | None = None


def locate(
    subject: Subject, corpora: Sequence[Corpus], *, config: LocateConfig, salt: bytes, model: str | None = None,
    lineage: Lineage | None = None,
) -> Located:  # fmt: skip
    """Find what concerns a subject in the corpora, and what saw it.

    Corpora are read row by row and never held; only rows that were found are kept.

    Args:
        subject: what is looked for.
        corpora: where, at least one, of different names.
        config: by which ways.
        salt: under which records are written into the scope.
        model: folder or hub id, for the ways `paraphrase` and `influence`.
        lineage: which artefacts saw which corpora.

    Raises:
        RecipeError: for no corpora, two of one name, a way that needs a model without one, or a search that takes
            more memory than it may.
        InputDataError: if a corpus cannot be read.
    """
    names = [corpus.name for corpus in corpora]
    if not names or len(set(names)) < len(names):
        raise RecipeError("needs at least one corpus, and names that differ", field="corpora", value=names,
                          remedy="Give NAME=FILE for each")  # fmt: skip
    by_model = [way for way in config.ways if way in BY_MODEL and subject.samples]
    if by_model and model is None:
        raise RecipeError(f"{by_model[0]} needs a model", field="locate.ways", value=by_model[0],
                          remedy="Give the model that was trained on the corpora, or leave the way out")  # fmt: skip
    search = _Search(subject, corpora, config)
    search.by_text(bool(by_model))
    if by_model and model is not None:
        search.by_model(model)
    return search.located(salt, lineage)


class _Search:
    def __init__(self, subject: Subject, corpora: Sequence[Corpus], config: LocateConfig) -> None:
        self.subject, self.corpora, self.config = subject, corpora, config
        self.budget = Budget(config.memory_mb)
        self.hits: dict[tuple[int, int], Hit] = {}
        self.rows, self.rows_by_model = Counter[int](), Counter[int]()
        self.random_rows: list[str] = []
        self.thresholds: dict[Way, Threshold] = {}
        self.notes: list[NotSearched] = []

    def _stream(self) -> Iterator[tuple[int, int, Example]]:
        for number, corpus in enumerate(self.corpora):
            if corpus.searchable:
                examples = stream_examples(corpus.path, name=corpus.name, columns=corpus.columns or None)
                for row, example in enumerate(examples, start=1):
                    yield number, row, example

    def by_text(self, sampling: bool) -> None:
        """Look at every row; draw random rows on the way if `sampling`."""
        matcher = Matcher(self.subject, self.config, self.budget, self._common())
        rng, count = Random(self.config.seed), 0
        for number, row, example in self._stream():
            self.rows[number] = row
            if scores := matcher.ways(example):
                self._hit(number, row, example).scores.update(scores)
            if sampling:
                count += 1
                self._draw(example, count, rng)
        rng.shuffle(self.random_rows)

    def _common(self) -> frozenset[Gram]:
        """Return the n-grams of the samples that do not count."""
        config, samples = self.config, [words(text) for text in self.subject.samples]
        pairs: tuple[tuple[Way, int], ...] = (("ngram", config.ngram), ("near", config.shingle))
        sizes = [n for way, n in pairs if way in config.ways]
        if not (sizes and samples):
            return frozenset()
        boilerplate = Boilerplate(samples, sizes, self.budget)
        for _, _, example in self._stream():
            boilerplate.count(example)
        common = boilerplate.common(config.common)
        for way, n in pairs:
            bare = sum(common.issuperset(grams(sample, n)) for sample in samples if sample)
            if bare:
                self._note(f"{bare} samples say only what more than {config.common:.0%} of all rows say", way)
        return common

    def _hit(self, number: int, row: int, example: Example) -> Hit:
        if (number, row) not in self.hits:
            self.budget.keep(example)
            self.hits[number, row] = Hit(example)
        return self.hits[number, row]

    def _draw(self, example: Example, count: int, rng: Random) -> None:
        """Keep the row with the chance that makes all rows so far equally likely. Source: Vitter, 1985, algorithm R."""
        size = self.config.calibration
        if count <= size:
            self.random_rows.append(searched_text(example))
        elif (place := rng.randrange(count)) < size:
            self.random_rows[place] = searched_text(example)

    def by_model(self, model: str) -> None:
        """Have a model read rows: those near to a sample, and among the nearest those with like gradients."""
        from expunge.desk.locate.meaning import Nearest, Paraphrases, Reader

        config, samples = self.config, [text for text in self.subject.samples if text.strip()]
        if len(self.random_rows) < _FEW:
            self._note(f"{len(self.random_rows)} rows are too few to take a threshold from", *BY_MODEL)
            return
        reader = Reader(model, config)
        paraphrases = Paraphrases(
            reader, samples, self.random_rows, false_rate=config.false_rate, alike=Alike(self.random_rows, config)
        )
        near, nearest = Nearest(config.nearest), Nearest(config.influence_rows)
        rows = (entry for entry in self._stream() if entry[1] <= config.model_rows)
        while block := list(islice(rows, _BLOCK)):
            cosines = paraphrases.cosines([searched_text(example) for _, _, example in block])
            for (number, row, example), cosine in zip(block, cosines, strict=True):
                self.rows_by_model[number] = row
                nearest.offer(cosine, (number, row), example)
                if cosine > paraphrases.threshold.value:
                    near.offer(cosine, (number, row), example)
        if "paraphrase" in config.ways:
            self.thresholds["paraphrase"] = paraphrases.threshold
            for cosine, (number, row), example in near.rows():
                self._hit(number, row, example).scores["paraphrase"] = cosine
            if near.offered > config.nearest:
                self._note(f"{near.offered} rows are that near; the nearest {config.nearest} were kept", "paraphrase")
        if "influence" in config.ways:
            self._by_gradient(reader, samples, [(place, example) for _, place, example in nearest.rows()])

    def _by_gradient(self, reader: Reader, samples: list[str], rows: list[tuple[tuple[int, int], Example]]) -> None:
        from expunge.desk.locate.meaning import Influence

        influence = Influence(reader, samples, self.random_rows)
        self.thresholds["influence"] = influence.threshold
        candidates = {place: hit.example for place, hit in self.hits.items()} | dict(rows)
        for (number, row), example in candidates.items():
            cosine = influence.cosine(searched_text(example))
            if cosine is not None and cosine > influence.threshold.value:
                self._hit(number, row, example).scores["influence"] = cosine
            if cosine is not None and (number, row) in self.hits:
                self.hits[number, row].influence = cosine

    def _note(self, why: str, *ways: Way) -> None:
        self.notes += [NotSearched(what=f"way {way}", why=why) for way in ways if way in self.config.ways]

    def located(self, salt: bytes, lineage: Lineage | None) -> Located:
        """Return what was found."""
        config, places = self.config, sorted(self.hits)
        hits = [(self.corpora[number], row, self.hits[number, row]) for number, row in places]
        found = [
            Found(corpus.name, row, hit.example.id, ordered(hit.scores, config.ways), max(hit.scores.values()),
                  hit.influence)
            for corpus, row, hit in hits
        ]  # fmt: skip
        trained = [(corpus, row, hit.example) for corpus, row, hit in hits if corpus.role == "train"]
        records = tuple(
            RecordDigest(corpus=corpus.name, digest=salted_digest(salt, text_of(hit.example)),
                         ways=ordered(hit.scores, config.ways))
            for corpus, _, hit in hits
        )  # fmt: skip
        concerned = list(dict.fromkeys(corpus.name for corpus, _, _ in hits))
        scope = Scope(
            looked_for={name: len(texts) for name, texts in self.subject.model_dump().items()}, settings=config,
            thresholds=self.thresholds, corpora=tuple(map(self._corpus, range(len(self.corpora)))), records=records,
            artefacts=seen(lineage.saw(concerned) if lineage is not None else []),
            not_searched=(*gaps(self.subject, self.corpora, config, lineage, concerned, self._unread()), *self.notes),
        )  # fmt: skip
        return Located(scope, found, _unique(trained))

    def _corpus(self, number: int) -> CorpusScope:
        corpus, hits = self.corpora[number], [hit for (place, _), hit in self.hits.items() if place == number]
        counts = Counter(way for hit in hits for way in hit.scores)
        return CorpusScope(
            name=corpus.name, role=corpus.role, searched=corpus.searchable, rows=self.rows[number],
            rows_by_model=self.rows_by_model[number], found=len(hits),
            by_way={way: counts[way] for way in self.config.ways if counts[way]},
        )  # fmt: skip

    def _unread(self) -> dict[str, int]:
        """Return by corpus how many rows the model did not read, where it read any."""
        return {corpus.name: left for number, corpus in enumerate(self.corpora)
                if self.rows_by_model[number] and (left := self.rows[number] - self.rows_by_model[number])}  # fmt: skip


def _unique(rows: Sequence[tuple[Corpus, int, Example]]) -> list[Example]:
    """Return the examples; an id that came before is told apart by corpus and row."""
    taken, out = set[str](), list[Example]()
    for corpus, row, example in rows:
        name = example.id if example.id not in taken else f"{example.id}@{corpus.name}:{row}"
        taken.add(name)
        out.append(replace(example, id=name))
    return out
