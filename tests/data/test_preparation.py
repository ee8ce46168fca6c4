# SPDX-License-Identifier: Apache-2.0
"""What becomes of a forget set before training: every step counted, by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from expunge.data.digests import data_digest
from expunge.data.examples import Example
from expunge.data.noise import NoiseConfig
from expunge.data.preparation import in_words, is_wanted, prepare, without_unlearned
from expunge.data.robust import RobustConfig
from expunge.errors import InputDataError


def facts(n: int, name: str = "q") -> list[Example]:
    return [
        Example(id=f"{name}{i}", prompt=f"What of {name}{i}?", answer=" ".join(f"{name}{i}w{k}" for k in range(5)))
        for i in range(n)
    ]


FORGET, RETAIN = facts(10), facts(20, "r")


@pytest.mark.parametrize(
    ("kind", "touched", "left"), [("mislabel", 4, 14), ("swap", 4, 10), ("drop", 4, 6), ("duplicate", 4, 14)]
)
def test_noise_is_counted(kind: str, touched: int, left: int) -> None:
    found = prepare(FORGET, RETAIN, NoiseConfig(kind=kind, rate=0.4, seed=1), RobustConfig())  # type: ignore[arg-type]
    (step,) = found.steps
    assert (step.what, step.items, step.left, len(found.examples), found.given) == ("noise", touched, left, left, 10)


def test_masking_counts_the_items_it_touches() -> None:
    found = prepare(FORGET, (), NoiseConfig(kind="mask", rate=0.02), RobustConfig())
    assert found.steps[0].items == 1  # 1 of 50 words
    assert found.to_dict()["digest"] == data_digest(found.examples) != data_digest(FORGET)


def test_overlap_takes_the_mislabelled_items_out_again() -> None:
    found = prepare(FORGET, RETAIN, NoiseConfig(kind="mislabel", rate=0.3), RobustConfig(overlap=0.7))
    assert list(found.examples) == FORGET
    assert [(step.what, step.items, step.left) for step in found.steps] == [("noise", 3, 13), ("overlap", 3, 10)]
    assert in_words(found.to_dict()) == (
        "10 items given; mislabel noise at rate 0.3 (seed 0) touched 3 and left 13; 3 left out for overlap with the "
        "retain set (threshold 0.7); 10 trained on"
    )


def test_an_item_that_is_known_no_better_is_left_out() -> None:
    prepared = prepare(FORGET[:4], (), NoiseConfig(), RobustConfig(memorised="holdout"))
    assert prepared.steps == ()
    found = without_unlearned(prepared, [0.5, 2.0, 1.6, 1.4], [2.0] * 4, against="holdout", margin=0.5)
    assert [example.id for example in found.examples] == ["q0", "q3"]  # 2.0 - 0.5 = 1.5 is the limit
    assert in_words(found.to_dict()) == (
        "4 items given; 2 left out that the model knows no better than the holdout (2 nats per token, margin 0.5); "
        "2 trained on"
    )
    with pytest.raises(InputDataError, match="all 4 were left out"):
        without_unlearned(prepared, [3.0] * 4, [2.0] * 4, against="base", margin=0.0)


def test_everything_may_overlap() -> None:
    with pytest.raises(InputDataError, match=r"data\.robust\.overlap"):
        prepare(FORGET, FORGET, NoiseConfig(), RobustConfig(overlap=1.0))


def test_what_is_asked_for() -> None:
    assert not is_wanted(NoiseConfig(), RobustConfig(margin=2.0))
    assert is_wanted(NoiseConfig(kind="mask"), RobustConfig())
    assert is_wanted(NoiseConfig(), RobustConfig(overlap=0.5))
    assert is_wanted(NoiseConfig(), RobustConfig(memorised="base"))


@pytest.mark.parametrize(
    "wrong", [{"kind": "mask", "rate": 1.01}, {"kind": "mask", "rate": -0.1}, {"kind": "fog", "rate": 0.1},
              {"rate": 0.1}, {"kind": "mask", "rate": 0.1, "seed": -1}]
)  # fmt: skip
def test_noise_that_cannot_be_meant(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NoiseConfig(**wrong)  # type: ignore[arg-type]
