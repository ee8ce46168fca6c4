# SPDX-License-Identifier: Apache-2.0
"""Every objective with every optimiser, with and without a mask, on all weights and on an adapter: one step each.

What cannot be combined is refused before anything moves, and the card says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from expunge.claims import MethodCard
from expunge.data.encoding import Encoder
from expunge.data.examples import Splits
from expunge.data.fictitious import Archive
from expunge.errors import RecipeError
from expunge.methods.base import Method, MethodContext
from expunge.methods.gradient import GradientMethod
from expunge.methods.registry import methods, parse_method
from expunge.models.adapters import LoraSettings
from expunge.models.tiny import build_llama
from expunge.optim.config import CONSTANTS
from expunge.optim.masks import load_masks
from expunge.training.config import TrainingConfig

#: Those that end in the loop's own steps: the objectives, and the procedures around them that are built from them.
LOOPS = [name for name, m in methods().items() if isinstance(m, GradientMethod) or name in ("prune_first", "l1_sparse")]
#: Smaller than the defaults where these would only cost time.
QUICK: dict[str, dict[str, Any]] = {"altpo": {"alternatives": 1, "max_new_tokens": 8}, "yao": {"mismatches": 1}}
MASK = {"kind": "wagle", "ratio": 0.4, "examples": 2}


@pytest.fixture(scope="module")
def small(encoder: Encoder) -> nn.Module:
    return build_llama(len(encoder.tokenizer), hidden_size=32, layers=2, heads=2, context=128, seed=0)


@pytest.fixture
def context(archive: Archive, encoder: Encoder, small: nn.Module, tmp_path: Path) -> Callable[..., MethodContext]:
    splits = archive.splits()

    def build(number: int, **training: Any) -> MethodContext:
        settings = {"learning_rate": 1e-3, "epochs": 1, "max_steps": 1, "batch_size": 2, **training}
        return MethodContext(
            model=copy.deepcopy(small), encoder=encoder, splits=Splits(splits.forget[:2], splits.retain[:4]),
            training=TrainingConfig(**settings), seed=0, pad_id=encoder.pad_id, folder=tmp_path / str(number),
            load_base=lambda: copy.deepcopy(small),
        )  # fmt: skip

    return build


def one_step(method: Method, context: MethodContext) -> nn.Module:
    name = method.card.name
    return method.run(parse_method({"name": name, **QUICK.get(name, {})}), context).model


def stepped_or_refused(method: Method, context: MethodContext) -> nn.Module | RecipeError:
    try:
        return one_step(method, context)
    except RecipeError as error:
        return error


def refusal_is_in(card: MethodCard) -> bool:
    return any("refused" in text for text in (card.notes, *card.differences))


@pytest.mark.parametrize("name", LOOPS)
def test_one_step_of_every_combination_runs_or_is_refused(name: str, context: Any) -> None:
    method = methods()[name]
    for number, (optimizer, masked, lora) in enumerate(product(CONSTANTS, (False, True), (False, True))):
        where = f"{name} + {optimizer} + {'wagle' if masked else 'no mask'} + {'lora' if lora else 'full'}"
        given = context(
            number, optimizer={"name": optimizer}, mask=MASK if masked else {}, lora=LoraSettings(r=2) if lora else None
        )
        start = {key: p.detach().clone() for key, p in given.model.named_parameters()}
        outcome = stepped_or_refused(method, given)
        if isinstance(outcome, RecipeError):
            assert refusal_is_in(method.card), f"{where}: {outcome}"
            continue
        end = dict(outcome.named_parameters())
        moving = [key for key, p in end.items() if p.requires_grad]
        assert moving, where
        assert all(bool(torch.isfinite(p).all()) for p in end.values()), where
        if lora:
            assert any(bool((end[key] != 0).any()) for key in moving if "lora_B" in key), where
        else:
            assert any(not torch.equal(end[key], start[key]) for key in moving), where
        if masked and not lora and name != "prune_first":
            masks = load_masks(given.folder / "masks.safetensors")
            assert masks.keys() == start.keys(), where
            assert all(torch.equal(end[key][~mask], start[key][~mask]) for key, mask in masks.items()), where


def test_the_suite_covers_the_objectives_it_says_it_covers() -> None:
    wanted = {
        "ga", "grad_diff", "ga_kl", "rlabel", "idk", "dpo", "kto", "npo", "tnpo", "wtnpo", "simnpo", "undial", "wga",
        "satimp", "ceu", "pdu", "altpo", "flat", "yao", "prune_first", "l1_sparse",
    }  # fmt: skip
    assert wanted <= set(LOOPS)


@pytest.mark.parametrize("name", ["retrain", "l1_sparse"])
def test_masks_are_refused_where_they_have_no_meaning(name: str, context: Any) -> None:
    method = methods()[name]
    assert refusal_is_in(method.card)
    with pytest.raises(RecipeError, match=r"training\.mask\.kind: this procedure chooses no single weights"):
        one_step(method, context(0, mask={"kind": "random"}))


@pytest.mark.parametrize("kind", ["magnitude", "wanda"])
def test_scores_that_a_fresh_adapter_has_not_are_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="says nothing about a fresh adapter"):
        TrainingConfig(mask={"kind": kind}, lora=LoraSettings())  # type: ignore[arg-type]
