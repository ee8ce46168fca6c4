# SPDX-License-Identifier: Apache-2.0
"""Content words by a trained tagger: spans in characters, tags that count, and what is said where it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.data.encoding import Encoder
from expunge.data.examples import Example
from expunge.data.tagged_words import nltk_spans
from expunge.errors import MissingDependency
from expunge.signals.attention import content_tokens

nltk = pytest.importorskip("nltk", reason="NLTK comes with the extra tagger")

SENTENCES = [
    [("Ann", "NNP"), ("Moss", "NNP"), ("was", "VBD"), ("born", "VBN"), ("in", "IN"), ("Lisbon", "NNP"), (".", ".")],
    [("The", "DT"), ("old", "JJ"), ("baker", "NN"), ("taught", "VBD"), ("her", "PRP"), ("3", "CD"), ("songs", "NNS"),
     (".", ".")],
] * 4  # fmt: skip


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tagger of two sentences, where NLTK looks for its own."""
    tagger = nltk.tag.PerceptronTagger(load=False)
    tagger.train(SENTENCES)
    folder = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    for value, name in zip(tagger.encode_json_obj(), tagger.param_files("eng"), strict=True):
        (folder / name).write_text(json.dumps(value))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


@pytest.mark.usefixtures("trained")
def test_nouns_verbs_adjectives_and_numbers_count_where_they_stand() -> None:
    text = "The old baker taught her 3 songs."
    assert [text[start:end] for start, end in nltk_spans()(text)] == ["old", "baker", "taught", "3", "songs"]
    text = "Ann Moss was born in Lisbon."
    assert [text[start:end] for start, end in nltk_spans()(text)] == ["Ann", "Moss", "was", "born", "Lisbon"]
    assert nltk_spans()("") == []


@pytest.mark.usefixtures("trained")
def test_tokens_follow_the_tagger(encoder: Encoder) -> None:
    item = encoder.encode(Example(id="a", prompt="Ann Moss was born in", answer="Lisbon."))
    marks = content_tokens(encoder.tokenizer, item, words_of=nltk_spans())
    listed = content_tokens(encoder.tokenizer, item)
    said = [encoder.tokenizer.decode([i]) for i, a, b in zip(item.ids, marks, listed, strict=True) if a and not b]
    assert "".join(said).strip() == "was"  # a verb to the tagger, a closed class to the list
    assert any(a and b for a, b in zip(marks, listed, strict=True))


def test_without_its_data_or_the_library_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(MissingDependency, match=r"nltk\.downloader averaged_perceptron_tagger_eng"):
        nltk_spans()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingDependency, match=r"expunge\[tagger\]"):
        nltk_spans()
