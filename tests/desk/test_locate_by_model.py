# SPDX-License-Identifier: Apache-2.0
"""The ways that ask a model: thresholds by hand, cosines and gradients against what autograd gives, kept rows."""

from __future__ import annotations

import json
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.data.examples import Example
from expunge.data.fictitious import build_archive
from expunge.desk.locate.config import Corpus, LocateConfig, Subject
from expunge.desk.locate.lexical import Alike
from expunge.desk.locate.meaning import Influence, Nearest, Paraphrases, Reader, random_threshold, whitening
from expunge.desk.locate.search import locate
from expunge.errors import RecipeError
from expunge.models.loading import save_model
from expunge.models.tiny import build_llama, build_tokenizer

ARCHIVE = build_archive(10, seed=0)
FACTS = [f"{fact.prompt} {fact.answer}" for fact in ARCHIVE.examples("full")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("locate") / "model"
    tokenizer = build_tokenizer(ARCHIVE.texts())
    torch.manual_seed(0)
    save_model(build_llama(len(tokenizer), hidden_size=16, layers=3, heads=2, context=64), tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def reader(model: str) -> Reader:
    return Reader(model, LocateConfig())


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in FACTS))
    return Corpus(name="facts", path=str(path))


def unlike(one: str, other: str) -> bool:
    return one == other


def test_a_threshold_by_hand() -> None:
    """Angles 0, 60, 60 (the same text) and 90 degrees: unrelated pairs have 0.866 twice, 0.5 twice, and 0."""
    angles = torch.tensor([0.0, 60.0, 60.0, 90.0]).deg2rad()
    units, texts = torch.stack([angles.cos(), angles.sin()], dim=1), ["a", "b", "b", "c"]

    def value(rate: float) -> float:
        return random_threshold(units, texts, rate, unlike).value

    # Of 6 pairs, none, 1, 2, 3 and 4 unrelated ones may exceed it.
    assert [value(rate) for rate in (0.1, 0.2, 0.4, 0.6, 0.7)] == pytest.approx(
        [0.75**0.5, 0.75**0.5, 0.5, 0.5, 0], abs=1e-6
    )
    found = random_threshold(units, texts, 0.1, unlike)
    assert (found.pairs, found.quantile) == (6, 0.9)
    assert found.median == pytest.approx(0.5, abs=1e-6)
    assert random_threshold(units, ["a"] * 4, 0.4, unlike).value == pytest.approx(0.75**0.5)  # all pairs count


def test_texts_are_alike_by_what_not_all_say() -> None:
    texts = [f"Dear Sir or Madam, {name} asks for a copy of every letter" for name in "abcdefghij"]
    alike = Alike(texts, LocateConfig())
    assert not alike(texts[0], texts[1])
    assert alike("Ada Byte was born by the sea in May", "They say ADA BYTE was born by the sea in May")


@cache
def pooled(model: str, text: str) -> torch.Tensor:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return net(ids, output_hidden_states=True).hidden_states[2][0].mean(0)  # after block 1, the middle one


def test_whitened_states_have_nearly_the_identity_for_covariance() -> None:
    """Variances 4 and 1: with a hundredth of their mean, 0.025, the whitened ones are 4 / 4.025 and 1 / 1.025."""
    states = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]]) + 5
    centre, map_ = whitening(states)
    assert centre.tolist() == [5, 5]
    white = (states - centre) @ map_
    assert (white.T @ white / 4).flatten().tolist() == pytest.approx([4 / 4.025, 0, 0, 1 / 1.025], abs=1e-5)
    assert whitening(torch.ones(3, 2))[1].tolist() == [[1, 0], [0, 1]]  # nothing varies: nothing is scaled


def test_cosines_are_those_of_whitened_mean_states(model: str, reader: Reader) -> None:
    rows, samples, others = FACTS[:40], FACTS[40:42], FACTS[50:53]
    paraphrases = Paraphrases(reader, samples, rows, false_rate=0.01, alike=unlike)
    fitted = np.stack([pooled(model, text).double().numpy() for text in rows[::2]])
    covariance = np.cov(fitted.T, bias=True)
    precision = np.linalg.inv(covariance + 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))

    def cosine(one: str, other: str) -> float:
        """After whitening, an inner product is one under the inverse of the covariance."""
        a, b = (pooled(model, text).double().numpy() - fitted.mean(0) for text in (one, other))
        return float(a @ precision @ b / np.sqrt((a @ precision @ a) * (b @ precision @ b)))

    wanted = [max(cosine(text, sample) for sample in samples) for text in others]
    assert paraphrases.cosines(others) == pytest.approx(wanted, abs=1e-3)
    assert paraphrases.cosines(samples) == pytest.approx([1, 1], abs=1e-5)
    pairs = sorted(cosine(a, b) for a, b in combinations(rows[1::2], 2))
    assert paraphrases.threshold.pairs == len(pairs) == 190
    assert paraphrases.threshold.quantile == pytest.approx(1 - 0.01 / 2)
    assert paraphrases.threshold.value == pytest.approx(pairs[-1], abs=1e-3)


def test_texts_beyond_the_context_are_read_in_chunks(reader: Reader) -> None:
    long = " ".join(FACTS[:12])
    states, owners = reader.states([FACTS[0], long, FACTS[1]])
    assert len(reader.chunks(long)) > 1
    assert all(len(chunk.ids) <= 64 for chunk in reader.chunks(long))
    assert owners == [0, *[1] * len(reader.chunks(long)), 2]
    assert torch.allclose(states[0], reader.states([FACTS[0]])[0][0], atol=1e-5)
    paraphrases = Paraphrases(reader, [FACTS[3]], FACTS[:40], false_rate=0.01, alike=unlike)
    assert paraphrases.cosines([FACTS[3], long])[0] == pytest.approx(1, abs=1e-5)


def test_influence_is_the_cosine_of_gradients_of_the_last_block(model: str, reader: Reader) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)

    def unit(text: str) -> torch.Tensor:
        ids = tokenizer(text, return_tensors="pt").input_ids
        loss = net(ids, labels=ids).loss
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.model.layers[-1].parameters()))])
        return flat / flat.norm()

    influence = Influence(reader, FACTS[:2], FACTS[10:20])
    target = unit(FACTS[0]) + unit(FACTS[1])
    wanted = [float(torch.cosine_similarity(unit(text), target, dim=0)) for text in FACTS[5:7]]
    assert [influence.cosine(text) for text in FACTS[5:7]] == pytest.approx(wanted, abs=1e-4)
    assert influence.threshold.value == pytest.approx(max(influence.cosine(text) for text in FACTS[10:20]))
    assert influence.threshold.pairs == 10


def test_the_nearest_are_kept_those_that_came_first_among_equals() -> None:
    kept, row = Nearest(2), Example(id="x", prompt="", answer="x")
    for place, value in enumerate([0.1, 0.5, 0.5, 0.9, 0.5]):
        kept.offer(value, (0, place), row)
    assert [(value, place) for value, place, _ in kept.rows()] == [(0.9, (0, 3)), (0.5, (0, 1))]
    assert kept.offered == 5


def test_a_search_by_a_model_prints_its_thresholds(model: str, corpus: Corpus) -> None:
    config = LocateConfig(ways=("exact", "paraphrase", "influence"), calibration=32, model_rows=70, influence_rows=5)
    found = locate(Subject(samples=(FACTS[4],)), [corpus], config=config, salt=b"s", model=model)
    scope = found.scope
    assert scope.thresholds["paraphrase"].pairs == 16 * 15 / 2
    assert scope.thresholds["influence"].pairs == 32
    assert (scope.corpora[0].rows, scope.corpora[0].rows_by_model) == (len(FACTS), 70)
    assert {gap.what: gap.why for gap in scope.not_searched}["rows of corpus facts in other words"] == (
        f"the model did not read the last {len(FACTS) - 70}"
    )
    own = next(one for one in found.found if one.row == 5)
    assert own.ways == ("exact", "paraphrase", "influence")
    assert own.influence == pytest.approx(1, abs=1e-5)
    above = scope.thresholds["paraphrase"].value
    assert all(one.score > above for one in found.found if "paraphrase" in one.ways)
    again = locate(Subject(samples=(FACTS[4],)), [corpus], config=config, salt=b"s", model=model)
    assert again == found


def test_too_few_rows_give_no_threshold_and_no_guess(model: str, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in FACTS[:31]))
    few = Corpus(name="few", path=str(tmp_path / "few.jsonl"))
    config = LocateConfig(ways=("exact", "paraphrase"))
    scope = locate(Subject(samples=(FACTS[4],)), [few], config=config, salt=b"s", model=model).scope
    gaps = {gap.what: gap.why for gap in scope.not_searched}
    assert gaps["way paraphrase"] == "31 rows are too few to take a threshold from"
    assert scope.by_way == {"exact": 1}
    assert scope.thresholds == {}


def test_more_paraphrases_than_are_kept_are_told(model: str, corpus: Corpus) -> None:
    config = LocateConfig(ways=("paraphrase",), false_rate=0.5, nearest=3)
    scope = locate(Subject(samples=(FACTS[4],)), [corpus], config=config, salt=b"s", model=model).scope
    assert scope.by_way == {"paraphrase": 3}
    assert "the nearest 3 were kept" in " ".join(gap.why for gap in scope.not_searched)


def test_a_block_that_the_model_has_not(model: str) -> None:
    with pytest.raises(RecipeError, match="blocks 0 to 2"):
        Reader(model, LocateConfig(layer=3))
