# SPDX-License-Identifier: Apache-2.0
"""Models that answer as one: against numbers worked by hand, and read through the functions that read any model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data.encoding import Encoder
from expunge.data.fictitious import Archive
from expunge.models.adapters import LoraSettings, add_lora
from expunge.models.digests import model_digest
from expunge.models.tiny import build_llama
from expunge.signals.ensemble import JOINED, Aggregation, Ensemble, aggregate
from expunge.signals.generation import generate, sample
from expunge.signals.likelihood import score

#: Two members, one position, three tokens: (0.7, 0.2, 0.1) and (0.1, 0.8, 0.1).
P_SCV = torch.tensor([[[0.7, 0.2, 0.1]], [[0.1, 0.8, 0.1]]])
ROOTS = [math.sqrt(0.07), math.sqrt(0.16), math.sqrt(0.01)]
WORKED: dict[Aggregation, list[float]] = {
    "mean_probability": [0.4, 0.5, 0.1],
    "mean_log_probability": [root / sum(ROOTS) for root in ROOTS],
    "vote": [(1 + 1 / 3) / 3, (1 + 1 / 3) / 3, (1 / 3) / 3],
    "confidence": [0.1, 0.8, 0.1],
}


@pytest.mark.parametrize("kind", JOINED)
def test_worked_numbers(kind: Aggregation) -> None:
    found = aggregate(P_SCV.log(), kind).exp()
    torch.testing.assert_close(found, torch.tensor([WORKED[kind]]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", JOINED)
def test_every_aggregate_is_a_distribution(kind: Aggregation) -> None:
    logp_SCV = torch.log_softmax(torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(0)) * 4, dim=2)
    torch.testing.assert_close(aggregate(logp_SCV, kind).exp().sum(1), torch.ones(7))


def test_ties_go_to_the_lowest_id_and_the_lowest_member() -> None:
    tied = torch.tensor([[[0.25, 0.25, 0.5, 0.0]], [[0.25, 0.25, 0.0, 0.5]]]).clamp_min(1e-30).log()
    assert aggregate(tied, "vote").argmax().item() == 2  # one voice each for 2 and 3
    assert aggregate(tied, "confidence").argmax().item() == 2  # both are 0.5 sure


def test_weights_cannot_be_joined_as_answers() -> None:
    assert set(get_args(Aggregation)) - set(JOINED) == {"average", "union"}
    with pytest.raises(ValueError, match="weights"):
        aggregate(P_SCV.log(), "average")


@pytest.fixture(scope="module")
def several(encoder: Encoder) -> list[nn.Module]:
    size = len(encoder.tokenizer)
    return [build_llama(size, hidden_size=16, layers=1, heads=2, context=128, seed=seed) for seed in range(3)]


def identical(model: nn.Module, kind: Aggregation) -> Ensemble:
    return Ensemble([model] * 3, kind)


@pytest.mark.parametrize("kind", ["mean_probability", "mean_log_probability", "confidence"])
def test_identical_members_score_as_the_one(
    kind: Aggregation, target: nn.Module, archive: Archive, encoder: Encoder
) -> None:
    items = [row.encoded for row in encoder.encode_many(archive.training_examples("full")[:6], where="train")]
    one, all_ = (score(m, items, pad_id=encoder.pad_id) for m in (target, identical(target, kind)))
    for a, b in zip(one, all_, strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5)
        np.testing.assert_allclose(a.mu, b.mu, atol=2e-4)
        assert (a.correct == b.correct).all()


@pytest.mark.parametrize("kind", JOINED)
def test_identical_members_write_as_the_one(
    kind: Aggregation, target: nn.Module, archive: Archive, encoder: Encoder
) -> None:
    prompts = [encoder.prompt_ids(example) for example in archive.training_examples("full")[:4]]
    texts = [generate(m, encoder.tokenizer, prompts, max_new_tokens=6) for m in (target, identical(target, kind))]
    assert texts[0] == texts[1]


def test_scores_are_those_of_the_mixture(several: list[nn.Module], archive: Archive, encoder: Encoder) -> None:
    items = [row.encoded for row in encoder.encode_many(archive.training_examples("full")[:3], where="train")]
    each = [score(model, items, pad_id=encoder.pad_id) for model in several]
    mixed = score(Ensemble(several, "mean_probability"), items, pad_id=encoder.pad_id)
    for k in range(len(items)):
        naive = np.log(np.mean([np.exp(scores[k].logp.astype(np.float64)) for scores in each], axis=0))
        np.testing.assert_allclose(mixed[k].logp, naive, atol=1e-5)


def test_a_sample_of_an_ensemble(several: list[nn.Module], encoder: Encoder) -> None:
    found = sample(
        Ensemble(several, "vote"), encoder.tokenizer, [[5, 6], [7]], max_new_tokens=3, temperature=1.0, seed=1
    )
    assert len(found) == 2


def test_adapters_on_one_frozen_model_answer_as_models_of_their_own(encoder: Encoder) -> None:
    settings, size = LoraSettings(r=2), len(encoder.tokenizer)
    items = [row.encoded for row in encoder.encode_many(_one(), where="x")]

    def adapted(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = add_lora(build_llama(size, hidden_size=16, layers=1, heads=2, context=128), settings)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.5)
        return model

    alone = [adapted(seed) for seed in (1, 2)]
    shared = adapted(1)
    shared.add_adapter("other", shared.peft_config["default"])  # type: ignore[operator, union-attr]
    others = {name.replace(".default.", ".other."): p for name, p in alone[1].named_parameters() if "lora_" in name}
    shared.load_state_dict(others, strict=False)
    one = score(Ensemble(alone, "mean_probability"), items, pad_id=0)[0]
    two = score(Ensemble([shared], "mean_probability", adapters=["default", "other"]), items, pad_id=0)[0]
    np.testing.assert_allclose(one.logp, two.logp, atol=1e-6)
    assert np.abs(one.logp - score(alone[0], items, pad_id=0)[0].logp).max() > 1e-3


def _one() -> list:  # type: ignore[type-arg]
    from expunge.data.examples import Example

    return [Example(id="x", prompt="Who is it", answer="It is someone")]


def test_digests_tell_members_and_their_joining_apart(several: list[nn.Module]) -> None:
    made = [Ensemble(several, "vote"), Ensemble(several, "confidence"), Ensemble(several[:2], "vote")]
    assert len({model_digest(model) for model in made}) == 3
    assert model_digest(Ensemble(several, "vote")) == model_digest(made[0])


def test_members_of_unlike_vocabularies_are_refused(fresh: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Ensemble([fresh(), build_llama(300, hidden_size=16, layers=1, heads=2)], "vote")
    with pytest.raises(ValueError, match="members"):
        Ensemble([], "vote")
